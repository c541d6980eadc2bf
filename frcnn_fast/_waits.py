"""How long threads that wait for each other keep their cores busy, where this package is a command.

OpenMP's threads spin at a barrier for milliseconds before they sleep. Alone that is the fastest; beside other work they
burn the time that the thread they wait for would need. The runtime reads its settings when torch loads it, so this
module is imported before torch. A program that imports the package decides for itself.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

SPINS = "1000"


def wait_settings() -> dict[str, str]:
    """What to add to the environment of a process before it loads torch: nothing where the user has chosen."""
    chosen = "GOMP_SPINCOUNT" in os.environ or "OMP_WAIT_POLICY" in os.environ
    return {} if chosen else {"GOMP_SPINCOUNT": SPINS}


def is_command(arguments: Sequence[str]) -> bool:
    """Whether these arguments of the interpreter, itself the first, run one of the package's commands."""
    for place, argument in enumerate(arguments[1:], start=1):
        if argument == "-m":
            return arguments[place + 1 : place + 2] != [] and arguments[place + 1].split(".")[0] == "frcnn_fast"
        if not argument.startswith("-"):
            return os.path.basename(argument).removesuffix(".exe") == "frcnn-fast"
    return False


if is_command(sys.orig_argv):
    os.environ.update(wait_settings())
