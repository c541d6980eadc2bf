"""What of other libraries runs over our functions, what is equal, and how fast. Needs `make test-compat`'s environment.

python -m bench.compat --json bench/results/compat-DATE.json
python -m bench.compat --only families --config retinanet
python -m bench.compat --only tests --mmcv-root ~/mmcv       mmcv's own tests, from its sources

    zoo         the share of the published models that is served, by what their configs name: minutes
    families    a model of every family: inference and a training step, random weights: an hour on one core
    equal       models beside the same models over torchvision's operators: detections, loss, gradients, times
    callers     whole calls of torchvision's detectors, ultralytics, sahi, transformers and supervision, patched and
                not: a quarter of an hour on one idle core; --config chooses by library or call, and the
                others stay as they are in the report
    exported    detectors as ONNX files in ONNX Runtime and OpenVINO beside eager: minutes; --run RUN --image FILE: a
                trained one, too
    tests       mmcv's own tests
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import frcnn_fast
from bench import environment, schema
from bench.compat import callers, equality, exported, families, peers, zoo
from frcnn_fast._extras import require

PARTS = ("zoo", "families", "equal", "callers", "exported", "tests")


def new_report() -> dict[str, Any]:
    versions = {name: require(name, "mmdet").__version__ for name in ("mmdet", "mmengine", "mmcv", "torchvision")}
    return {
        "schema": schema.VERSION,
        "benchmark": "compat",
        "environment": {**environment.describe("cpu"), "libraries": versions},
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.compat", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=PARTS, action="append", help="this part (again for another); default: all")
    parser.add_argument("--config", default="", help="families and models whose config's name contains this")
    parser.add_argument("--mmcv-root", type=Path, help="a source tree of mmcv 2.1.0, for its tests")
    parser.add_argument("--run", type=Path, help="folder of a training, to export that detector as well")
    parser.add_argument("--image", type=Path, help="what it looks at")
    parser.add_argument("--size", type=int, nargs=2, default=(192, 256), help="height and width of the images")
    parser.add_argument("--json", type=Path, help="write the report here; parts that are there and not made now stay")
    args = parser.parse_args(argv)
    wanted = args.only or [part for part in PARTS if part != "tests" or args.mmcv_root]
    if "tests" in wanted and not args.mmcv_root:
        parser.error("--only tests: mmcv's tests are in its sources, name them with --mmcv-root")
    if bool(args.run) != bool(args.image):
        parser.error("--run and --image: expected both or none")
    torch.set_num_threads(1)
    kept = schema.load(args.json) if args.json and args.json.exists() else {}
    report = {**kept, **new_report()}
    size = (args.size[0], args.size[1])
    with frcnn_fast.stand_in_for_mmcv():
        for part in wanted:
            report[part] = _made(part, args, size, report.get(part))
            if args.json:
                schema.save(report, args.json)
    return 0


def _made(part: str, args: argparse.Namespace, size: tuple[int, int], before: Any) -> Any:
    """before: what the report says of that part."""
    if part == "tests":
        return peers.run(args.mmcv_root)
    if part == "zoo":
        found = zoo.scan(zoo.published())
        for line in found["lines"]:
            print(f"{line['and']:<34}{line['inference']:>6} % {line['training']:>6} %")
        return found
    if part == "callers":
        rows = {(row["library"], row["subject"]): row for row in before or []}
        for case in callers.CASES:
            if args.config in f"{case.library}: {case.what}":
                rows[case.library, case.what] = row = callers.compare(case)
                print(row, flush=True)
        return list(rows.values())
    if part == "exported":
        subjects = [exported.with_random_weights(name) for name in exported.BACKBONES if args.config in name]
        subjects += [exported.trained(args.run, args.image)] if args.run else []
        exports = []
        for subject in subjects:
            for row in exported.compare(subject):
                exports.append(row)
                print(row, flush=True)
        return exports
    if part == "families":
        entries = families.try_all([name for name in families.FAMILIES if args.config in name], size)
        for entry in entries:
            if odd := zoo.unforeseen(entry):
                print(
                    f"{entry['config']} called what its config does not name: {', '.join(sorted(odd))}", file=sys.stderr
                )
        return entries
    compared = []
    for name in [name for name in equality.MODELS if args.config in name]:
        compared.append(equality.compare(name, size))
        print(compared[-1], flush=True)
    return compared


if __name__ == "__main__":
    raise SystemExit(main())
