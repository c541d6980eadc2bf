"""NumPy and CuPy arrays of every kind, wherever they stand among the arguments.

CuPy needs a GPU. Without one, a library stands in for it that has NumPy's arrays under CuPy's names, and the compiled
module serves them as it would CuPy's where torch has no CUDA half.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from frcnn_fast import ops
from frcnn_fast.ops import _arrays, _backends, _direct
from tests.fake_cupy import STREAM, FakeArray, fake_array, fake_cupy
from tests.samples import Sample, samples

BOXES = np.array([[0, 0, 10, 10], [1, 1, 11, 11], [20, 20, 30, 30]], np.float32)
SCORES = np.array([0.9, 0.8, 0.7], np.float32)
KEPT = [0, 2]


def read_only(a: np.ndarray) -> np.ndarray:
    a = a.copy()
    a.flags.writeable = False
    return a


KINDS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "plain": lambda a: a,
    "reversed twice": lambda a: a[::-1].copy()[::-1],
    "big-endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
    "read-only": read_only,
    "every second": lambda a: np.repeat(a, 2, axis=0)[::2],
    "Fortran order": np.asfortranarray,
    "broadcast": lambda a: np.broadcast_to(a, a.shape),
}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_kinds_of_arrays(kind: str) -> None:
    make = KINDS[kind]
    keep = ops.nms(make(BOXES), make(SCORES), 0.5)  # type: ignore[arg-type]
    assert isinstance(keep, np.ndarray)
    assert keep.tolist() == KEPT


def test_keywords_and_places() -> None:
    boxes, scores = torch.from_numpy(BOXES), torch.from_numpy(SCORES)
    by_keyword = ops.nms(boxes=BOXES, scores=SCORES, iou_threshold=0.5)  # type: ignore[arg-type]
    assert isinstance(by_keyword, np.ndarray)
    assert by_keyword.tolist() == KEPT
    for mixed in (
        ops.nms(boxes, SCORES, 0.5),  # type: ignore[arg-type]
        ops.nms(BOXES, scores, 0.5),  # type: ignore[arg-type]
        ops.nms(boxes, scores=SCORES, iou_threshold=0.5),  # type: ignore[arg-type]
    ):
        assert isinstance(mixed, torch.Tensor)
        assert mixed.tolist() == KEPT


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.int16, np.int64, ">i4"])
def test_integers(dtype: str) -> None:
    ids = np.array([1, 2, 1], dtype)
    keep = ops.batched_nms(BOXES, SCORES, ids, 0.5)  # type: ignore[arg-type]
    assert keep.tolist() == [0, 1, 2]
    iou = ops.box_iou(BOXES.astype(dtype), BOXES.astype(dtype))  # type: ignore[arg-type]
    assert np.array_equal(iou, ops.box_iou(BOXES, BOXES))  # type: ignore[arg-type]


def test_arrays_in_a_list() -> None:
    features = np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)
    pooled = ops.roi_align(features, [BOXES, BOXES[:1]], 2, 0.25)  # type: ignore[list-item, arg-type]
    wanted = ops.roi_align(torch.from_numpy(features), [torch.from_numpy(BOXES), torch.from_numpy(BOXES[:1])], 2, 0.25)
    assert np.array_equal(pooled, wanted.numpy())


@pytest.mark.parametrize("wrong", [np.array(["a"]), np.array([1 + 2j]), np.array([None])])
def test_what_is_no_number_is_a_type_error(wrong: np.ndarray) -> None:
    with pytest.raises(TypeError, match="boxes: expected numbers"):
        ops.nms(wrong, SCORES, 0.5)  # type: ignore[arg-type]


# Every op.


def with_arrays(value: Any, array: Callable[[torch.Tensor], Any]) -> Any:
    """The value with arrays in the places of tensors."""
    if isinstance(value, torch.Tensor):
        return array(value)
    if isinstance(value, ops.AnchorGrids):
        return value
    return type(value)(with_arrays(v, array) for v in value) if isinstance(value, (list, tuple)) else value


def called(sample: Sample, array: Callable[[torch.Tensor], Any], *, by_keyword: bool) -> Any:
    """A sample's call with arrays."""
    given = [with_arrays(tensor, array) for tensor in sample.tensors]
    scalars = {name: with_arrays(value, array) for name, value in sample.scalars.items()}
    if not by_keyword:
        return sample.function(*given, **scalars)
    names = list(inspect.signature(sample.function).parameters)
    return sample.function(**dict(zip(names, given)), **scalars)


def check(found: Any, wanted: Any, kind: Any) -> None:
    """The same named result, its fields arrays of that kind, to the bit."""
    assert isinstance(found, type(wanted)) if isinstance(wanted, tuple) else isinstance(found, kind)
    pairs: Any = zip(found, wanted, strict=True) if isinstance(wanted, tuple) else [(found, wanted)]
    for array, tensor in pairs:
        assert isinstance(array, kind)
        assert array.dtype == tensor.numpy().dtype
        assert np.array_equal(np.asarray(array), tensor.numpy(), equal_nan=array.dtype.kind == "f")


DTYPES = [torch.float32, torch.float64, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("by_keyword", [False, True], ids=["by place", "by keyword"])
@pytest.mark.parametrize("op", sorted(samples()))
def test_every_op_takes_numpy(op: str, by_keyword: bool, dtype: torch.dtype) -> None:
    sample = samples(dtype=dtype)[op]
    check(called(sample, torch.Tensor.numpy, by_keyword=by_keyword), sample(), np.ndarray)


def test_every_op_has_a_sample() -> None:
    functions = {name for name in ops.__all__ if name.islower() and callable(getattr(ops, name))}
    assert functions - set(samples()) == {"generate_anchors", "use_backend"}


def test_nothing_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel reads the array's own memory, and the result is the memory that it wrote."""
    seen: list[int] = []
    real = ops.top_n.__wrapped__  # type: ignore[attr-defined]

    def watched(scores: torch.Tensor, n: int) -> Any:
        result = real(scores, n)
        seen.extend([scores.data_ptr(), result.values.data_ptr(), result.indices.data_ptr()])
        return result

    scores = np.random.default_rng(0).normal(size=(2, 50)).astype(np.float32)
    found = _arrays.accepts_arrays(watched)(scores, 5)
    assert seen == [a.ctypes.data for a in (scores, found.values, found.indices)]


@pytest.mark.parametrize("wanted", [np.float32, np.float64])
def test_anchor_grids_of_arrays(wanted: type) -> None:
    cells = ops.generate_anchors((16, 32), (0.5, 1.0))
    logits = torch.randn(1, 2 * 3 * 4, generator=torch.Generator().manual_seed(0))
    deltas = torch.zeros(1, 24, 4)
    settings: dict[str, Any] = {"image_sizes": [(40, 60)], "pre_nms_top_n": 10, "post_nms_top_n": 5}
    of_tensors = ops.AnchorGrids([(cells, (2, 3), 16)])
    of_arrays = ops.AnchorGrids([(cells.numpy().astype(wanted), (2, 3), 16)])
    found = ops.rpn_proposals(logits.numpy(), deltas.numpy(), of_arrays, **settings)
    check(found, ops.rpn_proposals(logits, deltas, of_tensors, **settings), np.ndarray)


# CuPy, without a GPU.


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The stand-in, whose device is one that the binary has code for; torch sees no GPU."""
    fake = fake_cupy()
    monkeypatch.setitem(sys.modules, "cupy", fake)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(_backends, "why_no_cuda", lambda capability: "" if capability == (8, 0) else "no code for it")
    return fake


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("by_keyword", [False, True], ids=["by place", "by keyword"])
@pytest.mark.parametrize("op", sorted(samples()))
def test_every_op_without_torch_on_the_gpu(cupy: Any, op: str, by_keyword: bool, dtype: torch.dtype) -> None:
    sample = samples(dtype=dtype)[op]
    check(called(sample, fake_array, by_keyword=by_keyword), sample(), FakeArray)


def test_lists_grids_and_views_without_torch_on_the_gpu(cupy: Any) -> None:
    g = torch.Generator().manual_seed(0)
    boxes = torch.rand(2, 6, 4, generator=g).cumsum(-1) * 8
    features = torch.randn(2, 3, 8, 8, generator=g).to(memory_format=torch.channels_last)
    for maps in (features, features[:, :, ::2, 1:]):
        wanted = ops.roi_align(maps, [boxes[0], boxes[1, ::2]], 2, 0.25)
        found: Any = ops.roi_align(fake_array(maps), [fake_array(boxes[0]), fake_array(boxes[1, ::2])], 2, 0.25)
        check(found, wanted, FakeArray)
        assert found.strides == wanted.numpy().strides  # the layout of the maps
        for layout in (torch.contiguous_format, torch.channels_last):
            asked: Any = ops.roi_align(
                fake_array(maps), [fake_array(boxes[0]), fake_array(boxes[1, ::2])], 2, 0.25, memory_format=layout
            )
            check(asked, wanted, FakeArray)
            assert asked.strides == wanted.contiguous(memory_format=layout).numpy().strides
    grids = ops.AnchorGrids([(fake_array(ops.generate_anchors((8,), (0.5, 1.0))), (2, 3), 16)])
    logits, deltas = torch.randn(1, 12, generator=g), torch.zeros(1, 12, 4)
    settings: dict[str, Any] = {"image_sizes": [(40, 60)], "pre_nms_top_n": 10, "post_nms_top_n": 5}
    found = ops.rpn_proposals(fake_array(logits), fake_array(deltas), grids, **settings)
    check(found, ops.rpn_proposals(logits, deltas, grids, **settings), FakeArray)
    # Of other integers, and reversed.
    ids = torch.tensor([1, 2, 1])
    box, score = torch.from_numpy(BOXES), torch.from_numpy(SCORES)
    found = ops.batched_nms(fake_array(box), fake_array(score), fake_array(ids).astype(np.uint16), 0.5)
    check(found, ops.batched_nms(box, score, ids, 0.5), FakeArray)
    backwards = fake_array(box)[::-1].copy()[::-1], fake_array(score)[::-1].copy()[::-1]
    check(ops.nms(*backwards, 0.5), ops.nms(box, score, 0.5), FakeArray)
    check(ops.nms(*(a[:0] for a in backwards), 0.5), ops.nms(box[:0], score[:0], 0.5), FakeArray)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_losses_are_summed_in_the_library_of_the_arrays(cupy: Any, reduction: str) -> None:
    boxes = torch.from_numpy(BOXES)
    given = boxes, boxes.flip(0)
    found: Any = ops.complete_box_iou_loss(*map(fake_array, given), reduction=reduction)
    assert isinstance(found, FakeArray)
    assert found.shape == ()
    assert float(found) == pytest.approx(float(ops.complete_box_iou_loss(*given, reduction=reduction)), rel=1e-6)


def test_the_stream_of_cupy_is_used(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiled module is told it before the kernel, and forgets it afterwards, even where the call fails."""
    told: list[Any] = []

    class Recorder:
        def __getattr__(self, name: str) -> Any:
            told.append(name)
            return getattr(_direct_extension(), name)

        def use_stream(self, stream: int) -> None:
            told.append(stream)

    _direct_extension = _direct.extension
    monkeypatch.setattr(_direct, "extension", Recorder)
    ops.top_n(fake_array(torch.zeros(1, 4)), 2)
    assert told == [STREAM, "top_n_workspace", "top_n", 0]
    told.clear()
    with pytest.raises(ValueError, match=r"counts\[0\] is 9"):
        ops.nms_padded(
            *map(fake_array, (torch.zeros(1, 3, 4), torch.zeros(1, 3))), 0.5, 2, counts=fake_array(torch.tensor([9]))
        )
    assert told[0] == STREAM
    assert told[-1] == 0


def test_errors_without_torch_on_the_gpu(cupy: Any) -> None:
    boxes, scores = fake_array(torch.from_numpy(BOXES)), fake_array(torch.from_numpy(SCORES))
    with pytest.raises(TypeError, match=r"scores: expected an array of CuPy.*cupy\.asarray"):
        ops.nms(boxes, torch.from_numpy(SCORES), 0.5)
    with pytest.raises(TypeError, match="scores: expected an array of CuPy"):
        ops.nms(boxes, scores=SCORES, iou_threshold=0.5)
    with pytest.raises(ValueError, match="backend 'triton' needs tensors"):
        ops.nms(boxes, scores, 0.5, backend="triton")
    with pytest.raises(ValueError, match=r"scores: expected shape \[N\] = \[3\]"):
        ops.nms(boxes, scores[:2], 0.5)


@pytest.mark.parametrize("pointer", [0, STREAM])
def test_torch_works_on_the_stream_of_cupy(cupy: Any, monkeypatch: pytest.MonkeyPatch, pointer: int) -> None:
    used: list[Any] = []
    cupy.cuda.get_current_stream().ptr = pointer
    monkeypatch.setattr(torch.cuda, "default_stream", lambda device: types.SimpleNamespace(cuda_stream=0))
    monkeypatch.setattr(torch.cuda, "ExternalStream", lambda pointer, device: (pointer, device))

    def put_on(stream: Any) -> contextlib.nullcontext[None]:
        used.append(stream)
        return contextlib.nullcontext()

    monkeypatch.setattr(torch.cuda, "stream", put_on)
    device: Any = contextlib.nullcontext()
    device.id = 3
    with _arrays._on_stream_of(device):
        assert len(used) == 1
    assert used[0] == ((STREAM, 3) if pointer else types.SimpleNamespace(cuda_stream=0))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("op", sorted(samples()))
def test_cupy_on_a_stream_of_its_own(op: str) -> None:
    """The inputs are made on that stream just before, behind work that takes a while."""
    cp = pytest.importorskip("cupy")
    sample = samples()[op]
    with cp.cuda.Stream(non_blocking=True) as stream:
        cp.zeros(1 << 26).sum()
        found = called(sample, lambda tensor: cp.asarray(tensor.numpy()), by_keyword=False)
        stream.synchronize()
    wanted = sample()
    pairs = zip(found, wanted) if isinstance(wanted, tuple) else [(found, wanted)]
    for array, tensor in pairs:
        assert isinstance(array, cp.ndarray)
        assert np.allclose(array.get(), tensor.numpy(), rtol=1e-5, atol=1e-6)
