"""The best n scores of every segment in Triton: top_n.h's order by another road than top_n.cu's, since launches cost
more here and the programs of a launch cannot wait for one another.

A segment is cut into runs of RUN candidates. One program sorts a run: a candidate's rank in it is the number of others
that come before, counted. Its rank in the segment is that plus, for every other run, the number that come before it
there, found by binary search; of equal scores those in earlier runs come first, so the order is stable. No two
candidates have one rank: whatever ranks below n is written where it belongs, without an atomic, whatever the timing.

  count, sieve  (only where n is a small part of a long segment) leave out what cannot be among the best n: tiles count
                how many scores have each of CODES coarse keys, then keep those up to the n-th best's
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
from ..common.launch_triton import anchor_maps, blocks_for, launch, odd
from ..common.map_triton import map_at
from ..common.mutant_triton import mutant
from ..common.numeric_triton import widen

INTERPRETED = triton.knobs.runtime.interpret  # there small cases go all the ways, in fewer programs
RUN = 256  # counting takes RUN comparisons a score, the searches log2(RUN) steps a run: about even at 20,000 scores
TILE = 512 if INTERPRETED else 4096  # scores in a tile of the sieve
CODES = 256
SIEVE_FROM = 1 << (11 if INTERPRETED else 15)  # scores of a segment; below, sorting all costs less than two launches
SIEVE_MOST = 1 << 14  # n
FAN = 4 if INTERPRETED else 16
MOST_RUNS = 16 if INTERPRETED else 128  # that are left to the last merge
LOOKUPS = 4096 if INTERPRETED else 2048  # at once, per program that merges: candidates x runs


@triton.constexpr_function
def no_rank(dtype):
    """The key of what is never selected: NaN, or not valid. Behind every score's."""
    return 0x7FFFFFFFFFFFFFFF if dtype.primitive_bitwidth == 64 else 0x7FFFFFFF


@triton.jit
def rank_key(score):
    """An integer, smaller for a better score, the same for equal ones. score: widened."""
    number = tl.where(score == 0.0, 0.0, score) if not mutant("rank_zero") else score
    if score.dtype == tl.float64:
        bits = number.to(tl.int64, bitcast=True)
        key = tl.where(bits < 0, bits & 0x7FFFFFFFFFFFFFFF, -1 - bits)
    else:
        bits = number.to(tl.int32, bitcast=True)
        key = tl.where(bits < 0, bits & 0x7FFFFFFF, -1 - bits)
    return tl.where(score == score, key, no_rank(key.dtype)) if not mutant("rank_nan") else key


@triton.jit
def coarse_key(key):
    """0 to 255, in the order of the keys: sign, exponent and three more bits of magnitudes from 2^-8 to 2^8, where
    scores mostly lie. What lies beyond joins the nearest."""
    magnitude = tl.where(key < 0, -1 - key, key)
    if key.dtype == tl.int64:
        step = (magnitude >> 49).to(tl.int32) - 8 * (1023 - 8)
    else:
        step = (magnitude >> 20) - 8 * (127 - 8)
    step = tl.where(step < 0, 0, step) if not mutant("top_n_coarse_low") else step & 127
    step = tl.where(step > 127, 127, step) if not mutant("top_n_coarse_high") else step & 127
    return tl.where(key < 0, 127 - step if not mutant("top_n_coarse_order") else step, 128 + step)


@triton.jit
def load_keys(maps, valid, A, image, level, column, mask):
    """valid [B, A]: pointer or null."""
    key = rank_key(widen(tl.load(map_at(maps, level, image, column), mask=mask, other=0.0)))
    if valid is not None and not mutant("top_n_valid"):
        mask = mask & (tl.load(valid + image * A + column, mask=mask, other=0) != 0)
    return tl.where(mask, key, no_rank(key.dtype))


@triton.jit
def own_share(places):
    """What the program owns of which segment: (image, level, the level's first column, its scores, share, shares of the
    segment). places: see share_out."""
    in_image = plain(places[len(places) - 1][2])
    image = (tl.program_id(0) // in_image).to(tl.int64)
    share = tl.program_id(0) % in_image
    level, first, size, before, after = 0, places[0][0], places[0][1], places[0][2], places[1][2]
    for other in tl.static_range(1, len(places) - 1):
        reached = 2 * share + 3  # odd(share)
        here = reached >= places[other][2] if not mutant("top_n_segment") else reached > places[other][2]
        level = tl.where(here, other, level)
        first = tl.where(here, places[other][0], first)
        size = tl.where(here, places[other][1], size)
        before = tl.where(here, places[other][2], before)
        after = tl.where(here, places[other + 1][2], after)
    return image, level, plain(first), plain(size), share - plain(before), (after - before) >> 1


@triton.jit(do_not_specialize=["A", "tiles"])
def count_kernel(maps, valid, places, A, tiles, counts, TILE: tl.constexpr, CODES: tl.constexpr):
    """A program owns a tile. counts [S, tiles, CODES]: how many of its candidates have at most that coarse key."""
    image, level, first, size, tile, _ = own_share(places)
    segment = image * (len(places) - 1) + level
    position = tile * TILE + tl.arange(0, TILE)
    key = load_keys(maps, valid, A, image, level, first + position, position < size)
    found = tl.histogram(coarse_key(key), CODES, mask=key != no_rank(key.dtype))
    tl.store(counts + (segment * tiles + tile) * CODES + tl.arange(0, CODES), tl.cumsum(found, 0))


@triton.jit(do_not_specialize=["A", "n", "tiles"])
def sieve_kernel(
    maps, valid, places, A, n, tiles, counts, keys, columns, passed,
    TILE: tl.constexpr, CODES: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """A program owns a tile, and works out from the counts which coarse keys pass, and how many scores do in the tiles
    before. keys, columns [B, A]: what passes, in the order of the columns; passed [S]: how many. TILES: tiles whose
    counts are read at once."""
    image, level, first, size, tile, tiles_here = own_share(places)
    segment = image * (len(places) - 1) + level
    counts += segment * tiles * CODES
    code = tl.arange(0, CODES)
    up_to = tl.zeros([CODES], tl.int32)
    some = 0
    while some < tiles_here:
        other = some + tl.arange(0, TILES)[:, None]
        up_to += tl.sum(tl.load(counts + other * CODES + code[None, :], mask=other < tiles_here, other=0), 0)
        some += TILES
    short = up_to < n if not mutant("top_n_boundary") else up_to < n - 1
    cut = tl.minimum(tl.sum(short.to(tl.int32), 0), CODES - 1)
    before, some = 0, 0
    while some < tile:
        earlier = some + code < tile if not mutant("top_n_sieve_place") else some + code < tile - 1
        before += tl.sum(tl.load(counts + (some + code) * CODES + cut, mask=earlier, other=0), 0)
        some += CODES
    position = tile * TILE + tl.arange(0, TILE)
    row = image * A + first
    key = load_keys(maps, valid, A, image, level, first + position, position < size)
    good = coarse_key(key) <= cut if not mutant("top_n_ties") else coarse_key(key) < cut
    passes = (key != no_rank(key.dtype)) & good
    to = row + before + tl.cumsum(passes.to(tl.int32), 0) - 1
    tl.store(keys + to, key, mask=passes)
    tl.store(columns + to, (first + position).to(tl.int32), mask=passes)
    if tile == tiles_here - 1:
        tl.store(passed + segment, before + tl.sum(passes.to(tl.int32), 0))


@triton.jit
def candidates(maps, valid, sieved_keys, A, image, level, column, mask):
    """Keys of all scores, or where sieved_keys [B, A] is not null, of those."""
    if sieved_keys is None:
        return load_keys(maps, valid, A, image, level, column, mask)
    else:
        return tl.load(sieved_keys + image * A + column, mask=mask, other=no_rank(sieved_keys.dtype.element_ty))


@triton.jit(do_not_specialize=["A", "runs"])
def sort_kernel(
    maps, valid, sieved_keys, sieved_columns, passed, places, A, runs, keys, columns, counts,
    RUN: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    """A program sorts a run of all scores; where `passed` is not null, of what passed the sieve. keys, columns [B, A];
    counts [S, runs]: candidates of the run. PART: members of the run that all of it is compared with at once."""
    image, level, first, size, run, _ = own_share(places)
    segment = image * (len(places) - 1) + level
    if passed is not None:
        size = tl.load(passed + segment)
    row = image * A + first
    if mutant("top_n_end"):
        size += 1
    own, part = tl.arange(0, RUN), tl.arange(0, PART)
    position = run * RUN + own
    key = candidates(maps, valid, sieved_keys, A, image, level, first + position, position < size)
    before = tl.zeros([RUN, PART], tl.int32)
    for begin in range(0, RUN, PART):
        theirs = run * RUN + begin + part
        other = candidates(maps, valid, sieved_keys, A, image, level, first + theirs, theirs < size)[None, :]
        mine, earlier = key[:, None], (begin + part)[None, :] < own[:, None]
        tied = (other == mine) & (earlier if not mutant("top_n_stable") else earlier == 0)
        before += ((other < mine) | tied).to(tl.int32)
    to = row + run * RUN + tl.sum(before, 1)
    candidate = key != no_rank(key.dtype)
    column = first + position
    if passed is not None:
        column = tl.load(sieved_columns + row + position, mask=position < size, other=0)
    tl.store(keys + to, key, mask=candidate)
    tl.store(columns + to, column, mask=candidate)
    tl.store(counts + segment * runs + run, tl.sum(candidate.to(tl.int32), 0))


@triton.jit
def count_before(keys, counts, key, run, first_run, last_run, length, EACH: tl.constexpr, WIDE: tl.constexpr):
    """How many candidates of the runs first_run to last_run - 1, without `run` itself, come before each key [EACH] of
    `run`: WIDE runs at once, a binary search in each. keys, counts: of the segment. length: of a run.

    Neighbouring threads look up neighbouring keys in one run: they mostly read the same places."""
    before = tl.zeros([EACH], tl.int32)
    some = first_run
    while some < last_run:
        other = some + tl.arange(0, WIDE)
        count = tl.load(counts + other, mask=(other < last_run) & (other != run), other=0)[:, None]
        last = (other * length - 1)[:, None]
        wins_ties = other < run if not mutant("top_n_merge_ties") else other > run
        limit = key[None, :] + wins_ties.to(key.dtype)[:, None]  # no candidate has the greatest key
        found = tl.zeros([WIDE, EACH], tl.int32)
        step = length
        while step > 0:
            probe = found | step
            there = probe <= count if not mutant("top_n_merge_end") else probe < count
            earlier = tl.load(keys + (last + probe), mask=there, other=0) < limit
            found = tl.where(there & earlier, probe, found)
            step = step >> 1
        before += tl.sum(found, 0)
        some += WIDE
    return before


@triton.jit(do_not_specialize=["A", "n", "runs", "length", "fan"])
def merge_kernel(
    maps, keys, columns, counts, places, A, n, runs, length, fan, next_keys, next_columns, next_counts,
    values, indices, totals,
    EACH: tl.constexpr, WIDE: tl.constexpr, LEADER_WIDE: tl.constexpr, LOOKUPS: tl.constexpr,
):  # fmt: skip
    """Merges every `fan` runs. A program owns pieces of EACH candidates: of its segment's, one in so many.

    The best n of every `fan` runs go to next_keys, next_columns [B, A] and next_counts [S, runs / fan, rounded up]. Or,
    where those are null and `fan` is all runs, to indices [S, n], totals [S] and, if not null, values [S, n]; the
    programs of a segment share out what is to be padded. length: of a run, a power of two times EACH. Where
    `fan` is less than all, there must be a program for each piece."""
    image, level, first, size, share, shares = own_share(places)
    segment = image * (len(places) - 1) + level
    row = image * A + first
    keys += row
    columns += row
    counts += segment * runs
    group = share * EACH // length // fan
    first_run = group * fan
    runs_here = (size + length - 1) // length if not mutant("top_n_last_run") else size // length
    end = tl.minimum(first_run + fan, runs_here)
    wide = tl.arange(0, LOOKUPS)
    total, last_run, some = 0, first_run, first_run
    while some < end:
        count = tl.load(counts + some + wide, mask=some + wide < end, other=0)
        total += tl.sum(count, 0)
        last_run = tl.maximum(last_run, tl.max(tl.where(count > 0, some + wide + 1, 0), 0))
        some += LOOKUPS
    each = tl.arange(0, EACH)
    piece = share
    while piece * EACH < tl.minimum(last_run * length, size):
        run = piece * EACH // length
        offset = piece * EACH - run * length
        count = tl.load(counts + run)
        rank = tl.where(offset < count, offset, n)  # that of the piece's first, at least
        if (total > 2 * n) & (rank < n):  # a look ahead pays where it spares more than it costs
            # A piece is sorted: where its first is not among the best n, none of it is.
            leader = tl.load(keys + piece * EACH + tl.arange(0, 1))
            rank += tl.sum(count_before(keys, counts, leader, run, first_run, last_run, length, 1, LEADER_WIDE), 0)
        if rank < n if not mutant("top_n_piece") else rank < n - 1:
            here = offset + each < count
            key = tl.load(keys + piece * EACH + each, mask=here, other=0)
            column = tl.load(columns + piece * EACH + each, mask=here, other=0)
            ranks = offset + each + count_before(keys, counts, key, run, first_run, last_run, length, EACH, WIDE)
            here = here & (ranks < n if not mutant("top_n_room") else ranks < n - 1)
            if next_keys is None:
                tl.store(indices + segment * n + ranks, column, mask=here)
                if values is not None:
                    score = tl.load(map_at(maps, level, image, column), mask=here)
                    tl.store(values + segment * n + ranks, score, mask=here)
            else:
                tl.store(next_keys + row + first_run * length + ranks, key, mask=here)
                tl.store(next_columns + row + first_run * length + ranks, column, mask=here)
        piece += shares
    total = tl.minimum(total, n) if not mutant("top_n_count") else total
    if next_keys is None:
        if share == 0:
            tl.store(totals + segment, total)
        padding = (total if not mutant("top_n_padding") else total + 1) + share * LOOKUPS
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


def share_out(starts: Sequence[int], each: int, most: int = 1 << 30) -> tuple[tuple[tuple[int, ...], ...], int]:
    """(places, programs of an image). A segment has a program for every `each` scores, at least one, at most `most`.

    places: for own_share, odd() of a level's first column, its scores and the programs before it; then those of all.
    """
    places, programs = [], 0
    for start, end in pairwise(starts):
        places.append((odd(start), odd(end - start), odd(programs)))
        programs += max(min(blocks_for(end - start, each), most), 1)
    return (*places, (odd(starts[-1]), odd(0), odd(programs))), programs


def power_of_two_within(n: int, least: int, most: int) -> int:
    """The next power of two, within these two."""
    return max(least, min(most, triton.next_power_of_2(n)))


def select(
    of_levels: Sequence[Tensor], starts: Sequence[int], n: int, valid: Tensor | None,
    values: Tensor | None, indices: Tensor, counts: Tensor,
) -> None:  # fmt: skip
    """The sorted best n of every segment (image b, level l): columns starts[l] up to starts[l + 1] of an image's A.

    of_levels: their scores, as launch_triton.anchor_maps takes them. valid: [B, A], uint8 or bool; where it is 0 a
    score does not compete. Outputs: values [B * L, n] (0 beyond the count; None: not wanted), indices [B * L, n]
    (columns; -1 beyond), counts [B * L].
    """
    scores, maps = of_levels[0], anchor_maps(of_levels, starts, 1)
    B, A = scores.shape[0], starts[-1]
    S, longest = counts.shape[0], max(end - start for start, end in pairwise(starts))
    if not S:
        return
    key_type = torch.int64 if scores.dtype == torch.float64 else torch.int32

    def lists() -> tuple[Tensor, Tensor]:
        """keys, columns"""
        return scores.new_empty((B, A), dtype=key_type), scores.new_empty((B, A), dtype=torch.int32)

    def integers(*shape: int) -> Tensor:
        return scores.new_empty(shape, dtype=torch.int32)

    expected, passed = longest, None
    sieved: tuple[Tensor | None, Tensor | None] = (None, None)
    if longest > SIEVE_FROM and n <= min(SIEVE_MOST, longest // 4):
        expected, sieved, passed = 2 * n, lists(), integers(S)
        places, programs = share_out(starts, TILE)
        tiles = blocks_for(longest, TILE)
        up_to = integers(S, tiles, CODES)
        launch(
            count_kernel, (B * programs,), maps, valid, places, A, tiles, up_to,
            like=scores, TILE=TILE, CODES=CODES, warps=8,
        )  # fmt: skip
        launch(
            sieve_kernel, (B * programs,), maps, valid, places, A, n, tiles, up_to, *sieved, passed,
            like=scores, TILE=TILE, CODES=CODES, TILES=16, warps=8,
        )  # fmt: skip

    runs, length = max(blocks_for(longest, RUN), 1), RUN
    ranked, in_run = lists(), integers(S, runs)
    places, programs = share_out(starts, RUN)
    launch(
        sort_kernel, (B * programs,), maps, valid, *sieved, passed, places, A, runs, *ranked, in_run,
        like=scores, RUN=RUN, PART=RUN if INTERPRETED else 32, warps=16,
    )  # fmt: skip

    while passed is None and runs > MOST_RUNS:
        merged, in_merged, each = lists(), integers(S, blocks_for(runs, FAN)), min(LOOKUPS // FAN, RUN)
        places, programs = share_out(starts, each)
        launch(
            merge_kernel, (B * programs,), maps, *ranked, in_run, places, A, n, runs, length, FAN,
            *merged, in_merged, None, None, None,
            like=scores, EACH=each, WIDE=FAN, LEADER_WIDE=FAN, LOOKUPS=LOOKUPS, warps=8, registers=128,
        )  # fmt: skip
        ranked, in_run = merged, in_merged
        runs, length = blocks_for(runs, FAN), FAN * length

    wide = power_of_two_within(blocks_for(expected, length), FAN, MOST_RUNS)
    each = min(LOOKUPS // wide, RUN)
    places, programs = share_out(starts, each, max(blocks_for(2 * expected, each), 1))
    launch(
        merge_kernel, (B * programs,), maps, *ranked, in_run, places, A, n, runs, length, runs,
        None, None, None, values, indices, counts,
        like=scores, EACH=each, WIDE=wide, LEADER_WIDE=power_of_two_within(runs, FAN, LOOKUPS // 4), LOOKUPS=LOOKUPS,
        warps=8, registers=128,
    )  # fmt: skip


def top_n(scores: Tensor, n: int, values: Tensor, indices: Tensor, counts: Tensor) -> None:
    select([scores], (0, scores.shape[1]), n, None, values, indices, counts)


def select_segments(
    scores: Sequence[Tensor], level_starts: Sequence[int], n: int, valid: Tensor | None, indices: Tensor,
    counts: Tensor,
) -> None:  # fmt: skip
    """The sorted best n of every segment, as `select`: indices int32 [B * L, n] (-1 beyond the count), counts int32."""
    select(scores, level_starts, n, valid, None, indices, counts)
