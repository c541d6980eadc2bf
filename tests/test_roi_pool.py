"""RoIPool, RoIAlign and the pyramid: layouts, gradients, threads, modules, refusals."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from frcnn_fast import ops, use_backend
from frcnn_fast.kernels.roi_pool.roi_levels import level_thresholds
from frcnn_fast.ops._operator import Operator

OPS = ("roi_pool", "roi_align", "roi_align_max", "multiscale_roi_align")
LAST = torch.channels_last
ROOT = Path(__file__).resolve().parents[1]


def example(
    K: int = 9, C: int = 5, side: int = 20, B: int = 2, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(K + C + side)
    features = torch.randn(B, C, side, side + 3, generator=g, dtype=torch.float64)
    corner = torch.rand(K, 2, generator=g, dtype=torch.float64) * side * 3
    size = torch.rand(K, 2, generator=g, dtype=torch.float64) * side * 2 + 1
    image = torch.arange(K, dtype=torch.float64)[:, None] % max(B, 1)
    return features.to(dtype), torch.cat([image, corner, corner + size], 1).to(dtype)


def call(op: str, features: Tensor, rois: Any, size: Any = (3, 4), **extra: Any) -> Tensor:
    if op == "roi_pool":
        return ops.roi_pool(features, rois, size, 0.25, **extra)
    if op == "roi_align":
        return ops.roi_align(features, rois, size, 0.25, 2, **extra)
    if op == "roi_align_max":
        return ops.roi_align(features, rois, size, 0.25, 2, mode="max", **extra)
    half = torch.nn.functional.avg_pool2d(features, 2)
    if features.is_contiguous(memory_format=LAST) and not features.is_contiguous():
        half = half.contiguous(memory_format=LAST)
    return ops.multiscale_roi_align([features, half], rois, size, (0.25, 0.125), 2, canonical_scale=64, **extra)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def results(op: str, features: Tensor, rois: Tensor, size: Any = 7) -> tuple[Tensor, Tensor]:
    leaf = features.detach().requires_grad_()
    output = call(op, leaf, rois, size)
    grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(0)).to(output.dtype)
    output.backward(grad)
    assert leaf.grad is not None
    return output.detach(), leaf.grad


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="the system has no huge pages")
@pytest.mark.parametrize("op", OPS)
def test_large_outputs_ask_for_huge_pages(op: str) -> None:
    features, rois = example(K=1500, C=32)
    outputs = [call(op, features, rois, 8), *results(op, features.repeat(1, 1, 10, 10), rois, 8)]
    assert all(output.nbytes > 2 << 22 for output in outputs)
    for output in outputs:
        assert "hg" in flags_of_memory(output.data_ptr() + output.nbytes // 2)


def flags_of_memory(address: int) -> list[str]:
    """What Linux notes of the mapping that has this address; "hg" is a program's wish for huge pages."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(found[1], 16) <= address < int(found[2], 16)
        elif inside and line.startswith("VmFlags:"):
            return line.split()[1:]
    raise AssertionError(f"{address:#x} is not mapped")


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("C", "K", "side"), [(32, 40, 20), (7, 3, 40), (16, 1, 30), (70, 60, 33)])
def test_layouts_and_threads_agree_to_the_bit(
    op: str, dtype: torch.dtype, C: int, K: int, side: int, threads: Callable[[int], None]
) -> None:
    """Contiguous or channels_last, few windows or the whole map, one thread or many: the same numbers."""
    features, rois = example(K, C, side, dtype=dtype)
    threads(1)
    output, grad = results(op, features, rois)
    for count in (1, 2, 5, 24):
        threads(count)
        for layout in (torch.contiguous_format, LAST):
            again, grad_again = results(op, features.contiguous(memory_format=layout), rois)
            assert torch.equal(output, again)
            assert torch.equal(grad, grad_again)
            assert again.is_contiguous(memory_format=layout)
            assert grad_again.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("op", OPS)
def test_one_bin_has_both_layouts(op: str, threads: Callable[[int], None]) -> None:
    """[R, C, 1, 1] is contiguous and channels_last at once; the workspace is that of the layout which is run."""
    features, rois = example(80, 64, 24)
    threads(1)
    output, grad = results(op, features, rois, 1)
    again, grad_again = results(op, features.contiguous(memory_format=LAST), rois, 1)
    assert torch.equal(output, again)
    assert torch.equal(grad, grad_again)


@pytest.mark.parametrize("op", OPS)
def test_few_and_many_regions_agree(op: str) -> None:
    """A region's output does not depend on what else is pooled."""
    features, rois = example(80, 20, 45)
    output = call(op, features, rois, 7)
    for k in (0, 17, 79):
        assert torch.equal(call(op, features, rois[k : k + 1], 7), output[k : k + 1])


STREAMED = """
import torch
from tests.test_roi_pool import OPS, call, example
for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
    features, rois = example(1400, 67, dtype=dtype)
    for op in OPS:
        whole = call(op, features, rois, 7)
        assert whole.nbytes > 8 << 20
        parts = torch.cat([call(op, features, some, 7) for some in rois.split(100)])
        assert torch.equal(whole, parts), (op, dtype)
    def argmax(rois):
        rois = rois.to(torch.promote_types(dtype, torch.float32))
        return torch.ops.frcnn_fast.roi_pool(features, rois, 7, 7, 0.25, True, True, None)[1]
    assert torch.equal(argmax(rois), torch.cat([argmax(some) for some in rois.split(100)])), dtype
"""


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_large_outputs_go_past_the_caches_and_are_the_same(isa: str) -> None:
    """From 8 MB on, whatever the instruction set; the channels of a region begin anywhere in a line."""
    environment = {**os.environ, "FRCNN_FAST_ISA": isa}
    done = subprocess.run([sys.executable, "-c", STREAMED], cwd=ROOT, env=environment, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("layout", [torch.contiguous_format, LAST])
def test_maps_larger_than_a_tile(layout: torch.memory_format) -> None:
    """Windows that do not fit into the cache are gone through row by row, gradients band by band."""
    g = torch.Generator().manual_seed(1)
    features = torch.randn(1, 3, 700, 900, generator=g).contiguous(memory_format=layout)
    rois = torch.tensor([[0, 0.0, 0.0, 899.0, 699.0], [0, 3.0, 500.0, 880.0, 690.0], [0, -9.0, 20.0, 4.0, 650.0]])
    for op, scalars in (("roi_pool", (3, 1.0)), ("roi_align", (3, 1.0, -1)), ("roi_align", (3, 1.0, 2))):
        found = []
        for backend in (None, "reference"):
            leaf = features.clone(memory_format=torch.preserve_format).requires_grad_()
            with use_backend(backend):
                output = getattr(ops, op)(leaf, rois, *scalars)
                output.backward(torch.ones_like(output))
            found.append((output.detach(), leaf.grad))
        (output, grad), wanted = found
        exact = {"rtol": 0, "atol": 0 if op == "roi_pool" else 1e-5}
        torch.testing.assert_close((output, grad), wanted, **exact)


def refuse_to_copy(*_: Any, **__: Any) -> Tensor:
    raise AssertionError("copied")


@pytest.mark.parametrize("op", OPS)
def test_channels_last_is_not_copied(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    features, rois = example(C=16)
    features = features.contiguous(memory_format=LAST)
    half = torch.nn.functional.avg_pool2d(features, 2).contiguous(memory_format=LAST)
    monkeypatch.setattr(Tensor, "contiguous", refuse_to_copy)
    if op == "multiscale_roi_align":
        output = ops.multiscale_roi_align([features, half], rois, 7, (0.25, 0.125), 2)
    else:
        output = call(op, features, rois)
    assert output.stride(1) == 1


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, LAST])
def test_gradcheck(op: str, layout: torch.memory_format) -> None:
    features, rois = example(4, 2, 7, dtype=torch.float64)
    rois[:, 1:] /= 3
    features = features.contiguous(memory_format=layout).requires_grad_()
    assert torch.autograd.gradcheck(lambda f: call(op, f, rois, 2), (features,))


@pytest.mark.parametrize("ratio", [-1, 1, 2])
@pytest.mark.parametrize("aligned", [False, True])
def test_align_gradcheck(ratio: int, aligned: bool) -> None:
    features, rois = example(3, 2, 7, dtype=torch.float64)
    rois[1, 3:] = rois[1, 1:3] - 3  # inverted
    features.requires_grad_()
    assert torch.autograd.gradcheck(lambda f: ops.roi_align(f, rois, 2, 0.1, ratio, aligned), (features,))


@pytest.mark.parametrize("op", OPS)
def test_second_derivative_is_refused(op: str) -> None:
    features, rois = example()
    features.requires_grad_()
    output = call(op, features, rois)
    (grad,) = torch.autograd.grad(output.square().sum(), features, create_graph=True)
    with pytest.raises(RuntimeError, match="there is no second derivative"):
        grad.sum().backward()


def test_reference_refuses_what_cuda_packed() -> None:
    features, rois = example()
    argmax = torch.zeros(9, 5, 2, 2, dtype=torch.int32)
    backward = torch.ops.frcnn_fast.roi_pool_backward.default
    arguments = (rois, features.shape, False, 0.25, True, "reference")
    assert backward(torch.ones(9, 5, 2, 2), argmax, *arguments).any()
    argmax[4, -1, -1, -1] = -(2**31)
    with pytest.raises(ValueError, match="argmax: the reference cannot read what the CUDA kernels pack"):
        backward(torch.ones(9, 5, 2, 2), argmax, *arguments)


@pytest.mark.parametrize("op", OPS)
def test_boxes_get_no_gradient(op: str) -> None:
    features, rois = example()
    rois.requires_grad_()
    assert not call(op, features, rois).requires_grad
    call(op, features.requires_grad_(), rois).sum().backward()
    assert rois.grad is None


@pytest.mark.parametrize("op", OPS)
def test_opcheck_with_gradients(op: str) -> None:
    features, rois = example()
    for layout, last in ((a, b) for a in (torch.contiguous_format, LAST) for b in (False, True)):
        f = features.contiguous(memory_format=layout).requires_grad_()
        if op == "roi_pool":
            torch.library.opcheck(torch.ops.frcnn_fast.roi_pool.default, (f, rois, 2, 2, 0.25, True, True, None))
        elif op == "roi_align":
            torch.library.opcheck(torch.ops.frcnn_fast.roi_align.default, (f, rois, 2, 2, 0.25, 2, False, last, None))
        elif op == "roi_align_max":
            function = torch.ops.frcnn_fast.roi_align_max.default
            torch.library.opcheck(function, (f, rois, 2, 2, 0.25, 2, False, True, None))
        else:
            maps = [f, features[:, :, ::2, ::2].contiguous().requires_grad_()]
            scalars = ((0.25, 0.125), 2, False, 64.0, 4, last, None)
            torch.library.opcheck(torch.ops.frcnn_fast.multiscale_roi_align.default, (maps, rois, 2, 2, *scalars))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, LAST])
def test_compiled_training_step(op: str, layout: torch.memory_format) -> None:
    features, rois = example(C=16)
    features = features.contiguous(memory_format=layout)
    torch._dynamo.reset()

    def loss(f: Tensor, r: Tensor) -> Tensor:
        return call(op, f * 2, r, 3).flatten(1).square().sum()

    gradients = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        leaf = features.clone(memory_format=torch.preserve_format).requires_grad_()
        function(leaf, rois).backward()
        gradients.append(leaf.grad)
    assert torch.equal(*gradients)


STORED = ("roi_align", "roi_align_max", "multiscale_roi_align")


@pytest.mark.parametrize("op", STORED)
@pytest.mark.parametrize("wanted", [torch.contiguous_format, LAST])
@pytest.mark.parametrize("given", [torch.contiguous_format, LAST])
def test_the_caller_chooses_how_the_output_is_stored(
    op: str, given: torch.memory_format, wanted: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same numbers in either format, and gradients in either are read where they lie."""
    features, rois = example(C=16)
    features = features.contiguous(memory_format=given)
    plain, plain_grad = results(op, features, rois)
    leaf = features.detach().requires_grad_()
    output = call(op, leaf, rois, 7, memory_format=wanted)
    assert torch.equal(output, plain)
    assert output.is_contiguous(memory_format=wanted)
    grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(0))
    for layout in (torch.contiguous_format, LAST):
        (found,) = torch.autograd.grad(output, leaf, grad.contiguous(memory_format=layout), retain_graph=True)
        assert torch.equal(found, plain_grad)
        assert found.is_contiguous(memory_format=given)
    if op == "roi_align":  # nothing is copied behind the kernel's back
        monkeypatch.setattr(Tensor, "contiguous", refuse_to_copy)
        assert torch.equal(call(op, features, rois, 7, memory_format=wanted), plain)


@pytest.mark.parametrize("op", STORED)
@pytest.mark.parametrize("wanted", [torch.contiguous_format, LAST])
def test_compiled_code_knows_how_the_output_is_stored(op: str, wanted: torch.memory_format) -> None:
    """A compiler that took the output for contiguous would view what it must copy, and the other way round."""
    features, rois = example(C=16)
    features = features.contiguous(memory_format=LAST if wanted == torch.contiguous_format else torch.contiguous_format)
    torch._dynamo.reset()
    strides = []

    def flattened(f: Tensor, r: Tensor) -> Tensor:
        output = call(op, f, r, 3, memory_format=wanted)
        strides.append(output.stride())
        return output.flatten(1) * 2

    eager = flattened(features, rois)
    compiled = torch.compile(flattened, fullgraph=True, backend="aot_eager")(features, rois)
    assert torch.equal(eager, compiled)
    assert strides[0] == strides[1]


@pytest.mark.parametrize("op", STORED)
@pytest.mark.parametrize("wrong", [torch.preserve_format, torch.channels_last_3d, "channels_last"], ids=str)
def test_other_memory_formats_are_refused(op: str, wrong: Any) -> None:
    features, rois = example()
    with pytest.raises(ValueError, match=r"memory_format: expected torch\.contiguous_format, torch\.channels_last or"):
        call(op, features, rois, memory_format=wrong)


def test_the_binding_refuses_an_output_that_is_stored_otherwise() -> None:
    features, rois = example()
    output = torch.empty(9, 5, 2, 2)
    for last, given in ((True, output), (False, output.contiguous(memory_format=LAST))):
        with pytest.raises(ValueError, match=r"output: expected a \w+ tensor, as channels_last says"):
            Operator.named["roi_align"].run(None, features, rois, 2, 2, 0.25, 2, False, last, into=(given,))


@pytest.mark.parametrize("op", OPS)
def test_export_with_any_number_of_regions(op: str) -> None:
    features, rois = example()

    class Module(torch.nn.Module):
        def forward(self, f: Tensor, r: Tensor) -> Tensor:
            return call(op, f, r, 3)

    K = torch.export.Dim("K", min=2, max=1000)
    program = torch.export.export(Module(), (features, rois), dynamic_shapes=(None, {0: K}))
    more = torch.cat([rois, rois[:4]])
    assert torch.equal(program.module()(features, more), call(op, features, more, 3))


def test_lists_of_boxes_and_arrays() -> None:
    features, rois = example(8)
    rois = rois[rois[:, 0].argsort(stable=True)]
    lists = [rois[rois[:, 0] == image, 1:] for image in range(2)]
    for op in ("roi_pool", "roi_align"):
        wanted = call(op, features, rois)
        assert torch.equal(call(op, features, lists), wanted)
        got = call(op, features.numpy(), rois.numpy())  # type: ignore[arg-type]
        assert isinstance(got, np.ndarray)
        assert np.array_equal(got, wanted.numpy())
        got = call(op, features.numpy(), [b.numpy() for b in lists])  # type: ignore[arg-type]
        assert np.array_equal(got, wanted.numpy())


def test_image_indices_that_no_half_can_hold() -> None:
    features = torch.arange(2051.0)[:, None, None, None].expand(2051, 1, 2, 2).to(torch.bfloat16)
    boxes = [torch.tensor([[0.0, 0.0, 1.0, 1.0]], dtype=torch.bfloat16)] * 2051
    pooled = ops.roi_pool(features, boxes, 1)
    assert torch.equal(pooled.flatten(), features[:, 0, 0, 0])


def test_padded_rows_and_empty_inputs() -> None:
    features, rois = example()
    rois[3, 0] = -1
    for op in OPS:
        output = call(op, features.requires_grad_(), rois)
        assert not output[3].any()
        assert output[2].any()
        output.sum().backward()
        assert call(op, features, rois[:0]).shape == (0, 5, 3, 4)
    empty = torch.empty(2, 0, 8, 8)
    assert ops.roi_pool(empty, rois, 2).shape == (9, 0, 2, 2)
    assert ops.roi_align(empty, rois, 2).shape == (9, 0, 2, 2)
    flat = torch.empty(2, 3, 0, 8, requires_grad=True)
    for op in ("roi_pool", "roi_align"):
        output = call(op, flat, rois)
        assert output.shape == (9, 3, 3, 4)
        assert not output.any()
        output.sum().backward()
    none = torch.empty(0, 3, 8, 8)
    padding = torch.full((2, 5), -1.0)
    assert not ops.roi_pool(none, padding, 2).any()
    assert not ops.roi_align(none, padding, 2).any()


def test_enormous_boxes_take_no_time() -> None:
    """The adaptive grid of a box as large as numbers get: only samples on the map are visited."""
    features = torch.randn(1, 2, 9, 9, requires_grad=True)
    far = [1e4, 1e9, 1e20, 3e38]
    rois = torch.tensor([[0.0, -x, -x, x, x] for x in far] + [[0.0, -x, 1.0, 5.0, x] for x in far])
    for aligned in (False, True):
        output = ops.roi_align(features, rois, 2, 1.0, -1, aligned)
        assert output.isfinite().all()
        output.sum().backward()
    assert ops.roi_pool(features, rois, 2).isfinite().all()


def test_levels_are_chosen_by_area() -> None:
    scales = (1 / 4, 1 / 8, 1 / 16, 1 / 32)
    assert level_thresholds(scales, 224.0, 4) == pytest.approx([112.0**2, 224.0**2, 448.0**2], rel=1e-5)
    maps = [torch.full((1, 1, 512 // s, 512 // s), float(i)) for i, s in enumerate((4, 8, 16, 32))]
    sides = torch.tensor([1.0, 111.0, 112.0, 223.0, 224.0, 447.0, 448.0, 500.0])
    rois = torch.stack([sides * 0, sides * 0, sides * 0, sides, sides], 1)
    levels = ops.multiscale_roi_align(maps, rois, 1, scales, 1).flatten()
    assert levels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_modules() -> None:
    features, rois = example()
    assert torch.equal(ops.RoIPool((3, 4), 0.25)(features, rois), call("roi_pool", features, rois))
    assert torch.equal(ops.RoIAlign((3, 4), 0.25, 2)(features, rois), call("roi_align", features, rois))
    assert repr(ops.RoIAlign(7, 0.5, 2, True)) == (
        "RoIAlign(output_size=7, spatial_scale=0.5, sampling_ratio=2, aligned=True)"
    )
    stored = ops.RoIAlign(7, 0.5, 2, memory_format=LAST)
    assert stored(features, rois).is_contiguous(memory_format=LAST)
    assert "memory_format=torch.channels_last" in repr(stored)
    assert repr(ops.RoIPool(7, 0.5)) == "RoIPool(output_size=7, spatial_scale=0.5)"


def test_multi_scale_module_works_out_the_scales() -> None:
    maps = {name: torch.randn(2, 3, 100 // s + 1, 128 // s) for name, s in (("a", 4), ("b", 8), ("c", 16), ("d", 32))}
    boxes = [torch.tensor([[3.0, 4.0, 90.0, 95.0], [1.0, 2.0, 9.0, 12.0]]), torch.tensor([[5.0, 5.0, 60.0, 50.0]])]
    module = ops.MultiScaleRoIAlign(["a", "b", "d"][:2], 3, 2, canonical_scale=40)
    sizes = [(96, 128), (100, 90)]
    output = module(maps, boxes, sizes)
    assert module.scales == [0.25, 0.125]
    wanted = ops.multiscale_roi_align([maps["a"], maps["b"]], boxes, 3, (0.25, 0.125), 2, canonical_scale=40)
    assert torch.equal(output, wanted)
    assert repr(module) == "MultiScaleRoIAlign(featmap_names=['a', 'b'], output_size=(3, 3), sampling_ratio=2)"
    stored = ops.MultiScaleRoIAlign(["a", "b"], 3, 2, canonical_scale=40, memory_format=LAST)
    assert torch.equal(stored(maps, boxes, sizes), wanted)
    assert stored(maps, boxes, sizes).is_contiguous(memory_format=LAST)
    single = ops.MultiScaleRoIAlign(["b"], 3, 2)
    assert torch.equal(single(maps, boxes, sizes), ops.roi_align(maps["b"], boxes, 3, 0.125, 2))
    with pytest.raises(ValueError, match="x: expected some of the maps"):
        ops.MultiScaleRoIAlign(["nowhere"], 3, 2)(maps, boxes, sizes)
    with pytest.raises(ValueError, match="image_shapes"):
        ops.MultiScaleRoIAlign(["a"], 3, 2)(maps, boxes, [])


@pytest.mark.parametrize("op", OPS)
def test_bad_input_is_named(op: str) -> None:
    features, rois = example()
    bad = rois.clone()
    for index in (2.0, -2.0, 0.5, float("nan"), float("inf")):
        bad[5, 0] = index
        with pytest.raises(ValueError, match=r"boxes\[5\] names image .*, expected 0 to 1"):
            call(op, features, bad)
    with pytest.raises(ValueError, match=r"\[R, 5\]"):
        call(op, features, rois[:, 1:])
    with pytest.raises(TypeError, match="float"):
        call(op, features, rois.long())
    with pytest.raises(TypeError, match="list of tensors"):
        call(op, features, None)
    with pytest.raises(ValueError, match=r"list of 2 tensors"):
        call(op, features, [rois[:, 1:]])
    with pytest.raises(ValueError, match=r"\[1\]: expected shape \[L, 4\]"):
        call(op, features, [rois[:, 1:], rois])
    with pytest.raises(ValueError, match="device"):
        call(op, features, rois.to("meta"))
    for size in (0, (3, -1), (1, 2, 3)):
        with pytest.raises(ValueError, match="output_size"):
            call(op, features, rois, size)
    with pytest.raises(TypeError, match="output_size"):
        call(op, features, rois, 2.5)


def test_bad_maps_are_named() -> None:
    features, rois = example()
    with pytest.raises(TypeError, match="input"):
        ops.roi_pool(features.long(), rois, 2)
    with pytest.raises(ValueError, match="input"):
        ops.roi_align(features[0], rois, 2)
    pyramid = [features, features[:, :, ::2, ::2]]
    scales = (0.25, 0.125)
    with pytest.raises(TypeError, match="features: expected a list"):
        ops.multiscale_roi_align(features, rois, 2, scales, 2)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"features\[1\]: expected the dtype"):
        ops.multiscale_roi_align([features, pyramid[1].double()], rois, 2, scales, 2)
    with pytest.raises(ValueError, match=r"features\[1\]: expected the batch and channels"):
        ops.multiscale_roi_align([features, pyramid[1][:, :2]], rois, 2, scales, 2)
    with pytest.raises(ValueError, match="spatial_scales: expected 2 positive numbers"):
        ops.multiscale_roi_align(pyramid, rois, 2, (0.25,), 2)
    with pytest.raises(ValueError, match="neighbouring powers of two"):
        ops.multiscale_roi_align(pyramid, rois, 2, (0.25, 0.0625), 2)
    with pytest.raises(ValueError, match="canonical_scale"):
        ops.multiscale_roi_align(pyramid, rois, 2, scales, 2, canonical_scale=0)
    with pytest.raises(ValueError, match="at most 8 levels"):
        ops.multiscale_roi_align([features] * 9, rois, 2, (0.25,) * 9, 2)
