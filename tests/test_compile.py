"""Every op under torch.library's own checks, torch.compile(fullgraph=True) and torch.export."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from frcnn_fast import ops
from frcnn_fast.export import export_pt2
from frcnn_fast.model import DetectorConfig, FasterRCNN, build_detector
from tests.samples import samples

NAMES = sorted(samples())
FIXED = {"grid_anchors"}  # cell anchors [k, 4]: k is a number of the schema's list


class Recorder(TorchDispatchMode):
    """Notes the calls of this library's registered ops."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "frcnn_fast":
            self.calls.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))


def saved_and_loaded(program: Any) -> Any:
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    return torch.export.load(file)


def same(got: Any, wanted: Any) -> None:
    got = got if isinstance(got, (tuple, list)) else (got,)
    wanted = wanted if isinstance(wanted, (tuple, list)) else (wanted,)
    for g, w in zip(got, wanted, strict=True):
        torch.testing.assert_close(g, w, rtol=0, atol=0, equal_nan=True)


def test_every_public_op_has_a_sample() -> None:
    functions = {name for name in ops.__all__ if callable(getattr(ops, name)) and name.islower()}
    assert functions - {"use_backend", "generate_anchors"} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_opcheck(name: str) -> None:
    sample = samples()[name]
    with Recorder() as recorder:
        sample()
    assert recorder.calls, f"{name} went past the dispatcher under a dispatch mode"
    for func, args, kwargs in recorder.calls:
        torch.library.opcheck(func, args, kwargs)


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("name", NAMES)
def test_compiles_to_one_graph(name: str, dynamic: bool) -> None:
    sample = samples()[name]
    torch._dynamo.reset()
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(sample, fullgraph=True, backend="aot_eager", dynamic=dynamic)
        same(compiled(*sample.tensors), sample())


@pytest.mark.parametrize("name", NAMES)
def test_exports(name: str) -> None:
    sample = samples()[name]

    class Module(torch.nn.Module):
        def forward(self, tensors: list[torch.Tensor]) -> Any:
            return sample(*tensors)

    anything = [dict.fromkeys(range(t.dim()), torch.export.Dim.AUTO) for t in sample.tensors]
    program = torch.export.export(Module(), (sample.tensors,), dynamic_shapes=(anything,))
    assert any("frcnn_fast" in str(node.target) for node in program.graph.nodes)
    # What an op does not fix by its meaning stays open.
    first = next(node for node in program.graph.nodes if node.op == "placeholder").meta["val"]
    fixed = [size for size in first.shape if isinstance(size, int)]
    assert len(fixed) < first.dim() or name in FIXED, first.shape
    loaded = saved_and_loaded(program)
    same(loaded.module()(sample.tensors), sample())


@pytest.mark.parametrize(
    "name",
    [
        *("roi_pool", "roi_align", "prroi_pool", "multiscale_roi_align", "decode_clip", "box_iou"),
        *("complete_box_iou", "complete_box_iou_loss", "sigmoid_focal_loss"),
    ],
)
def test_gradients_survive_compilation(name: str) -> None:
    sample = samples()[name]

    def gradients(function: Any) -> list[torch.Tensor]:
        inputs = [t.clone().requires_grad_(i == 0) for i, t in enumerate(sample.tensors)]
        result = function(*inputs)
        first = result[0] if isinstance(result, tuple) else result
        first.square().sum().backward()
        assert inputs[0].grad is not None
        return [inputs[0].grad]

    torch._dynamo.reset()
    same(gradients(torch.compile(sample, fullgraph=True, backend="aot_eager")), gradients(sample))


class Tiny(torch.nn.Module):
    """A backbone of two maps."""

    out_channels, strides = 8, (8, 16)

    def __init__(self) -> None:
        super().__init__()
        self.fine = torch.nn.Conv2d(3, 8, 9, stride=8, padding=4)
        self.coarse = torch.nn.Conv2d(8, 8, 3, stride=2, padding=1)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        fine = self.fine(images)
        return fine, self.coarse(fine)


def tiny_detector(**settings: Any) -> FasterRCNN:
    """Of random weights, and it finds something."""
    torch.manual_seed(0)
    config = DetectorConfig(
        **{
            "anchor_sizes": ((16.0, 32.0), (48.0, 64.0)), "rpn_channels": 8, "head": "fc", "head_channels": 16,
            "pooling": "roi_align", "canonical_scale": 32.0, "pool_size": 3, "proposals_test": (60, 20),
            "min_size": 4.0, "score_threshold": 0.0, "max_detections": 30, **settings,
        }
    )  # fmt: skip
    return build_detector(["a", "b", "c"], config, backbone=Tiny()).eval()


def images(B: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images, their sizes and scales."""
    generator = torch.Generator().manual_seed(B)
    sizes = torch.tensor([[height - 3 * i, width - 5 * i] for i in range(B)])
    return torch.randn(B, 3, height, width, generator=generator), sizes, torch.linspace(1.0, 2.0, B)


BATCHES = [(4, 64, 96), (2, 96, 64), (1, 128, 128)]


@torch.no_grad()
def test_a_detector_compiles_to_one_graph_for_all_sizes() -> None:
    detector = tiny_detector()
    torch._dynamo.reset()
    compiled = torch.compile(detector, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        # Not 1, which has a graph of its own. At first 4: 3 would be the channels, and 2 the (height, width).
        for shape in BATCHES[:2]:
            x, sizes, scales = images(*shape)
            wanted = detector(x, sizes, image_scales=scales)
            assert wanted.counts.min() > 0
            same(compiled(x, sizes, image_scales=scales), wanted)


def test_a_detector_is_exported_for_all_sizes(tmp_path: Any) -> None:
    detector = tiny_detector()
    found = export_pt2(detector, tmp_path / "tiny.pt2")
    assert found.detections > 10
    assert (found.unmatched, found.boxes, found.scores) == (0, 0.0, 0.0)
    extra = {"frcnn_fast.json": ""}
    module = torch.export.load(tmp_path / "tiny.pt2", extra_files=extra).module()
    assert json.loads(json.loads(extra["frcnn_fast.json"])["class_names"]) == ["a", "b", "c"]
    with torch.no_grad():
        for shape in BATCHES:
            x, sizes, scales = images(*shape)
            same(module(x, sizes, scales), detector(x, sizes, image_scales=scales))
    with pytest.raises(ValueError, match="only its rpn was trained"):
        export_pt2(tiny_detector(parts="rpn"), tmp_path / "half.pt2")
    assert [file.name for file in tmp_path.iterdir()] == ["tiny.pt2"]
