"""A detector into a file, which is run once and compared before it takes its place."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from frcnn_fast._extras import require
from frcnn_fast.data import Collate, resize
from frcnn_fast.export.translations import OPSET, onnx_ops
from frcnn_fast.inference.sources import try_load
from frcnn_fast.io import PathLike, atomic_path
from frcnn_fast.model import FasterRCNN
from frcnn_fast.model.detector import Detections

EXPORTERS = ("program", "torchscript")
STRIDE = 32  # sides of a batch are multiples of it, as `frcnn_fast.data.Collate` makes them

Inputs = tuple[Tensor, Tensor, Tensor]
_INPUTS, _OUTPUTS = ("images", "image_sizes", "image_scales"), Detections._fields


class Inference(nn.Module):
    """What is exported: (images, image_sizes, image_scales) to `Detections`, as `FasterRCNN.forward` at test.

    images: float32 [B, 3, H, W], preprocessed; H and W multiples of 32. image_sizes: int64 [B, 2], (height, width) of
    each image inside. image_scales: float32 [B], size in `images` per size in the original image.
    """

    def __init__(self, detector: FasterRCNN) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor, image_sizes: Tensor, image_scales: Tensor) -> Detections:
        return self.detector(images, image_sizes, image_scales=image_scales)


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Of the file's detections and the detector's own.

    detections: how many were compared. unmatched: those without one of the same label, score (within 0.001) and place
    (within half a pixel) among the other's, on the side that has more of them: where two scores, or an overlap and its
    threshold, lie within rounding, either may win. boxes, scores: the largest differences of the others, in pixels and
    in score.
    """

    detections: int
    unmatched: int
    boxes: float
    scores: float

    def __str__(self) -> str:
        return (
            f"{self.detections} detections compared, {self.unmatched} differ; the others within {self.boxes:.2g} "
            f"pixels and {self.scores:.2g} of their scores"
        )


def export_onnx(
    detector: FasterRCNN, path: PathLike, *, exporter: str = "program", images: Sequence[PathLike] = ()
) -> Agreement:
    """Write the detector as an ONNX file of standard operators (opset 18), for batches of any number and size.

    The file has one input for each argument of `Inference` and one output for each field of `Detections`; its metadata
    have class_names and config, as JSON. It is run with ONNX Runtime and compared with the detector, then renamed into
    place.

    Args:
        detector: a whole one; on the CPU, in float32.
        exporter: "program": torch.export; "torchscript": the older one.
        images: files to compare on; default: noise, in which a trained detector may find nothing.

    Raises:
        ValueError: the detector is no whole one or pools with prroi_pool; or the file does not give its detections.
        ImportError: a package of the extra `onnx` is not installed; names it.
    """
    if exporter not in EXPORTERS:
        raise ValueError(f"exporter: expected one of {', '.join(EXPORTERS)}, got {exporter!r}")
    if detector.config.pooling == "prroi_pool":
        raise ValueError("detector: pools with prroi_pool, which ONNX has no operator for; export it as pt2")
    onnx, runtime = require("onnx", "onnx"), require("onnxruntime", "onnx")
    require("onnxscript", "onnx")
    with _at_test(detector) as module, atomic_path(path) as beside:
        examples = _examples(detector, images)
        with onnx_ops() as table, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tracing, and about the age of the exporters
            if exporter == "program":
                torch.onnx.export(
                    module, examples[0], beside, dynamo=True, opset_version=OPSET, external_data=False, verbose=False,
                    input_names=_INPUTS, output_names=_OUTPUTS, dynamic_shapes=_open_sizes(),
                    custom_translation_table=table,
                )  # fmt: skip
            else:
                batch = {name: {0: "batch"} for name in (*_INPUTS, *_OUTPUTS)}
                torch.onnx.export(
                    module, examples[0], beside, dynamo=False, opset_version=OPSET,
                    input_names=_INPUTS, output_names=_OUTPUTS,
                    dynamic_axes={**batch, "images": {0: "batch", 2: "height", 3: "width"}},
                )  # fmt: skip
        model = onnx.load(beside)
        onnx.helper.set_model_props(model, _metadata(detector))
        onnx.checker.check_model(model)
        onnx.save(model, beside)
        session = runtime.InferenceSession(beside, providers=["CPUExecutionProvider"])

        def run(*inputs: Tensor) -> list[Tensor]:
            named = {name: tensor.numpy() for name, tensor in zip(_INPUTS, inputs, strict=True)}
            return [torch.from_numpy(found) for found in session.run(_OUTPUTS, named)]

        return _compared(run, module, examples, path)


def export_pt2(detector: FasterRCNN, path: PathLike, *, images: Sequence[PathLike] = ()) -> Agreement:
    """Write the detector as a program of torch.export, for batches of any number and size.

    `torch.export.load(path).module()` takes the arguments of `Inference` and returns `Detections`, after `import
    frcnn_fast`: the ops are this library's own, and results are equal to the bit on the same machine. The file is run
    and compared, then renamed into place; class_names and config are in its extra file "frcnn_fast.json". Arguments and
    errors as for `export_onnx`.
    """
    with _at_test(detector) as module, atomic_path(path) as beside:
        examples = _examples(detector, images)
        program = torch.export.export(module, examples[0], dynamic_shapes=_open_sizes())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tensors that share memory
            torch.export.save(program, beside, extra_files={"frcnn_fast.json": json.dumps(_metadata(detector))})
        return _compared(torch.export.load(beside).module(), module, examples, path)


@contextlib.contextmanager
def _at_test(detector: FasterRCNN) -> Iterator[Inference]:
    """The module to export, in eval mode and without gradients."""
    if detector.config.parts != "both":
        raise ValueError(f"detector: only its {detector.config.parts} was trained, expected a whole one")
    training = detector.training
    try:
        with torch.no_grad():
            yield Inference(detector).eval()
    finally:
        detector.train(training)


def _metadata(detector: FasterRCNN) -> dict[str, str]:
    return {"class_names": json.dumps(detector.class_names), "config": json.dumps(detector.config.to_dict())}


def _open_sizes() -> tuple[dict[int, Any], ...]:
    batch, height, width = (torch.export.Dim(name, min=1) for name in ("batch", "height_32", "width_32"))
    return {0: batch, 2: STRIDE * height, 3: STRIDE * width}, {0: batch}, {0: batch}


def _examples(detector: FasterRCNN, images: Sequence[PathLike]) -> list[Inputs]:
    """Batches to trace and to compare with: two of noise of different numbers and sizes, or one an image."""
    device = detector.rng.device
    generator = torch.Generator().manual_seed(0)
    noise: list[Inputs] = []
    for B, height, width in ((2, 224, 320), (1, 288, 224)):
        pixels = torch.randn(B, 3, height, width, generator=generator)
        sizes = torch.tensor([[height - 9 * i, width - 20 * i] for i in range(B)])
        noise.append((pixels.to(device), sizes.to(device), torch.ones(B, device=device)))
    config, collate = detector.config, Collate(detector.config.preprocess, STRIDE)
    found: list[Inputs] = []
    for path in images:
        loaded = try_load(path, str(path), bgr=False)
        if isinstance(loaded, Exception):
            raise loaded
        resized, scale = resize(loaded.image, config.shorter, config.longer, config.resize)
        nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "scale": scale}
        batch = collate([(resized, nothing)]).to(device)
        found.append((batch.images, batch.image_sizes, batch.image_scales))
    # A program is traced with two images, since torch takes a batch of one for a constant.
    return [noise[0], *(found or noise[1:])]


def _compared(
    run: Callable[..., Iterable[Tensor]], module: Inference, examples: Sequence[Inputs], path: PathLike
) -> Agreement:
    total = Agreement(0, 0, 0.0, 0.0)
    for inputs in examples:
        one = agreement(Detections(*run(*inputs)), module(*inputs))
        total = Agreement(
            total.detections + one.detections,
            total.unmatched + one.unmatched,
            max(total.boxes, one.boxes),
            max(total.scores, one.scores),
        )
    if total.unmatched > max(1, total.detections // 50):
        raise ValueError(f"{Path(path)}: not written, since what it would hold does not detect the same ({total})")
    return total


def agreement(found: Detections, wanted: Detections) -> Agreement:
    """How far two results for the same images agree."""
    compared = unmatched = 0
    boxes, scores = [0.0], [0.0]
    for a, b in zip(found.to_list(), wanted.to_list(), strict=True):
        apart = (a["boxes"][:, None] - b["boxes"]).abs().amax(-1)
        lower = (a["scores"][:, None] - b["scores"]).abs()
        same = (apart <= 0.5) & (lower <= 1e-3) & (a["labels"][:, None] == b["labels"])
        compared += len(b["scores"])
        unmatched += max(int((~same.any(dim)).sum()) for dim in (0, 1))
        if same.any():
            # Of several partners, the nearest.
            rows = same.any(1)
            boxes.append(float(apart.masked_fill(~same, torch.inf)[rows].amin(1).max()))
            scores.append(float(lower.masked_fill(~same, torch.inf)[rows].amin(1).max()))
    return Agreement(compared, unmatched, max(boxes), max(scores))
