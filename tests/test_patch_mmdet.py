"""Our steps in the places of mmdetection's, against what mmdetection says of them. tests/compat has the real ones."""

from __future__ import annotations

import math
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import frcnn_fast
from frcnn_fast.patch import mmdet
from tests.samples import boxes


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_missing_mmdet_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mmdet", None)
    with pytest.raises(ImportError, match=r"mmdet is needed here .* pip install 'frcnn_fast\[mmdet\]'"):
        frcnn_fast.patch_mmdet()


# bbox_overlaps


def overlaps(a: Tensor, b: Tensor) -> Tensor:
    corner, end = torch.max(a[:, None, :2], b[:, :2]), torch.min(a[:, None, 2:], b[:, 2:])
    sides = (end - corner).clamp(min=0)
    inter = sides[..., 0] * sides[..., 1]
    area_a, area_b = ((c[:, 2] - c[:, 0]) * (c[:, 3] - c[:, 1]) for c in (a, b))
    return inter / (area_a[:, None] + area_b - inter).clamp(min=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_overlaps_have_the_same_bits(dtype: torch.dtype) -> None:
    a, b = boxes(generator(), 70).to(dtype), boxes(generator(1), 90).to(dtype)
    assert torch.equal(mmdet._bbox_overlaps(a, b), overlaps(a, b))


@pytest.mark.parametrize(
    "box",
    [[5, 5, 5, 9], [5, 5, 5.0005, 5.0005], [9, 9, 5, 5], [0, 0, float("inf"), 9], [float("nan"), 0, 5, 9]],
    ids=["no area", "tiny", "inverted", "infinite", "NaN"],
)
def test_overlaps_of_odd_boxes_are_theirs(box: list[float]) -> None:
    a = boxes(generator(), 7)
    b = a.clone()
    b[3] = torch.tensor(box)
    assert mmdet._bbox_overlaps(a, b) is NotImplemented
    assert mmdet._bbox_overlaps(b, a) is NotImplemented


def test_overlaps_that_are_not_served() -> None:
    a = boxes(generator(), 7)
    assert mmdet._bbox_overlaps(a, a, mode="giou") is NotImplemented
    assert mmdet._bbox_overlaps(a, a, is_aligned=True) is NotImplemented
    assert mmdet._bbox_overlaps(a.half(), a.half()) is NotImplemented
    assert mmdet._bbox_overlaps(a[:0], a) is NotImplemented
    assert mmdet._bbox_overlaps(a.requires_grad_(), a) is NotImplemented


# batched_nms


@pytest.mark.parametrize("options", [{}, {"class_agnostic": True}, {"max_num": 7}, {"type": "nms", "split_thr": 3}])
def test_nms_of_classes(options: dict[str, Any]) -> None:
    box, scores, classes = boxes(generator(), 150), torch.rand(150, generator=generator(2)), torch.arange(150) % 4
    kept: list[int] = []
    iou = overlaps(box, box)
    for i in scores.argsort(descending=True).tolist():
        rivals = [k for k in kept if "class_agnostic" in options or classes[k] == classes[i]]
        if not any(iou[k, i] > 0.4 for k in rivals):
            kept.append(i)
    kept = kept[: options.get("max_num")]
    box.requires_grad_()
    dets, keep = mmdet._batched_nms(box, scores, classes, {"iou_threshold": 0.4, **options})
    assert keep.tolist() == kept
    assert torch.equal(dets, torch.cat([box[kept], scores[kept, None]], 1))
    assert dets.requires_grad


@pytest.mark.parametrize(
    "cfg",
    [
        None,
        {"type": "soft_nms", "iou_threshold": 0.5},
        {"iou_threshold": 0.5, "offset": 1},
        {"iou_threshold": 0.5, "score_threshold": 0.1},
        {"iou_thr": 0.5},
    ],
)
def test_nms_that_is_not_served(cfg: Any) -> None:
    box, scores = boxes(generator(), 5), torch.rand(5)
    assert mmdet._batched_nms(box, scores, torch.arange(5), cfg) is NotImplemented
    assert mmdet._batched_nms(box[:0], scores[:0], torch.arange(0), {"iou_threshold": 0.5}) is NotImplemented


# MaxIoUAssigner


class Overlaps:
    """The calculator that an assigner has."""

    dtype = None

    def __call__(self, a: Tensor, b: Tensor, mode: str = "iou") -> Tensor:
        if mode == "iou":
            return overlaps(a, b)
        sides = (torch.min(a[:, None, 2:], b[:, 2:]) - torch.max(a[:, None, :2], b[:, :2])).clamp(min=0)
        return sides.prod(-1) / (a[:, 2:] - a[:, :2]).prod(-1).clamp(min=1e-6)[:, None]


class Result:
    """An assigner's result, as far as it matters."""

    def __init__(self, num_gts: int, gt_inds: Tensor, max_overlaps: Tensor | None, labels: Tensor) -> None:
        self.num_gts, self.gt_inds, self.max_overlaps, self.labels = num_gts, gt_inds, max_overlaps, labels


def plant(monkeypatch: pytest.MonkeyPatch, content: dict[str, dict[str, Any]]) -> None:
    """Modules with nothing but that."""
    for name in content:
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            part = ".".join(parts[:end])
            if part not in sys.modules or not hasattr(sys.modules[part], "of_this_test"):
                monkeypatch.setitem(sys.modules, part, ModuleType(part))
                vars(sys.modules[part])["of_this_test"] = True
        vars(sys.modules[name]).update(content[name])


@pytest.fixture
def mmdet_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    assigners = "mmdet.models.task_modules.assigners"
    plant(
        monkeypatch,
        {
            f"{assigners}.assign_result": {"AssignResult": Result},
            f"{assigners}.iou2d_calculator": {"BboxOverlaps2D": Overlaps},
            "mmdet.structures.bbox": {"get_box_tensor": lambda boxes: boxes},
        },
    )


def four_steps(iou: Tensor, least: float, negative: Any, low_quality: bool, all_best: bool) -> list[int]:
    """What mmdetection says of a matrix of ground truths x priors, with 0.6 for an object."""
    wanted = []
    for column in iou.T.tolist():
        high = max(column)
        low, top = negative if isinstance(negative, tuple) else (0, negative)
        wanted.append(0 if low <= high < top else column.index(high) + 1 if high >= 0.6 else -1)
    for i, row in enumerate(iou.tolist() if low_quality else ()):
        if max(row) >= least:
            best = [j for j, value in enumerate(row) if value == max(row)]
            for j in best if all_best else best[:1]:
                wanted[j] = i + 1
    return wanted


def truths_and_priors() -> tuple[Tensor, Tensor]:
    truths, priors = boxes(generator(), 12), boxes(generator(1), 300)
    truths[4] = truths[3]
    truths[5] += 1000
    priors[7] = priors[8] = truths[6]
    return truths, priors


@pytest.mark.usefixtures("mmdet_modules")
@pytest.mark.parametrize("all_best", [True, False])
@pytest.mark.parametrize("low_quality", [True, False])
@pytest.mark.parametrize("negative", [0.3, (0.1, 0.3)])
@pytest.mark.parametrize("least", [0.0, 0.25])
def test_assigned_by_the_four_steps(least: float, negative: Any, low_quality: bool, all_best: bool) -> None:
    truths, priors = truths_and_priors()
    iou, labels = overlaps(truths, priors), torch.arange(12) + 40
    iou[:, 20] = -1  # ignored
    wanted = four_steps(iou, least, negative, low_quality, all_best)
    assigner = SimpleNamespace(
        pos_iou_thr=0.6,
        neg_iou_thr=negative,
        min_pos_iou=least,
        match_low_quality=low_quality,
        gt_max_assign_all=all_best,
    )
    found = mmdet._assign_wrt_overlaps(assigner, iou, labels)
    assert found.gt_inds.tolist() == wanted
    assert found.labels.tolist() == [39 + inds if inds > 0 else -1 for inds in wanted]
    assert torch.equal(found.max_overlaps, iou.amax(0))
    assert found.num_gts == 12
    assert mmdet._assign_wrt_overlaps(assigner, iou[:0], labels[:0]) is NotImplemented


# RPNHead


class Coder:
    """The box coder that an RPN's head has."""

    clip_border, add_ctr_clamp, use_box_type = True, False, False
    means, stds = (0.0, 0.0, 0.0, 0.0), (1.0, 1.0, 0.5, 0.5)


class Head:
    """An RPN's head, as far as its proposals go."""

    use_sigmoid_cls, cls_out_channels, test_cfg = True, 1, None

    def __init__(self) -> None:
        self.bbox_coder = Coder()

    def _bbox_post_process(self) -> None:
        """Theirs."""


@pytest.fixture
def rpn_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(
        monkeypatch,
        {
            "mmdet.models.dense_heads.rpn_head": {"RPNHead": Head},
            "mmdet.models.task_modules.coders": {"DeltaXYWHBBoxCoder": Coder},
            "mmengine.structures": {"InstanceData": SimpleNamespace},
        },
    )


class Config(dict):  # type: ignore[type-arg]
    """mmengine's: keys are attributes."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


SIZES = ((12, 16), (6, 8), (1, 2))  # of an RPN's levels
IMAGE = (100, 140)


def rpn_config(**options: Any) -> Config:
    standard = {"nms_pre": 200, "max_per_img": 60, "nms": {"type": "nms", "iou_threshold": 0.6}, "min_bbox_size": 0}
    return Config(standard | options)


def rpn_maps() -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    g = generator(7)
    scores = [torch.randn(3, *size, generator=g) * 20 for size in SIZES]  # some saturate the sigmoid: ties
    deltas = [torch.randn(12, *size, generator=g) for size in SIZES]
    deltas[0][2, :2] = -12.0  # narrower than mmdetection lets a box get
    deltas[1][3::4, 3] = 12.0
    deltas[0][0, 5:7] = 40.0  # out of the image: no side
    return scores, deltas, [boxes(g, 3 * h * w) for h, w in SIZES]


def predict(head: Any, cfg: Any, **options: Any) -> Any:
    scores, deltas, priors = rpn_maps()
    return mmdet._predict_rpn(head, scores, deltas, None, priors, {"img_shape": (*IMAGE, 3)}, cfg, **options)


@pytest.mark.usefixtures("rpn_modules")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"min_bbox_size": 12},
        {"min_bbox_size": -1},
        {"nms_pre": -1, "max_per_img": 1000},
        {"nms": {"type": "nms", "iou_threshold": 0.3, "max_num": 20}},
    ],
)
def test_proposals_by_their_steps(options: dict[str, Any]) -> None:
    cfg = rpn_config(**options)
    limit, candidates = math.log(1000 / 16), []
    for level, (scores, deltas, priors) in enumerate(zip(*rpn_maps())):
        own = scores.permute(1, 2, 0).reshape(-1).sigmoid()
        shifts = deltas.permute(1, 2, 0).reshape(-1, 4) * torch.tensor(Coder.stds)
        best = own.argsort(descending=True, stable=True)[: cfg.nms_pre if cfg.nms_pre > 0 else None]
        sides, middle = priors[:, 2:] - priors[:, :2], (priors[:, 2:] + priors[:, :2]) / 2
        middle, sides = middle + sides * shifts[:, :2], sides * shifts[:, 2:].clamp(-limit, limit).exp()
        found = torch.cat([middle - sides / 2, middle + sides / 2], 1)
        found[:, 0::2].clamp_(0, IMAGE[1])
        found[:, 1::2].clamp_(0, IMAGE[0])
        large = (found[:, 2:] - found[:, :2] > cfg.min_bbox_size).all(1)
        candidates += [(float(own[i]), level, found[i]) for i in best.tolist() if large[i]]
    kept: list[tuple[float, int, Tensor]] = []
    for one in sorted(candidates, key=lambda candidate: -candidate[0]):
        rivals = [box for _, level, box in kept if level == one[1]]
        if not rivals or overlaps(torch.stack(rivals), one[2][None]).max() <= cfg.nms["iou_threshold"]:
            kept.append(one)
    kept = kept[: min(cfg.max_per_img, cfg.nms.get("max_num", cfg.max_per_img))]
    results = predict(Head(), cfg)
    assert len(kept) > 10
    torch.testing.assert_close(results.scores, torch.tensor([score for score, _, _ in kept]), rtol=0, atol=1e-6)
    torch.testing.assert_close(results.bboxes, torch.stack([box for _, _, box in kept]), rtol=0, atol=1e-4)
    assert results.labels.dtype == torch.int64
    assert not results.labels.any()


@pytest.mark.usefixtures("rpn_modules")
def test_proposals_that_are_not_served() -> None:
    def head(**options: Any) -> Any:
        made = Head()
        for name, value in options.items():
            setattr(made if hasattr(made, name) else made.bbox_coder, name, value)
        return made

    class Other(Head):
        def _bbox_post_process(self) -> None:
            """Not theirs."""

    assert predict(head(), rpn_config()) is not NotImplemented
    assert predict(head(test_cfg=rpn_config()), None) is not NotImplemented
    for odd in (
        Other(),
        head(use_sigmoid_cls=False),
        head(cls_out_channels=2),
        head(bbox_coder=SimpleNamespace(**vars(Coder))),
        head(clip_border=False),
        head(add_ctr_clamp=True),
        head(use_box_type=True),
        head(means=(0.0, 0.1, 0.0, 0.0)),
    ):
        assert predict(odd, rpn_config()) is NotImplemented
    for options in (
        {"nms": {"type": "soft_nms", "iou_threshold": 0.5}},
        {"nms": {"iou_threshold": 0.5, "class_agnostic": True}},
        {"nms": None},
        {"max_per_img": -1},
    ):
        assert predict(head(), rpn_config(**options)) is NotImplemented
    assert predict(head(), rpn_config(), rescale=True) is NotImplemented
    assert predict(head(), rpn_config(), with_nms=False) is NotImplemented


# MaxIoUAssigner.assign


def rpn_assigner(**options: Any) -> Any:
    standard = {
        "pos_iou_thr": 0.6,
        "neg_iou_thr": 0.3,
        "min_pos_iou": 0.25,
        "match_low_quality": True,
        "gt_max_assign_all": True,
        "ignore_iof_thr": -1,
        "ignore_wrt_candidates": True,
        "gpu_assign_thr": -1,
        "perm_repeat_gt_cfg": None,
        "iou_calculator": Overlaps(),
    }
    return SimpleNamespace(**standard | options)


def assign(assigner: Any, truths: Tensor, priors: Tensor, ignored: Tensor | None = None) -> Any:
    return mmdet._assign(
        assigner,
        SimpleNamespace(priors=priors),
        SimpleNamespace(bboxes=truths, labels=torch.arange(len(truths)) + 40),
        None if ignored is None else SimpleNamespace(bboxes=ignored),
    )


@pytest.mark.usefixtures("mmdet_modules")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ignore", [-1, 0.5, 1.0])
@pytest.mark.parametrize("least", [0.0, 0.25])
def test_assigned_without_a_matrix(least: float, ignore: float, dtype: torch.dtype) -> None:
    truths, priors = (rows.to(dtype) for rows in truths_and_priors())
    if not least:
        truths = torch.cat([truths[:5], truths[6:]])  # nobody overlaps it
    ignored = priors[[3, 7]].clone()
    ignored[0, 2] = priors[3, :3:2].mean()  # half of it: not more than half
    iou, highest = overlaps(truths, priors), Overlaps()(priors, ignored, "iof").amax(1)
    if ignore > 0:
        iou[:, highest > ignore] = -1
    assert (ignore == 0.5) == bool((iou < 0).any())
    assigner = rpn_assigner(min_pos_iou=least, ignore_iof_thr=ignore)
    found = assign(assigner, truths, priors, ignored if least else None)
    wanted = four_steps(iou if least else overlaps(truths, priors), least, 0.3, True, True)
    assert found.gt_inds.tolist() == wanted
    assert found.labels.tolist() == [39 + inds if inds > 0 else -1 for inds in wanted]
    assert found.num_gts == len(truths)
    assert found._max_overlaps is None
    assert torch.equal(found.max_overlaps, (iou if least else overlaps(truths, priors)).amax(0))
    found.max_overlaps = priors[:, 0]  # as add_gt_ does
    assert found.max_overlaps is found.max_overlaps


@pytest.mark.usefixtures("mmdet_modules")
def test_assignments_that_are_not_served() -> None:
    truths, priors = truths_and_priors()
    assert assign(rpn_assigner(), truths, priors) is not NotImplemented
    assert assign(rpn_assigner(min_pos_iou=0.0), truths, priors) is NotImplemented  # truth 5 overlaps no prior
    for options in (
        {"match_low_quality": False},
        {"gt_max_assign_all": False},
        {"neg_iou_thr": (0.1, 0.3)},
        {"pos_iou_thr": 0.0},
        {"min_pos_iou": -1.0},
        {"gpu_assign_thr": 11},
        {"perm_repeat_gt_cfg": {"iou_thr": 0.9}},
        {"iou_calculator": SimpleNamespace(dtype=None)},
    ):
        assert assign(rpn_assigner(**options), truths, priors) is NotImplemented, options
    assert assign(rpn_assigner(), truths[:0], priors) is NotImplemented
    assert assign(rpn_assigner(), truths, priors[:0]) is NotImplemented
    assert assign(rpn_assigner(), truths.half(), priors.half()) is NotImplemented
    broken = truths.clone()
    broken[2, 0] = float("nan")
    assert assign(rpn_assigner(), broken, priors) is NotImplemented
    ignoring = rpn_assigner(ignore_iof_thr=0.5)
    assert assign(ignoring, truths, priors, broken[:3]) is NotImplemented
    assert assign(ignoring, truths, priors, truths[:3]) is not NotImplemented
    wrt = rpn_assigner(ignore_iof_thr=0.5, ignore_wrt_candidates=False)
    assert assign(wrt, truths, priors, truths[:3]) is NotImplemented
