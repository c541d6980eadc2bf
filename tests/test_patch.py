"""torchvision's detectors with our steps under them: the same answers, and torchvision is itself again afterwards."""

from __future__ import annotations

import copy
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import frcnn_fast
from bench.competitors import torchvision_missing
from frcnn_fast import ops
from frcnn_fast.patch.core import Library
from frcnn_fast.patch.torchvision import _TORCHVISION, _iou_threshold

needs_torchvision = pytest.mark.skipif(bool(torchvision_missing), reason=torchvision_missing or "torchvision is there")
if not torchvision_missing:
    import torchvision
    from torchvision.models.detection import FasterRCNN, KeypointRCNN, MaskRCNN
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
    from torchvision.models.detection.image_list import ImageList
    from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
    from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
    from torchvision.models.detection.roi_heads import RoIHeads
    from torchvision.models.detection.rpn import RegionProposalNetwork
    from torchvision.ops import MultiScaleRoIAlign

FUSED = ("rpn_proposals", "assign_anchors", "detections", "multiscale_roi_align")
IOU_KINDS = tuple(f"{kind}_box_iou" for kind in ("generalized", "distance", "complete"))
IOU_LOSSES = tuple(f"{name}_loss" for name in IOU_KINDS)
OTHERS = ("nms", "batched_nms", "box_iou", "roi_pool", "roi_align", "sigmoid_focal_loss")
SERVED = (*FUSED, *OTHERS, *IOU_KINDS, *IOU_LOSSES)


@pytest.fixture(autouse=True)
def nothing_stays_patched() -> Iterator[None]:
    yield
    assert _TORCHVISION.holders == 0
    assert not _TORCHVISION.active


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The names of our ops that have been called."""
    called: set[str] = set()

    def spy(name: str, op: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            called.add(name)
            return op(*args, **kwargs)

        return call

    for name in SERVED:
        monkeypatch.setattr(ops, name, spy(name, getattr(ops, name)))
    return called


# Without torchvision


def test_a_missing_torchvision_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ImportError, match=r"torchvision is needed here .* pip install 'frcnn_fast\[torchvision\]'"):
        frcnn_fast.patch_torchvision()


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.7, 1 / 3, 0.1])
def test_the_threshold_decides_as_a_float64_does(threshold: float) -> None:
    near = np.float32(threshold)
    for iou in (np.nextafter(near, np.float32(-1)), near, np.nextafter(near, np.float32(2))):
        ours = np.float32(_iou_threshold(torch.empty(0), threshold))
        assert (iou > ours) == (float(iou) > threshold)
        assert ours == _iou_threshold(torch.empty(0), threshold), "a float32 already"
    assert _iou_threshold(torch.empty(0, dtype=torch.float64), threshold) == threshold


def pretend_library(monkeypatch: pytest.MonkeyPatch, **functions: Callable[..., Any]) -> ModuleType:
    """A package of our own; its module `pretend.first` has these functions."""
    package, first = ModuleType("pretend"), ModuleType("pretend.first")
    package.__version__ = "7"  # type: ignore[attr-defined]
    vars(first).update(functions)
    monkeypatch.setitem(sys.modules, "pretend", package)
    monkeypatch.setitem(sys.modules, "pretend.first", first)
    return first


def test_what_is_replaced_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def half(x: int) -> int:
        return x // 2

    class Net:
        def forward(self, x: int) -> str:
            return "theirs"

        def loss(self) -> str:
            return "theirs"

    first: Any = pretend_library(monkeypatch, half=half, renamed=half, Net=Net)
    late: Any = ModuleType("pretend.late")
    other: Any = ModuleType("another")
    other.half_of, other.halves, other.default = half, [half], lambda f=half: f(4)
    forward = Net.forward
    monkeypatch.setitem(sys.modules, "another", other)
    library = Library(
        "pretend",
        {
            "first:half": lambda x: NotImplemented if x % 2 else -x,
            "first:Net:forward": lambda self, x: "ours",
            "first:Net:loss": lambda self: "ours",
        },
    )
    patch = library.patch()
    assert patch.replaced == [
        "pretend.first.half", "pretend.first.Net.forward", "pretend.first.Net.loss", "another.half_of",
    ]  # fmt: skip
    assert first.half is first.renamed is other.half_of
    assert (other.halves, other.default()) == ([half], 2), "what no module's name holds stays"
    assert (first.half(4), first.half(x=5), Net().forward(1)) == (-4, 2, "ours")
    late.half = kept = first.half
    monkeypatch.setitem(sys.modules, "pretend.late", late)
    somebody_elses = Net.loss = lambda self: "somebody else's"  # type: ignore[method-assign]
    patch.undo()
    assert first.half is first.renamed is late.half is other.half_of is half
    assert Net.forward is forward
    assert Net.loss is somebody_elses
    assert kept(4) == 2


def test_a_lazy_module_stays_unloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "sleepy.py").write_text("raise RuntimeError('loaded')")
    spec = importlib.util.spec_from_file_location("sleepy", tmp_path / "sleepy.py")
    assert spec is not None
    assert spec.loader is not None
    spec.loader = importlib.util.LazyLoader(spec.loader)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "sleepy", module)
    spec.loader.exec_module(module)
    pretend_library(monkeypatch, half=lambda x: x // 2)
    Library("pretend", {"first:half": lambda x: -x}).patch().undo()
    with pytest.raises(RuntimeError, match="loaded"):
        _ = module.anything


def test_what_a_library_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_library(monkeypatch, half=lambda x, up=False: x // 2)
    with pytest.raises(ImportError, match=r"pretend 7 has no function first:double, which a patch would replace"):
        Library("pretend", {"first:double": lambda x: x}).patch()
    with pytest.raises(ImportError, match=r"pretend 7: first:half takes up, unknown to this patch"):
        Library("pretend", {"first:half": lambda x: x}).patch()


def test_recompilations_are_counted_for_each_replacement(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile has a limit for each code object."""

    def function(plus: int) -> Callable[..., Any]:
        scope: dict[str, Any] = {}
        exec(f"def f(x):\n    return x + {plus}", scope)  # code of its own, as torchvision's functions have
        return scope["f"]

    first = pretend_library(monkeypatch, **{f"f{i}": function(i) for i in range(6)})
    library = Library("pretend", {f"first:f{i}": lambda x: NotImplemented for i in range(6)})
    limits = torch._dynamo.config.patch(recompile_limit=2, fail_on_recompile_limit_hit=True)
    torch._dynamo.reset()
    patch = library.patch()
    try:
        with limits:
            for i in range(6):
                assert torch.compile(getattr(first, f"f{i}"), backend="eager")(torch.zeros(1)) == i
    finally:
        patch.undo()


# The patch itself


def _names() -> dict[str, Any]:
    """Everything that can be replaced, by where it is."""
    names = {}
    for module_name, module in list(sys.modules.items()):
        if module_name.split(".")[0] == "torchvision":
            for name, value in vars(module).items():
                if name in (*SERVED, "_multiscale_roi_align") and callable(value):
                    names[f"{module_name}.{name}"] = value
    for owner in (RegionProposalNetwork, RoIHeads):
        names.update({f"{owner.__name__}.{name}": value for name, value in vars(owner).items()})
    return names


@needs_torchvision
class TestPatch:
    def test_every_name_is_replaced_and_comes_back(self) -> None:
        before = _names()
        with frcnn_fast.patch_torchvision():
            changed = {name for name, value in _names().items() if value is not before[name]}
        assert changed - {"torchvision.transforms.v2._geometry.box_iou"} == {  # where it has been imported
            *(f"torchvision.ops.{name}" for name in SERVED if name not in FUSED),
            *(f"torchvision.ops.boxes.{name}" for name in ("nms", "batched_nms", "box_iou", *IOU_KINDS)),
            *(f"torchvision.ops.{name[0]}iou_loss.{name}" for name in IOU_LOSSES),
            *(f"torchvision.models.detection._utils.{name}" for name in IOU_LOSSES),
            "torchvision.models.detection.fcos.generalized_box_iou_loss",
            "torchvision.ops.focal_loss.sigmoid_focal_loss",
            *(f"torchvision.models.detection.{name}.sigmoid_focal_loss" for name in ("retinanet", "fcos")),
            "torchvision.ops.roi_pool.roi_pool",
            "torchvision.ops.roi_align.roi_align",
            "torchvision.ops.poolers.roi_align",
            "torchvision.ops.poolers._multiscale_roi_align",
            "torchvision.models.detection.roi_heads.roi_align",
            "RegionProposalNetwork.forward",
            "RegionProposalNetwork.assign_targets_to_anchors",
            "RoIHeads.postprocess_detections",
        }
        assert _names() == before

    def test_patches_count(self) -> None:
        theirs = torchvision.ops.nms
        first = frcnn_fast.patch_torchvision()
        ours = torchvision.ops.nms
        assert ours is not theirs
        with frcnn_fast.patch_torchvision():
            assert torchvision.ops.nms is ours
            first.undo()
            first.undo()
            assert torchvision.ops.nms is ours
        assert torchvision.ops.nms is theirs
        with pytest.raises(RuntimeError, match="has been undone"), first:
            pass

    def test_an_exception_undoes_it(self) -> None:
        before = _names()
        with pytest.raises(KeyError), frcnn_fast.patch_torchvision():
            raise KeyError
        assert _names() == before

    def test_a_version_that_lacks_something_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delattr("torchvision.ops.poolers._multiscale_roi_align")
        before = _names()
        with pytest.raises(ImportError, match=r"has no function ops\.poolers:_multiscale_roi_align"):
            frcnn_fast.patch_torchvision()
        assert _names() == before

    def test_a_version_with_other_arguments_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, soft: bool = False) -> None:
            pass

        monkeypatch.setattr("torchvision.ops.nms", nms)
        with pytest.raises(ImportError, match="ops:nms takes soft, unknown"):
            frcnn_fast.patch_torchvision()

    def test_it_says_what_it_replaces(self) -> None:
        with frcnn_fast.patch_torchvision() as patch:
            assert "torchvision.ops.nms" in patch.replaced
            assert "torchvision.models.detection.rpn.RegionProposalNetwork.forward" in patch.replaced
            count = len(patch.replaced)
            assert count >= 9, "and wherever other libraries have them"
            assert repr(patch) == f"<Patch of {count} functions, in force>"
        assert repr(patch) == f"<Patch of {count} functions, undone>"

    @pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning", "ignore:.*torch.jit:FutureWarning")
    def test_detectors_can_be_scripted_while_patched_and_after(self) -> None:
        """A script that fails half-way would leave torchvision's classes half compiled, for good."""
        with frcnn_fast.patch_torchvision():
            for name in SERVED:
                if name not in FUSED:
                    torch.jit.script(getattr(torchvision.ops, name))
            built = detector()
            scripted = torch.jit.script(built)
        theirs = detect(built)
        for model in (scripted, torch.jit.script(built), torch.jit.script(detector())):
            with torch.no_grad():
                found = model(two_images(built))[1]
            close(found, theirs)

    def test_a_detector_built_while_patched_outlives_it(self, served: set[str]) -> None:
        with frcnn_fast.patch_torchvision():
            rpn = RegionProposalNetwork(None, None, 0.7, 0.3, 256, 0.5, {}, {}, 0.7)
        anchors, targets = [some_boxes(50)], [{"boxes": some_boxes(3, seed=1)}]
        theirs = rpn.assign_targets_to_anchors(anchors, targets)
        assert served == set()
        with frcnn_fast.patch_torchvision():
            equal(rpn.assign_targets_to_anchors(anchors, targets), theirs)
        assert served == {"assign_anchors"}


# The functions


def some_boxes(n: int, seed: int = 0, side: float = 100.0, dtype: torch.dtype = torch.float32) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    corner, size = torch.rand(n, 2, generator=g, dtype=dtype), torch.rand(n, 2, generator=g, dtype=dtype)
    return torch.cat([corner, corner + 0.02 + 0.3 * size], 1) * side


def some_scores(n: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """All different."""
    return (torch.randperm(n, generator=torch.Generator().manual_seed(7)).to(dtype) + 0.5) / n


def equal(a: Any, b: Any) -> None:
    """To the bit, types and shapes too."""
    if isinstance(a, Tensor):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        equal(list(a.values()), list(b.values()))
    else:
        assert len(a) == len(b)
        for x, y in zip(a, b):
            equal(x, y)


@needs_torchvision
class TestFunctions:
    @pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.7])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("n", [0, 1, 300, 1500])
    def test_nms_and_batched_nms_keep_the_same(
        self, n: int, dtype: torch.dtype, threshold: float, served: set[str]
    ) -> None:
        boxes, scores, classes = some_boxes(n, dtype=dtype), some_scores(n, dtype), torch.arange(n) % 7 - 3

        def keep() -> list[Tensor]:
            return [
                torchvision.ops.nms(boxes, scores, threshold),
                torchvision.ops.batched_nms(boxes, scores, classes, threshold),
                torchvision.ops.batched_nms(boxes, scores, iou_threshold=threshold, idxs=classes.int()),
            ]

        theirs = keep()
        with frcnn_fast.patch_torchvision():
            equal(keep(), theirs)
        assert served == ({"nms", "batched_nms"} if n > 1000 else {"nms"})

    def test_an_iou_on_the_threshold(self, served: set[str]) -> None:
        """float32(0.3) is above 0.3: torchvision drops the second box."""
        boxes, scores = torch.tensor([[0.0, 0, 10, 1], [0, 0, 3, 1]]), torch.tensor([0.9, 0.8])
        theirs = torchvision.ops.nms(boxes, scores, 0.3)
        assert theirs.tolist() == [0]
        with frcnn_fast.patch_torchvision():
            equal(torchvision.ops.nms(boxes, scores, 0.3), theirs)
        assert served == {"nms"}
        assert ops.nms(boxes, scores, 0.3).tolist() == [0, 1]

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_box_iou(self, dtype: torch.dtype, served: set[str]) -> None:
        boxes, others = some_boxes(30, dtype=dtype), some_boxes(20, seed=1, dtype=dtype)
        theirs = torchvision.ops.box_iou(boxes, others)
        with frcnn_fast.patch_torchvision():
            ours = torchvision.ops.box_iou(boxes, others)
        assert served == {"box_iou"}
        equal(ours, theirs)

    def test_box_iou_with_gradients_is_torchvisions(self, served: set[str]) -> None:
        """It has second derivatives."""
        boxes, others = some_boxes(30).requires_grad_(), some_boxes(20, seed=1)

        def run() -> Tensor:
            iou = torchvision.ops.box_iou(boxes, others)
            (gradient,) = torch.autograd.grad(iou.square().sum(), boxes, create_graph=True)
            return torch.autograd.grad(gradient.square().sum(), boxes)[0]

        theirs = run()
        with frcnn_fast.patch_torchvision():
            ours = run()
        assert served == set()
        equal(ours, theirs)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("name", IOU_KINDS)
    def test_iou_kinds(self, name: str, dtype: torch.dtype, served: set[str]) -> None:
        boxes, others = some_boxes(30, dtype=dtype), some_boxes(20, seed=1, dtype=dtype)
        others[:5] = boxes[:5]
        others[5, 2:] = others[5, :2]  # a point
        function = getattr(torchvision.ops, name)
        theirs = function(boxes, others)
        with frcnn_fast.patch_torchvision():
            ours = getattr(torchvision.ops, name)(boxes, others)
        assert served == {name}
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6, equal_nan=True)
        served.clear()
        leaf = boxes.clone().requires_grad_()
        with frcnn_fast.patch_torchvision():
            equal(getattr(torchvision.ops, name)(leaf, others), theirs)
        assert served == set()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
    @pytest.mark.parametrize("name", IOU_LOSSES)
    def test_iou_losses(self, name: str, reduction: str, dtype: torch.dtype, served: set[str]) -> None:
        boxes = some_boxes(300, dtype=dtype)
        g = torch.Generator().manual_seed(4)
        others = boxes + torch.randint(-2, 3, boxes.shape, generator=g)  # some sides are the same
        others[:100] = some_boxes(100, seed=1, dtype=dtype)
        weight = torch.rand(300, generator=g, dtype=dtype) if reduction == "none" else torch.ones((), dtype=dtype)

        def run() -> tuple[Tensor, ...]:
            leaves = boxes.clone().requires_grad_(), others.clone().requires_grad_()
            loss = getattr(torchvision.ops, name)(*leaves, reduction=reduction)
            return loss, *torch.autograd.grad((loss * weight).sum(), leaves)

        theirs = run()
        with frcnn_fast.patch_torchvision():
            ours = run()
        assert served == {name}
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)

    def test_iou_losses_that_are_not_served(self, served: set[str]) -> None:
        boxes, others = some_boxes(20), some_boxes(20, seed=1)
        calls: dict[str, Callable[[], Any]] = {
            "single boxes": lambda: torchvision.ops.generalized_box_iou_loss(boxes[0], others[0]),
            "halves": lambda: torchvision.ops.distance_box_iou_loss(boxes.half(), others.half()),
            "the complete loss with an eps": lambda: torchvision.ops.complete_box_iou_loss(boxes, others, eps=1.0),
            "a batch": lambda: torchvision.ops.complete_box_iou(boxes[None], others[None]),
        }
        for what, call in calls.items():
            theirs = call()
            with frcnn_fast.patch_torchvision():
                equal(call(), theirs)
            assert served == set(), what
        with frcnn_fast.patch_torchvision(), pytest.raises(ValueError, match="reduction"):
            torchvision.ops.generalized_box_iou_loss(boxes, others, reduction="median")

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
    @pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2), (-1, 1.5), (0.6, 0.0)])
    def test_focal_loss(self, alpha: float, gamma: float, reduction: str, dtype: torch.dtype, served: set[str]) -> None:
        g = torch.Generator().manual_seed(4)
        logits = (torch.randn(60, 40, generator=g) * 4).to(dtype)
        targets = torch.rand(60, 40, generator=g).to(dtype)
        targets[:50] = targets[:50].round()
        weight = torch.rand(60, 40, generator=g).to(dtype)

        def run() -> tuple[Tensor, ...]:
            leaf = logits.clone().requires_grad_()
            loss = torchvision.ops.sigmoid_focal_loss(leaf, targets, alpha, gamma, reduction)
            return loss, *torch.autograd.grad((loss * weight if reduction == "none" else loss).sum(), leaf)

        theirs = run()
        with frcnn_fast.patch_torchvision():
            ours = run()
        assert served == {"sigmoid_focal_loss"}
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)

    def test_the_classification_loss_of_retinanet(self, served: set[str]) -> None:
        from torchvision.models.detection.retinanet import RetinaNetClassificationHead

        head = RetinaNetClassificationHead(8, 3, 5)
        logits = torch.randn(2, 60, 5, generator=torch.Generator().manual_seed(3))
        targets = [{"labels": torch.tensor([1, 4])}, {"labels": torch.tensor([2])}]
        matched = [torch.arange(60) % 4 - 2, -(torch.arange(60) % 3)]  # -2: between the thresholds, -1: background

        def run() -> tuple[Tensor, ...]:
            leaf = logits.clone().requires_grad_()
            loss = head.compute_loss(targets, {"cls_logits": leaf}, matched)
            return loss, *torch.autograd.grad(loss, leaf)

        theirs = run()
        with frcnn_fast.patch_torchvision():
            ours = run()
        assert served == {"sigmoid_focal_loss"}
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)

    def test_focal_losses_that_are_not_served(self, served: set[str]) -> None:
        g = torch.Generator().manual_seed(4)
        logits, targets = torch.randn(6, 5, generator=g), torch.rand(6, 5, generator=g)
        calls: dict[str, Callable[[], Any]] = {
            "halves": lambda: torchvision.ops.sigmoid_focal_loss(logits.bfloat16(), targets.bfloat16()),
            "a gradient to the targets": lambda: torchvision.ops.sigmoid_focal_loss(
                logits, targets.clone().requires_grad_()
            ).detach(),
            "the mean of nothing": lambda: torchvision.ops.sigmoid_focal_loss(
                logits[:0], targets[:0], reduction="mean"
            ),
        }
        for what, call in calls.items():
            theirs = call()
            with frcnn_fast.patch_torchvision():
                torch.testing.assert_close(call(), theirs, rtol=0, atol=0, equal_nan=True)
            assert served == set(), what
        for wrong in ({"alpha": 2.0}, {"reduction": "median"}):
            with frcnn_fast.patch_torchvision(), pytest.raises(ValueError, match="Invalid"):
                torchvision.ops.sigmoid_focal_loss(logits, targets, **wrong)  # type: ignore[arg-type]

    @pytest.mark.parametrize("as_list", [True, False])
    @pytest.mark.parametrize("channels_last", [True, False])
    @pytest.mark.parametrize("name", ["roi_pool", "roi_align", "RoIPool", "RoIAlign"])
    def test_roi_ops(self, name: str, channels_last: bool, as_list: bool, served: set[str]) -> None:
        features = torch.rand(2, 5, 20, 24, generator=torch.Generator().manual_seed(3))
        if channels_last:
            features = features.contiguous(memory_format=torch.channels_last)
        features.requires_grad_()
        of_images = [some_boxes(9, side=90.0), some_boxes(6, seed=1, side=90.0)]
        rows = torch.cat([nn.functional.pad(b, (1, 0), value=float(i)) for i, b in enumerate(of_images)])
        boxes = of_images if as_list else rows

        def run() -> tuple[Tensor, ...]:
            if name[0] == "R":
                module = getattr(torchvision.ops, name)
                pool = module((3, 4), 0.25, 2) if name == "RoIAlign" else module((3, 4), 0.25)
                pooled = pool(features, boxes)
            else:
                pooled = getattr(torchvision.ops, name)(features, boxes, output_size=(3, 4), spatial_scale=0.25)
            return pooled.view(15, -1), *torch.autograd.grad(pooled.square().sum(), features)

        theirs = run()
        with frcnn_fast.patch_torchvision():
            ours = run()
        assert served == {"roi_pool" if "ool" in name else "roi_align"}
        torch.testing.assert_close(ours, theirs)

    @pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
    @pytest.mark.parametrize("n", [0, 40])
    def test_multiscale_roi_align(self, n: int, layout: torch.memory_format, served: set[str]) -> None:
        g = torch.Generator().manual_seed(3)
        maps = {str(i): torch.rand(2, 4, 64 >> i, 80 >> i, generator=g) for i in range(4)}
        maps = {name: x.contiguous(memory_format=layout).requires_grad_() for name, x in maps.items()}
        boxes = [some_boxes(n, side=s) for s in (250.0, 60.0)]
        with torch.no_grad():
            for b in boxes:
                b[: n // 2, 2:] = b[: n // 2, :2] + torch.linspace(5, 600, n // 2)[:, None]  # every level

        def run() -> tuple[Tensor, ...]:
            pool = MultiScaleRoIAlign(["0", "1", "2", "3"], 3, 2, canonical_scale=200)
            pooled = pool(maps, boxes, [(250, 310), (256, 320)])
            assert pooled.is_contiguous()
            return pooled.detach(), *torch.autograd.grad(pooled.square().sum(), tuple(maps.values()))

        theirs = run()
        with frcnn_fast.patch_torchvision():
            ours = run()
        assert served == {"multiscale_roi_align"}
        torch.testing.assert_close(ours, theirs)

    def test_what_is_not_served_runs_torchvisions_code(self, served: set[str]) -> None:
        boxes, scores = some_boxes(20), some_scores(20)
        features = torch.rand(1, 2, 9, 9)
        maps, rois = {"0": features, "1": features[..., ::3, ::3]}, [boxes / 10]
        calls: dict[str, Callable[[], Any]] = {
            "integers": lambda: torchvision.ops.box_iou(boxes.long(), boxes.long()),
            "halves": lambda: torchvision.ops.box_iou(boxes.half(), boxes.half()),
            "another format": lambda: torchvision.ops.box_iou(boxes, boxes, fmt="xywh"),
            "a batch": lambda: torchvision.ops.box_iou(boxes[None], boxes[None]),
            "mixed types": lambda: torchvision.ops.box_iou(boxes, boxes.double()),
            "a negative threshold": lambda: torchvision.ops.nms(boxes, scores, -0.1),
            "a list that is too short": lambda: torchvision.ops.roi_align(
                features.expand(2, -1, -1, -1), rois, 2, sampling_ratio=1
            ),
            "scales that are no halves": lambda: MultiScaleRoIAlign(["0", "1"], 2, 2)(maps, rois, [(9, 9)]),
            "functorch": lambda: torch.func.vmap(lambda b: torchvision.ops.box_iou(b, boxes))(boxes.view(2, 10, 4)),
            "tracing": lambda: torch.jit.trace(lambda b: torchvision.ops.box_iou(b, b), boxes, check_trace=False)(
                boxes
            ),
        }
        for what, call in calls.items():
            theirs = call()
            with frcnn_fast.patch_torchvision():
                torch.testing.assert_close(call(), theirs, equal_nan=True)
            # Inside torchvision's own pooling of several levels.
            assert served == ({"roi_align"} if what == "scales that are no halves" else set()), what
            served.clear()

    @pytest.mark.parametrize("wrong", [torch.rand(5, 3), torch.rand(4)])
    def test_errors_are_torchvisions(self, wrong: Tensor) -> None:
        with pytest.raises(Exception) as theirs:  # noqa: PT011
            torchvision.ops.nms(wrong, torch.rand(5), 0.5)
        with frcnn_fast.patch_torchvision(), pytest.raises(type(theirs.value)) as ours:
            torchvision.ops.nms(wrong, torch.rand(5), 0.5)
        assert str(ours.value).splitlines()[0] == str(theirs.value).splitlines()[0]


# Detectors


def two_images(model: Any) -> list[Tensor]:
    """Two, in the model's type."""
    g, dtype = torch.Generator().manual_seed(1), next(model.parameters()).dtype
    return [
        nn.functional.interpolate(torch.rand(1, 3, 9, 9, generator=g), size, mode="bicubic")[0].to(dtype)
        for size in ((180, 220), (210, 200))
    ]


def ground_truth(model: Any) -> list[dict[str, Tensor]]:
    """The second image has none."""
    boxes = torch.tensor(
        [[20.0, 30, 90, 120], [60, 60, 200, 150], [70, 65, 190, 140]], dtype=next(model.parameters()).dtype
    )
    masks = torch.zeros(3, 180, 220, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist()):
        mask[y1:y2, x1:x2] = 1
    corners = torch.stack([boxes[:, :2], boxes[:, 2:]], 1) * 0.9 + 5
    keypoints = torch.cat([corners, torch.ones(3, 2, 1)], 2)
    full = {"boxes": boxes, "labels": torch.tensor([1, 3, 2]), "masks": masks, "keypoints": keypoints}
    return [full, {name: value[:0] for name, value in full.items()}]


def detector(kind: Any = None, **settings: Any) -> Any:
    """ResNet-18 with a pyramid and small heads; random weights, so scaled that scores and boxes spread."""
    torch.manual_seed(0)
    backbone = resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=5
    )
    model = (kind or FasterRCNN)(
        backbone,
        min_size=200,
        max_size=300,
        rpn_post_nms_top_n_test=300,
        box_head=TwoMLPHead(256 * 7 * 7, 64),
        box_predictor=FastRCNNPredictor(64, 5),
        box_batch_size_per_image=64,
        **settings,
    ).eval()
    predictor = model.roi_heads.box_predictor
    with torch.no_grad():
        for layer, factor in (
            (model.rpn.head.cls_logits, 30),
            (model.rpn.head.bbox_pred, 4),
            (predictor.cls_score, 15),
            (predictor.bbox_pred, 5),
        ):
            layer.weight *= factor
    return model


def one_level() -> Any:
    torch.manual_seed(0)
    backbone = torchvision.models.squeezenet1_1(weights=None).features[:6]
    backbone.out_channels = 128
    model = FasterRCNN(
        backbone,
        min_size=200,
        max_size=300,
        rpn_anchor_generator=AnchorGenerator(((16, 32, 64),), ((0.5, 1.0, 2.0),)),
        rpn_pre_nms_top_n_test=600,
        rpn_post_nms_top_n_test=50,
        box_roi_pool=MultiScaleRoIAlign(["0"], 7, 2),
        box_head=TwoMLPHead(128 * 7 * 7, 64),
        box_predictor=FastRCNNPredictor(64, 5),
    ).eval()
    with torch.no_grad():
        model.rpn.head.cls_logits.weight *= 30
        model.roi_heads.box_predictor.cls_score.weight *= 50
    return model


def detect(model: Any) -> list[dict[str, Tensor]]:
    with torch.no_grad():
        return model(two_images(model))


def train_step(model: Any, targets: list[dict[str, Tensor]] | None = None) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Losses and gradients, with the same samples each time."""
    model = copy.deepcopy(model).train()  # batch normalisation moves its statistics
    torch.manual_seed(3)
    losses = model(two_images(model), targets or ground_truth(model))
    sum(losses.values()).backward()
    return losses, [p.grad for p in model.parameters() if p.grad is not None]


def close(ours: Any, theirs: Any) -> None:
    """Equal integers; floats within rounding of the largest number of a tensor."""
    if isinstance(theirs, Tensor):
        atol = 0.0
        if theirs.is_floating_point() and theirs.numel():
            atol = 100 * torch.finfo(theirs.dtype).eps * max(1.0, float(theirs.detach().abs().max()))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)
    elif isinstance(theirs, dict):
        assert ours.keys() == theirs.keys()
        close(list(ours.values()), list(theirs.values()))
    else:
        assert len(ours) == len(theirs)
        for mine, other in zip(ours, theirs):
            close(mine, other)


@needs_torchvision
class TestDetectors:
    def test_detections(self, served: set[str]) -> None:
        model = detector()
        theirs = detect(model)
        with frcnn_fast.patch_torchvision():
            ours = detect(model)
            again = detect(model)
        assert served == {"rpn_proposals", "multiscale_roi_align", "detections"}
        assert all(len(found["boxes"]) == 100 for found in theirs)
        close(ours, theirs)
        equal(again, ours)
        equal(detect(model), theirs)

    def test_training(self, served: set[str]) -> None:
        """In float32 the losses only: rounding decides some ReLUs of the backbone, and gradients follow."""
        model = detector()
        theirs = train_step(model)
        with frcnn_fast.patch_torchvision():
            ours = train_step(model)
        assert served == {"rpn_proposals", "multiscale_roi_align", "assign_anchors", "box_iou"}
        close(ours[0], theirs[0])
        equal(train_step(model), theirs)

    def test_float64(self, served: set[str]) -> None:
        model = detector().double()
        theirs = detect(model), train_step(model)
        with frcnn_fast.patch_torchvision():
            ours = detect(model), train_step(model)
        assert served == {*FUSED, "box_iou"}
        close(ours, theirs)

    def test_one_level(self, served: set[str]) -> None:
        model = one_level().double()
        theirs = detect(model), train_step(model)
        with frcnn_fast.patch_torchvision():
            ours = detect(model), train_step(model)
        assert served == {"rpn_proposals", "roi_align", "detections", "assign_anchors", "box_iou"}
        assert all(len(found["boxes"]) > 10 for found in theirs[0])
        close(ours, theirs)

    def test_nothing_to_find(self, served: set[str]) -> None:
        model = detector(box_score_thresh=1.0)
        theirs = detect(model)
        assert [len(found["boxes"]) for found in theirs] == [0, 0]
        with frcnn_fast.patch_torchvision():
            equal(detect(model), theirs)
        assert "detections" in served

    def test_no_proposals(self, served: set[str]) -> None:
        model = detector()
        model.rpn.min_size = 1e6
        theirs = detect(model)
        with frcnn_fast.patch_torchvision():
            equal(detect(model), theirs)
        assert served == {"rpn_proposals", "multiscale_roi_align", "detections"}

    def test_no_ground_truth_at_all(self) -> None:
        model = detector().double()
        nothing = [ground_truth(model)[1]] * 2
        theirs = train_step(model, nothing)
        with frcnn_fast.patch_torchvision():
            # torchvision makes the targets of an image without objects in float32, whatever the detector is in.
            close(train_step(model, nothing), theirs)

    @pytest.mark.parametrize("kind", ["MaskRCNN", "KeypointRCNN"])
    def test_masks_and_keypoints(self, kind: str, served: set[str]) -> None:
        if kind == "MaskRCNN":
            predictor = MaskRCNNPredictor(16, 16, 5)
            with torch.no_grad():
                predictor.mask_fcn_logits.weight *= (
                    0.03  # logits of 100 make masks of 0 and 1, and their rounding large
                )
            model = detector(MaskRCNN, mask_head=MaskRCNNHeads(256, (16,), 1), mask_predictor=predictor)
        else:
            heads = {"keypoint_head": KeypointRCNNHeads(256, (16,)), "keypoint_predictor": KeypointRCNNPredictor(16, 2)}
            model = detector(KeypointRCNN, **heads)
        theirs = detect(model), train_step(model)[0]
        with frcnn_fast.patch_torchvision():
            ours = detect(model), train_step(model)[0]
        assert set(FUSED) <= served
        assert ("roi_align" in served) == (kind == "MaskRCNN")  # of the true masks
        assert len(theirs[1]) == 5
        close(ours, theirs)

    def test_a_score_threshold_of_proposals(self, served: set[str]) -> None:
        model = detector(rpn_score_thresh=0.6)
        theirs = detect(model)
        with frcnn_fast.patch_torchvision():
            close(detect(model), theirs)
        assert "rpn_proposals" not in served
        assert "batched_nms" in served or "nms" in served

    def test_a_method_of_ones_own(self, served: set[str]) -> None:
        model = detector()
        seen = []

        class Own(RegionProposalNetwork):
            def filter_proposals(self, *args: Any) -> Any:
                seen.append("filter")
                return super().filter_proposals(*args)

        def noted(*args: Any) -> Any:
            seen.append("detections")
            return RoIHeads.postprocess_detections(model.roi_heads, *args)

        model.rpn.__class__ = Own
        model.roi_heads.postprocess_detections = noted
        theirs = detect(model)
        with frcnn_fast.patch_torchvision():
            close(detect(model), theirs)
        assert seen == ["filter", "detections"] * 2
        assert "rpn_proposals" not in served

    def test_anchors_of_ones_own(self, served: set[str]) -> None:
        model = detector()

        class Shifted(AnchorGenerator):
            def forward(self, *args: Any) -> list[Tensor]:
                return [anchors + 3 for anchors in super().forward(*args)]

        model.rpn.anchor_generator.__class__ = Shifted
        theirs = detect(model)
        with frcnn_fast.patch_torchvision():
            close(detect(model), theirs)
        assert "rpn_proposals" not in served

    @pytest.mark.parametrize("training", [False, True])
    def test_a_head_in_another_type(self, training: bool, served: set[str]) -> None:
        """What turns out when the head has run already."""
        model = detector().rpn.train(training)
        head = model.head
        model.head = nn.Sequential(head)
        model.head.forward = lambda maps: tuple([x.bfloat16() for x in of] for of in head(maps))
        images = ImageList(torch.empty(2, 3, 128, 160), [(128, 160), (120, 150)])
        g = torch.Generator().manual_seed(2)
        maps = {str(i): torch.randn(2, 256, 32 >> i, 40 >> i, generator=g) for i in range(5)}
        targets = [{"boxes": some_boxes(3)}, {"boxes": torch.empty(0, 4)}] if training else None

        def run() -> Any:
            torch.manual_seed(4)
            with torch.autocast("cpu", torch.bfloat16):
                return model(images, maps, targets)

        theirs = run()
        with frcnn_fast.patch_torchvision():
            equal(run(), theirs)
        assert served.isdisjoint({"rpn_proposals", "detections"})

    @pytest.mark.parametrize("before", [150, 600])
    def test_logits_with_equal_sigmoids(self, before: int, served: set[str]) -> None:
        """All are 1: torchvision takes the best of each level by the logit, then boxes level after level."""
        generator = AnchorGenerator(((8,), (16,), (32,)), ((0.5, 1.0, 2.0),) * 3)
        top_n = {"training": 1, "testing": before}, {"training": 1, "testing": 120}
        rpn = RegionProposalNetwork(generator, None, 0.7, 0.3, 256, 0.5, *top_n, 0.7).eval()
        g = torch.Generator().manual_seed(6)
        maps = {str(i): torch.empty(2, 1, 24 >> i, 32 >> i) for i in range(3)}
        logits = [20 + 20 * torch.rand(2, 3, 24 >> i, 32 >> i, generator=g) for i in range(3)]
        deltas = [torch.randn(2, 12, 24 >> i, 32 >> i, generator=g) * 0.3 for i in range(3)]
        rpn.head = nn.Identity()
        rpn.head.forward = lambda maps: (logits, deltas)
        images = ImageList(torch.empty(2, 3, 96, 128), [(96, 128), (90, 100)])

        theirs = rpn(images, maps)
        assert [len(boxes) for boxes in theirs[0]] == [120, 120]
        with frcnn_fast.patch_torchvision():
            close(rpn(images, maps), theirs)
        assert served == {"rpn_proposals"}

    def test_tiny_huge_and_unevenly_many_detections(self, served: set[str]) -> None:
        """On the last step alone: sides about 0.01 pixels, deltas beyond the clamp, another number for each image."""
        heads = RoIHeads(None, None, None, 0.5, 0.5, 128, 0.25, (10.0, 10.0, 5.0, 5.0), 0.05, 0.5, 30)
        proposals = [some_boxes(30), some_boxes(0), some_boxes(17, seed=1)]
        g = torch.Generator().manual_seed(5)
        logits, deltas = torch.randn(47, 4, generator=g) * 2, torch.randn(47, 16, generator=g)
        deltas[::3, 2::4] = 5 * torch.log(0.01 * torch.linspace(0.5, 1.5, 16) / 20)[:, None]
        deltas[1::5, 3::4] = 30.0
        sizes = [(90, 100), (80, 80), (100, 60)]

        def run() -> Any:
            return heads.postprocess_detections(logits, deltas, proposals, sizes)

        theirs = run()
        assert [len(labels) for labels in theirs[2]] == [30, 0, 21]
        with frcnn_fast.patch_torchvision():
            close(run(), theirs)
        assert served == {"detections"}
        widths = torch.cat([boxes[:, 2] - boxes[:, 0] for boxes in theirs[0]])
        assert float(widths.min()) < 0.02, "some of the tiny ones are kept"

    def test_detections_that_carry_a_gradient(self, served: set[str]) -> None:
        model = detector().double()

        def gradient() -> Tensor:
            image = two_images(model)[0].requires_grad_()
            return torch.autograd.grad(model([image])[0]["scores"].sum(), image)[0]

        theirs = gradient()
        with frcnn_fast.patch_torchvision():
            close(gradient(), theirs)
        assert "detections" not in served
        assert "rpn_proposals" in served


@needs_torchvision
class TestAutocast:
    """Halves become float32 where torchvision's operators make them so; the rest is torchvision's own code."""

    @pytest.mark.parametrize("n", [300, 1500])
    @pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
    def test_nms_and_batched_nms_keep_the_same(self, half: torch.dtype, n: int, served: set[str]) -> None:
        """In the same order, though half the scores are equal to another."""
        boxes, scores, classes = some_boxes(n), some_scores(n), torch.arange(n) % 7

        def keep() -> list[Tensor]:
            return [
                function(b, s, *rest, 0.5)
                for b, s in ((boxes.to(half), scores.to(half)), (boxes, scores.to(half)), (boxes.to(half), scores))
                for function, rest in ((torchvision.ops.nms, ()), (torchvision.ops.batched_nms, (classes,)))
            ]

        with torch.autocast("cpu", half):
            theirs = keep()
            with frcnn_fast.patch_torchvision():
                equal(keep(), theirs)
        assert served == ({"nms", "batched_nms"} if n > 1000 else {"nms"})
        assert (len(scores.to(half).unique()) < n) == (half == torch.bfloat16)

    @pytest.mark.parametrize("in_half", ["features", "boxes", "both"])
    @pytest.mark.parametrize("as_list", [True, False])
    @pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
    def test_roi_align(self, half: torch.dtype, as_list: bool, in_half: str, served: set[str]) -> None:
        g = torch.Generator().manual_seed(3)
        features = torch.rand(2, 5, 20, 24, generator=g).to(torch.float32 if in_half == "boxes" else half)
        features.requires_grad_()
        kind = torch.float32 if in_half == "features" else half
        of_images = [some_boxes(9, side=90.0).to(kind), some_boxes(6, seed=1, side=90.0).to(kind)]
        rows = torch.cat([nn.functional.pad(b, (1, 0), value=float(i)) for i, b in enumerate(of_images)])

        def run() -> tuple[Tensor, ...]:
            with torch.autocast("cpu", half):
                pooled = torchvision.ops.roi_align(features, of_images if as_list else rows, (3, 4), 0.25, 2)
            return pooled, *torch.autograd.grad(pooled.float().square().sum(), features)

        theirs = run()
        with frcnn_fast.patch_torchvision():
            ours = run()
        assert served == {"roi_align"}
        assert [t.dtype for t in ours] == [t.dtype for t in theirs] == [features.dtype] * 2
        # A float32 within rounding of the middle between two halves goes to either; the gradient is of those.
        spacing = 0.0 if in_half == "boxes" else torch.finfo(half).eps
        torch.testing.assert_close(ours[0], theirs[0], rtol=spacing + 1e-6, atol=1e-6)
        torch.testing.assert_close(ours[1], theirs[1], rtol=2 * spacing + 1e-5, atol=1e-2 if spacing else 1e-5)

    def test_roi_pool_on_a_cpu_knows_no_autocast(self, served: set[str]) -> None:
        features, rois = torch.rand(1, 2, 9, 9).bfloat16(), torch.tensor([[0.0, 1, 1, 7, 7]])
        with torch.autocast("cpu", torch.bfloat16):
            with pytest.raises(RuntimeError) as theirs:
                torchvision.ops.roi_pool(features, rois, 2)
            with frcnn_fast.patch_torchvision(), pytest.raises(RuntimeError) as ours:
                torchvision.ops.roi_pool(features, rois, 2)
        assert str(ours.value).splitlines()[0] == str(theirs.value).splitlines()[0]
        assert served == set()

    @pytest.mark.parametrize("target_in_half", [True, False])
    @pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
    def test_focal_loss(self, half: torch.dtype, target_in_half: bool, served: set[str]) -> None:
        g = torch.Generator().manual_seed(3)
        logits = (torch.randn(60, 40, generator=g) * 2).to(half).requires_grad_()
        targets = torch.rand(60, 40, generator=g).round().to(half if target_in_half else torch.float32)

        def run() -> tuple[Tensor, ...]:
            with torch.autocast("cpu", half):
                loss = torchvision.ops.sigmoid_focal_loss(logits, targets)
            return loss, *torch.autograd.grad(loss.sum(), logits)

        theirs = run()
        with frcnn_fast.patch_torchvision():
            ours = run()
        assert served == {"sigmoid_focal_loss"}
        assert [t.dtype for t in ours] == [t.dtype for t in theirs] == [torch.float32, half]
        # torchvision rounds the sigmoid, and what is made of it, to halves.
        torch.testing.assert_close(ours, theirs, rtol=8 * torch.finfo(half).eps, atol=4 * torch.finfo(half).eps)

    def test_box_iou_of_halves_beside_float32(self, served: set[str]) -> None:
        """Without autocast too: torch's own arithmetic makes it float32."""
        boxes, others = some_boxes(30), some_boxes(20, seed=1).bfloat16()

        def run() -> list[Tensor]:
            return [torchvision.ops.box_iou(boxes, others), torchvision.ops.box_iou(others, boxes)]

        theirs = run()
        with frcnn_fast.patch_torchvision():
            equal(run(), theirs)
        assert served == {"box_iou"}

    def test_several_levels(self, served: set[str]) -> None:
        g = torch.Generator().manual_seed(3)
        maps = {str(i): torch.rand(2, 4, 64 >> i, 80 >> i, generator=g).bfloat16().requires_grad_() for i in range(4)}
        boxes = [some_boxes(40, side=s).bfloat16() for s in (250.0, 60.0)]

        def run() -> tuple[Tensor, ...]:
            with torch.autocast("cpu", torch.bfloat16):
                pooled = MultiScaleRoIAlign(["0", "1", "2", "3"], 3, 2, canonical_scale=200)(
                    maps, boxes, [(250, 310), (256, 320)]
                )
            return pooled, *torch.autograd.grad(pooled.float().square().sum(), tuple(maps.values()))

        theirs = run()
        with frcnn_fast.patch_torchvision():
            ours = run()
        assert served == {"multiscale_roi_align"}
        spacing = torch.finfo(torch.bfloat16).eps
        torch.testing.assert_close(ours[0], theirs[0], rtol=spacing, atol=1e-6)
        for mine, other in zip(ours[1:], theirs[1:], strict=True):
            torch.testing.assert_close(mine, other, rtol=2 * spacing, atol=0.05)

    @torch.no_grad()
    def test_proposals_are_torchvisions(self, served: set[str]) -> None:
        """It decodes in halves, step by step; what it then suppresses is ours."""
        model = detector()
        images, _ = model.transform(two_images(model))

        def run() -> Any:
            with torch.autocast("cpu", torch.bfloat16):
                return model.rpn(images, model.backbone(images.tensors))[0]

        theirs = run()
        assert theirs[0].dtype == torch.bfloat16
        with frcnn_fast.patch_torchvision():
            equal(run(), theirs)
        assert served == {"batched_nms"}

    def test_detections_and_training(self, served: set[str]) -> None:
        model = detector()

        def run() -> Any:
            with torch.autocast("cpu", torch.bfloat16):
                return detect(model), train_step(model)[0]

        theirs, their_losses = run()
        with frcnn_fast.patch_torchvision():
            ours, losses = run()
        assert {"batched_nms", "multiscale_roi_align", "assign_anchors"} <= served
        for mine, other in zip(ours, theirs, strict=True):
            # Pooled features that differ in a last bit make some scores of halves equal, or no longer equal.
            near = (mine["boxes"][:, None] - other["boxes"]).abs().amax(2) <= 2
            near &= (mine["scores"][:, None] - other["scores"]).abs() <= 1 / 64
            near &= mine["labels"][:, None] == other["labels"]
            assert near.any(1).float().mean() > 0.9
            assert len(mine["boxes"]) == len(other["boxes"]) == 100
        for name, loss in their_losses.items():
            torch.testing.assert_close(losses[name], loss, rtol=0.02, atol=1e-3)


def compiled_graphs(function: Callable[..., Any], *, whole: bool = True) -> tuple[Callable[..., Any], list[list[str]]]:
    """The function compiled, and the operators of ours and of torchvision in each graph that has been made."""
    graphs: list[list[str]] = []

    def backend(graph: Any, inputs: Any) -> Any:
        names = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
        graphs.append([name for name in names if name.startswith(("frcnn_fast", "torchvision"))])
        return torch._dynamo.lookup_backend("aot_eager" if whole else "eager")(graph, inputs)

    torch._dynamo.reset()
    return torch.compile(function, backend=backend, fullgraph=whole), graphs


@needs_torchvision
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:Dynamo detected a call to a `functools.lru_cache`")
class TestCompiled:
    @pytest.mark.parametrize(
        "name",
        ["nms", "batched_nms", "box_iou", "roi_pool", "roi_align", "multiscale_roi_align", "sigmoid_focal_loss"],
    )
    def test_functions_are_our_ops_in_one_graph(self, name: str) -> None:
        boxes, scores, others = some_boxes(1500), some_scores(1500), some_boxes(9, seed=1, side=60.0)
        classes = torch.arange(1500) % 3
        features = torch.rand(2, 3, 32, 40, generator=torch.Generator().manual_seed(2))
        rois = [some_boxes(5, seed=2, side=90.0), others]
        pool = MultiScaleRoIAlign(["0", "1"], 3, 2)
        calls: dict[str, tuple[Callable[[Tensor], Any], Tensor]] = {
            "nms": (lambda boxes: torchvision.ops.nms(boxes, scores, 0.5), boxes),
            "batched_nms": (lambda boxes: torchvision.ops.batched_nms(boxes, scores, classes, 0.5), boxes),
            "box_iou": (lambda boxes: torchvision.ops.box_iou(boxes, others), boxes),
            "sigmoid_focal_loss": (
                lambda x: torchvision.ops.sigmoid_focal_loss(x, (features > 0.9).float(), reduction="mean"), features
            ),
            "roi_pool": (lambda x: torchvision.ops.roi_pool(x, rois, 3, 0.25), features),
            "roi_align": (lambda x: torchvision.ops.roi_align(x, rois, 3, 0.25, 2), features),
            "multiscale_roi_align": (
                lambda x: pool({"0": x, "1": x[..., ::2, ::2]}, rois, [(128, 160), (100, 100)]), features
            ),
        }  # fmt: skip
        call, x = calls[name]
        theirs = call(x)
        with (
            frcnn_fast.patch_torchvision(),
            torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True),
        ):
            compiled, graphs = compiled_graphs(call)
            torch.testing.assert_close(compiled(x), theirs)
            equal(compiled(x), call(x))
        assert graphs == [[f"frcnn_fast.{name}.default"]]
        equal(call(x), theirs)

    @pytest.mark.parametrize("name", ["roi_pool", "roi_align"])
    def test_gradients(self, name: str) -> None:
        features = torch.rand(2, 3, 32, 40, generator=torch.Generator().manual_seed(2)).requires_grad_()
        rois = [some_boxes(5, seed=2, side=90.0), some_boxes(9, seed=1, side=60.0)]

        def call(x: Tensor) -> Tensor:
            return getattr(torchvision.ops, name)(x, rois, 3, 0.25).square().sum()

        (theirs,) = torch.autograd.grad(call(features), features)
        with frcnn_fast.patch_torchvision():
            compiled, graphs = compiled_graphs(call)
            (ours,) = torch.autograd.grad(compiled(features), features)
        assert graphs == [[f"frcnn_fast.{name}.default"]]
        torch.testing.assert_close(ours, theirs)

    def test_under_autocast(self) -> None:
        features = torch.rand(1, 3, 32, 40, generator=torch.Generator().manual_seed(2)).bfloat16()
        rois = [some_boxes(5, seed=2, side=90.0).bfloat16()]

        def call() -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return torchvision.ops.roi_align(features, rois, 3, 0.25, 2)

        theirs = call()
        with frcnn_fast.patch_torchvision():
            compiled, graphs = compiled_graphs(call)
            ours = compiled()
        assert graphs == [["frcnn_fast.roi_align.default"]]
        assert ours.dtype == torch.bfloat16
        torch.testing.assert_close(ours, theirs, rtol=torch.finfo(torch.bfloat16).eps, atol=1e-6)

    def test_without_dynamic_shapes_in_graphs_nms_is_torchvisions(self, served: set[str]) -> None:
        """It breaks the graph then, ours or theirs."""
        boxes, scores = some_boxes(40), some_scores(40)
        theirs = torchvision.ops.nms(boxes, scores, 0.5)
        with frcnn_fast.patch_torchvision():
            compiled, _ = compiled_graphs(lambda: torchvision.ops.nms(boxes, scores, 0.5), whole=False)
            equal(compiled(), theirs)
        assert served == set()

    def test_exported_and_vectorised_functions_are_torchvisions(self) -> None:
        boxes = some_boxes(20)

        class Iou(nn.Module):
            def forward(self, boxes: Tensor) -> Tensor:
                return torchvision.ops.box_iou(boxes, boxes)

        theirs = torch.func.vmap(Iou())(boxes.view(4, 5, 4))
        with frcnn_fast.patch_torchvision():
            program = torch.export.export(Iou(), (boxes,))
            compiled, graphs = compiled_graphs(torch.func.vmap(Iou()))
            torch.testing.assert_close(compiled(boxes.view(4, 5, 4)), theirs)
        assert not any("frcnn_fast" in str(node.target) for node in program.graph.nodes)
        assert graphs == [[]]

    def test_a_detector(self) -> None:
        model = detector()
        theirs, (their_losses, _) = detect(model), train_step(model)
        with frcnn_fast.patch_torchvision():
            compiled, graphs = compiled_graphs(model, whole=False)
            with torch.no_grad():
                found = compiled(two_images(model))
            model.train()
            torch.manual_seed(3)
            losses = compiled(two_images(model), ground_truth(model))
        close(found, theirs)
        close(losses, their_losses)
        assert {name for graph in graphs for name in graph} == {
            *(f"frcnn_fast.{name}.default" for name in (*FUSED, "box_iou"))
        }


@needs_torchvision
class TestDifferences:
    """What the docstring says of answers that differ."""

    def test_scores_that_are_nan(self) -> None:
        boxes, scores = some_boxes(3) + torch.arange(3)[:, None] * 500, torch.tensor([0.5, float("nan"), 0.7])
        assert torchvision.ops.nms(boxes, scores, 0.5).tolist() == [1, 2, 0]
        with frcnn_fast.patch_torchvision():
            assert torchvision.ops.nms(boxes, scores, 0.5).tolist() == [2, 0]

    def test_a_box_that_no_anchor_overlaps(self) -> None:
        rpn = RegionProposalNetwork(None, None, 0.7, 0.3, 256, 0.5, {}, {}, 0.7)
        anchors = [torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10]])]
        targets = [{"boxes": torch.tensor([[0.0, 0, 10, 9], [80, 80, 90, 90]])}]
        assert rpn.assign_targets_to_anchors(anchors, targets)[0][0].tolist() == [1.0, 1.0]
        with frcnn_fast.patch_torchvision():
            assert rpn.assign_targets_to_anchors(anchors, targets)[0][0].tolist() == [1.0, 0.0]
