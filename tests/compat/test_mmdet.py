"""mmdetection over our functions, unmodified: the same answers as over torchvision's, its own tools, and the patch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import frcnn_fast
from bench.compat import equality, models

pytest.importorskip("mmdet", reason="mmdet (make test-compat)")

ROOT = Path(__file__).resolve().parents[2]
FASTER = "faster_rcnn/faster-rcnn_r50_fpn_1x_coco"


@pytest.fixture(scope="module", autouse=True)
def stand_in() -> Iterator[None]:
    with frcnn_fast.stand_in_for_mmcv():
        yield


@pytest.mark.parametrize("name", equality.MODELS)
def test_models_answer_as_over_torchvisions_operators(name: str) -> None:
    found = equality.compare(name, (224, 288), rounds=1)
    assert found["equal"], found


@pytest.mark.parametrize(
    "name", [FASTER, "dyhead/atss_r50_fpn_dyhead_1x_coco", "pisa/faster-rcnn_r50_fpn_pisa_1x_coco"]
)
def test_families_run(name: str, tmp_path: Path) -> None:
    """By the command: processes are forked there, which one that has had gradients cannot do."""
    command = [sys.executable, "-m", "bench.compat", "--only", "families", "--config", name, "--size", "160", "192"]
    path = tmp_path / "report.json"
    subprocess.run([*command, "--json", str(path)], cwd=ROOT, check=True)
    (found,) = json.loads(path.read_text())["families"]
    assert (found["inference"], found["training"]) == ("ok", "ok")
    assert found["functions"]


# The patch


def some_boxes(n: int, seed: int = 0, side: float = 800.0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    corner = torch.rand(n, 2, generator=g) * side
    return torch.cat([corner, corner + torch.rand(n, 2, generator=g) * side / 4 + 1], 1)


def with_and_without(step: Callable[[], Any]) -> tuple[Any, Any]:
    theirs = step()
    with frcnn_fast.patch_mmdet() as patch:
        assert "mmdet.models.layers.bbox_nms.batched_nms" in patch.replaced
        assert "mmcv.ops.batched_nms" in patch.replaced
        return theirs, step()


@pytest.mark.parametrize(
    "options",
    [
        {"pos_iou_thr": 0.7, "neg_iou_thr": 0.3, "min_pos_iou": 0.3},  # RPN
        {"pos_iou_thr": 0.5, "neg_iou_thr": 0.5, "min_pos_iou": 0.5, "match_low_quality": False},  # R-CNN
        {"pos_iou_thr": 0.5, "neg_iou_thr": (0.1, 0.4), "min_pos_iou": 0.0},
        {"pos_iou_thr": 0.5, "neg_iou_thr": 0.4, "min_pos_iou": 0.0, "gt_max_assign_all": False},
        {"pos_iou_thr": 0.5, "neg_iou_thr": 0.4, "ignore_iof_thr": 0.5},
        {"pos_iou_thr": 0.7, "neg_iou_thr": 0.3, "min_pos_iou": 0.3, "ignore_iof_thr": 0.5},
        {
            "pos_iou_thr": 0.5,
            "neg_iou_thr": 0.4,
            "min_pos_iou": 0.1,
            "ignore_wrt_candidates": False,
            "ignore_iof_thr": 1e-3,
        },
    ],
)
@pytest.mark.parametrize("odd", [False, True])
@pytest.mark.parametrize("objects", [0, 1, 20])
def test_assigned_alike(objects: int, odd: bool, options: dict[str, Any]) -> None:
    from mmdet.registry import TASK_UTILS
    from mmengine.structures import InstanceData

    assigner = TASK_UTILS.build({"type": "MaxIoUAssigner", **options})
    boxes = some_boxes(objects, seed=1)
    if objects > 3:
        boxes[1] = boxes[0]  # the last of those that want a prior gets it
    if objects > 3 and odd:
        boxes[2] += 5000  # nobody overlaps it
        boxes[3, 2:] = boxes[3, :2]  # without area
    priors = InstanceData(priors=some_boxes(2000).repeat(2, 1))  # the best of an object is there twice
    truths = InstanceData(bboxes=boxes, labels=torch.arange(objects) % 80)
    ignored = InstanceData(bboxes=some_boxes(3, seed=2))
    theirs, ours = with_and_without(lambda: assigner.assign(priors, truths, ignored))
    for name in ("gt_inds", "max_overlaps", "labels"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    assert ours.num_gts == theirs.num_gts
    if options.get("min_pos_iou") == 0.3 and objects and not odd:
        assert type(ours) is not type(theirs)  # made without a matrix


@pytest.mark.parametrize(
    "kind", [{}, {"class_agnostic": True}, {"max_num": 20}, {"split_thr": 50}, {"type": "soft_nms"}]
)
def test_suppressed_alike(kind: dict[str, Any]) -> None:
    from mmdet.models.layers import multiclass_nms

    g = torch.Generator().manual_seed(4)
    boxes = some_boxes(100, seed=3)[:, None].repeat(1, 10, 1).view(100, -1) + torch.rand(100, 40, generator=g) * 9
    scores = (torch.randn(100, 11, generator=g) * 3).softmax(1)
    theirs, ours = with_and_without(
        lambda: multiclass_nms(boxes, scores, 0.05, {"type": "nms", "iou_threshold": 0.5, **kind}, 60, return_inds=True)
    )
    assert len(theirs[0]) > 10
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("size", [0, 30, -1])
@pytest.mark.parametrize("before", [2000, 100, -1])
def test_proposed_alike(before: int, size: int) -> None:
    from mmdet.registry import MODELS
    from mmengine.config import ConfigDict

    head = MODELS.build(models.load_config(FASTER + ".py").model.rpn_head)
    g = torch.Generator().manual_seed(6)
    sizes = [(400 // s, 512 // s) for s in (8, 16, 32, 64, 128)]
    # No two are equal: mmdetection sorts those in any order.
    logits = torch.linspace(-4, 4, sum(2 * 3 * h * w for h, w in sizes))
    parts = logits[torch.randperm(len(logits), generator=g)].split([2 * 3 * h * w for h, w in sizes])
    scores = [part.view(2, 3, *size) for part, size in zip(parts, sizes)]
    deltas = [torch.randn(2, 12, *size, generator=g) for size in sizes]
    deltas[0][:, 2] -= 5  # beyond the least ratio of sides
    metas = [{"img_shape": (390, 500)}, {"img_shape": (400, 512)}]
    cfg = ConfigDict(nms_pre=before, max_per_img=300, nms={"type": "nms", "iou_threshold": 0.7}, min_bbox_size=size)
    theirs, ours = with_and_without(lambda: head.predict_by_feat(scores, deltas, batch_img_metas=metas, cfg=cfg))
    for a, b in zip(ours, theirs, strict=True):
        assert len(b) > 100
        torch.testing.assert_close(a.scores, b.scores, rtol=0, atol=1e-6)
        torch.testing.assert_close(a.bboxes, b.bboxes, rtol=0, atol=1e-3)
        assert torch.equal(a.labels, b.labels)


@pytest.mark.parametrize("aligned", [False, True])
def test_extracted_alike(aligned: bool) -> None:
    from mmdet.registry import MODELS

    layer = {"type": "RoIAlign", "output_size": 7, "sampling_ratio": 0, "aligned": aligned}
    extractor = MODELS.build(
        {"type": "SingleRoIExtractor", "roi_layer": layer, "out_channels": 8, "featmap_strides": [4, 8, 16, 32]}
    )
    g = torch.Generator().manual_seed(5)
    maps = [torch.randn(2, 8, 800 // s, 1024 // s, generator=g).requires_grad_() for s in (4, 8, 16, 32)]
    rois = torch.cat([torch.arange(60)[:, None] % 2, some_boxes(60, side=600.0)], 1)
    rois[:4, 1:] = torch.tensor([[0.0, 0, s, s] for s in (112, 224, 448, 5)])

    def step() -> list[Tensor]:
        pooled = extractor(maps, rois)
        return [pooled, *torch.autograd.grad(pooled.square().sum(), maps)]

    for a, b in zip(*with_and_without(step), strict=True):
        assert torch.equal(a, b)


def test_a_model_answers_alike_under_the_patch() -> None:
    model = models.build(FASTER + ".py", decided=True)
    (theirs, theirs_gradients), (ours, gradients) = with_and_without(
        lambda: equality.results(model, (224, 288), {"inference": [], "training": []})
    )
    assert len(theirs) > 10
    assert torch.equal(ours.labels, theirs.labels)
    # Proposals are decoded by our exp: a box differs in its last bits, all else follows from it to the bit.
    torch.testing.assert_close(ours.bboxes, theirs.bboxes, atol=1e-4, rtol=0)
    torch.testing.assert_close(ours.scores, theirs.scores, atol=1e-5, rtol=0)
    for name, value in theirs_gradients.items():
        torch.testing.assert_close(gradients[name], value, atol=1e-5 * float(value.abs().max()), rtol=0)


# mmdetection's own tools


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images with two objects each, in COCO's format."""
    folder = tmp_path_factory.mktemp("data")
    g = np.random.default_rng(0)
    images, annotations = [], []
    for image in (1, 2):
        name = f"{image}.jpg"
        Image.fromarray(g.integers(0, 255, (96, 128, 3), np.uint8)).save(folder / name)
        images.append({"id": image, "file_name": name, "height": 96, "width": 128})
        for left in (5, 60):
            box = {"bbox": [left, 20, 40, 50], "area": 2000, "iscrowd": 0}
            annotations.append({"id": len(annotations) + 1, "image_id": image, "category_id": 1 + (left > 9), **box})
    coco = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
    }
    (folder / "annotations.json").write_text(json.dumps(coco))
    (folder / "config.py").write_text(
        f"""
_base_ = {str(models.configs_folder() / (FASTER + ".py"))!r}
size = (128, 96)
train_pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True),
                  dict(type='Resize', scale=size, keep_ratio=True), dict(type='PackDetInputs')]
test_pipeline = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=size, keep_ratio=True),
                 dict(type='LoadAnnotations', with_bbox=True),
                 dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))]
here = dict(data_root={str(folder)!r}, ann_file='annotations.json', data_prefix=dict(img=''),
            metainfo=dict(classes=('a', 'b')))
train_dataloader = dict(num_workers=0, persistent_workers=False,
                        dataset=dict(**here, pipeline=train_pipeline, filter_cfg=None))
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(**here, pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file={str(folder / "annotations.json")!r})
test_evaluator = val_evaluator
train_cfg = dict(max_epochs=1)
model = dict(backbone=dict(init_cfg=None), roi_head=dict(bbox_head=dict(num_classes=2)))
optim_wrapper = dict(optimizer=dict(lr=1e-4))
"""
    )
    return folder


def run(*arguments: str) -> str:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1",  # the checkpoint is our own
    }
    done = subprocess.run(
        [sys.executable, "-m", "frcnn_fast.mmdet", *arguments], text=True, capture_output=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def test_the_tools_train_save_and_test(data: Path, tmp_path: Path) -> None:
    tools = models.configs_folder().parent / "tools"
    log = run(str(tools / "train.py"), str(data / "config.py"), "--work-dir", str(tmp_path))
    assert "coco/bbox_mAP" in log
    checkpoint = tmp_path / "epoch_1.pth"
    assert checkpoint.exists()
    log = run(str(tools / "test.py"), str(data / "config.py"), str(checkpoint), "--work-dir", str(tmp_path))
    assert "coco/bbox_mAP" in log


@pytest.mark.filterwarnings("ignore")
def test_the_inferencer_finds_boxes(data: Path) -> None:
    from mmdet.apis import DetInferencer

    inferencer = DetInferencer(str(data / "config.py"), device="cpu", show_progress=False)
    found = inferencer(str(data / "1.jpg"), pred_score_thr=0.0)["predictions"][0]
    assert found.keys() >= {"bboxes", "labels", "scores"}
