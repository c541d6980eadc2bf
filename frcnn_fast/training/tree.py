"""Everything that a run is made of, as one typed tree: data, detector, training, run.

A tree is made of layers, each of which gives some values: what suits the backbone, a preset, a file, the command line.
A file of a run (config.toml) gives all of them.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from frcnn_fast._extras import require
from frcnn_fast._options import check_choices, option
from frcnn_fast._settings import check_settings
from frcnn_fast.data.config import DataConfig
from frcnn_fast.io import PathLike
from frcnn_fast.model import DetectorConfig, config_of, preset
from frcnn_fast.training.options import TrainOptions, recipe
from frcnn_fast.training.presets import PRESETS

Layer = Mapping[str, Mapping[str, Any]]  # table -> name -> value


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """What belongs to a run and to none of its parts."""

    weights: str | None = option(
        None, "what to start from: ImageNet weights (.safetensors, .npz, .pth), a run, or another library's detector"
    )
    proposals: tuple[str, ...] | None = option(
        None, "for the scheme fast-rcnn: files, folders or runs with proposals of the training and test images"
    )
    drawings: int = option(8, "test images to draw at the end")
    anchors: str = option(
        "given", "auto: anchor sizes and ratios that fit the boxes of the training set", ("given", "auto")
    )
    scale_lr: bool = option(False, "scale the learning rate with the batch size, from what the recipe has")

    def __post_init__(self) -> None:
        check_settings(self, {"drawings": (0, 2**31)})
        check_choices(self)


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """The tree. `data` is None where a data set of the caller's own is trained on."""

    data: DataConfig | None
    detector: DetectorConfig
    training: TrainOptions
    run: RunSettings


TABLES: dict[str, Any] = {
    "data": DataConfig,
    "detector": DetectorConfig,
    "training": TrainOptions,
    "run": RunSettings,
}


def build(layers: Sequence[Layer]) -> RunConfig:
    """The tree of layers; what a later one gives counts. What none gives suits the backbone.

    Raises:
        ValueError: a value is not of its kind; names it.
    """
    merged: dict[str, dict[str, Any]] = {
        table: {name: value for layer in layers for name, value in layer.get(table, {}).items()} for table in TABLES
    }
    data, run = DataConfig(**merged["data"]), RunSettings(**merged["run"])
    detector, training = merged["detector"], merged["training"]
    backbone = detector.pop("backbone", None)
    start = config_of(run.weights) if run.weights and backbone is None else None
    backbone = backbone or (start.backbone if start else "vgg16" if data.data_root else "small")
    options = recipe(backbone, **training)
    if run.scale_lr:
        # The learning rate is meant for the batch size that stood before somebody asked for this.
        asked = max(place for place, layer in enumerate(layers) if "scale_lr" in layer.get("run", {}))
        below = [
            layer["training"]["batch_size"] for layer in layers[:asked] if "batch_size" in layer.get("training", {})
        ]
        meant = below[-1] if below else recipe(backbone).batch_size
        options = dataclasses.replace(options, lr=options.lr * options.batch_size / meant)
        run = dataclasses.replace(run, scale_lr=False)
    # A detector to start from, where no other backbone is asked for, brings its settings.
    settings = dataclasses.replace(start, **detector) if start else preset(backbone, **detector)
    return RunConfig(data, settings, options, run)


def preset_layer(name: str) -> Layer:
    """ValueError names the known presets."""
    if name not in PRESETS:
        raise ValueError(f"preset: got {name!r}, expected one of {', '.join(PRESETS)}")
    return PRESETS[name]


def read_layers(path: PathLike) -> list[Layer]:
    """The layers of a TOML file: that of the preset that it names, if it does, and its own.

    Tables are those of `TABLES`; "none" stands for no value.

    Raises:
        ValueError: the file is missing, no TOML, or has a key that is none; names it and what is close.
    """
    shown = os.fspath(path)
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{shown}: cannot be read ({error})") from error
    tomlkit = require("tomlkit", "train")
    try:
        values = tomlkit.parse(text).unwrap()
    except tomlkit.exceptions.ParseError as error:
        raise ValueError(f"{shown}: not TOML ({error})") from error
    name = values.pop("preset", None)
    layer: dict[str, dict[str, Any]] = {}
    for table, entries in values.items():
        if table not in TABLES:
            raise ValueError(f"{shown}: has {table!r}{_close(table, [*TABLES, 'preset'])}")
        if not isinstance(entries, dict):
            raise ValueError(f"{shown}: {table} is {entries!r}, expected a table [{table}]")
        layer[table] = _typed(entries, TABLES[table], f"{shown}: [{table}]")
    return [*([preset_layer(name)] if name is not None else []), layer]


def _typed(entries: Mapping[str, Any], settings: Any, where: str) -> dict[str, Any]:
    hints = typing.get_type_hints(settings)
    values: dict[str, Any] = {}
    for name, value in entries.items():
        if name not in hints:
            raise ValueError(f"{where} has {name!r}{_close(name, list(hints))}")
        nothing = value == "none" and type(None) in typing.get_args(hints[name])
        values[name] = None if nothing else _tuples(value)
    return values


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _close(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f", which means nothing here; did you mean {near[0]!r}?" if near else f", expected {', '.join(known)}"


def to_toml(config: RunConfig, title: str) -> str:
    """A tree as TOML, every value with what it means; `title` is a comment on top. `read_layers` is the opposite."""
    tomlkit = require("tomlkit", "train")
    document = tomlkit.document()
    document.add(tomlkit.comment(title))
    for table in TABLES:
        settings = getattr(config, table)
        if settings is None:
            continue
        entries = tomlkit.table()
        for field in dataclasses.fields(settings):
            value = getattr(settings, field.name)
            item = tomlkit.item("none" if value is None else _lists(value))
            entries.add(field.name, item.comment(" ".join(field.metadata["help"].split())))
        document.add(table, entries)
    return str(tomlkit.dumps(document))


def _lists(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_lists(item) for item in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value
