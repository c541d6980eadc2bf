"""A detector's exported file beside the detector itself: what it detects, and how long it takes.

    python -m bench.exported --run runs/digits --out runs/exported.json

Writes an ONNX file by each exporter of torch, and runs it with ONNX Runtime and OpenVINO where they are installed. All
contenders take turns in one process, each with the same number of threads: read the ratios, which are eager's time
divided by theirs.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from frcnn_fast.export import Inference, export_onnx
from frcnn_fast.export.detector import EXPORTERS, agreement
from frcnn_fast.io import write_json
from frcnn_fast.model import FasterRCNN, build_detector, load_detector, preset
from frcnn_fast.model.detector import Detections

Run = Callable[..., Sequence[Tensor]]


def by_onnxruntime(path: Path, threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    return lambda *inputs: [
        torch.from_numpy(each) for each in session.run(None, {n: t.numpy() for n, t in zip(names, inputs, strict=True)})
    ]


def by_openvino(path: Path, threads: int) -> Run:
    import openvino

    # Its default on some processors is bfloat16.
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    compiled = openvino.compile_model(path, "CPU", settings)
    return lambda *inputs: [torch.from_numpy(each.copy()) for each in compiled([t.numpy() for t in inputs]).values()]


RUNTIMES: dict[str, Callable[[Path, int], Run]] = {"onnxruntime": by_onnxruntime, "openvino": by_openvino}


def random_detector(backbone: str) -> FasterRCNN:
    torch.manual_seed(0)
    return build_detector(["a", "b", "c"], preset(backbone, score_threshold=0.0)).eval()


@torch.no_grad()
def measured(detector: FasterRCNN, size: tuple[int, int], rounds: int, threads: int) -> list[dict[str, Any]]:
    """One row a contender: its agreement with eager, its median and the ratio."""
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(1)
    inputs = (torch.randn(1, 3, *size, generator=generator), torch.tensor([size]), torch.ones(1))
    contenders: dict[str, Run] = {"eager": Inference(detector).eval()}
    with tempfile.TemporaryDirectory() as folder:
        for exporter in EXPORTERS:
            path = Path(folder) / f"{exporter}.onnx"
            export_onnx(detector, path, exporter=exporter)
            for name, make in RUNTIMES.items():
                if importlib.util.find_spec(name):
                    contenders[f"{name}, {exporter}"] = make(path, threads)
        wanted = Detections(*contenders["eager"](*inputs))
        found = {
            name: agreement(Detections(*run(*inputs)), wanted) for name, run in contenders.items()
        }  # and warmed up
        times: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(rounds):
            for name, run in contenders.items():
                start = time.perf_counter()
                run(*inputs)
                times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(each) for name, each in times.items()}
    return [
        {
            "contender": name,
            "detections": found[name].detections,
            "differ": found[name].unmatched,
            "seconds": medians[name],
            "eager / this": medians["eager"] / medians[name],
        }
        for name in contenders
    ]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.exported", description=__doc__.partition("\n")[0])
    parser.add_argument("--run", metavar="RUN", help="folder of a run (default: random weights)")
    parser.add_argument("--backbone", default="small", help="with random weights")
    parser.add_argument("--size", nargs=2, type=int, default=(320, 480), metavar=("H", "W"))
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", metavar="FILE", help="JSON file for the rows")
    args = parser.parse_args(argv)
    detector = load_detector(args.run) if args.run else random_detector(args.backbone)
    rows = measured(detector, tuple(args.size), args.rounds, args.threads)
    for row in rows:
        print(
            f"{row['contender']:<26}{row['differ']} of {row['detections']} detections differ, "
            f"eager / this {row['eager / this']:.2f}"
        )
    if args.out:
        write_json(args.out, {"size": args.size, "threads": args.threads, "torch": torch.__version__, "rows": rows})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
