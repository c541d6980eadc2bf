"""Write the proposals of a detector's RPN, or of Selective Search, for the images of a data set."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from frcnn_fast import _command
from frcnn_fast._device import choose_device
from frcnn_fast._names import printable
from frcnn_fast._progress import progress_bar
from frcnn_fast.data import (
    Collate,
    DetectionDataset,
    DetectionView,
    ProposalSet,
    boxes_to_original,
    class_names_of,
    read_proposals,
    selective_search,
    write_proposals,
)
from frcnn_fast.data.augment import unchanged
from frcnn_fast.data.proposals import SUFFIXES
from frcnn_fast.data.selective_search import MODES
from frcnn_fast.data.targets import TargetError, checked_sample
from frcnn_fast.data.transforms import Sample
from frcnn_fast.io import load_checkpoint
from frcnn_fast.model import FasterRCNN, load_detector

SEARCHES = {f"selective-search-{mode}" if mode != MODES[0] else "selective-search": mode for mode in MODES}


class _Items:
    """What `read` makes of each image of a data set; the error's text where it cannot be read."""

    def __init__(self, dataset: DetectionDataset, read: Callable[[Sample], Any]) -> None:
        self.dataset, self.read = dataset, read
        self.classes = len(class_names_of(dataset))

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        try:
            return self.read(checked_sample(self.dataset[index], self.classes, name=index, cut=[]))
        except TargetError:  # a mistake in the data set, which is to be mended
            raise
        except (ValueError, OSError) as error:
            return str(error)


def _read_in_batches(items: _Items, batch_size: int, workers: int, progress: bool, what: str) -> Iterator[list[Any]]:
    """What could be read, in order; unreadable images are told of in one warning."""
    loader: DataLoader[Any] = DataLoader(
        items,  # type: ignore[arg-type]  # any map-style object will do
        batch_size=batch_size,
        collate_fn=list,
        num_workers=workers,
    )
    errors: list[str] = []
    with progress_bar(len(items), desc=what, disable=not progress) as bar:
        for batch in loader:
            errors += [item for item in batch if isinstance(item, str)]
            readable = [item for item in batch if not isinstance(item, str)]
            if readable:
                yield readable
            bar.update(len(batch))
    if errors:
        warnings.warn(f"no proposals for {len(errors)} unreadable images, the first: {errors[0]}", stacklevel=3)


@torch.inference_mode()
def propose(
    detector: FasterRCNN,
    dataset: DetectionDataset,
    *,
    count: int | None = None,
    batch_size: int = 8,
    workers: int = 0,
    progress: bool = True,
) -> ProposalSet:
    """The RPN's proposals for every readable image of a data set, by image id: best first, with their objectness 0..1.

    Args:
        detector: is put into eval mode.
        dataset: see `frcnn_fast.data`; its classes play no part. Images of an `AugmentedDetection` are not changed.
        count: proposals an image at most; default: as many as the head is trained on (config.proposals_train).
        batch_size, workers: images at once, and processes that read them.
        progress: whether to show a bar.
    """
    detector.eval()
    if detector.config.parts == "roi_head":
        raise ValueError("detector: was trained on given proposals (scheme fast-rcnn), its RPN is not trained")
    device, config, dataset = detector.rng.device, detector.config, unchanged(dataset)
    view = DetectionView(dataset, config.shorter, config.longer, rule=config.resize)
    items = _Items(dataset, partial(_resized, view))
    collate, boxes = Collate(config.preprocess), dict[str, Tensor]()
    before, after = config.proposals_train
    most = before, after if count is None else count
    for samples in _read_in_batches(items, batch_size, workers, progress, "proposing"):
        batch = collate(samples)
        moved = batch.to(device, non_blocking=True)
        size = (moved.images.shape[2], moved.images.shape[3])
        rpn = detector.rpn(detector.features(moved.images), size)
        found = detector.propose(rpn, moved.image_sizes, moved.image_scales, most)
        counts = found.counts.tolist()
        for b, image in enumerate(batch.image_ids):
            sizes = batch.image_sizes[b].tolist(), batch.original_sizes[b].tolist()
            kept = boxes_to_original(found.boxes[b, : counts[b]].float().cpu(), *sizes)
            objectness = found.scores[b, : counts[b]].float().sigmoid().cpu()
            boxes[image] = torch.cat([kept, objectness[:, None]], 1)
    return ProposalSet(boxes)


def search(
    dataset: DetectionDataset,
    mode: str = "fast",
    *,
    count: int | None = None,
    workers: int = 0,
    progress: bool = True,
) -> ProposalSet:
    """The proposals of `frcnn_fast.data.selective_search` for every readable image of a data set, best first.

    Args:
        count: proposals an image at most; default: all.
        workers: processes that search.
        mode, progress: as there, and as in `propose`.
    """
    items = _Items(unchanged(dataset), partial(_searched, mode, count))
    found = _read_in_batches(items, 1, workers, progress, "searching")
    return ProposalSet({image: boxes for batch in found for image, boxes in batch})


def _resized(view: DetectionView, sample: Sample) -> Sample:
    return view.resized(*sample)


def _searched(mode: str, count: int | None, sample: Sample) -> tuple[str, Tensor]:
    return sample[1]["image_id"], selective_search(sample[0], mode)[:count]


def proposals_of(source: str, dataset: DetectionDataset, **how: Any) -> ProposalSet:
    """The proposals of a data set's images from any source.

    Args:
        source: "selective-search" or "selective-search-quality"; a file or folder of proposals (`read_proposals`);
            or the folder of a run, whose RPN then proposes.
        how: device, and what `propose` and `search` take.
    """
    device = how.pop("device", None)
    if source in SEARCHES:
        how.pop("batch_size", None)
        return search(dataset, SEARCHES[source], **how)
    if is_proposals(source):
        return read_proposals(source)
    return propose(load_detector(source, device=choose_device(device)), dataset, **how)


def is_proposals(source: str) -> bool:
    """Whether this names a file or folder of proposals, and not a checkpoint."""
    if os.path.isdir(source):
        return not os.path.exists(os.path.join(source, "model.safetensors"))
    return source.lower().endswith(SUFFIXES)


def add_proposing_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--count", type=int, metavar="N", help="proposals an image at most (default: as in training)")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="images at once (default: %(default)s)")
    parser.add_argument(
        "--workers",
        type=int,
        default=0,
        metavar="N",
        help="processes that read images, or search (default: %(default)s)",
    )
    parser.add_argument("--device", help="cpu, cuda, ... (default: a GPU where there is one)")


def proposing(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `add_proposing_arguments`, for `proposals_of`."""
    if args.count is not None and args.count < 1:
        raise ValueError(f"--count: got {args.count}, expected at least 1")
    return {name: getattr(args, name) for name in ("count", "batch_size", "workers", "device")}


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    parser = argparse.ArgumentParser(prog=prog or "python -m frcnn_fast.propose", description=__doc__)
    parser.add_argument("source", metavar="SOURCE", help=f"a run's folder or checkpoint, or {', '.join(SEARCHES)}")
    parser.add_argument("-o", "--out", required=True, metavar="FILE", help="proposals by image id: .npz or .json")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE where it is there already")
    _command.add_dataset_arguments(parser, "those of the run")
    parser.add_argument(
        "--on",
        choices=("both", "train", "test"),
        default="both",
        help="which images (default: %(default)s)",
    )
    add_proposing_arguments(parser)
    args = parser.parse_args(argv)
    with _command.errors(parser):
        if os.path.lexists(args.out) and not args.overwrite:
            raise ValueError(f"--out: {printable(args.out)} is there already; choose another file or --overwrite it")
        if not args.out.lower().endswith((".npz", ".json")):
            raise ValueError(f"--out: got {printable(args.out)}, expected a name that ends in .npz or .json")
        notes = None if args.source in SEARCHES else load_checkpoint(args.source).extra.get("data")
        data, proposals = _command.data_config(args, notes).resolved(), ProposalSet({})
        if args.on != "test":
            proposals |= proposals_of(args.source, data.open_train(), **proposing(args))
        test = None if args.on == "train" else data.open_test()
        if test is None and args.on == "test":
            raise ValueError(f"test_split: {data.without_test()}")
        if test is not None:
            proposals |= proposals_of(args.source, test, **proposing(args))
        write_proposals(args.out, proposals)
        mean = sum(map(len, proposals.values())) / max(1, len(proposals))
        print(f"{printable(args.out)}: {len(proposals)} images, {mean:.0f} proposals each on average")
    return 0


if __name__ == "__main__":
    sys.exit(main())
