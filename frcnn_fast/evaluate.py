"""Average precision of a detector on a data set."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import DataLoader

from frcnn_fast import _command
from frcnn_fast._device import choose_device
from frcnn_fast._progress import progress_bar
from frcnn_fast.data import Batch, Collate, DetectionDataset, DetectionView, boxes_to_original
from frcnn_fast.data.transforms import Target
from frcnn_fast.evaluation import VocEvaluator, VocResult
from frcnn_fast.io import load_checkpoint, write_json
from frcnn_fast.model import FasterRCNN, load_detector


@torch.inference_mode()
def detect_all(
    detector: FasterRCNN, dataset: DetectionDataset, *, batch_size: int = 8, workers: int = 0, progress: bool = True
) -> Iterator[Target]:
    """Detections of every picture, in order: boxes [D, 4] in pixels of the original picture, scores, labels."""
    detector.eval()
    device, config = detector.rng.device, detector.config
    view = DetectionView(dataset, config.shorter, config.longer)
    batches: DataLoader[Batch] = DataLoader(
        view,  # type: ignore[arg-type]  # any map-style object will do
        batch_size=batch_size,
        collate_fn=Collate(config.preprocess),
        num_workers=workers,
        pin_memory=device.type == "cuda",
    )
    with progress_bar(len(view), desc="evaluating", disable=not progress) as bar:
        for batch in batches:
            moved = batch.to(device, non_blocking=True)
            found = detector(moved.images, moved.image_sizes, image_scales=moved.image_scales).to_list()
            for b, detections in enumerate(found):
                sizes = batch.image_sizes[b].tolist(), batch.original_sizes[b].tolist()
                yield {**detections, "boxes": boxes_to_original(detections["boxes"], *sizes)}
            bar.update(len(batch))


def evaluate(
    detector: FasterRCNN,
    dataset: DetectionDataset,
    *,
    iou_threshold: float = 0.5,
    batch_size: int = 8,
    workers: int = 0,
    progress: bool = True,
) -> VocResult:
    """PASCAL VOC average precision per class, 11-point and area, on the original pictures' pixels.

    Raises:
        ValueError: the data set's classes are not the detector's.
    """
    if list(dataset.class_names) != list(detector.class_names):
        raise ValueError(
            f"dataset: its classes are {list(dataset.class_names)}, expected the detector's, {detector.class_names}"
        )
    evaluator = VocEvaluator(dataset.class_names, iou_threshold=iou_threshold)
    found = detect_all(detector, dataset, batch_size=batch_size, workers=workers, progress=progress)
    for index, detections in enumerate(found):
        evaluator.add(detections, _target(dataset, index))
    return evaluator.result()


def _target(dataset: DetectionDataset, index: int) -> Target:
    # A data set that can give a target without decoding its picture does so.
    return dataset.target(index) if hasattr(dataset, "target") else dataset[index][1]


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    parser = argparse.ArgumentParser(prog=prog or "python -m frcnn_fast.evaluate", description=__doc__)
    parser.add_argument("--checkpoint", required=True, metavar="RUN", help="a run's folder or model.safetensors")
    _command.add_dataset_arguments(parser, "the one of the run")
    parser.add_argument("--iou", type=float, default=0.5, help="overlap that a right detection must exceed")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--workers", type=int, default=0, help="processes that read pictures")
    parser.add_argument("--device", help="cpu, cuda, ... (default: a GPU where there is one)")
    parser.add_argument("-o", "--out", metavar="FILE", help="write the result as JSON")
    args = parser.parse_args(argv)
    with _command.errors(parser):
        detector = load_detector(args.checkpoint, device=choose_device(args.device))
        _command.fill_in(args, load_checkpoint(args.checkpoint).extra.get("data", {}))
        dataset = _command.open_dataset(args, args.test_split or "test", detector.class_names)
        result = evaluate(detector, dataset, iou_threshold=args.iou, batch_size=args.batch_size, workers=args.workers)
        if args.out:
            write_json(args.out, result.to_dict())
        print(result.table())
        print(_command.last_line(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
