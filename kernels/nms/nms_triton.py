"""nms.h, nms.cu and nms_padded.cu in Triton: exact greedy NMS of many segments, in O(segments) workspace.

The ranks of a segment are taken in chunks of CHUNK, 32 ranks a word. Two launches a chunk:
  test_kernel     every pair that matters, over the whole grid: which earlier boxes of the chunk suppress a box (a bit
                  matrix), and whether a box kept from earlier chunks does.
  resolve_kernel  one program a segment walks the matrix, a few words at a time, and appends what is kept.
A segment that is done (max_output kept, or no ranks left) returns at once from the launches that remain.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.box_triton import area, iou, is_finite_box, load_box, store_box
from ..common.launch_triton import blocks_for, double_bits, launch
from ..common.mutant_triton import mutant
from ..common.numeric_triton import compute_type, scalar
from ..top_n.top_n_triton import select_segments

INTERPRETED = triton.knobs.runtime.interpret
WORD = 32  # boxes whose bits share a word of the matrix
CHUNK = 128 if INTERPRETED else 2048  # ranks in a chunk; small cases cross chunks too
GROUP = 2 if INTERPRETED else 16  # words that are resolved together
KEPT_TILES = 2 if INTERPRETED else 16  # programs that share the kept boxes, for a tile of rows
ROWS = min(CHUNK, 256)  # per program of test_kernel
STEP = WORD if INTERPRETED else 4  # suppressors at a time: what the registers hold; in float64 half of them
BLOCK = 256


@triton.jit
def popcount(x):
    """The number of set bits of a uint32, as int32."""
    x = x - ((x >> 1) & 0x55555555)
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F
    x = x + (x >> 8)
    return ((x + (x >> 16)) & 0x3F).to(tl.int32)


@triton.jit(do_not_specialize=["N", "start", "threshold", "max_output", "kept_tiles", "planes", "stride"])
def test_kernel(
    boxes, class_ids, counts, N, start, threshold, max_output, keep, num_keep, kept_tiles, bits, planes, stride,
    LEGACY: tl.constexpr, KEPT_TILES: tl.constexpr, ROWS: tl.constexpr, WORD: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """A program tests ROWS ranks of the chunk (axis 2 of the grid) against suppressors (axis 1). Below kept_tiles:
    boxes kept earlier, every kept_tiles-th WORD of them. From there on: one word of the chunk itself."""
    U: tl.constexpr = compute_type(boxes.dtype.element_ty)
    s = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    first_row = tl.program_id(2) * ROWS
    n = tl.minimum(tl.load(counts + s) - start, stride)
    kept = tl.load(num_keep + s, mask=start > 0, other=0)
    of_kept = tile < kept_tiles
    first = tl.where(of_kept, tile, tile - kept_tiles) * WORD
    end = tl.where(of_kept, kept, tl.minimum(n, first + WORD))
    # Later boxes suppress no earlier ones.
    reaches = first < first_row + ROWS if not mutant("nms_reach") else first < first_row
    needed = of_kept | ((first < n) & reaches)
    if (kept < max_output) & (first_row < n) & needed:
        row = first_row + tl.arange(0, ROWS)
        mask = row < n
        rank = s * N + start + row
        bx1, by1, bx2, by2 = load_box(boxes, rank, mask)
        area_b = area(bx1, by1, bx2, by2, LEGACY)
        if class_ids is not None:
            class_b = tl.load(class_ids + rank, mask=mask, other=0)
        found = tl.zeros([ROWS], tl.uint32)
        for at in range(first, end, tl.maximum(kept_tiles, 1) * WORD):
            for step in range(0, WORD, STEP):
                lane = step + tl.arange(0, STEP)
                item = at + lane
                there = item < end if not mutant("nms_chunk_end") else item < end - 1
                named = tl.load(keep + s * max_output + item, mask=item < tl.where(of_kept, end, 0), other=0)
                other = s * N + tl.where(of_kept, named, start + item)
                ax1, ay1, ax2, ay2 = load_box(boxes, other, there)
                area_a = area(ax1, ay1, ax2, ay2, LEGACY)
                overlap = iou(
                    ax1[:, None], ay1[:, None], ax2[:, None], ay2[:, None], area_a[:, None],
                    bx1[None, :], by1[None, :], bx2[None, :], by2[None, :], area_b[None, :], LEGACY,
                )  # fmt: skip
                limit = scalar(threshold, U)
                hit = overlap > limit if not mutant("nms_threshold") else overlap >= limit
                hit = hit & there[:, None]
                if class_ids is not None:
                    class_a = tl.load(class_ids + other, mask=there, other=0)
                    if not mutant("nms_class"):
                        hit = hit & (class_a[:, None] == class_b[None, :])
                bit = tl.full([STEP], 1, tl.uint32) << lane.to(tl.uint32)
                found = found | tl.sum(tl.where(hit, bit[:, None], 0), axis=0)
        plane = tl.where(of_kept, tile, tile - kept_tiles + KEPT_TILES)
        tl.store(bits + (s * planes + plane) * stride + row, found, mask=mask)


@triton.jit
def load_inside(bits, g, n, stride, GROUP: tl.constexpr, WORD: tl.constexpr):
    """Who of group g suppresses each of its boxes: [GROUP, GROUP * WORD], the bits of word u; none for later ones."""
    u = tl.arange(0, GROUP)[:, None]
    box = tl.arange(0, GROUP * WORD)[None, :]
    row = g * GROUP * WORD + box
    earlier = u <= box // WORD if not mutant("nms_own_word") else u < box // WORD
    found = tl.load(bits + (g * GROUP + u) * stride + row, mask=earlier & (row < n), other=0)
    below = (tl.full([1, GROUP * WORD], 1, tl.uint32) << (box % WORD).to(tl.uint32)) - 1
    return tl.where(u == box // WORD, found & below, found) if not mutant("nms_itself") else found


@triton.jit
def in_words(flags, GROUP: tl.constexpr, WORD: tl.constexpr):
    """Flags [GROUP * WORD] as bits [GROUP]."""
    bit = tl.full([1, WORD], 1, tl.uint32) << tl.arange(0, WORD)[None, :].to(tl.uint32)
    return tl.sum(tl.where(flags.reshape(GROUP, WORD), bit, 0), axis=1)


@triton.jit(do_not_specialize=["start", "max_output", "kept_tiles", "planes", "stride", "last"])
def resolve_kernel(
    counts, start, max_output, keep, num_keep, kept_tiles, bits, planes, stride, last,
    KEPT_TILES: tl.constexpr, GROUPS: tl.constexpr, GROUP: tl.constexpr, WORD: tl.constexpr, FILL: tl.constexpr,
):  # fmt: skip
    """A program owns a segment and takes GROUP words at a time, a warp each: a thread has one box of every group. A box
    of a group is alive if no kept box of an earlier group or chunk suppresses it, and kept if besides no earlier kept
    one of its own group does: from "all alive are kept", every round makes at least one more box final, in rank order;
    usually few rounds suffice, and as many as there are boxes always do. Then the group's kept boxes are applied to
    all later ones. What that needs is loaded before the rounds."""
    s = tl.program_id(0).to(tl.int64)
    n = tl.minimum(tl.load(counts + s) - start, stride)
    total = tl.load(num_keep + s, mask=start > 0, other=0)
    tl.debug_barrier()  # all have read num_keep, which is written below
    keep += s * max_output
    bits += s * planes * stride
    group = tl.arange(0, GROUPS)[:, None]
    word = tl.arange(0, GROUP)
    lane = tl.arange(0, WORD)[None, :]
    bit = tl.full([1, WORD], 1, tl.uint32) << lane.to(tl.uint32)
    box = tl.arange(0, GROUP * WORD)
    row = group * GROUP * WORD + box[None, :]
    dead = tl.zeros([GROUPS, GROUP * WORD], tl.uint32)  # not 0: suppressed
    if total < max_output:
        for tile in range(kept_tiles):
            dead |= tl.load(bits + tile * stride + row, mask=row < n, other=0) if not mutant("nms_chunk") else 0
    bits += KEPT_TILES * stride
    inside = load_inside(bits, 0, n, stride, GROUP, WORD)
    g = 0
    while (g * GROUP * WORD < n) & (total < max_output):
        later = tl.load(
            bits + (g * GROUP + word[:, None, None]) * stride + row[None],
            mask=((group > g if not mutant("nms_later_group") else group > g + 1) & (row < n))[None], other=0,
        )  # fmt: skip
        alive = (g * GROUP * WORD + box < n) & (tl.max(tl.where(group == g, dead, 0), axis=0) == 0)
        kept = in_words(alive, GROUP, WORD)
        unsettled = True
        while unsettled:
            fewer = in_words(alive & (tl.max(inside & kept[:, None], axis=0) == 0), GROUP, WORD)
            unsettled = tl.max(fewer ^ kept, axis=0) != 0 if not mutant("nms_rounds") else False
            kept = fewer
        inside = load_inside(bits, g + 1, n, stride, GROUP, WORD)
        dead |= tl.max(later & kept[:, None, None], axis=0)
        number = popcount(kept)
        before = tl.sum(tl.where(word[:, None] < word[None, :], number[:, None], 0), axis=0)
        below = bit - 1 if not mutant("nms_place") else bit
        position = total + before[:, None] + popcount(kept[:, None] & below)
        rank = start + g * GROUP * WORD + word[:, None] * WORD + lane
        most = max_output if not mutant("nms_max_output") else max_output - 1
        tl.store(keep + position, rank, mask=((kept[:, None] & bit) != 0) & (position < most))
        total += tl.sum(number, axis=0)
        g += 1
    total = tl.minimum(total, max_output)
    tl.store(num_keep + s, total)
    if last != 0:
        for first in range(total if not mutant("nms_padding") else total + 1, max_output, FILL):
            rest = first + tl.arange(0, FILL)
            tl.store(keep + rest, -1, mask=rest < max_output)


def nms_sorted_segments(
    boxes: Tensor, class_ids: Tensor | None, counts: Tensor, iou_threshold: float, max_output: int, legacy: bool,
    keep: Tensor, num_keep: Tensor,
) -> None:  # fmt: skip
    """The core, for callers whose boxes are already in order: rows of `boxes` are ranks.

    boxes [S, N, 4] in the compute type, finite; class_ids int64 [S, N] or None; counts int32 [S], at most N: ranks from
    counts[s] on do not exist. keep int32 [S, max_output]: ranks, ascending, then -1; num_keep int32 [S]. The number of
    launches depends on N alone.
    """
    S, N, _ = boxes.shape
    if N == 0 or max_output == 0:
        keep.fill_(-1)
        num_keep.zero_()
        return
    if S == 0:
        return
    words = blocks_for(min(N, CHUNK), WORD)
    planes, stride = KEPT_TILES + words, words * WORD
    # Plane p of a segment has a number for each box of the chunk. Below KEPT_TILES: not 0 if the p-th share of the
    # boxes kept earlier suppresses it. From there on: bit i if box i of word p - KEPT_TILES would.
    bits = torch.empty((S, planes, stride), dtype=torch.uint32, device=boxes.device)
    for start in range(0, N, CHUNK):
        n = min(CHUNK, N - start)
        kept_tiles = min(KEPT_TILES, blocks_for(min(start, max_output), WORD))
        launch(
            test_kernel, (S, kept_tiles + blocks_for(n, WORD), blocks_for(n, ROWS)), boxes, class_ids, counts, N,
            start, double_bits(iou_threshold), max_output, keep, num_keep, kept_tiles, bits, planes, stride,
            like=boxes, LEGACY=legacy, KEPT_TILES=KEPT_TILES, ROWS=ROWS, WORD=WORD,
            STEP=STEP * 4 // boxes.element_size(),
        )  # fmt: skip
        launch(
            resolve_kernel, (S,), counts, start, max_output, keep, num_keep, kept_tiles, bits, planes, stride,
            int(start + CHUNK >= N), like=boxes, warps=GROUP, KEPT_TILES=KEPT_TILES,
            GROUPS=CHUNK // WORD // GROUP, GROUP=GROUP, WORD=WORD, FILL=1024,
        )  # fmt: skip


@triton.jit(do_not_specialize=["N"])
def compete_kernel(boxes, counts, N, competes, BLOCK: tl.constexpr):
    """A program owns BLOCK boxes of an image (axis 1 of the grid), and says which take part."""
    image = tl.program_id(1).to(tl.int64)
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x1, y1, x2, y2 = load_box(boxes, image * N + i, i < N)
    fit = is_finite_box(x1, y1, x2, y2) if not mutant("nms_non_finite") else i < N
    if counts is not None and not mutant("nms_counts"):
        count = tl.load(counts + image)
        count = tl.where(count > N, 0, count) if not mutant("nms_count_range") else count
        fit = fit & (i < count)
    tl.store(competes + image * N + i, fit.to(tl.uint8), mask=i < N)


@triton.jit(do_not_specialize=["N"])
def gather_kernel(boxes, class_ids, order, N, sorted_boxes, sorted_ids, BLOCK: tl.constexpr):
    """A program owns BLOCK ranks of an image (axis 1 of the grid)."""
    image = tl.program_id(1).to(tl.int64)
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(order + image * N + i, mask=i < N, other=-1)
    x1, y1, x2, y2 = load_box(boxes, image * N + row, row >= 0)
    store_box(sorted_boxes, image * N + i, x1, y1, x2, y2, row >= 0)
    if class_ids is not None:
        ids = tl.load(class_ids + image * N + row, mask=row >= 0)
        tl.store(sorted_ids + image * N + i, ids, mask=row >= 0)


@triton.jit(do_not_specialize=["N", "max_output"])
def ranks_to_rows_kernel(order, ranks, num_ranks, N, max_output, keep, num_keep, BLOCK: tl.constexpr):
    """A program owns BLOCK rows of the result of an image (axis 1 of the grid)."""
    image = tl.program_id(1).to(tl.int64)
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    rank = tl.load(ranks + image * max_output + i, mask=i < max_output, other=-1)
    row = tl.load(order + image * N + rank, mask=rank >= 0, other=-1)
    tl.store(keep + image * max_output + i, row.to(tl.int64), mask=i < max_output)
    if tl.program_id(0) == 0:
        tl.store(num_keep + image, tl.load(num_ranks + image).to(tl.int64))


def nms_padded(
    boxes: Tensor, scores: Tensor, class_ids: Tensor | None, counts: Tensor | None, iou_threshold: float,
    max_output: int, legacy: bool, keep: Tensor, num_keep: Tensor,
) -> None:  # fmt: skip
    B, N = scores.shape
    if N >= 1 << 31 or max_output >= 1 << 31:
        raise ValueError(f"boxes, max_output: expected fewer than 2^31 an image, got {N} and {max_output}")
    if N == 0 or max_output == 0:
        keep.fill_(-1)
        num_keep.zero_()
        return
    if B == 0:
        return
    compute = torch.float64 if boxes.dtype == torch.float64 else torch.float32
    grid = blocks_for(N, BLOCK), B
    competes = boxes.new_empty((B, N), dtype=torch.uint8)
    launch(compete_kernel, grid, boxes, counts, N, competes, like=boxes, BLOCK=BLOCK)
    order, ranked = boxes.new_empty((B, N), dtype=torch.int32), boxes.new_empty((B,), dtype=torch.int32)
    select_segments([scores], [0, N], N, competes, order, ranked)
    sorted_boxes = boxes.new_empty((B, N, 4), dtype=compute)
    sorted_ids = None if class_ids is None else torch.empty_like(class_ids)
    launch(gather_kernel, grid, boxes, class_ids, order, N, sorted_boxes, sorted_ids, like=boxes, BLOCK=BLOCK)
    ranks = boxes.new_empty((B, max_output), dtype=torch.int32)
    num_ranks = boxes.new_empty((B,), dtype=torch.int32)
    nms_sorted_segments(sorted_boxes, sorted_ids, ranked, iou_threshold, max_output, legacy, ranks, num_ranks)
    launch(
        ranks_to_rows_kernel, (blocks_for(max_output, BLOCK), B), order, ranks, num_ranks, N, max_output, keep,
        num_keep, like=boxes, BLOCK=BLOCK,
    )  # fmt: skip


def batched_nms(
    boxes: Tensor, scores: Tensor, idxs: Tensor | None, iou_threshold: float, keep: Tensor, num_keep: Tensor
) -> None:
    ids = None if idxs is None else idxs[None]
    nms_padded(boxes[None], scores[None], ids, None, iou_threshold, boxes.shape[0], False, keep[None], num_keep)


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, keep: Tensor, num_keep: Tensor) -> None:
    batched_nms(boxes, scores, None, iou_threshold, keep, num_keep)
