"""A detector's ONNX file in other runtimes beside the detector itself: what they detect, and how long they take.

A file by each exporter of torch, run by ONNX Runtime and OpenVINO. All contenders take turns in one process, each with
one thread: read the ratios, which are eager's time divided by theirs.
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.compat.callers import photograph
from frcnn_fast._extras import require
from frcnn_fast.data import Collate, resize
from frcnn_fast.data.images import read_image
from frcnn_fast.export import Inference, export_onnx
from frcnn_fast.export.detector import EXPORTERS, agreement
from frcnn_fast.model import FasterRCNN, build_detector, load_detector, preset
from frcnn_fast.model.detector import Detections

Run = Callable[..., Sequence[Tensor]]
BACKBONES = ("small", "resnet50_fpn")
ROUNDS = 7


def by_onnxruntime(path: Path) -> Run:
    runtime = require("onnxruntime", "onnx")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    return lambda *inputs: [
        torch.from_numpy(each) for each in session.run(None, {n: t.numpy() for n, t in zip(names, inputs, strict=True)})
    ]


def by_openvino(path: Path) -> Run:
    # Its default on some processors is bfloat16.
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = require("openvino", "onnx").compile_model(path, "CPU", settings)
    return lambda *inputs: [torch.from_numpy(each.copy()) for each in compiled([t.numpy() for t in inputs]).values()]


RUNTIMES: dict[str, Callable[[Path], Run]] = {"onnxruntime": by_onnxruntime, "openvino": by_openvino}


class Subject(NamedTuple):
    """A detector, and what it looks at."""

    name: str
    detector: FasterRCNN
    inputs: tuple[Tensor, Tensor, Tensor]  # as Inference takes them


def with_random_weights(backbone: str) -> Subject:
    """It finds as many as it may: every score counts."""
    torch.manual_seed(0)
    detector = build_detector(["a", "b", "c"], preset(backbone, score_threshold=0.0)).eval()
    image = photograph(2)[None] * 4 - 2
    return Subject(f"{backbone}, random weights", detector, (image, torch.tensor([image.shape[2:]]), torch.ones(1)))


def trained(run: Path, image: Path) -> Subject:
    detector = load_detector(run)
    config = detector.config
    pixels, scale = resize(read_image(image), config.shorter, config.longer, config.resize)
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "scale": scale}
    batch = Collate(config.preprocess)([(pixels, nothing)])
    return Subject(f"{config.backbone}, trained", detector, (batch.images, batch.image_sizes, batch.image_scales))


@torch.no_grad()
def compare(subject: Subject) -> Iterator[dict[str, Any]]:
    """One row a file and runtime."""
    contenders: dict[tuple[str, str], Run] = {}
    eager = Inference(subject.detector).eval()
    with tempfile.TemporaryDirectory() as folder:
        for exporter in EXPORTERS:
            path = Path(folder) / f"{exporter}.onnx"
            export_onnx(subject.detector, path, exporter=exporter)
            for runtime, made in RUNTIMES.items():
                contenders[runtime, exporter] = made(path)
        wanted = Detections(*eager(*subject.inputs))
        found = {key: agreement(Detections(*run(*subject.inputs)), wanted) for key, run in contenders.items()}
        everyone: dict[Any, Run] = {"eager": eager, **contenders}
        times: dict[Any, list[float]] = {key: [] for key in everyone}
        for _ in range(ROUNDS):
            for key, run in everyone.items():
                start = time.perf_counter()
                run(*subject.inputs)
                times[key].append(time.perf_counter() - start)
    medians = {key: statistics.median(each) for key, each in times.items()}
    for (runtime, exporter), found_by in found.items():
        yield {
            "subject": subject.name,
            "size": list(subject.inputs[0].shape[2:]),
            "runtime": runtime,
            "version": require(runtime, "onnx").__version__,
            "exporter": exporter,
            **dataclasses.asdict(found_by),
            "rounds": ROUNDS,
            "ratio": medians["eager"] / medians[runtime, exporter],
        }
