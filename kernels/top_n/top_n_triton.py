"""The best n scores of every segment in Triton: top_n.h's order by another road than top_n.cu's, since launches are dear
here and the programs of a launch cannot wait for one another.

A segment is cut into runs of RUN candidates. One program sorts a run: a candidate's rank in it is the number of others
that come before, counted. Its rank in the segment is that plus, for every other run, the number that come before it
there, found by binary search; of equal scores those in earlier runs come first, so the order is stable. No two
candidates have one rank: whatever ranks below n is written where it belongs, without an atomic, whatever the timing.

  count, sieve  (only where n is a small part of a long segment) leave out scores that cannot be among the best n: a tile
                of scores counts how many have each of CODES coarse keys, and keeps those up to the n-th best's
  sort          every run
  merge         FAN runs into one, until few are left (only for very long segments)
  merge         all runs into the results

So two launches up to 2^15 scores, four for the best thousands of more. The result does not depend on the sieve: where
all scores have one coarse key, it lets all through. In the workspace a run lies in the columns that its scores would
have if nothing had been left out.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.box_triton import plain
from ..common.launch_triton import blocks_for, launch, odd
from ..common.numeric_triton import widen

RUN = 256  # counting takes RUN comparisons a score, the searches log2(RUN) steps a run: about even at 20,000 scores
TILE = 4096  # of the sieve
CODES = 256
SIEVE_FROM = 1 << 15  # scores of a segment; below, sorting all costs less than two launches
SIEVE_MOST = 1 << 14  # n
FAN = 16
MOST_RUNS = 128  # that are left to the last merge
LOOKUPS = 2048  # of a program that merges, at once: candidates x runs


@triton.constexpr_function
def no_rank(dtype):
    """The key of what is never selected: NaN, or not valid. Behind every score's."""
    return 0x7FFFFFFFFFFFFFFF if dtype.primitive_bitwidth == 64 else 0x7FFFFFFF


@triton.jit
def rank_key(score):
    """An integer, smaller for a better score, the same for equal ones. score: widened."""
    if score.dtype == tl.float64:
        bits = tl.where(score == 0.0, 0.0, score).to(tl.int64, bitcast=True)
        key = tl.where(bits < 0, bits & 0x7FFFFFFFFFFFFFFF, -1 - bits)
    else:
        bits = tl.where(score == 0.0, 0.0, score).to(tl.int32, bitcast=True)
        key = tl.where(bits < 0, bits & 0x7FFFFFFF, -1 - bits)
    return tl.where(score == score, key, no_rank(key.dtype))


@triton.jit
def coarse_key(key):
    """0 to 255, in the order of the keys: sign, exponent and three more bits of magnitudes from 2^-8 to 2^8, where
    scores mostly lie. What lies beyond joins the nearest."""
    magnitude = tl.where(key < 0, -1 - key, key)
    if key.dtype == tl.int64:
        step = (magnitude >> 49).to(tl.int32) - 8 * (1023 - 8)
    else:
        step = (magnitude >> 20) - 8 * (127 - 8)
    step = tl.where(step < 0, 0, tl.where(step > 127, 127, step))
    return tl.where(key < 0, 127 - step, 128 + step)


@triton.jit
def load_keys(scores, valid, at, mask):
    """valid: pointer or null."""
    key = rank_key(widen(tl.load(scores + at, mask=mask, other=0.0)))
    if valid is not None:
        mask = mask & (tl.load(valid + at, mask=mask, other=0) != 0)
    return tl.where(mask, key, no_rank(key.dtype))


@triton.jit
def shares_of(size, each, most):
    """Of a segment: one for every `each` scores, at most `most`, at least one. As segment_shares."""
    return tl.maximum(tl.minimum((size + each - 1) // each, most), 1)


@triton.jit
def own_share(starts, each, most):
    """What the program owns of which segment: (image, level, the level's first column, its scores, share, shares of the
    segment). starts: odd() of every level's first column and of the end."""
    levels: tl.constexpr = len(starts) - 1
    in_image = 0
    for l in tl.static_range(levels):
        in_image += shares_of(plain(starts[l + 1]) - plain(starts[l]), each, most)
    image = (tl.program_id(0) // in_image).to(tl.int64)
    share = tl.program_id(0) % in_image
    level, first, size, shares, before, passed = 0, 0, 0, 0, 0, 0
    for l in tl.static_range(levels):
        here = share >= passed  # the last level for which this holds
        level = tl.where(here, l, level)
        first = tl.where(here, plain(starts[l]), first)
        size = tl.where(here, plain(starts[l + 1]) - plain(starts[l]), size)
        shares = tl.where(here, shares_of(plain(starts[l + 1]) - plain(starts[l]), each, most), shares)
        before = tl.where(here, passed, before)
        passed += shares_of(plain(starts[l + 1]) - plain(starts[l]), each, most)
    return image, level, first, size, share - before, shares


@triton.jit(do_not_specialize=["A", "tiles"])
def count_kernel(scores, valid, starts, A, tiles, counts, TILE: tl.constexpr, CODES: tl.constexpr):
    """A program owns a tile. counts [S, tiles, CODES]: of its candidates, those up to that coarse key."""
    image, level, first, size, tile, _ = own_share(starts, TILE, 1 << 30)
    segment = image * (len(starts) - 1) + level
    position = tile * TILE + tl.arange(0, TILE)
    key = load_keys(scores, valid, image * A + first + position, position < size)
    found = tl.histogram(coarse_key(key), CODES, mask=key != no_rank(key.dtype))
    tl.store(counts + (segment * tiles + tile) * CODES + tl.arange(0, CODES), tl.cumsum(found, 0))


@triton.jit(do_not_specialize=["A", "n", "tiles"])
def sieve_kernel(
    scores, valid, starts, A, n, tiles, counts, keys, columns, passed,
    TILE: tl.constexpr, CODES: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """A program owns a tile, and works out from the counts which coarse keys pass, and how many scores do in the tiles
    before. keys, columns [B, A]: of what passes, in the order of the columns; passed [S]: how many. TILES: of which
    counts are read at once."""
    image, level, first, size, tile, tiles_here = own_share(starts, TILE, 1 << 30)
    segment = image * (len(starts) - 1) + level
    counts += segment * tiles * CODES
    code = tl.arange(0, CODES)
    up_to = tl.zeros([CODES], tl.int32)
    for some in range(0, tiles_here, TILES):
        other = some + tl.arange(0, TILES)[:, None]
        up_to += tl.sum(tl.load(counts + other * CODES + code[None, :], mask=other < tiles_here, other=0), 0)
    cut = tl.minimum(tl.sum((up_to < n).to(tl.int32), 0), CODES - 1)
    before = 0
    for some in range(0, tile, CODES):
        before += tl.sum(tl.load(counts + (some + code) * CODES + cut, mask=some + code < tile, other=0), 0)
    position = tile * TILE + tl.arange(0, TILE)
    row = image * A + first
    key = load_keys(scores, valid, row + position, position < size)
    passes = (key != no_rank(key.dtype)) & (coarse_key(key) <= cut)
    to = row + before + tl.cumsum(passes.to(tl.int32), 0) - 1
    tl.store(keys + to, key, mask=passes)
    tl.store(columns + to, (first + position).to(tl.int32), mask=passes)
    if tile == tiles_here - 1:
        tl.store(passed + segment, before + tl.sum(passes.to(tl.int32), 0))


@triton.jit(do_not_specialize=["A", "runs"])
def sort_kernel(
    scores, valid, some_keys, some_columns, passed, starts, A, runs, keys, columns, counts, RUN: tl.constexpr
):  # fmt: skip
    """A program sorts a run of all scores; where `passed` is not null, of what passed the sieve. keys, columns [B, A];
    counts [S, runs]: candidates of the run."""
    image, level, first, size, run, _ = own_share(starts, RUN, 1 << 30)
    segment = image * (len(starts) - 1) + level
    row = image * A + first
    own = tl.arange(0, RUN)
    position = run * RUN + own
    if passed is None:
        key = load_keys(scores, valid, row + position, position < size)
        column = (first + position).to(tl.int32)
    else:
        here = position < tl.load(passed + segment)
        key = tl.load(some_keys + row + position, mask=here, other=no_rank(keys.dtype.element_ty))
        column = tl.load(some_columns + row + position, mask=here, other=0)
    mine, other = key[:, None], key[None, :]
    before = (other < mine) | ((other == mine) & (own[None, :] < own[:, None]))
    to = row + run * RUN + tl.sum(before.to(tl.int32), 1)
    candidate = key != no_rank(key.dtype)
    tl.store(keys + to, key, mask=candidate)
    tl.store(columns + to, column, mask=candidate)
    tl.store(counts + segment * runs + run, tl.sum(candidate.to(tl.int32), 0))


@triton.jit
def count_before(keys, counts, key, run, first_run, last_run, length, EACH: tl.constexpr, WIDE: tl.constexpr):
    """How many candidates of the runs first_run to last_run - 1, without `run` itself, come before each key [EACH] of
    `run`: WIDE runs at once, a binary search in each. keys, counts: of the segment. length: of a run."""
    before = tl.zeros([EACH, WIDE], tl.int32)
    for some in range(first_run, last_run, WIDE):
        other = some + tl.arange(0, WIDE)
        count = tl.load(counts + other, mask=(other < last_run) & (other != run), other=0)[None, :]
        limit = key[:, None] + (other < run).to(key.dtype)[None, :]  # no candidate has the greatest key
        base = keys + (other.to(tl.int64) * length - 1)[None, :]
        found = tl.zeros([EACH, WIDE], tl.int32)
        step = length
        while step > 0:
            probe = found + step
            there = probe <= count
            earlier = tl.load(base + probe, mask=there, other=0) < limit
            found = tl.where(there & earlier, probe, found)
            step = step >> 1
        before += found
    return tl.sum(before, 1)


@triton.jit(do_not_specialize=["A", "n", "runs", "length", "fan", "most"])
def merge_kernel(
    scores, keys, columns, counts, starts, A, n, runs, length, fan, most, next_keys, next_columns, next_counts,
    values, indices, totals,
    EACH: tl.constexpr, WIDE: tl.constexpr, LEADER_WIDE: tl.constexpr, LOOKUPS: tl.constexpr,
):  # fmt: skip
    """Merges every `fan` runs. A program owns pieces of EACH candidates: of its segment's, one in so many.

    The best n of every `fan` runs go to next_keys, next_columns [B, A] and next_counts [S, runs / fan, rounded up]. Or,
    where those are null and `fan` is all runs, to indices [S, n], totals [S] and, if not null, values [S, n]; the
    programs of a segment share out what is to be padded. length: of a run, a power of two times EACH. most: programs of
    a segment; they suffice for a piece each where `fan` is less than all."""
    image, level, first, size, share, shares = own_share(starts, EACH, most)
    segment = image * (len(starts) - 1) + level
    row = image * A + first
    keys += row
    columns += row
    counts += segment * runs
    group = share * EACH // length // fan
    first_run = group * fan
    end = tl.minimum(first_run + fan, (size + length - 1) // length)
    wide = tl.arange(0, LOOKUPS)
    total, last_run = 0, first_run
    for some in range(first_run, end, LOOKUPS):
        count = tl.load(counts + some + wide, mask=some + wide < end, other=0)
        total += tl.sum(count, 0)
        last_run = tl.maximum(last_run, tl.max(tl.where(count > 0, some + wide + 1, 0), 0))
    each = tl.arange(0, EACH)
    piece = share
    while piece * EACH < tl.minimum(last_run * length, size):
        run = piece * EACH // length
        offset = piece * EACH - run * length
        count = tl.load(counts + run)
        rank = tl.where(offset < count, offset, n)  # of the piece's first, at least
        if (total > n) & (rank < n):
            # A piece is sorted: where its first is not among the best n, none of it is.
            leader = tl.load(keys + piece * EACH + tl.arange(0, 1))
            rank += tl.sum(count_before(keys, counts, leader, run, first_run, last_run, length, 1, LEADER_WIDE), 0)
        if rank < n:
            here = offset + each < count
            key = tl.load(keys + piece * EACH + each, mask=here, other=0)
            column = tl.load(columns + piece * EACH + each, mask=here, other=0)
            ranks = offset + each + count_before(keys, counts, key, run, first_run, last_run, length, EACH, WIDE)
            here = here & (ranks < n)
            if next_keys is None:
                tl.store(indices + segment * n + ranks, column, mask=here)
                if values is not None:
                    tl.store(values + segment * n + ranks, tl.load(scores + image * A + column, mask=here), mask=here)
            else:
                tl.store(next_keys + row + first_run * length + ranks, key, mask=here)
                tl.store(next_columns + row + first_run * length + ranks, column, mask=here)
        piece += shares
    total = tl.minimum(total, n)
    if next_keys is None:
        if share == 0:
            tl.store(totals + segment, total)
        padding = total + share * LOOKUPS
        while padding < n:
            here = padding + wide < n
            tl.store(indices + segment * n + padding + wide, tl.full([LOOKUPS], -1, tl.int32), mask=here)
            if values is not None:
                zero = tl.zeros([LOOKUPS], values.dtype.element_ty)
                tl.store(values + segment * n + padding + wide, zero, mask=here)
            padding += shares * LOOKUPS
    else:
        if share * EACH == first_run * length:
            tl.store(next_counts + segment * tl.cdiv(runs, fan) + group, total)


def segment_shares(starts: Sequence[int], each: int, most: int = 1 << 30) -> int:
    """Programs for an image: those of all its segments, as shares_of has them."""
    return sum(max(min(blocks_for(end - start, each), most), 1) for start, end in pairwise(starts))


def power_of_two_within(n: int, least: int, most: int) -> int:
    """The next power of two, within these two."""
    return max(least, min(most, triton.next_power_of_2(n)))


def select(
    scores: Tensor, starts: Sequence[int], n: int, valid: Tensor | None,
    values: Tensor | None, indices: Tensor, counts: Tensor,
) -> None:  # fmt: skip
    """The sorted best n of every segment (image b, level l): columns starts[l] up to starts[l + 1] of scores [B, A].

    valid: [B, A], uint8 or bool; where it is 0 a score does not compete. Outputs: values [B * L, n] (0 beyond the
    count; None: not wanted), indices [B * L, n] (columns; -1 beyond), counts [B * L].
    """
    B, A = scores.shape
    S, longest = counts.shape[0], max(end - start for start, end in pairwise(starts))
    if not S:
        return
    ends = tuple(map(odd, starts))
    key_type = torch.int64 if scores.dtype == torch.float64 else torch.int32

    def lists() -> tuple[Tensor, Tensor]:
        """keys, columns"""
        return scores.new_empty((B, A), dtype=key_type), scores.new_empty((B, A), dtype=torch.int32)

    def integers(*shape: int) -> Tensor:
        return scores.new_empty(shape, dtype=torch.int32)

    expected, sieved, passed = longest, (None, None), None
    if longest > SIEVE_FROM and n <= min(SIEVE_MOST, longest // 4):
        expected, sieved, passed = 2 * n, lists(), integers(S)
        tiles, grid = blocks_for(longest, TILE), (B * segment_shares(starts, TILE),)
        up_to = integers(S, tiles, CODES)
        launch(count_kernel, grid, scores, valid, ends, A, tiles, up_to, like=scores, TILE=TILE, CODES=CODES, warps=8)
        launch(
            sieve_kernel, grid, scores, valid, ends, A, n, tiles, up_to, *sieved, passed,
            like=scores, TILE=TILE, CODES=CODES, TILES=16, warps=8,
        )  # fmt: skip

    runs, length = max(blocks_for(longest, RUN), 1), RUN
    ranked, in_run = lists(), integers(S, runs)
    launch(
        sort_kernel, (B * segment_shares(starts, RUN),), scores, valid, *sieved, passed, ends, A, runs, *ranked, in_run,
        like=scores, RUN=RUN, warps=8,
    )  # fmt: skip

    while passed is None and runs > MOST_RUNS:
        merged, each = lists(), LOOKUPS // FAN
        in_merged = integers(S, blocks_for(runs, FAN))
        launch(
            merge_kernel, (B * segment_shares(starts, each),), scores, *ranked, in_run, ends, A, n, runs, length, FAN,
            1 << 30, *merged, in_merged, None, None, None,
            like=scores, EACH=each, WIDE=FAN, LEADER_WIDE=FAN, LOOKUPS=LOOKUPS,
        )  # fmt: skip
        ranked, in_run = merged, in_merged
        runs, length = blocks_for(runs, FAN), FAN * length

    wide = power_of_two_within(blocks_for(expected, length), 16, MOST_RUNS)
    each = LOOKUPS // wide
    most = max(blocks_for(2 * expected, each), 1)
    launch(
        merge_kernel, (B * segment_shares(starts, each, most),), scores, *ranked, in_run, ends, A, n, runs, length, runs,
        most, None, None, None, values, indices, counts,
        like=scores, EACH=each, WIDE=wide, LEADER_WIDE=power_of_two_within(runs, 16, 1024), LOOKUPS=LOOKUPS,
    )  # fmt: skip


def top_n(scores: Tensor, n: int, values: Tensor, indices: Tensor, counts: Tensor) -> None:
    select(scores, (0, scores.shape[1]), n, None, values, indices, counts)


def select_segments(
    scores: Tensor, level_starts: Sequence[int], n: int, valid: Tensor | None, indices: Tensor, counts: Tensor
) -> None:
    """The sorted best n of every segment, as `select`: indices int32 [B * L, n] (-1 beyond the count), counts int32."""
    select(scores, level_starts, n, valid, None, indices, counts)
