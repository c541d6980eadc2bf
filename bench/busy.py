"""Training beside other work: `python -m bench.busy`.

Some iterations of the default detector, alone and beside as many busy processes as there are cores, in turns, each in a
process with the settings of the commands. Fair would be twice the time: every thread shares its core with one other.
Told are the medians of the rounds, and whether the time grew to at most 2.2 times, the processor time to at most 1.3
times. The machine should have nothing else to do.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from bench import schema
from bench.environment import describe
from frcnn_fast._waits import wait_settings

MOST_TIME, MOST_PROCESSOR_TIME = 2.2, 1.3
_WARM_UP = 3


class Taken(NamedTuple):
    """Seconds of some iterations: on the clock, and of all threads together."""

    time: float
    processor_time: float


def work(iterations: int) -> Taken:
    """In a process of its own: train, after a warm-up."""
    import torch

    from frcnn_fast.data import DigitsDetection
    from frcnn_fast.model import build_detector, preset
    from frcnn_fast.training import Training, recipe
    from frcnn_fast.training.batches import TrainingBatches

    options = recipe("small", iterations=iterations + _WARM_UP)
    data = DigitsDetection("train", length=64)
    torch.manual_seed(0)
    training = Training(build_detector(data.class_names, preset("small")), options, torch.device("cpu"))
    training.detector.train()
    begin = Taken(0.0, 0.0)
    for done, batch in enumerate(TrainingBatches(data, training.detector.config, options)):
        if done == _WARM_UP:
            begin = Taken(time.perf_counter(), time.process_time())
        training.update(batch)
    return Taken(time.perf_counter() - begin.time, time.process_time() - begin.processor_time)


def measured(iterations: int, busy: int) -> Taken:
    """`work` in a new process, beside so many busy ones."""
    settings = {**os.environ, **wait_settings()}
    command = [sys.executable, "-m", "bench.busy", "--work", str(iterations)]
    with busy_processes(busy):
        done = subprocess.run(
            command, env=settings, cwd=Path(__file__).parents[1], check=True, stdout=subprocess.PIPE, text=True
        )
    return Taken(*json.loads(done.stdout))


@contextlib.contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Processes that do nothing but use a core each; they end with the block, or with this process."""
    code = "import os\nparent = os.getppid()\nwhile os.getppid() == parent:\n    for _ in range(10**6): pass"
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def report(alone: Sequence[Taken], beside: Sequence[Taken], busy: int) -> dict[str, object]:
    """Medians, their ratios, and whether those are fair."""
    medians = [Taken(*map(statistics.median, zip(*rounds, strict=True))) for rounds in (alone, beside)]
    ratios = Taken(*(b / a for a, b in zip(*medians, strict=True)))
    fair = ratios.time <= MOST_TIME and ratios.processor_time <= MOST_PROCESSOR_TIME
    found = {
        name: taken._asdict() for name, taken in zip(("alone", "beside", "ratio"), (*medians, ratios), strict=True)
    }
    return {"busy_processes": busy, "rounds": len(alone), **found, "fair": fair}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.busy", description=__doc__)
    parser.add_argument("--iterations", type=int, default=40, help="of one measurement (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each kind (default: %(default)s)")
    parser.add_argument("--busy", type=int, default=os.cpu_count() or 1, help="busy processes (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures, with the machine's description")
    parser.add_argument("--work", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.work:
        print(json.dumps(work(args.work)))
        return 0
    alone: list[Taken] = []
    beside: list[Taken] = []
    for place in range(args.rounds):
        for taken, busy in ((alone, 0), (beside, args.busy)):
            taken.append(measured(args.iterations, busy))
            shown = f"{taken[-1].time:.2f} s, {taken[-1].processor_time:.2f} s of processor time"
            print(f"round {place + 1}, beside {busy} busy processes: {shown}", file=sys.stderr)
    found = report(alone, beside, args.busy)
    if args.json:
        about = {"schema": schema.VERSION, "benchmark": "busy", "environment": describe("cpu")}
        schema.save({**about, **found}, args.json)
    print(json.dumps(found, indent=2))
    return 0 if found["fair"] else 1


if __name__ == "__main__":
    sys.exit(main())
