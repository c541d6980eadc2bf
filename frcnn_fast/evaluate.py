"""Average precision of a detector on a data set."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from frcnn_fast import _command
from frcnn_fast._device import choose_device
from frcnn_fast._names import printable
from frcnn_fast._progress import progress_bar
from frcnn_fast._ranks import ranks
from frcnn_fast.data import (
    Batch,
    Collate,
    DetectionDataset,
    DetectionView,
    boxes_to_original,
    class_names_of,
)
from frcnn_fast.data.targets import Target, checked_sample
from frcnn_fast.data.transforms import Sample
from frcnn_fast.evaluation import CocoEvaluator, Mistakes, VocEvaluator, VocResult
from frcnn_fast.evaluation.report import ReportFolder
from frcnn_fast.io import load_checkpoint, write_json
from frcnn_fast.model import FasterRCNN, load_detector


class _Items(DetectionView):
    """A data set's items resized, each with its target as it was: a data set may give another one when asked again."""

    def __getitem__(self, index: int) -> tuple[Sample, Target]:  # type: ignore[override]
        image, target = checked_sample(self.dataset[index], len(self.class_names), name=index, cut=[])
        return self.resized(image, target), target


class _CollateItems:
    """Items as batches of images of one shape, each batch with its items' places, and the targets.

    An image that is padded to another one's shape gets other scores near its edges.
    """

    def __init__(self, collate: Collate) -> None:
        self.collate = collate

    def __call__(self, items: Sequence[tuple[Sample, Target]]) -> tuple[list[tuple[Batch, list[int]]], list[Target]]:
        alike: dict[tuple[int, int], list[int]] = {}
        for place, ((image, _), _) in enumerate(items):
            alike.setdefault(self.collate.padded(*image.shape[-2:]), []).append(place)
        batches = [(self.collate([items[place][0] for place in places]), places) for places in alike.values()]
        return batches, [target for _, target in items]


@torch.inference_mode()
def _found_and_true(
    detector: FasterRCNN,
    dataset: DetectionDataset,
    batch_size: int,
    workers: int,
    progress: bool,
    proposals: Mapping[str, Tensor] | None = None,
) -> Iterator[tuple[Target, Target]]:
    """Detections and target of every image, in order, in pixels of the original image."""
    detector.eval()
    device, config = detector.rng.device, detector.config
    items = _Items(dataset, config.shorter, config.longer, rule=config.resize, proposals=proposals)
    loader: DataLoader[tuple[list[tuple[Batch, list[int]]], list[Target]]] = DataLoader(
        items,  # type: ignore[arg-type]  # any map-style object will do
        batch_size=batch_size,
        collate_fn=_CollateItems(Collate(config.preprocess)),
        num_workers=workers,
        pin_memory=device.type == "cuda",
    )
    with progress_bar(len(items), desc="evaluating", disable=not progress) as bar:
        for batches, targets in loader:
            found: dict[int, Target] = {}
            for batch, places in batches:
                moved = batch.to(device, non_blocking=True)
                detections = detector(
                    moved.images,
                    moved.image_sizes,
                    image_scales=moved.image_scales,
                    proposals=moved.proposals,
                    proposal_counts=moved.proposal_counts,
                ).to_list()
                for b, (place, one) in enumerate(zip(places, detections, strict=True)):
                    sizes = batch.image_sizes[b].tolist(), batch.original_sizes[b].tolist()
                    found[place] = {**one, "boxes": boxes_to_original(one["boxes"], *sizes)}
            for place, target in enumerate(targets):
                yield found[place], target
            bar.update(len(targets))


def detect_all(
    detector: FasterRCNN,
    dataset: DetectionDataset,
    proposals: Mapping[str, Tensor] | None = None,
    *,
    batch_size: int = 8,
    workers: int = 0,
    progress: bool = True,
) -> Iterator[Target]:
    """Detections of every image, in order: boxes [D, 4] in pixels of the original image, scores, labels.

    proposals: as in `evaluate`.
    """
    for detections, _ in _found_and_true(detector, dataset, batch_size, workers, progress, proposals):
        yield detections


class Evaluator(Protocol):
    """What takes the detections and the target of one image after the other."""

    def add(self, detections: Mapping[str, Any], target: Mapping[str, Any]) -> None: ...


def run_evaluators(
    detector: FasterRCNN,
    dataset: DetectionDataset,
    evaluators: Sequence[Evaluator],
    *,
    batch_size: int = 8,
    workers: int = 0,
    progress: bool = True,
    proposals: Mapping[str, Tensor] | None = None,
) -> None:
    """Give every image's detections and target to each of the evaluators (`VocEvaluator`, `CocoEvaluator`, `Mistakes`),
    in order, in pixels of the original image. Arguments and errors as in `evaluate`.

    Under torchrun, where all ranks call this, each detects in its share of the images and evaluates those of all.
    """
    class_names = class_names_of(dataset)
    if class_names != list(detector.class_names):
        raise ValueError(f"dataset: its classes are {class_names}, expected the detector's, {detector.class_names}")
    with ranks() as job:
        whole: Any = dataset
        mine: Any = Subset(whole, range(job.rank, len(dataset), job.count)) if job.count > 1 else whole
        found = _found_and_true(detector, mine, batch_size, workers, progress and job.is_first, proposals)
        if job.count > 1:
            shares = job.gathered([(_on_cpu(detections), target) for detections, target in found])
            found = (shares[index % job.count][index // job.count] for index in range(len(dataset)))
        for detections, target in found:
            for evaluator in evaluators:
                evaluator.add(detections, target)


def _on_cpu(detections: Target) -> Target:
    return {name: value.cpu() if isinstance(value, Tensor) else value for name, value in detections.items()}


def evaluate(
    detector: FasterRCNN,
    dataset: DetectionDataset,
    *,
    iou_threshold: float = 0.5,
    batch_size: int = 8,
    workers: int = 0,
    progress: bool = True,
    proposals: Mapping[str, Tensor] | None = None,
) -> VocResult:
    """PASCAL VOC average precision per class, 11-point and area, on the original images' pixels.

    Under torchrun, where all ranks call this, each detects in its share of the images, and each gets the result of all.

    Args:
        proposals: by image id, in pixels of the image, in the place of the RPN's.

    Raises:
        ValueError: the data set's classes are not the detector's, a target breaks the rules of
            `frcnn_fast.data.checked_target`, or an image cannot be read.
    """
    evaluator = VocEvaluator(detector.class_names, iou_threshold=iou_threshold)
    run_evaluators(
        detector,
        dataset,
        [evaluator],
        batch_size=batch_size,
        workers=workers,
        progress=progress,
        proposals=proposals,
    )
    return evaluator.result()


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    parser = argparse.ArgumentParser(prog=prog or "python -m frcnn_fast.evaluate", description=__doc__)
    parser.add_argument("--checkpoint", required=True, metavar="RUN", help="a run's folder or model.safetensors")
    _command.add_dataset_arguments(parser, "the one of the run")
    parser.add_argument(
        "--proposals",
        nargs="+",
        metavar="FILE",
        help="proposals in the place of the RPN's (default: the files that the run was trained on)",
    )
    parser.add_argument("--metric", choices=("voc", "coco"), default="voc", help="whose figures (default: %(default)s)")
    parser.add_argument("--iou", type=float, help="overlap that a right detection must exceed (default: 0.5)")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="images at once (default: %(default)s)")
    parser.add_argument(
        "--workers", type=int, default=0, metavar="N", help="processes that read images (default: %(default)s)"
    )
    parser.add_argument("--device", help="cpu, cuda, ... (default: a GPU where there is one)")
    parser.add_argument(
        "-o",
        "--out",
        metavar="DIR",
        help="write a report: figures, plots, the worst images; X.json: the figures alone (default: nothing)",
    )
    parser.add_argument("--worst", type=int, default=24, metavar="N", help="images to draw (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace what DIR has")
    args = parser.parse_args(argv)
    with _command.errors(parser), ranks() as job, _command.first_speaks(job):
        if args.metric == "coco" and args.iou is not None:
            raise ValueError("--iou: COCO's figures have their own overlaps; leave it out, or use --metric voc")
        file = args.out if args.out and args.out.lower().endswith(".json") else None
        if file and os.path.lexists(file) and not args.overwrite:
            raise ValueError(f"--out: {printable(file)} is there already; choose another file or --overwrite it")
        detector = load_detector(args.checkpoint, device=choose_device(job.device(args.device)))
        notes = load_checkpoint(args.checkpoint).extra
        data = _command.data_config(args, notes.get("data")).resolved()
        dataset = data.open_test(detector.class_names)
        if dataset is None:
            raise ValueError(f"test_split: {data.without_test()}")
        print(data.described(test=dataset), file=sys.stderr)
        report = ReportFolder(args.out, args.overwrite) if args.out and not file and job.is_first else None

        names, iou = detector.class_names, 0.5 if args.iou is None else args.iou
        voc, mistakes = VocEvaluator(names, iou_threshold=iou), Mistakes(names, iou_threshold=iou)
        coco = CocoEvaluator(names) if args.metric == "coco" else None
        wanted: list[Evaluator] = [coco] if coco is not None else [voc]
        run_evaluators(
            detector,
            dataset,
            [*wanted, *(e for e in (voc, mistakes) if e not in wanted)] if report else wanted,
            batch_size=args.batch_size,
            workers=args.workers,
            proposals=_command.open_proposals(args.proposals, notes.get("proposals")),
        )
        results: dict[str, Any] = {"coco": coco.result()} if coco is not None else {"voc": voc.result()}
        result = results[args.metric]
        print(result.table())
        if file and job.is_first:
            write_json(file, result.to_dict())
        if report:
            title = f"{args.checkpoint} on {data.data_root or 'the embedded digits'} ({data.test_split})"
            results = {"voc": voc.result(), **results}
            threshold = report.write(title, results, voc.curves(), mistakes, lambda k: dataset[k][0], args.worst)
            print(f"best threshold for all classes: {threshold:.3f}")
            print(f"report: {report.path / 'index.html'}")
        print(_command.last_line(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
