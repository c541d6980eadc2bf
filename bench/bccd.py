"""Blood cells: our detector and torchvision's FasterRCNN by one recipe; accuracy and speed.

    python -m bench.bccd --system frcnn_fast|torchvision --seed 0 --json bench/results/bccd-NAME.json
    python -m bench.bccd --time 10 --json bench/results/bccd-time.json

The recipe is the library's own for SqueezeNet 1.0 (`frcnn_fast.model.preset`, `frcnn_fast.training.recipe`), on BCCD's
official split: ImageNet weights, every layer trained; 600 iterations of 2 images of trainval and their mirror images,
shorter side 320, SGD 0.004 (momentum 0.9, weight decay 0.0005) with 100 iterations of warm-up and a cosine to zero;
anchors 32, 64, 128, 256 x 3 ratios, 256 of them and 128 RoIs an image, RoIAlign 7x7, two layers of 1,024; at test 300
proposals. Both systems get these settings, the same weights, the same batches in the same order, and the same
optimiser; each keeps its own initialisation, sampling, losses and proposal steps. Ours also pads and scales the
backbone's maps (`SqueezeNet`, `DetectorConfig.feature_scale`); torchvision gets its own SqueezeNet as published. The
first form trains, and evaluates on test: PASCAL VOC AP at IoU 0.5. It notes seconds too, but only the second form, in
which the two take turns in one process, compares them.

An iteration is timed from asking for the two images' files to the updated weights, a test image (one at a time)
from its file to its detections.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from bench import environment, schema
from bench.competitors import torchvision_missing
from bench.measure import summary
from frcnn_fast.data import Batch, Collate, DetectionView, VocDetection, boxes_to_original
from frcnn_fast.data.transforms import Target
from frcnn_fast.evaluation import VocEvaluator
from frcnn_fast.io import load_weights
from frcnn_fast.model import DetectorConfig, build_detector, load_pretrained, preset
from frcnn_fast.training import TrainOptions, make_optimizer, recipe, train_step
from frcnn_fast.training.batches import TrainingBatches
from frcnn_fast.training.step import PRECISIONS

BACKBONE = "squeezenet1_0"
SYSTEMS = ("frcnn_fast", "torchvision")
SLICE = 10  # iterations, and then test images, that a system does before it is the other's turn


class Contestant:
    """A detector in training, and the test images it is tried on.

    Args:
        detector: takes what `frcnn_fast.model.FasterRCNN` takes.
        data: root of the VOC tree.
        config, options: the recipe; options.seed draws images and samples.
    """

    def __init__(self, detector: nn.Module, data: Path, config: DetectorConfig, options: TrainOptions) -> None:
        self.detector, self.options = detector, options
        self.test = VocDetection(data, "test")
        self.training = training = VocDetection(data, "trainval", class_names=self.test.class_names)
        self.optimizer = make_optimizer(detector, options)
        self.batches = enumerate(TrainingBatches(training, config, options))
        self.test_batches: DataLoader[Batch] = DataLoader(
            DetectionView(self.test, config.shorter, config.longer),  # type: ignore[arg-type]
            collate_fn=Collate(config.preprocess),
        )

    def train(self, most: int) -> Iterator[tuple[float, float]]:
        """At most so many further iterations: (seconds, loss) of each."""
        self.detector.train()
        for _ in range(most):
            start = time.perf_counter()
            entry = next(self.batches, None)
            if entry is None:
                return
            done, batch = entry
            for group in self.optimizer.param_groups:
                group["lr"] = self.options.lr_at(done)
            losses = train_step(
                self.detector, batch, self.optimizer, self.options.clip, precision=self.options.precision
            )
            loss = float(torch.stack(list(losses.values())).sum())
            yield time.perf_counter() - start, loss

    @torch.inference_mode()
    def detect(self, most: int | None = None) -> Iterator[tuple[float, Target]]:
        """The first test images, default all: (seconds, detections in the image's pixels) of each."""
        self.detector.eval()
        batches = iter(self.test_batches)
        for _ in range(len(self.test) if most is None else min(most, len(self.test))):
            start = time.perf_counter()
            batch = next(batches)
            dtype = PRECISIONS[self.options.precision]
            with torch.autocast("cpu", dtype, enabled=dtype is not None):
                found = self.detector(batch.images, batch.image_sizes, image_scales=batch.image_scales)
            (detections,) = found if isinstance(found, list) else found.to_list()
            sizes = batch.image_sizes[0].tolist(), batch.original_sizes[0].tolist()
            detections = {**detections, "boxes": boxes_to_original(detections["boxes"], *sizes)}
            yield time.perf_counter() - start, detections


def built(system: str, data: Path, weights: Path, config: DetectorConfig, options: TrainOptions) -> Contestant:
    """One of SYSTEMS on SqueezeNet; weights: file of the backbone's ImageNet weights."""
    names = VocDetection(data, "test").class_names
    tensors = load_weights(weights)
    torch.manual_seed(options.seed)
    if system == "torchvision":
        if torchvision_missing:
            raise ValueError(f"--system torchvision: {torchvision_missing}; `make bench-env` installs it")
        from bench.competitors.torchvision_detector import on_squeezenet

        return Contestant(on_squeezenet(names, config, tensors), data, config, options)
    ours = build_detector(names, config)
    load_pretrained(ours, tensors, source=os.fspath(weights))
    ours.seed(options.seed)
    return Contestant(ours, data, config, options)


def accuracy_run(
    system: str, data: Path, weights: Path, config: DetectorConfig, options: TrainOptions
) -> dict[str, Any]:
    """Trains, evaluates on test: a report of the first form."""
    report = new_report(config, options)
    one = built(system, data, weights, config, options)
    iterations, losses = [], []
    for done, (seconds, loss) in enumerate(one.train(options.iterations), start=1):
        iterations.append(seconds)
        losses.append(loss)
        if done % 20 == 0 or done == options.iterations:
            mean = sum(losses[-20:]) / len(losses[-20:])
            print(f"{system} {done}/{options.iterations}: loss {mean:.3f}, {seconds:.2f} s", file=sys.stderr)
    evaluator = VocEvaluator(one.test.class_names)
    images = []
    for index, (seconds, detections) in enumerate(one.detect()):
        images.append(seconds)
        evaluator.add(detections, one.test.target(index))
    result = evaluator.result()
    print(result.table())
    seconds_of = {"iteration": summary(iterations, scale=1e6), "image": summary(images, scale=1e6)}
    return {**report, "system": system, "seed": options.seed, "test": result.to_dict(), "times": {system: seconds_of}}


def timing_run(rounds: int, data: Path, weights: Path, config: DetectorConfig, options: TrainOptions) -> dict[str, Any]:
    """Both in turns, so many rounds of SLICE iterations and SLICE test images each: a report of the second form."""
    options = for_rounds(options, rounds)
    contestants = {system: built(system, data, weights, config, options) for system in SYSTEMS}
    return {**new_report(config, options), **in_turns(contestants, rounds)}


def for_rounds(options: TrainOptions, rounds: int) -> TrainOptions:
    """The options of a training that is as long as `in_turns` needs it."""
    return dataclasses.replace(options, iterations=1 + rounds * SLICE)


def in_turns(contestants: Mapping[str, Contestant], rounds: int) -> dict[str, Any]:
    """The times of all, and the ratios of the medians: those of the other system to "frcnn_fast"'s."""
    taken: dict[str, dict[str, list[float]]] = {system: {"iteration": [], "image": []} for system in contestants}
    for one in contestants.values():  # the first call of everything is slower
        list(one.train(1))
        list(one.detect(1))
    for turn in range(rounds):
        for system in list(contestants)[:: 1 if turn % 2 else -1]:
            one = contestants[system]
            taken[system]["iteration"] += [seconds for seconds, _ in one.train(SLICE)]
            taken[system]["image"] += [seconds for seconds, _ in one.detect(SLICE)]
        print(f"round {turn + 1}/{rounds}", file=sys.stderr)
    times = {s: {what: summary(values, scale=1e6) for what, values in t.items()} for s, t in taken.items()}
    ratio = {}
    for what in ("iteration", "image"):
        mine, theirs = times["frcnn_fast"][what], times["torchvision"][what]
        ratio[what] = theirs["p50"] / mine["p50"]
        print(
            f"{what}: frcnn_fast {mine['p50'] / 1e6:.3f} s, torchvision {theirs['p50'] / 1e6:.3f} s, "
            f"ratio of the medians {ratio[what]:.2f}"
        )
    return {"times": times, "ratio": ratio}


def new_report(config: DetectorConfig, options: TrainOptions) -> dict[str, Any]:
    """What every report says: where, when and by which recipe."""
    return {
        "schema": schema.VERSION,
        "benchmark": "bccd",
        "environment": environment.describe("cpu"),
        "recipe": {"config": config.to_dict(), "options": dataclasses.asdict(options)},
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 2 where something is missing."""
    root = Path(os.environ.get("FRCNN_DATA", "."))
    parser = argparse.ArgumentParser(
        prog="python -m bench.bccd", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    form = parser.add_mutually_exclusive_group(required=True)
    form.add_argument("--system", choices=SYSTEMS, help="train and evaluate this one")
    form.add_argument("--time", type=int, metavar="N", help=f"time both, in N rounds of {SLICE} iterations each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--data", type=Path, default=root / "bccd" / "BCCD", help="the VOC tree (default: under FRCNN_DATA)"
    )
    parser.add_argument(
        "--weights",
        type=Path,
        default=root / "weights" / BACKBONE / f"{BACKBONE}_decoded_f32.npz",
        help="ImageNet weights of SqueezeNet 1.0 (default: under FRCNN_DATA)",
    )
    parser.add_argument("--iterations", type=int, help="another length of the schedule, for a trial")
    parser.add_argument("--precision", choices=tuple(PRECISIONS), default="float32", help="of both")
    parser.add_argument("--json", type=Path, help="write the report here")
    args = parser.parse_args(argv)
    options = recipe(BACKBONE, seed=args.seed, precision=args.precision)
    if args.iterations:
        options = dataclasses.replace(options, iterations=args.iterations)
    try:
        if args.time is not None:
            if args.time < 1:
                raise ValueError(f"--time: got {args.time}, expected at least 1 round")
            report = timing_run(args.time, args.data, args.weights, preset(BACKBONE), options)
        else:
            report = accuracy_run(args.system, args.data, args.weights, preset(BACKBONE), options)
    except (ValueError, OSError) as error:
        print(f"bench.bccd: {error}", file=sys.stderr)
        return 2
    if args.json:
        schema.save(report, args.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
