"""The training states that a run keeps on disk: the newest one, and some before it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from frcnn_fast.io import PathLike, read_tensors, write_tensors

_FORMAT = "frcnn_fast training state 1"


@dataclasses.dataclass
class State:
    """Everything that a training needs to go on as if it had never stopped.

    Attributes:
        done: iterations of all stages together.
        tensors: model, optimiser and random states, by name.
        facts: the rest, in JSON's types.
    """

    done: int
    tensors: dict[str, Tensor]
    facts: dict[str, Any]

    def part(self, name: str) -> dict[str, Tensor]:
        """The tensors whose names begin with `name` and a dot, without that."""
        prefix = name + "."
        return {key.removeprefix(prefix): tensor for key, tensor in self.tensors.items() if key.startswith(prefix)}


def prefixed(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The opposite of `State.part`."""
    return {f"{name}.{key}": tensor for key, tensor in tensors.items()}


class Checkpoints:
    """A folder of states, one file each, named by their iteration.

    Args:
        path: the folder; made when it is needed.
        keep: how many states before the newest one stay.
    """

    def __init__(self, path: PathLike, keep: int = 1) -> None:
        self.path, self.keep = Path(path), keep

    def files(self) -> list[Path]:
        """Oldest first."""
        found = self.path.glob("*.safetensors") if self.path.is_dir() else []
        return sorted((file for file in found if file.stem.isdigit()), key=lambda file: int(file.stem))

    def save(self, state: State) -> Path:
        """Write a state, whole or not at all; then drop what is not to be kept."""
        file = self.path / f"{state.done:09d}.safetensors"
        metadata = {"format": _FORMAT, "done": str(state.done), "facts": json.dumps(state.facts)}
        write_tensors(file, state.tensors, metadata)
        for old in [other for other in self.files() if int(other.stem) < state.done][: -self.keep or None]:
            old.unlink(missing_ok=True)
        return file

    def load(self) -> State | None:
        """The newest state; None where there is none yet.

        Raises:
            ValueError: it is corrupt; names it, and the last one that is whole.
        """
        files = self.files()
        if not files:
            return None
        try:
            return read_state(files[-1])
        except ValueError as error:
            good = next((file for file in reversed(files[:-1]) if _is_whole(file)), None)
            instead = f"the last good one is {good}: resume from that file" if good else "and no earlier one is whole"
            raise ValueError(f"{error}; {instead}") from error

    def cut_back(self, done: int) -> None:
        """Remove the states after iteration `done`."""
        for file in self.files():
            if int(file.stem) > done:
                file.unlink()


def read_state(file: PathLike) -> State:
    """ValueError where the file is missing, corrupt or no training state; names it."""
    tensors, metadata = read_tensors(file)
    if metadata.get("format") != _FORMAT:
        raise ValueError(
            f"{file}: not a training state (format: {metadata.get('format', 'no such entry')}, expected {_FORMAT!r})"
        )
    return State(int(metadata["done"]), tensors, json.loads(metadata["facts"]))


def _is_whole(file: Path) -> bool:
    try:
        read_state(file)
    except ValueError:
        return False
    return True
