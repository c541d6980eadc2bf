"""Going on with a run: its settings, and its last checkpoint."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import NamedTuple

from frcnn_fast._names import printable
from frcnn_fast.training.checkpoints import Checkpoints, State, read_state
from frcnn_fast.training.folder import RunFolder
from frcnn_fast.training.options import TrainOptions
from frcnn_fast.training.tree import RunConfig, build, read_layers

# Options that say nothing about the weights that come out.
CHANGEABLE = ("workers", "device", "keep", "tensorboard")


class Resumed(NamedTuple):
    """An interrupted run."""

    folder: RunFolder
    config: RunConfig
    state: State | None  # None where it came to no checkpoint and begins again


def resumed(path: str | os.PathLike[str], options: TrainOptions | None = None) -> Resumed:
    """The run in a folder, or at one of its checkpoints.

    Args:
        path: the run's folder, or a file in its checkpoints/.
        options: as the caller wants them now; None leaves them.

    Raises:
        ValueError: there is no such run, its checkpoint is corrupt, or an option differs that is not in `CHANGEABLE`.
    """
    file = Path(path) if Path(path).suffix == ".safetensors" else None
    folder = RunFolder(file.parent.parent if file else path)
    try:
        layers = read_layers(folder.settings)
        if not layers[-1]:
            raise ValueError(f"{folder.settings} is empty")
    except ValueError as error:
        raise ValueError(
            f"resume: {printable(os.fspath(path))} has no run that began ({error}); give the folder of one, or begin "
            "anew without it"
        ) from error
    config = build(layers)
    if "data" not in layers[-1]:
        config = dataclasses.replace(config, data=None)
    if options is not None:
        config = dataclasses.replace(config, training=_changed(config.training, options))
    return Resumed(folder, config, read_state(file) if file else Checkpoints(folder.checkpoints).load())


def _changed(kept: TrainOptions, wanted: TrainOptions) -> TrainOptions:
    if wanted.freeze is None:
        wanted = dataclasses.replace(wanted, freeze=kept.freeze)
    for field in dataclasses.fields(kept):
        old, new = getattr(kept, field.name), getattr(wanted, field.name)
        if old != new and field.name not in CHANGEABLE:
            raise ValueError(
                f"{field.name}: got {new!r}, but the run that is resumed has {old!r}; only {', '.join(CHANGEABLE)} may "
                "change. For another training from its weights, begin a new run"
            )
    return wanted
