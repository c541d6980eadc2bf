"""ONNX files of detectors and ops, by both exporters of torch, run by ONNX Runtime and OpenVINO beside eager."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from frcnn_fast import cli, ops
from frcnn_fast.export import export_onnx, onnx_ops
from frcnn_fast.export.detector import agreement
from frcnn_fast.model import FasterRCNN, build_detector, preset, save_detector
from frcnn_fast.model.detector import Detections
from tests.samples import samples
from tests.test_compile import BATCHES, images, tiny_detector

onnx = pytest.importorskip("onnx", reason="onnx (make test-compat)")
runtime = pytest.importorskip("onnxruntime", reason="onnxruntime (make test-compat)")
pytest.importorskip("onnxscript", reason="onnxscript (make test-compat)")

NAMES = ("images", "image_sizes", "image_scales")
EXPORTERS = ["program", "torchscript"]
pytestmark = pytest.mark.filterwarnings("ignore")


def by_onnxruntime(path: Path) -> Callable[..., list[Tensor]]:
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    return lambda *inputs: [
        torch.from_numpy(each) for each in session.run(None, {n: t.numpy() for n, t in zip(names, inputs, strict=True)})
    ]


def by_openvino(path: Path) -> Callable[..., list[Tensor]]:
    openvino = pytest.importorskip("openvino", reason="openvino (make test-compat)")
    # Its default on this kind of processor may be bfloat16.
    compiled = openvino.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda *inputs: [torch.from_numpy(each.copy()) for each in compiled([t.numpy() for t in inputs]).values()]


SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "after": {"filter_order": "after_top_n", "min_size": 0.0, "feature_scale": 0.5},
    "one box": {"class_agnostic": True, "sampling_ratio": 0, "aligned": True},
    "image": {"anchor_stride": "image", "anchor_offset": 0.5, "anchor_convention": "detectron2", "max_detections": 7},
    "scores": {"proposal_score_threshold": 0.5, "detection_min_size": 12.0},
}


@torch.no_grad()
@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("name", SETTINGS)
def test_a_detector_detects_the_same(name: str, exporter: str, tmp_path: Path) -> None:
    detector, path = tiny_detector(**SETTINGS[name]), tmp_path / "tiny.onnx"
    export_onnx(detector, path, exporter=exporter)
    onnxruntime, openvino = by_onnxruntime(path), by_openvino(path)
    for shape in BATCHES:
        x, sizes, scales = images(*shape)
        wanted = detector(x, sizes, image_scales=scales)
        assert wanted.counts.sum() > 0
        for run in (onnxruntime, openvino):
            found = Detections(*run(x, sizes, scales))
            assert torch.equal(found.counts, wanted.counts)
            assert torch.equal(found.labels, wanted.labels)
            torch.testing.assert_close(found.boxes, wanted.boxes, rtol=0, atol=1e-3)
            torch.testing.assert_close(found.scores, wanted.scores, rtol=0, atol=1e-5)


def whole_detector(name: str) -> FasterRCNN:
    """With random weights; scores are spread by a larger last layer."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {"head_channels": 64, "rpn_channels": 32, "proposals_test": (300, 50)}
    detector = build_detector(["a", "b", "c"], preset(name, score_threshold=0.0, **settings)).eval()
    with torch.no_grad():
        for layer in (detector.rpn.cls_logits, detector.rpn.bbox_pred, detector.roi_head.cls_score):
            layer.weight.mul_(20)
    return detector


@torch.no_grad()
@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("name", ["vgg16", "resnet18_fpn", "resnet18_c4", "small"])
def test_every_kind_of_backbone(name: str, exporter: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    found = export_onnx(whole_detector(name), path, exporter=exporter)
    assert found.detections > 20
    assert found.unmatched <= found.detections // 50  # random weights make ties
    kinds = {node.op_type for node in onnx.load(path, load_external_data=False).graph.node}
    assert {"NonMaxSuppression", "TopK", "MaxRoiPool" if name == "vgg16" else "RoiAlign"} <= kinds
    assert all(node.domain == "" for node in onnx.load(path).graph.node)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_detector(tmp_path / "run" / "model.safetensors", whole_detector("small"))
    file = tmp_path / "small.onnx"
    command = ["export", str(tmp_path / "run"), "-o", str(file)]
    assert cli.main(command) == 0
    assert "0 differ" in capsys.readouterr().out
    metadata = {entry.key: json.loads(entry.value) for entry in onnx.load(file).metadata_props}
    assert metadata["class_names"] == ["a", "b", "c"]
    assert metadata["config"]["backbone"] == "small"
    with pytest.raises(SystemExit):
        cli.main(command)
    assert "is there already" in capsys.readouterr().err
    assert sorted(each.name for each in tmp_path.iterdir()) == ["run", "small.onnx"]


def keeping_less(detections: Callable[..., Any], *args: Any) -> Any:
    """With another iou_threshold."""
    return detections(*args[:6], 0.01, *args[7:])


def test_a_file_that_differs_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from frcnn_fast.export import lowering

    monkeypatch.setitem(lowering.LOWERED, "detections", partial(keeping_less, lowering._detections))
    with pytest.raises(ValueError, match="does not detect the same"):
        export_onnx(tiny_detector(), tmp_path / "tiny.onnx", exporter="torchscript")
    assert not list(tmp_path.iterdir())


def test_what_onnx_has_no_operator_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="prroi_pool"):
        export_onnx(tiny_detector(pooling="prroi_pool"), tmp_path / "tiny.onnx")
    with onnx_ops(), pytest.raises(NotImplementedError, match="soft_nms: not in terms of ONNX"):
        torch.jit.trace(lambda *a: samples()["soft_nms"](*a), samples()["soft_nms"].tensors)


SERVED = [
    "decode_clip", "encode", "top_n", "box_iou", "nms", "batched_nms", "nms_padded", "rpn_proposals", "roi_pool",
    "roi_align", "multiscale_roi_align", "detections",
]  # fmt: skip


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("name", SERVED)
def test_ops_of_any_model(name: str, exporter: str, tmp_path: Path) -> None:
    sample, path = samples()[name], tmp_path / "op.onnx"

    class Module(nn.Module):
        def forward(self, *tensors: Tensor) -> Any:
            found = sample(*tensors)
            return tuple(found) if isinstance(found, tuple) else found

    with onnx_ops() as table:
        if exporter == "program":
            torch.onnx.export(
                Module(), tuple(sample.tensors), path, dynamo=True, custom_translation_table=table, verbose=False,
                opset_version=18,
            )  # fmt: skip
        else:
            torch.onnx.export(Module(), tuple(sample.tensors), path, dynamo=False, opset_version=18)
    wanted = sample()
    for run in (by_onnxruntime(path), by_openvino(path)):
        found = run(*sample.tensors)
        for f, w in zip(found, wanted if isinstance(wanted, tuple) else (wanted,), strict=True):
            torch.testing.assert_close(f.to(w.dtype), w, rtol=1e-5, atol=1e-4)


def test_padding_pools_zeros_and_class_ids_may_be_anything(tmp_path: Path) -> None:
    rois = torch.tensor([[-1, 1, 1, 9, 9.0], [0, 1, 1, 9, 9], [1, float("nan"), 1, 9, 9], [1, 2, 2, 8, 30]])
    x = torch.randn(2, 3, 12, 12)
    boxes, scores = samples()["batched_nms"].tensors[:2]
    ids = torch.arange(len(scores)).remainder(3) * 1000 - 7

    class Module(nn.Module):
        def forward(self, *a: Tensor) -> Any:
            padded = ops.nms_padded(a[2][None], a[3][None], 0.2, 20, class_ids=a[4][None])
            return (
                ops.roi_align(a[0], a[1], 3, 0.5, 2),
                ops.roi_pool(a[0], a[1], 3, 0.5),
                ops.multiscale_roi_align([a[0], a[0][:, :, ::2, ::2]], a[1], 3, [0.5, 0.25], 2, canonical_scale=20),
                ops.batched_nms(a[2], a[3], a[4], 0.2),
                *padded,
            )

    inputs = (x, rois, boxes, scores, ids)
    with onnx_ops(), torch.no_grad():
        torch.onnx.export(Module(), inputs, tmp_path / "ops.onnx", dynamo=False, opset_version=18)
        wanted = Module()(*inputs)
    assert wanted[0][[0, 2]].abs().sum() == 0
    for f, w in zip(by_onnxruntime(tmp_path / "ops.onnx")(*inputs), wanted, strict=True):
        torch.testing.assert_close(f, w, rtol=1e-5, atol=1e-5)


def test_agreement_sees_what_differs() -> None:
    one = Detections(torch.rand(1, 5, 4).cumsum(-1) * 20, torch.rand(1, 5), torch.arange(5)[None], torch.tensor([5]))
    assert agreement(one, one).unmatched == 0
    assert agreement(one._replace(boxes=one.boxes + 2.0), one).unmatched == 5
    assert agreement(one._replace(labels=one.labels + 1), one).unmatched == 5
    assert agreement(one._replace(counts=torch.tensor([4])), one).unmatched == 1
