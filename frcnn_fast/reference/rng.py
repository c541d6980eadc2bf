"""Philox4x32-10 (Salmon, Moraes, Dror, Shaw, *Parallel Random Numbers: As Easy as 1, 2, 3*, SC 2011)."""

from __future__ import annotations

import numpy as np

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)


def philox4x32(counter: tuple, key: tuple[int, int]) -> tuple[np.ndarray, ...]:
    """Ten rounds of Philox4x32.

    counter: four words, each an int or an integer array (they broadcast); key: two words. All are taken
    modulo 2**32. Returns four uint32 arrays.
    """
    words = np.broadcast_arrays(*(np.asarray(word, np.uint64) & _LOW for word in counter))
    c0, c1, c2, c3 = words
    k0, k1 = (int(word) & 0xFFFFFFFF for word in key)
    for _ in range(_ROUNDS):
        product0 = c0 * np.uint64(_MULTIPLIERS[0])
        product1 = c2 * np.uint64(_MULTIPLIERS[1])
        c0, c1, c2, c3 = (
            (product1 >> _SHIFT) ^ c1 ^ np.uint64(k0),
            product1 & _LOW,
            (product0 >> _SHIFT) ^ c3 ^ np.uint64(k1),
            product0 & _LOW,
        )
        k0 = (k0 + _WEYL[0]) & 0xFFFFFFFF
        k1 = (k1 + _WEYL[1]) & 0xFFFFFFFF
    return tuple(word.astype(np.uint32) for word in (c0, c1, c2, c3))


def sample_keys(indices: np.ndarray, image: int, rng: np.ndarray, stream: int) -> np.ndarray:
    """The random key of each candidate: first Philox word at counter (index, image, step, stream).

    indices: int64 [M]; rng: int64 [2] = (seed, step), read as two's complement bits. Returns uint32 [M].
    """
    seed, step = (int(value) & 0xFFFFFFFFFFFFFFFF for value in rng)
    low = np.asarray(indices, np.int64).astype(np.uint64) & _LOW
    return philox4x32((low, image, step & 0xFFFFFFFF, stream), (seed & 0xFFFFFFFF, seed >> 32))[0]
