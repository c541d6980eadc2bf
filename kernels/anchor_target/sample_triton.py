"""sample.cuh in Triton: the exact sample of an image's labelled candidates.

Whatever program labels candidates appends them to the image's list as they come: positives from the front, negatives
from the back, an item (key, index) each; of the negatives only those whose key is likely to win, where their number is
known. The last program of the image finds the item that parts the winners from the rest by bisection, which random keys
end after few steps, and seats the winners by counting who comes before. So the order of the list does not show. Where
too few negatives were likely (hardly ever), it lists them all.

An image's tally, zero before: candidates that may be negative, length of both lists, programs that are done.
"""

import triton
import triton.language as tl

from ..anchor_decode.anchor_decode_triton import encode_boxes
from ..common.box_triton import store_box
from ..common.mutant_triton import mutant
from ..common.philox_triton import sampling_key

NEGATIVES, LISTED, DONE, TALLY = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)
CHUNK = tl.constexpr(512)  # items of a list at a time
ROWS = tl.constexpr(128)  # of the sample at a time
OTHERS = tl.constexpr(32)  # that a row is compared with
POSITIVE = tl.constexpr(-(1 << 31))  # beside the index of a winner, so that positives come first


def most_positive(batch_size: int, positive_fraction: float) -> int:
    """The positives that a sample may have."""
    return int(batch_size * positive_fraction)


@triton.jit
def draw_item(rng, index, image, stream):
    """What sampling sorts by: the key, then the index (below 2^31)."""
    key = sampling_key(rng, index, image, stream).to(tl.int64) << 31
    return key | index if not mutant("sample_tie") else key | (0x7FFFFFFF - index)


@triton.jit
def is_likely(item, wanted, candidates):
    """True of at least `wanted` of `candidates` random keys, nearly surely, and of few more than that: only a guess
    that saves work. The share is (1.125 wanted + 88) / candidates: six standard deviations, which fail once in 10^9
    draws."""
    return (item >> 31) * candidates <= (9 * wanted.to(tl.int64) + 704) << 29


@triton.jit
def enlist(items, capacity, tally, item, positive, negative):
    """Appends to the lists of an image. items [capacity]. Both kinds are counted at once, in halves of a word: a block
    has fewer than 2^15 candidates, an image fewer than 2^31."""
    both = positive.to(tl.int32) | (negative.to(tl.int32) << 16)
    total = tl.sum(both).to(tl.int64)
    if total > 0:
        before = tl.cumsum(both, 0) - both
        start = tl.atomic_add(tally + LISTED, (total & 0xFFFF) | ((total >> 16) << 32), sem="relaxed")
        front = (start & 0xFFFFFFFF) + (before & 0xFFFF)
        back = (start >> 32) + (before >> 16)
        tl.store(items + front, item, mask=positive)
        tl.store(items + (capacity - 1 - back), item, mask=negative)


@triton.jit
def is_last(tally):
    """Whether all other programs of the image are done; what they wrote is then to be seen."""
    tl.debug_barrier()  # what this program wrote comes before its ticket
    return tl.atomic_add(tally + DONE, 1, sem="acq_rel") == tl.num_programs(0) - 1


@triton.jit
def limit_of(items, step, n, k):
    """An item that exactly k <= n of the n items (items[0], items[step], ...), all different, are below."""
    low = n * 0
    high = n * 0
    for start in range(0, n, CHUNK):
        j = start + tl.arange(0, CHUNK)
        high = tl.maximum(high, tl.max(tl.load(items + j * step, mask=j < n, other=0)) + 1)
    below = n  # high; of low: fewer than k
    while below > k:
        middle = low + ((high - low) >> 1)
        smaller = tl.zeros([CHUNK], tl.int32)
        for start in range(0, n, CHUNK):
            j = start + tl.arange(0, CHUNK)
            smaller += (tl.load(items + j * step, mask=j < n, other=middle) < middle).to(tl.int32)
        count = tl.sum(smaller).to(tl.int64)
        low = tl.where(count < k, middle, low)
        high = tl.where(count < k, high, middle)
        below = tl.where(count < k, below, count)
    return high


@triton.jit
def pick(items, step, n, k, winners, KIND: tl.constexpr):
    """The indices of the k <= n smallest items, beside KIND, to winners[0 ... k - 1] in no order."""
    limit = limit_of(items, step, n, k)
    seen = n * 0
    for start in range(0, n, CHUNK):
        j = start + tl.arange(0, CHUNK)
        item = tl.load(items + j * step, mask=j < n, other=limit)
        wins = (item < limit if not mutant("sample_limit") else item < limit - 1).to(tl.int32)
        tl.store(winners + seen + (tl.cumsum(wins, 0) - wins), (item & 0x7FFFFFFF).to(tl.int32) | KIND, mask=wins != 0)
        seen += tl.sum(wins)


@triton.jit
def list_negatives(items, capacity, labels, rng, stream, image):
    """All of them, from the back of `items`; how many there are. labels [capacity]."""
    n = image * 0
    for start in range(0, capacity, CHUNK):
        index = start + tl.arange(0, CHUNK).to(tl.int64)
        negative = (tl.load(labels + index, mask=index < capacity, other=-1) == 0).to(tl.int32)
        place = n + (tl.cumsum(negative, 0) - negative)
        tl.store(items + (capacity - 1 - place), draw_item(rng, index, image, stream), mask=negative != 0)
        n += tl.sum(negative)
    tl.debug_barrier()  # the list before it is read
    return n


@triton.jit
def draw(items, capacity, tally, labels, rng, stream, image, S, max_positive, winners, counts):
    """How many are drawn; they are then in winners [S], and how many of each kind in counts [2]. For the last program.
    labels [capacity]: those from which only likely negatives were listed, or None. max_positive: at most S."""
    listed = tl.load(tally + LISTED)
    n = listed & 0xFFFFFFFF
    positives = tl.minimum(n, max_positive if not mutant("sample_positive_cap") else S)
    pick(items, 1, n, positives, winners, POSITIVE)
    n, room = listed >> 32, S - positives
    if labels is not None:  # noqa: SIM102  (known when it is compiled)
        if n < room if not mutant("sample_likely") else n < 0:
            n = list_negatives(items, capacity, labels, rng, stream, image)
    negatives = tl.minimum(n, room) if not mutant("sample_room") else tl.minimum(n, S)
    pick(items + capacity - 1, -1, n, negatives, winners + positives, 0)
    kind = tl.arange(0, ROWS)  # a store of a scalar would keep a predicate alive all the while
    tl.store(counts + kind, tl.where(kind == 0, positives, negatives), mask=kind < 2)
    tl.debug_barrier()  # the winners before they are read
    return positives + negatives


@triton.jit
def seats(winners, start, drawn):
    """(row, index, is_positive, is_drawn) for winners start ... start + ROWS - 1: the row of the sample that each has,
    positives first, each kind ascending by index (-1 beyond `drawn`)."""
    i = start + tl.arange(0, ROWS)
    is_drawn = i < drawn
    winner = tl.load(winners + i, mask=is_drawn, other=0)
    before = tl.zeros([ROWS], tl.int32)
    for first in range(0, drawn, OTHERS):
        j = first + tl.arange(0, OTHERS)
        other = tl.load(winners + j, mask=j < drawn, other=0x7FFFFFFF)
        smaller = other[:, None] < winner[None, :] if not mutant("sample_order") else other[:, None] > winner[None, :]
        before += tl.sum(smaller.to(tl.int32), axis=0)
    index = tl.where(is_drawn, winner & 0x7FFFFFFF, -1 if not mutant("sample_padding") else 0)
    return tl.where(is_drawn, before, i), index.to(tl.int64), is_drawn & (winner < 0), is_drawn


@triton.jit
def store_targets(targets, row, gt_box, box, weights, is_object, mask, LEGACY: tl.constexpr):
    """The deltas that take each box to its object; 0 where it has none."""
    t1, t2, t3, t4 = encode_boxes(*gt_box, *box, weights, LEGACY)
    if not mutant("target_background"):
        t1, t2 = tl.where(is_object, t1, 0.0), tl.where(is_object, t2, 0.0)
        t3, t4 = tl.where(is_object, t3, 0.0), tl.where(is_object, t4, 0.0)
    store_box(targets, row, t1, t2, t3, t4, mask)
