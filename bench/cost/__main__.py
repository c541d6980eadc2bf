"""What the CUDA kernels should take on a GPU, predicted without one.

python -m bench.cost --json bench/results/cost-DATE.json     every row that has a goal on a GPU: a quarter of an hour
python -m bench.cost --op roi_pool                           rows of one op
python -m bench.cost --machine A100 --row "rpn_proposals: vgg test 6000->300 b1 trained before_top_n"
python -m bench.cost --compare bench/results/cost-DATE.json  exit status 1 where a kernel issues 5 % more than there

The kernels of a row run on the processor, with the constants of production, and are counted (counts.py); the counts are
carried over to the machine code of the installed binary (flow.py); each of its basic blocks takes a warp so many
instructions and cycles (machine_code.py). docs/benchmarks.md says what the figures mean and what they leave out.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from bench import schema
from bench.cost import host, model
from bench.cost.machines import MACHINES
from frcnn_fast._extension import extension

MOST_GROWTH = 0.05
DEFAULT = ("H200", "B200")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 2 where something that is needed is missing."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.cost", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--op", default="", help="only rows of ops whose name has this in it")
    parser.add_argument("--row", action="append", metavar="OP: WORKLOAD", help="any row of the bench; may be repeated")
    parser.add_argument("--machine", action="append", choices=MACHINES, help="may be repeated (default: H200, B200)")
    parser.add_argument("--binary", type=Path, help="instead of the installed one")
    parser.add_argument("--json", type=Path, help="write the report here, row by row")
    parser.add_argument(
        "--host", type=Path, metavar="FILE", help="measure anew in that report what calls ask of the host"
    )
    parser.add_argument("--compare", type=Path, metavar="FILE", help="say which kernel issues more than in that report")
    args = parser.parse_args(argv)
    if args.host:
        report = json.loads(args.host.read_text())
        for name, constants in report["machines"].items():
            constants["launch"] = MACHINES[name].launch
        for step in report["steps"]:
            step["host"] = host.of_part(step["op"], step["workload"], step["part"])
        schema.save(report, args.host)
        return 0
    machines = [MACHINES[name] for name in args.machine or DEFAULT]
    if args.row and args.json:
        parser.error("--json: for the rows that have a goal")
    rows = [model.Goal(*name.split(": ", 1)) for name in args.row or ()]
    goals = rows or [goal for goal in model.GOALS if args.op in goal.op]
    report = model.new_report(machines)
    try:
        for entry in model.predict(goals, args.binary or Path(str(extension().__file__)), machines):
            print(*model.text(entry), sep="\n", flush=True)
            report["steps"].append(entry)
            if args.json:
                schema.save(report, args.json)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 2
    if not args.compare:
        return 0
    grown = model.growth(schema.load(args.compare), report, MOST_GROWTH)
    print(*(grown or ["no kernel issues 5 % more than there"]), sep="\n")
    return bool(grown)


if __name__ == "__main__":
    raise SystemExit(main())
