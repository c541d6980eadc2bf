"""The paper's tables on the blood cells: schemes, lambda, anchors, sources of proposals, pyramid levels.

    python -m bench.study schemes --seeds 0 1 2
    python -m bench.study lambda anchors proposals pyramid

Every line of a table is a training by the library's own recipe for SqueezeNet 1.0 (`bench.bccd` states it), but by the
optimiser of the preset "bccd", AdamW (0.0002, weight decay 0.01), and with the changes that stand in `TABLES`. It is
evaluated on BCCD's test split: PASCAL VOC AP at IoU 0.5, minutes of training, and the recall of what its RPN proposes.
A training is a folder in --runs. What is finished, there or in --out, is not done again, what was interrupted begins
again; so a study may be stopped at any time, and go on on another day. All results are written to --out: study.json,
and the tables of them in study.md. Minutes are told twice: on the clock, comparable where the machine had nothing else
to do, and of all threads' processor time, which other work changes little.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import environment, study_table
from bench.bccd import BACKBONE
from frcnn_fast.data import ProposalSet, VocDetection, read_proposals, write_proposals
from frcnn_fast.evaluate import evaluate
from frcnn_fast.io import write_json
from frcnn_fast.model import load_detector, preset
from frcnn_fast.propose import propose, search
from frcnn_fast.recall import recall
from frcnn_fast.training import recipe
from frcnn_fast.training.presets import PRESETS
from frcnn_fast.training.run import train
from frcnn_fast.training.step import PRECISIONS

RUNS = Path("runs/study")
OUT = environment.ROOT / "bench" / "results" / "study"


@dataclasses.dataclass(frozen=True)
class Line:
    """A training of a table: what differs from the recipe.

    Attributes:
        name: of its folder, too.
        title: in the table.
        config, options: changes of DetectorConfig and TrainOptions.
        proposals: of the scheme fast-rcnn: "selective-search", or the name of the line whose RPN proposes.
        trained_as: the line whose detector it tests on these proposals, instead of training one.
    """

    name: str
    title: str
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    proposals: str = ""
    trained_as: str = ""


SEARCH = "selective-search"
JOINT = Line("joint", "approximate joint")
RPN = Line("rpn-only", "RPN alone", options={"scheme": "rpn-only"})
UNSHARED = Line(
    "unshared",
    "RPN, then Fast R-CNN on its proposals",
    options={"scheme": "fast-rcnn"},
    proposals="rpn-only",
)


def _anchors(name: str, title: str, sizes: tuple[float, ...], ratios: tuple[float, ...]) -> Line:
    return Line(f"anchors-{name}", title, {"anchor_sizes": (sizes,), "anchor_ratios": ratios})


def _pyramid(levels: tuple[int, ...]) -> Line:
    name = "-".join(map(str, levels))
    return Line(f"pyramid-{name}", "+".join(f"{level}x{level}" for level in levels), {"pool_levels": levels})


THREE = (0.5, 1.0, 2.0)
TABLES: dict[str, tuple[Line, ...]] = {
    "recipes": (
        Line("sgd", "SGD", options={"optimizer": "sgd", "lr": 0.004, "weight_decay": 5e-4}),
        JOINT,
        Line("preset", "480 pixels (the preset)", PRESETS["bccd"]["detector"]),
        Line("preset-long", "480 pixels, 1,200 iterations", PRESETS["bccd"]["detector"], {"iterations": 1200}),
    ),
    "schemes": (
        JOINT,
        Line("alternating", "4-step alternating (shared)", options={"scheme": "alternating"}),
        RPN,
        UNSHARED,
        Line("non-approximate", "non-approximate joint", options={"scheme": "non-approximate-joint"}),
        Line("joint-precise", "approximate joint, the same pooling", {"pooling": "prroi_pool"}),
    ),
    # The paper's normalisation: the box loss is divided by the number of anchor locations.
    "lambda": tuple(
        Line(f"lambda-{value:g}", f"lambda {value:g}", {"rpn_lambda": value, "n_reg": None})
        for value in (0.1, 1.0, 10.0, 100.0)
    ),
    "anchors": (
        _anchors("1x1-32", "1 scale (32), 1 ratio", (32.0,), (1.0,)),
        _anchors("1x1-64", "1 scale (64), 1 ratio", (64.0,), (1.0,)),
        _anchors("1x3-32", "1 scale (32), 3 ratios", (32.0,), THREE),
        _anchors("1x3-64", "1 scale (64), 3 ratios", (64.0,), THREE),
        _anchors("3x1", "3 scales, 1 ratio", (32.0, 64.0, 128.0), (1.0,)),
        _anchors("3x3", "3 scales, 3 ratios", (32.0, 64.0, 128.0), THREE),
    ),
    "proposals": (
        RPN,
        Line("search", "Selective Search", options={"scheme": "fast-rcnn"}, proposals=SEARCH),
        Line(
            "search-rpn", "Selective Search, tested on the RPN's", options={"scheme": "fast-rcnn"},
            proposals="rpn-only", trained_as="search",
        ),
        UNSHARED,
        JOINT,
    ),
    "pyramid": (_pyramid((7,)), _pyramid((6,)), _pyramid((1, 2, 3, 6)), _pyramid((1, 2, 4))),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Minutes:
    """What a training took: on the clock, and of the processor, all threads together."""

    minutes: float = 0.0
    processor_minutes: float = 0.0

    @classmethod
    def now(cls) -> Minutes:
        return cls(time.perf_counter() / 60, time.process_time() / 60)

    @classmethod
    def of(cls, result: Mapping[str, Any]) -> Minutes:
        return cls(result["minutes"], result["processor_minutes"])

    def __add__(self, other: Minutes) -> Minutes:
        return Minutes(self.minutes + other.minutes, self.processor_minutes + other.processor_minutes)

    def __sub__(self, other: Minutes) -> Minutes:
        return Minutes(self.minutes - other.minutes, self.processor_minutes - other.processor_minutes)


class Study:
    """Trains, or finds trained, any line with any seed.

    Args:
        runs: folder of the trainings.
        data: root of the VOC tree.
        weights: file of the backbone's ImageNet weights.
        config, options: changes of the recipe for all lines.
        known: results from elsewhere.
    """

    def __init__(
        self,
        runs: Path,
        data: Path,
        weights: Path,
        config: Mapping[str, Any],
        options: Mapping[str, Any],
        known: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self.runs, self.weights, self.config, self.options = runs, weights, config, options
        self.known = {_key(result): dict(result) for result in known}
        self.test = VocDetection(data, "test")
        self.training = VocDetection(data, "trainval", class_names=self.test.class_names)

    def result(self, line: Line, seed: int, *, with_files: bool = False) -> dict[str, Any]:
        """What a training has come to; ValueError where the folder has one by another recipe.

        with_files: what it left behind is needed, too, so that a result from elsewhere is not enough.
        """
        folder = self.runs / f"{line.name}-seed{seed}"
        file = folder / "result.json"
        recipe_ = {
            "config": {**self.config, **line.config},
            "options": {**self.options, **line.options, "seed": seed},
            "proposals": line.proposals,
            "trained_as": line.trained_as,
        }
        recipe_ = json.loads(json.dumps(recipe_))  # as it is read again
        if file.exists():
            found = json.loads(file.read_text())
            if found["recipe"] != recipe_:
                raise ValueError(f"{file}: is of another recipe, {found['recipe']}; choose another --runs")
            return found
        found = self.known.get((line.name, seed))
        if found is not None and found["recipe"] == recipe_ and not with_files:
            return found
        print(f"{folder.name}: training", file=sys.stderr)
        made = self._make(line, seed, folder)
        about = {"line": line.name, "seed": seed, "recipe": recipe_, "environment": environment.describe("cpu")}
        result = {**about, **made}
        write_json(file, result)
        return result

    def _make(self, line: Line, seed: int, folder: Path) -> dict[str, Any]:
        given = self._proposals(line.proposals, seed)
        taken = Minutes()
        if line.trained_as:
            taken = Minutes.of(self._line(line.trained_as, seed, with_files=True))
            detector = load_detector(self.runs / f"{line.trained_as}-seed{seed}")
        else:
            start = Minutes.now()
            trained = train(
                self.training,
                out=folder,
                overwrite=True,
                config=preset(**{"backbone": BACKBONE, **self.config, **line.config}),
                options=recipe(BACKBONE, **{**self.options, **line.options, "seed": seed}),
                weights=self.weights,
                proposals=given,
            )
            if trained.stopped_by:
                raise KeyboardInterrupt
            detector = trained.detector
            taken = Minutes.now() - start
            if line.proposals not in ("", SEARCH):
                taken += Minutes.of(self._line(line.proposals, seed))
        made: dict[str, Any] = dataclasses.asdict(taken)
        tested_on = propose(detector, self.test, progress=False) if given is None else given
        made["recall"] = recall(tested_on, self.test).to_dict()
        if detector.config.parts == "rpn":
            write_proposals(folder / "test_proposals.npz", tested_on)
        else:
            made["test"] = evaluate(detector, self.test, proposals=given, progress=False).to_dict()
        return made

    def _line(self, name: str, seed: int, *, with_files: bool = False) -> dict[str, Any]:
        line = next(line for lines in TABLES.values() for line in lines if line.name == name)
        return self.result(line, seed, with_files=with_files)

    def _proposals(self, source: str, seed: int) -> ProposalSet | None:
        """Of all images; None where the detector makes its own."""
        if not source:
            return None
        if source != SEARCH:
            self._line(source, seed, with_files=True)
            return read_proposals(self.runs / f"{source}-seed{seed}")
        file = self.runs / "selective-search.npz"
        if not file.exists():
            found = [search(images, workers=os.cpu_count() or 1) for images in (self.training, self.test)]
            write_proposals(file, found[0] | found[1])
        return read_proposals(file)


def _key(result: Mapping[str, Any]) -> tuple[str, int]:
    return result["line"], result["seed"]


def published(out: Path) -> list[dict[str, Any]]:
    """The results in a study's tables."""
    file = out / "study.json"
    return json.loads(file.read_text()) if file.exists() else []


def finished(runs: Path) -> Iterator[dict[str, Any]]:
    """The results of a study's trainings here."""
    for file in sorted(runs.glob("*/result.json")):
        yield json.loads(file.read_text())


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 2 where something is missing."""
    root = Path(os.environ.get("FRCNN_DATA", "."))
    parser = argparse.ArgumentParser(
        prog="python -m bench.study", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tables", nargs="*", help=f"of {', '.join(TABLES)} (default: none is made, all are written)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--runs", type=Path, default=RUNS, help="folder of the trainings (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of study.json and study.md")
    parser.add_argument("--iterations", type=int, help="another length of the schedule, for a trial")
    parser.add_argument("--precision", choices=tuple(PRECISIONS), help="of convolutions and products, for all lines")
    parser.add_argument("--data", type=Path, default=root / "bccd" / "BCCD", help="(default: under FRCNN_DATA)")
    parser.add_argument(
        "--weights",
        type=Path,
        default=root / "weights" / BACKBONE / f"{BACKBONE}_decoded_f32.npz",
        help="ImageNet weights of SqueezeNet 1.0 (default: under FRCNN_DATA)",
    )
    args = parser.parse_args(argv)
    try:
        unknown = [name for name in args.tables if name not in TABLES]
        if unknown:
            raise ValueError(f"tables: got {unknown[0]!r}, expected some of {', '.join(TABLES)}")
        if args.tables:
            given = {"iterations": args.iterations, "precision": args.precision}
            options = {**PRESETS["bccd"]["training"], **{name: value for name, value in given.items() if value}}
            study = Study(args.runs, args.data, args.weights, {}, options, published(args.out))
            for seed in args.seeds:
                for name in args.tables:
                    for line in TABLES[name]:
                        study.result(line, seed)
        merged = {_key(result): result for result in (*published(args.out), *finished(args.runs))}
        results = [merged[key] for key in sorted(merged)]
        write_json(args.out / "study.json", results)
        (args.out / "study.md").write_text(study_table.document(TABLES, results))
        print(args.out / "study.md")
    except (ValueError, OSError, ImportError) as error:
        print(f"bench.study: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
