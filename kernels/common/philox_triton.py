"""philox.h in Triton: Philox4x32-10 (Salmon et al., SC 2011), the first word of the output."""

import triton
import triton.language as tl


@triton.jit
def multiply(a, b: tl.constexpr):
    """(high, low) words of a * b."""
    product = a.to(tl.uint64) * b
    return (product >> 32).to(tl.uint32), (product & 0xFFFFFFFF).to(tl.uint32)


@triton.jit
def sampling_key(rng, index, image, stream):
    """The draw for one candidate: the smallest keys of an image win, ties by index. rng: pointer to (seed, step)."""
    seed, step = tl.load(rng).to(tl.uint64, bitcast=True), tl.load(rng + 1)
    zero = tl.zeros(index.shape, tl.uint32)
    c0 = index.to(tl.uint32)
    c1 = zero + image.to(tl.uint32)
    c2 = zero + (step & 0xFFFFFFFF).to(tl.uint32)
    c3 = zero + tl.cast(stream, tl.uint32)
    k0, k1 = zero + (seed & 0xFFFFFFFF).to(tl.uint32), zero + (seed >> 32).to(tl.uint32)
    for _ in tl.static_range(10):
        high0, low0 = multiply(c0, 0xD2511F53)
        high1, low1 = multiply(c2, 0xCD9E8D57)
        c0 = high1 ^ c1 ^ k0
        c1 = low1
        c2 = high0 ^ c3 ^ k1
        c3 = low0
        k0 = (k0.to(tl.uint64) + 0x9E3779B9).to(tl.uint32)
        k1 = (k1.to(tl.uint64) + 0xBB67AE85).to(tl.uint32)
    return c0
