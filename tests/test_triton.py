"""The Triton kernels without a GPU: every one compiles for every target, without spills and without fused
multiply-adds. What they compute is the conformance suite's matter (TRITON_INTERPRET=1)."""

from __future__ import annotations

import os
import re
from unittest import mock

import pytest
import torch

from frcnn_fast import ops
from tests.conformance.harness import Op, inputs, to_device
from tests.conformance.suite import OPS

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

from bench.triton_ahead import TARGETS, compiling, resources
from bench.workloads import FPN, VGG, Shape, scene

LONG = bool(os.environ.get("FRCNN_LONG"))
KNOWN: dict[str, set] = {}
WITH_KERNELS = [op for op in OPS if op.name != "generate_anchors"]  # that one is made on the host, once a model


def kernels(op: Op, target: str) -> list:
    """The kernels that the op's cases launch, large ones too: in the long run every form of every kernel, else one form
    of each, found by whichever op comes first."""
    known = None if LONG else KNOWN.setdefault(target, set())
    # Nothing runs that would fill the results, and the number of rows that nms keeps is read from one of them.
    with (
        compiling(TARGETS[target], known) as found,
        mock.patch.object(torch.Tensor, "new_empty", torch.Tensor.new_zeros),
    ):
        for case in op.cases:
            if case.as_if is None:
                op.call({name: to_device(value, "cpu") for name, value in inputs(case).items()})
    assert found.launches, f"{op.name} launches no Triton kernel"
    return found.kernels


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("op", WITH_KERNELS, ids=lambda op: op.name)
def test_compiles_ahead(op: Op, target: str) -> None:
    for kernel in kernels(op, target):
        used = resources(kernel)
        assert used.spills == 0, f"{kernel.name} on {target} spills: {used}"
        if "ptx" in kernel.asm:
            fused = re.findall(r"\bfma\.\S+", kernel.asm["ptx"])
            assert not fused, f"{kernel.name} on {target} has fused multiply-adds: {set(fused)}"
            assert "div.full" not in kernel.asm["ptx"], f"{kernel.name} on {target} divides approximately"


def pooled(op: str, features: torch.Tensor, size: tuple[int, int]) -> None:
    """No RoI of any image, so that nothing is as large as it says."""
    rois = features.new_empty((0, 5))
    with compiling(TARGETS["sm_90"]):
        if op == "multiscale_roi_align":
            ops.multiscale_roi_align([features[..., :1, :1], features], rois, size, (0.5, 0.25), 2)
        else:
            getattr(ops, op)(features, rois, size)


def launches_of(order: str, shape: Shape, before: int, after: int) -> int:
    """How many launches a proposal step takes."""
    s, settings = scene(shape, "trained", 1), {"pre_nms_top_n": before, "post_nms_top_n": after, "filter_order": order}
    with compiling(TARGETS["sm_90"], set()) as found:
        ops.rpn_proposals(s.logits, s.deltas, shape.grids("cpu"), s.image_sizes, backend="triton", **settings)
    return found.launches


@pytest.mark.parametrize(("shape", "before", "after"), [(VGG, 6000, 300), (VGG, 12000, 2000), (FPN, 1000, 1000)])
def test_leaving_small_boxes_out_first_takes_no_launch_more(shape: Shape, before: int, after: int) -> None:
    """All anchors are judged by one launch, and the one that closes gaps is not needed."""
    assert launches_of("before_top_n", shape, before, after) == launches_of("after_top_n", shape, before, after)


@pytest.mark.parametrize("op", ["roi_pool", "roi_align", "multiscale_roi_align"])
def test_roi_limits(op: str) -> None:
    """The largest sizes are served, and what is larger is refused by name."""
    name = r"features\[1\]" if op == "multiscale_roi_align" else "input"
    pooled(op, torch.empty(0, 2047, 1, 1), (1024, 1024))
    pooled(op, torch.empty(0, 3, 2**31 - 1, 1), (1, 1))
    for size in ((1025, 1), (7, 1025)):
        message = f"output_size: expected at most 1024 bins a side, got {size[0]} x {size[1]}"
        with pytest.raises(ValueError, match=message):
            pooled(op, torch.empty(0, 3, 1, 1), size)
    message = r"output_size: expected fewer than 2\^31 numbers a RoI, got 1024 x 1024 bins of 2048 channels"
    with pytest.raises(ValueError, match=message):
        pooled(op, torch.empty(0, 2048, 1, 1), (1024, 1024))
    message = rf"{name}: expected fewer than 2\^31 cells, got a map of 65536 x 32768"
    with pytest.raises(ValueError, match=message):
        pooled(op, torch.empty(0, 3, 65536, 32768), (7, 7))


@pytest.mark.parametrize("op", ["roi_pool", "roi_align", "multiscale_roi_align"])
def test_roi_limits_of_gradients(op: str) -> None:
    rois, grad = torch.empty(0, 5), torch.empty(0, 3, 1025, 1)
    shape, scalars = (0, 3, 65536, 32768), (1.0, 2, False)

    def backward(grad: torch.Tensor) -> None:
        function = getattr(torch.ops.frcnn_fast, f"{op}_backward").default
        with compiling(TARGETS["sm_90"]):
            if op == "roi_pool":
                function(grad, grad.int(), rois, shape, False, 1.0, True, "triton")
            elif op == "roi_align":
                function(grad, rois, shape, False, *scalars, "triton")
            else:
                function(grad, rois, shape, (False,), (1.0,), *scalars[1:], 224.0, 4, "triton")

    name = r"features\[0\]" if op == "multiscale_roi_align" else "input"
    with pytest.raises(ValueError, match="output_size: expected at most 1024 bins a side, got 1025 x 1"):
        backward(grad)
    with pytest.raises(ValueError, match=rf"{name}: expected fewer than 2\^31 cells, got a map of 65536 x 32768"):
        backward(grad[:, :, :7])
