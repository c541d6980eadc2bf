"""One name and one place in the order for every argument, from the public function to the kernels; named results."""

from __future__ import annotations

import importlib
import inspect
import io
import re
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from frcnn_fast import _C, ops, reference  # type: ignore[attr-defined]
from frcnn_fast.kernels.roi_pool.roi_levels import level_thresholds
from frcnn_fast.ops import _operator, _torch_private
from frcnn_fast.ops._backends import triton_launcher
from frcnn_fast.ops._operator import Operator
from frcnn_fast.ops._schema import Schema
from tests.samples import operator_of, samples
from tests.test_compile import same

MODULES = (
    "anchor_decode", "anchor_gather", "anchors", "detections", "focal_loss", "iou_kinds", "nms", "proposals",
    "prroi_pool", "roi_pool", "roi_pyramid", "roi_targets", "rpn_targets", "top_n",
)  # fmt: skip
OPERATORS = {
    value.name: value
    for module in MODULES
    for value in vars(importlib.import_module(f"frcnn_fast.ops.{module}")).values()
    if isinstance(value, Operator)
}
NAMED = {
    "top_n": ops.TopN, "nms_padded": ops.PaddedKeep, "soft_nms": ops.SoftKeep, "decode_clip": ops.DecodedBoxes,
    "rpn_proposals": ops.Proposals,
    "assign_anchors": ops.AnchorLabels, "sample_anchors": ops.AnchorSamples, "rpn_targets": ops.RpnTargets,
    "sample_rois": ops.RoiTargets, "detections": ops.Detections,
}  # fmt: skip


def test_a_schema_is_read() -> None:
    schema = Schema.parse("f(Tensor[] maps, Tensor? counts, float[] weights) -> (Tensor boxes, Tensor counts)")
    assert schema.name == "f"
    assert schema.arguments == ("maps", "counts", "weights")
    assert schema.types == ("Tensor[]", "Tensor?", "float[]")
    assert schema.outputs == ("boxes", "out_counts")
    assert schema.Arguments(1, 2, 3).weights == 3
    with pytest.raises(ValueError, match="schema: expected"):
        Schema.parse("f(Tensor a)")


def bound_arguments(name: str) -> tuple[str, ...]:
    """The argument names in the signature that pybind11 writes."""
    return tuple(re.findall(r"[(, ](\w+): ", getattr(_C, name).__doc__.splitlines()[0]))


def outputs_of(op: Operator) -> tuple[str, ...]:
    counts = tuple(f"num_{name}" for name in op.schema.results) if op.dynamic_rows else ()
    return op.schema.outputs + counts


def test_every_registered_op_is_checked_here() -> None:
    registered = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("frcnn_fast::")}
    assert registered == {f"frcnn_fast::{name}" for name in OPERATORS}


@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_the_binding_takes_the_schemas_arguments_in_order(name: str) -> None:
    op = OPERATORS[name]
    workspace = ("workspace",) if op.workspace is not None else ()
    assert bound_arguments(name) == (*op.schema.arguments, *workspace, *outputs_of(op))
    if op.workspace is not None:
        asked = bound_arguments(f"{name}_workspace")
        assert asked == tuple(n for n in op.schema.arguments if n in asked)


@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_the_triton_launcher_takes_the_schemas_arguments_in_order(name: str) -> None:
    pytest.importorskip("triton")
    op = OPERATORS[name]
    launcher = triton_launcher(op.triton)
    assert tuple(inspect.signature(launcher).parameters) == (*op.schema.arguments, *outputs_of(op))


@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_the_oracle_takes_the_schemas_arguments_in_order(name: str) -> None:
    op = OPERATORS[name]
    explicit = tuple(n for n in op.schema.arguments if n not in ("anchor_grid", "anchor_offset"))
    # grid_anchors is what makes anchors explicit: nothing is left for its oracle to do.
    oracle = op.oracle if name == "grid_anchors" else getattr(reference, name)
    assert tuple(inspect.signature(oracle).parameters) == explicit


# What a public function takes in a friendlier form, and what becomes of it, at one door each.
SIZES = {"output_size": ("output_height", "output_width"), "boxes": ("rois",)}
DOORS: dict[str, dict[str, tuple[str, ...]]] = {
    "grid_anchors": {
        "cell_anchors": ("anchors",), "grid_size": ("anchor_grid",), "stride": (), "offset": ("anchor_offset",),
    },
    "rpn_proposals": {"filter_order": ("filter_before_top_n",)},
    "detections": {"background": ("background_last",)},
    "roi_pool": SIZES,
    "roi_align": SIZES | {"mode": (), "box_gradients": (), "memory_format": ("channels_last",)},
    "multiscale_roi_align": SIZES | {"memory_format": ("channels_last",)},
    "prroi_pool": SIZES,
    "sigmoid_focal_loss": {"reduction": (), "weight": ()},
    **{f"{kind}_box_iou_loss": {"reduction": ()} for kind in ("generalized", "distance", "complete")},
}  # fmt: skip
# What a public function decides, and does not ask for.
DECIDED = {"anchor_grid", "anchor_offset", "with_argmax", "kind"}


@pytest.mark.parametrize("name", sorted(samples()))
def test_the_public_function_has_the_schemas_names(name: str) -> None:
    public = [n for n in inspect.signature(getattr(ops, name)).parameters if n != "backend"]
    taken = {inner for n in public for inner in DOORS.get(name, {}).get(n, (n,))}
    arguments = set(OPERATORS[operator_of(name)].schema.arguments)
    assert taken <= arguments
    assert arguments - taken <= DECIDED | ({"eps"} if name == "generalized_box_iou" else set())


@pytest.mark.parametrize("name", sorted(samples()))
def test_results_are_named_as_in_the_schema(name: str) -> None:
    result = samples()[name]()
    op = OPERATORS[operator_of(name)]
    if name in NAMED:
        assert type(result) is NAMED[name] is op.returns
        assert NAMED[name]._fields == op.schema.results  # type: ignore[attr-defined]
    else:
        assert type(result) is Tensor
        assert op.returns is None


class Module(torch.nn.Module):
    def __init__(self, sample: Any) -> None:
        super().__init__()
        self.sample = sample

    def forward(self, tensors: list[Tensor]) -> Any:
        return self.sample(*tensors)


@pytest.mark.parametrize("name", sorted(NAMED))
def test_results_are_named_under_compile_export_and_after_loading(name: str) -> None:
    sample = samples()[name]
    wanted = sample()
    torch._dynamo.reset()
    compiled = torch.compile(sample, fullgraph=True, backend="aot_eager")(*sample.tensors)
    program = torch.export.export(Module(sample), (sample.tensors,))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file)
    for result in (compiled, program.module()(sample.tensors), loaded.module()(sample.tensors)):
        assert type(result) is NAMED[name]
        same(result, wanted)


def test_arrays_come_out_by_name() -> None:
    best = ops.top_n(np.asarray([[1.0, 3.0, 2.0]], np.float32), 2)
    assert type(best) is ops.TopN
    assert isinstance(best.values, np.ndarray)
    assert best.indices.tolist() == [[1, 2]]


def test_a_torch_without_a_private_hook_is_served_through_the_dispatcher(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _torch_private.private("_C.no_such_name.at_all") is None
    hooks = (lambda: 0, lambda: None, lambda: None)
    assert _torch_private.bypass_check(*hooks)()
    assert not _torch_private.bypass_check(lambda: 1, *hooks[1:])()
    for missing in range(3):
        found = [None if i == missing else hook for i, hook in enumerate(hooks)]
        can_bypass = _torch_private.bypass_check(*found)
        assert not can_bypass()
    wanted = {name: sample() for name, sample in samples().items()}
    runs = []
    run = Operator.run

    def noted(self: Operator, *args: Any) -> Any:
        runs.append(self.name)
        return run(self, *args)

    for module in (_operator, sys.modules["frcnn_fast.ops.nms"]):
        monkeypatch.setattr(module, "can_bypass_dispatcher", can_bypass)
    monkeypatch.setattr(Operator, "run", noted)
    for name, sample in samples().items():
        same(sample(), wanted[name])
        assert type(sample()) is type(wanted[name])
    assert set(runs) >= set(map(operator_of, wanted))
    leaf = samples()["roi_align"].tensors[0].requires_grad_()
    samples()["roi_align"](leaf, samples()["roi_align"].tensors[1]).sum().backward()
    assert leaf.grad is not None


def test_a_torch_without_the_pytree_hook_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_torch_private, "private", lambda path: None)
    _torch_private.register_results(ops.TopN)


def test_levels_begin_at_the_same_areas_in_every_language() -> None:
    """In float64 the thresholds count to the last bit: boxes of exactly the least area, and of the float below it."""
    g = np.random.default_rng(5)
    scales = (1 / 4, 1 / 8, 1 / 16, 1 / 32)
    features = [torch.full((1, 1, 1, 700), float(level), dtype=torch.float64) for level in range(4)]
    for canonical in g.uniform(1.0, 6.0, 200):
        least = np.asarray(level_thresholds(scales, canonical, 2))
        widths = np.concatenate([least, np.nextafter(least, 0.0)])
        rois = torch.zeros(6, 5, dtype=torch.float64)
        rois[:, 3], rois[:, 4] = torch.from_numpy(widths), 1.0
        levels = ops.multiscale_roi_align(features, rois, 1, scales, 1, canonical_scale=canonical, canonical_level=2)
        assert levels.flatten().tolist() == [1.0, 2.0, 3.0, 0.0, 1.0, 2.0]
