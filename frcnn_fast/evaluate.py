"""Average precision of a detector on a data set."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from frcnn_fast import _command
from frcnn_fast._device import choose_device
from frcnn_fast._names import printable
from frcnn_fast._progress import progress_bar
from frcnn_fast.data import (
    Batch,
    Collate,
    DetectionDataset,
    DetectionView,
    boxes_to_original,
    class_names_of,
    read_proposals,
)
from frcnn_fast.data.targets import Target, checked_sample
from frcnn_fast.data.transforms import Sample
from frcnn_fast.evaluation import VocEvaluator, VocResult
from frcnn_fast.io import load_checkpoint, write_json
from frcnn_fast.model import FasterRCNN, load_detector


class _Items(DetectionView):
    """A data set's items resized, each with its target as it was: a data set may give another one when asked again."""

    def __getitem__(self, index: int) -> tuple[Sample, Target]:  # type: ignore[override]
        image, target = checked_sample(self.dataset[index], len(self.class_names), name=index, cut=[])
        return self.resized(image, target), target


class _CollateItems:
    def __init__(self, collate: Collate) -> None:
        self.collate = collate

    def __call__(self, items: Sequence[tuple[Sample, Target]]) -> tuple[Batch, list[Target]]:
        return self.collate([sample for sample, _ in items]), [target for _, target in items]


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
    batches: DataLoader[tuple[Batch, list[Target]]] = DataLoader(
        items,  # type: ignore[arg-type]  # any map-style object will do
        batch_size=batch_size,
        collate_fn=_CollateItems(Collate(config.preprocess)),
        num_workers=workers,
        pin_memory=device.type == "cuda",
    )
    with progress_bar(len(items), desc="evaluating", disable=not progress) as bar:
        for batch, targets in batches:
            moved = batch.to(device, non_blocking=True)
            found = detector(
                moved.images,
                moved.image_sizes,
                image_scales=moved.image_scales,
                proposals=moved.proposals,
                proposal_counts=moved.proposal_counts,
            ).to_list()
            for b, detections in enumerate(found):
                sizes = batch.image_sizes[b].tolist(), batch.original_sizes[b].tolist()
                yield {**detections, "boxes": boxes_to_original(detections["boxes"], *sizes)}, targets[b]
            bar.update(len(batch))


def detect_all(
    detector: FasterRCNN, dataset: DetectionDataset, *, batch_size: int = 8, workers: int = 0, progress: bool = True
) -> Iterator[Target]:
    """Detections of every image, in order: boxes [D, 4] in pixels of the original image, scores, labels."""
    for detections, _ in _found_and_true(detector, dataset, batch_size, workers, progress):
        yield detections


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

    Args:
        proposals: by image id, in pixels of the image, in the place of the RPN's.

    Raises:
        ValueError: the data set's classes are not the detector's, a target breaks the rules of
            `frcnn_fast.data.checked_target`, or an image cannot be read.
    """
    class_names = class_names_of(dataset)
    if class_names != list(detector.class_names):
        raise ValueError(f"dataset: its classes are {class_names}, expected the detector's, {detector.class_names}")
    evaluator = VocEvaluator(class_names, iou_threshold=iou_threshold)
    for detections, target in _found_and_true(detector, dataset, batch_size, workers, progress, proposals):
        evaluator.add(detections, target)
    return evaluator.result()


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    parser = argparse.ArgumentParser(prog=prog or "python -m frcnn_fast.evaluate", description=__doc__)
    parser.add_argument("--checkpoint", required=True, metavar="RUN", help="a run's folder or model.safetensors")
    _command.add_dataset_arguments(parser, "the one of the run")
    parser.add_argument(
        "--proposals", nargs="+", metavar="FILE", help="files of proposals, in the place of those of the RPN"
    )
    parser.add_argument("--iou", type=float, default=0.5, help="overlap that a right detection must exceed")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--workers", type=int, default=0, help="processes that read images")
    parser.add_argument("--device", help="cpu, cuda, ... (default: a GPU where there is one)")
    parser.add_argument("-o", "--out", metavar="FILE", help="write the result as JSON")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE where it is there already")
    args = parser.parse_args(argv)
    with _command.errors(parser):
        if args.out and os.path.lexists(args.out) and not args.overwrite:
            raise ValueError(f"--out: {printable(args.out)} is there already; choose another file or --overwrite it")
        detector = load_detector(args.checkpoint, device=choose_device(args.device))
        data = _command.data_config(args, load_checkpoint(args.checkpoint).extra.get("data")).resolved()
        dataset = data.open_test(detector.class_names)
        if dataset is None:
            raise ValueError(f"test_split: {data.without_test()}")
        print(data.described(test=dataset), file=sys.stderr)
        result = evaluate(
            detector,
            dataset,
            iou_threshold=args.iou,
            batch_size=args.batch_size,
            workers=args.workers,
            proposals=read_proposals(*args.proposals) if args.proposals else None,
        )
        print(result.table())
        if args.out:
            write_json(args.out, result.to_dict())
        print(_command.last_line(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
