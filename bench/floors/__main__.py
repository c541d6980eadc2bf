"""`python -m bench.floors`."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from bench import floors


def main() -> int:
    """Exit status 1 where there is no compiler or no GPU, or not everything was measured."""
    parser = argparse.ArgumentParser(prog="python -m bench.floors", description=floors.__doc__)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--build", type=Path, metavar="PROGRAM", help="only compile, to this file")
    parser.add_argument("--arch", default="", help="for --build: the GPU to compile for, such as sm_90")
    args = parser.parse_args()
    try:
        if args.build:
            floors.build(args.build, args.arch)
            return 0
        found, failed = floors.measure()
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        print(error, file=sys.stderr)
        return 1
    print(*floors.lines(found), sep="\n")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    if failed:
        print(failed, file=sys.stderr)
    return 1 if failed else 0


raise SystemExit(main())
