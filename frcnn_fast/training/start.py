"""Where a run starts: anew, or from the last checkpoint of an interrupted one."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from frcnn_fast.model import DetectorConfig
from frcnn_fast.training.checkpoints import Checkpoints, State, read_state
from frcnn_fast.training.folder import RunFolder, old_run
from frcnn_fast.training.options import TrainOptions

# Options that say nothing about the weights that come out.
CHANGEABLE = ("workers", "device", "keep")


@dataclasses.dataclass
class Start:
    """The settings that a run has or was given; None leaves a choice to the backbone.

    Attributes:
        folder: of the interrupted run; None for a new one.
        state: None where training starts at its first iteration.
        notes: the caller's own.
        class_names: of the interrupted run.
    """

    config: DetectorConfig | None
    options: TrainOptions | None
    weights: str | os.PathLike[str] | None
    notes: Mapping[str, Any]
    folder: RunFolder | None = None
    state: State | None = None
    class_names: list[str] | None = None


def resumed(path: str | os.PathLike[str], options: TrainOptions | None) -> Start:
    """The start that goes on with a run.

    Args:
        path: the run's folder, or one of its checkpoints.
        options: as the caller wants them now; None leaves them.

    Raises:
        ValueError: there is no such run, its checkpoint is corrupt, or an option differs that is not in `CHANGEABLE`.
    """
    file = Path(path) if Path(path).suffix == ".safetensors" else None
    folder, settings = old_run(file.parent.parent if file else path)
    training, detector = settings.pop("training"), settings.pop("detector")
    values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in training.items()}
    weights = settings.pop("weights")
    names = settings.pop("class_names")
    config = DetectorConfig.from_dict(detector)
    notes = {name: value for name, value in settings.items() if name != "versions"}
    state = read_state(file) if file else Checkpoints(folder.checkpoints).load()
    return Start(
        config,
        _changed(TrainOptions(**values), options),
        weights,
        notes,
        folder,
        state,
        names,
    )


def _changed(kept: TrainOptions, wanted: TrainOptions | None) -> TrainOptions:
    if wanted is None:
        return kept
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
