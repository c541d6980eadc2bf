"""CUDA kernels compiled by NVRTC and launched by CuPy: for a GPU that the compiled module has no code for.

The sources are the `.cu` files that nvcc compiles, with kernels/common/nvrtc.cuh in the places of launch.cuh and
status.h. What is here is what their launchers do besides: the forms, the grids and the structures that go to a kernel
by value. `SERVED` names the ops; where ranks are needed (NMS), CuPy's sort makes them. CuPy keeps what was compiled, in
the process and on the disk; the first call of an op takes seconds.

Nobody needs to import this: ops on CuPy arrays come here where torch sees no GPU and `frcnn_fast.doctor` says that the
binary carries no code for it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

KERNELS = Path(__file__).resolve().parent / "kernels"
OPTIONS = ("--std=c++17", "--fmad=false", "-default-device")
_IN_PLACES_OF = {"common/launch.cuh": "common/nvrtc.cuh", "common/status.h": "common/nvrtc.cuh"}
_INCLUDE = re.compile(r'\s*#\s*include\s*(?:"([^"]+)"|<[^>]+>)')


@functools.cache
def source(file: str) -> str:
    """A `.cu` file, by its path under kernels/, with all that it includes of ours: what NVRTC compiles."""
    included: set[str] = set()

    def text(path: Path) -> list[str]:
        name = path.resolve().relative_to(KERNELS.resolve()).as_posix()
        name = _IN_PLACES_OF.get(name, name)
        if name in included:
            return []
        included.add(name)
        lines = [f'#line 1 "{name}"']
        for number, line in enumerate((KERNELS / name).read_text().splitlines(), 1):
            found = _INCLUDE.match(line)
            if found and found[1]:
                lines += [*text((KERNELS / name).parent / found[1]), f'#line {number + 1} "{name}"']
            else:
                lines.append("" if found or line.startswith("#pragma once") else line)
        return lines

    return "\n".join([*text(KERNELS / "common/nvrtc.cuh"), *text(KERNELS / file)])


# The structures that kernels take by value, as C++ lays them out. u: the compute type.

_POINTER, _INT, _LONG = np.uint64, np.int32, np.int64
MOST_LEVELS = 8


def decode_params(u: type) -> np.dtype:
    return np.dtype([(name, u) for name in ("wx", "wy", "ww", "wh", "clamp")], align=True)


ANCHOR_LEVEL = np.dtype(
    [("start", _LONG), ("cell_start", _LONG)] + [(n, _INT) for n in ("width", "per_cell", "stride_y", "stride_x")],
    align=True,
)


def anchors(u: type) -> np.dtype:
    return np.dtype(
        [
            ("boxes", _POINTER),
            ("image_stride", _LONG),
            ("num_levels", _INT),
            ("offset", u),
            ("levels", ANCHOR_LEVEL, MOST_LEVELS),
        ],
        align=True,
    )


def decode_inputs(u: type) -> np.dtype:
    return np.dtype(
        [
            ("deltas", _POINTER),
            ("B", _LONG),
            ("A", _LONG),
            ("anchors", anchors(u)),
            ("params", decode_params(u)),
            ("image_sizes", _POINTER),
            ("image_scales", _POINTER),
            ("min_size", u),
        ],
        align=True,
    )


def soft_rule(u: type) -> np.dtype:
    return np.dtype(
        [("method", _INT), ("iou_threshold", u), ("sigma", u), ("score_threshold", u)],
        align=True,
    )


def segments(u: type) -> np.dtype:
    return np.dtype(
        [
            ("boxes", _POINTER),
            ("class_ids", _POINTER),
            ("counts", _POINTER),
            ("N", _LONG),
            ("max_output", _INT),
            ("suppression", np.dtype([("threshold", u), ("share", u)], align=True)),
            ("words", _INT),
            ("matrix", _POINTER),
            ("dead", _POINTER),
            ("keep", _POINTER),
            ("num_keep", _POINTER),
        ],
        align=True,
    )


def _struct(dtype: np.dtype, **fields: Any) -> np.ndarray:
    """One such structure; CuPy passes an array of one element by value."""
    value = np.zeros(1, dtype)
    for name, field in fields.items():
        value[name] = field
    return value


def _blocks(n: int, each: int) -> int:
    return -(-n // each)


class Launcher:
    """Compiles and launches on CuPy's current device and stream.

    Args:
        library: cupy.
    """

    def __init__(self, library: Any) -> None:
        self.library = library

    def address(self, array: Any) -> int:
        return 0 if array is None else array.data.ptr

    def launch(self, file: str, kernel: str, grid: Sequence[int], block: int, arguments: Sequence[Any]) -> None:
        """kernel: its full name with template arguments; arguments: arrays, None, scalars and structures of NumPy."""
        _function(self.library, file, kernel)(tuple(grid), (block,), tuple(arguments))


@functools.cache
def _function(library: Any, file: str, kernel: str) -> Any:
    module = library.RawModule(code=source(file), options=OPTIONS, name_expressions=(kernel,))
    return module.get_function(kernel)


def run(launcher: Launcher, reason: str, op: Any, a: Any, results: Sequence[Any]) -> None:
    """Runs an op.

    Args:
        reason: why the compiled module does not, for the error.
        op: the `Operator`. a: its arguments by the schema's names. results: its outputs. Arrays stand for tensors.

    Raises:
        RuntimeError: it is none of `SERVED`.
    """
    if op.name not in SERVED:
        raise RuntimeError(
            f"{op.name}: {reason}; without it, NVRTC serves {', '.join(sorted(SERVED))}. For this op build frcnn_fast "
            "where nvcc is found, or install torch for CUDA, whose Triton runs every op"
        )
    SERVED[op.name](launcher, a, *results)


# What launchers call T and U.
_NAMES = {"float16": "frcnn_fast::Half", "float32": "float", "float64": "double"}


def _types(array: Any) -> tuple[str, str, type]:
    """T and U in C++, and U in NumPy."""
    u = np.float64 if array.dtype == np.float64 else np.float32
    return _NAMES[array.dtype.name], _NAMES[np.dtype(u).name], u


def _flag(value: bool) -> str:
    return "true" if value else "false"


def _box_iou(to: Launcher, a: Any, iou: Any) -> None:
    N, M, (T, _, _) = len(a.boxes1), len(a.boxes2), _types(a.boxes1)
    if N == 0 or M == 0:
        return
    across = _blocks(M, IOU_COLUMNS)
    kernel = f"frcnn_fast::nms::box_iou_kernel<{_flag(a.legacy)}, {T}>"
    arguments = [a.boxes1, np.int64(N), a.boxes2, np.int64(M), np.int64(across), iou]
    to.launch("nms/box_iou.cu", kernel, [across * _blocks(N, IOU_ROWS)], IOU_COLUMNS, arguments)


def _soft_nms(to: Launcher, a: Any, keep: Any, kept_scores: Any, num_keep: Any) -> None:
    B, N = a.scores.shape
    if B == 0:
        return
    T, _, u = _types(a.boxes)
    method = ("linear", "gaussian", "hard").index(a.method)
    rule = _struct(
        soft_rule(u),
        method=method, iou_threshold=a.iou_threshold, sigma=a.sigma, score_threshold=a.score_threshold,
    )  # fmt: skip
    current = to.library.empty((B * N,), u)
    kernel = f"frcnn_fast::nms::soft_nms_kernel<{T}, {_flag(a.legacy)}, (frcnn_fast::nms::SoftMethod){method}>"
    arguments = [
        a.boxes, a.scores, a.counts, np.int32(N), rule, np.int64(a.max_output), current, keep, kept_scores, num_keep,
    ]  # fmt: skip
    to.launch("nms/soft_nms.cu", kernel, [B], SOFT_THREADS, arguments)


def _params(u: type, weights: Sequence[float], clamp: float = 0.0) -> np.ndarray:
    return _struct(decode_params(u), **dict(zip(("wx", "wy", "ww", "wh"), weights)), clamp=clamp)


def _encode(to: Launcher, a: Any, targets: Any) -> None:
    N, (T, _, u) = a.gt_boxes.size // 4, _types(a.gt_boxes)
    if N:
        kernel = f"frcnn_fast::anchor_decode::encode_kernel<{T}, {_flag(a.legacy)}>"
        arguments = [a.gt_boxes, a.anchors, np.int64(N), _params(u, a.weights), targets]
        to.launch("anchor_decode/anchor_decode.cu", kernel, [_blocks(N, THREADS)], THREADS, arguments)


def _anchors(to: Launcher, a: Any, u: type) -> np.ndarray:
    """As make_anchors of kernels/common/anchors.h does; ops have checked the levels."""
    given = not a.anchor_grid
    image_stride = 4 * a.anchors.shape[1] if given and a.anchors.ndim == 3 else 0
    levels, start, cell_start = np.zeros(MOST_LEVELS, ANCHOR_LEVEL), 0, 0
    rows = list(zip(*[iter(a.anchor_grid)] * 5))
    for level, (height, width, per_cell, stride_y, stride_x) in enumerate(rows):
        levels[level] = (start, cell_start, width, per_cell, stride_y, stride_x)
        start += height * width * per_cell
        cell_start += per_cell
    return _struct(
        anchors(u),
        boxes=to.address(a.anchors), image_stride=image_stride, num_levels=len(rows), offset=a.anchor_offset,
        levels=levels,
    )  # fmt: skip


def _grid_anchors(to: Launcher, a: Any, boxes: Any) -> None:
    A, (_, U, u) = len(boxes), _types(a.anchors)
    if A:
        kernel = f"frcnn_fast::anchor_decode::grid_anchors_kernel<{U}>"
        arguments = [_anchors(to, a, u), np.int64(A), boxes]
        to.launch("anchor_decode/anchor_decode.cu", kernel, [_blocks(A, THREADS)], THREADS, arguments)


def _decode_clip(to: Launcher, a: Any, boxes: Any, valid: Any) -> None:
    B, A = a.deltas.shape[:2]
    T, _, u = _types(a.deltas)
    if B * A == 0:
        return
    inputs = _struct(
        decode_inputs(u),
        deltas=to.address(a.deltas), B=B, A=A, anchors=_anchors(to, a, u), params=_params(u, a.weights, a.clamp),
        image_sizes=to.address(a.image_sizes), image_scales=to.address(a.image_scales), min_size=a.min_size,
    )  # fmt: skip
    kernel = f"frcnn_fast::anchor_decode::decode_clip_kernel<{T}, {_flag(a.legacy)}>"
    arguments = [inputs, boxes, valid]
    to.launch("anchor_decode/anchor_decode.cu", kernel, [_blocks(B * A, THREADS)], THREADS, arguments)


def _nms(to: Launcher, a: Any, keep: Any, num_keep: Any) -> None:
    ids = getattr(a, "idxs", None)
    ids = None if ids is None else ids[None]
    _nms_chain(to, a.boxes[None], a.scores[None], ids, None, a.iou_threshold, False, keep[None], num_keep)


def _nms_padded(to: Launcher, a: Any, keep: Any, num_keep: Any) -> None:
    _nms_chain(to, a.boxes, a.scores, a.class_ids, a.counts, a.iou_threshold, a.legacy, keep, num_keep)


def _nms_chain(
    to: Launcher, boxes: Any, scores: Any, class_ids: Any, counts: Any, iou_threshold: float, legacy: bool, keep: Any,
    num_keep: Any,
) -> None:  # fmt: skip
    """The chain of nms_padded.cu: who competes, in which order, the boxes in that order, which of them stay."""
    xp, (B, N), max_output = to.library, scores.shape, keep.shape[1]
    if 0 in (B, N, max_output):
        keep[...] = -1
        num_keep[...] = 0
        return
    T, U, u = _types(boxes)
    sizes = np.int64(B), np.int64(N)
    competes, order = xp.empty((B, N), np.uint8), xp.empty((B, N), np.int32)
    file, blocks = "nms/nms_padded.cu", [_blocks(B * N, THREADS)]
    kernel = f"frcnn_fast::nms::compete_kernel<{T}>"
    to.launch(file, kernel, blocks, THREADS, [boxes, counts, *sizes, competes])
    ranked = _rank(xp, scores, competes, order)
    sorted_boxes = xp.empty((B, N, 4), u)
    sorted_ids = None if class_ids is None else xp.empty((B, N), np.int64)
    kernel = f"frcnn_fast::nms::gather_kernel<{T}>"
    to.launch(file, kernel, blocks, THREADS, [boxes, class_ids, order, *sizes, sorted_boxes, sorted_ids])

    words = min(NMS_WORDS, _blocks(N, NMS_WORD))
    matrix = xp.empty((B * words * words * NMS_WORD,), np.uint64)
    dead = xp.empty((B * NMS_WORDS * NMS_WORD // 32,), np.uint32)
    kept, num_kept = xp.empty((B, max_output), np.int32), xp.empty((B,), np.int32)
    with np.errstate(invalid="ignore"):  # an infinite threshold: nothing passes
        threshold = u(iou_threshold)
        share = threshold / (u(1) + threshold) * u(1 - 1e-5)
    arrays = {"boxes": sorted_boxes, "class_ids": sorted_ids, "counts": ranked}
    arrays |= {"matrix": matrix, "dead": dead, "keep": kept, "num_keep": num_kept}
    addresses = {name: to.address(array) for name, array in arrays.items()}
    job = _struct(segments(u), **addresses, N=N, max_output=max_output, words=words)
    job["suppression"]["threshold"], job["suppression"]["share"] = threshold, share
    chunk = NMS_WORDS * NMS_WORD
    test = f"frcnn_fast::nms::test_kernel<{_flag(legacy)}, {_flag(class_ids is not None)}, {U}>"
    for start in range(0, N, chunk):
        n = min(chunk, N - start)
        kept_tiles = min(NMS_KEPT_TILES, _blocks(min(start, max_output), NMS_WORD))
        grid = [B, kept_tiles + _blocks(n, NMS_WORD), _blocks(n, NMS_ROWS)]
        to.launch("nms/nms.cu", test, grid, NMS_ROWS, [job, np.int32(start), np.int32(kept_tiles)])
        arguments = [job, np.int32(start), np.bool_(start + chunk >= N)]
        to.launch("nms/nms.cu", f"frcnn_fast::nms::resolve_kernel<{U}>", [B], _blocks(n, NMS_WORD) * WARP, arguments)
    kernel, grid = "frcnn_fast::nms::ranks_to_rows_kernel", [_blocks(B * max_output, THREADS)]
    to.launch(file, kernel, grid, THREADS, [order, kept, num_kept, *sizes, np.int64(max_output), keep, num_keep])


def _rank(xp: Any, scores: Any, competes: Any, order: Any) -> Any:
    """Fills order [B, N]: rows by (score descending, row ascending) of those that compete and have a score, then -1;
    returns how many that are, int32 [B]."""
    B, N = scores.shape
    there = competes.astype(bool) & ~xp.isnan(scores)
    image, row = xp.divmod(xp.arange(B * N, dtype=np.float64), N)
    # 0 - x, not -x: both zeros become one. What takes no part comes last.
    falling = xp.where(there, 0.0 - scores.astype(np.float64), 0.0).ravel()
    by_rank = xp.lexsort(xp.stack([row, falling, (~there).ravel().astype(np.float64), image]))
    ranked = there.sum(axis=1).astype(np.int32)
    rows = by_rank.reshape(B, N) - xp.arange(B)[:, None] * N
    order[...] = xp.where(xp.arange(N)[None] < ranked[:, None], rows, -1)
    return ranked


# As the kernels' sources have them.
WARP = 32
THREADS = 256
IOU_COLUMNS, IOU_ROWS = 128, 16
SOFT_THREADS = 512
NMS_WORD, NMS_WORDS, NMS_ROWS, NMS_KEPT_TILES = 64, 32, 128, 32

SERVED: dict[str, Callable[..., None]] = {
    "batched_nms": _nms,
    "box_iou": _box_iou,
    "decode_clip": _decode_clip,
    "encode": _encode,
    "grid_anchors": _grid_anchors,
    "nms": _nms,
    "nms_padded": _nms_padded,
    "soft_nms": _soft_nms,
}
