"""Recall of proposals on a data set: of files, runs and Selective Search, side by side."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence

from torch import Tensor

from frcnn_fast import _command
from frcnn_fast._names import printable
from frcnn_fast.data import DetectionDataset, class_names_of
from frcnn_fast.data.datasets import quick_target
from frcnn_fast.data.targets import checked_sample, checked_target
from frcnn_fast.evaluation import RecallEvaluator, RecallResult, recall_table
from frcnn_fast.io import load_checkpoint, write_json
from frcnn_fast.propose import SEARCHES, add_proposing_arguments, is_proposals, proposals_of, proposing


def recall(proposals: Mapping[str, Tensor], dataset: DetectionDataset) -> RecallResult:
    """COCO's average recall (100, 300 and 1,000 proposals) and the recall at IoU 0.5 and 0.7.

    Args:
        proposals: boxes [N, 4] by image id, best first, in pixels of the image: a `frcnn_fast.data.ProposalSet`.
        dataset: the objects; its images are opened only where it has no `target(index)`.

    Raises:
        ValueError: an image has no proposals (an entry without boxes is one), or a target breaks the rules.
    """
    names = class_names_of(dataset)
    evaluator = RecallEvaluator(names)
    for index in range(len(dataset)):
        quick = quick_target(dataset, index)
        if quick is None:
            target = checked_sample(dataset[index], len(names), name=index, cut=[])[1]
        else:
            target = checked_target(*quick, len(names), name=index, cut=[])
        image = target["image_id"]
        if image not in proposals:
            raise ValueError(f"proposals: got none for image {printable(image)}, expected an entry for every image id")
        evaluator.add(proposals[image], target)
    return evaluator.result()


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    parser = argparse.ArgumentParser(prog=prog or "python -m frcnn_fast.recall", description=__doc__)
    parser.add_argument(
        "sources", nargs="+", metavar="SOURCE", help=f"file of proposals, run, or {', '.join(SEARCHES)}"
    )
    _command.add_dataset_arguments(parser, "the one of the first run")
    add_proposing_arguments(parser)
    parser.add_argument("-o", "--out", metavar="FILE", help="write the result as JSON (default: nothing)")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE where it is there already")
    args = parser.parse_args(argv)
    with _command.errors(parser):
        if args.out and os.path.lexists(args.out) and not args.overwrite:
            raise ValueError(f"--out: {printable(args.out)} is there already; choose another file or --overwrite it")
        runs = [source for source in args.sources if source not in SEARCHES and not is_proposals(source)]
        data = _command.data_config(args, load_checkpoint(runs[0]).extra.get("data") if runs else None).resolved()
        dataset = data.open_test()
        if dataset is None:
            raise ValueError(f"test_split: {data.without_test()}")
        results = {source: recall(proposals_of(source, dataset, **proposing(args)), dataset) for source in args.sources}
        print(recall_table(results))
        if args.out:
            write_json(args.out, {source: result.to_dict() for source, result in results.items()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
