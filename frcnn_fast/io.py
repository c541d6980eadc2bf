"""Files that survive a crash: atomic writes, records, checkpoints and weights."""

from __future__ import annotations

import codecs
import contextlib
import dataclasses
import hashlib
import json
import math
import os
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from frcnn_fast._extras import require
from frcnn_fast._names import printable
from frcnn_fast._pickles import read_pkl, read_pth, state_dict_of

PathLike = str | os.PathLike[str]

_FORMAT = "frcnn_fast checkpoint 1"
# The names that `atomic_path` gives, and those that safetensors does, which writes beside and renames by itself.
_TORN = re.compile(r"\..{1,40}\.[0-9a-f]{8}(\.[^.]+)?|\.tmp[0-9A-Za-z]{6}")


@contextlib.contextmanager
def atomic_path(path: PathLike) -> Iterator[Path]:
    """Write a file whole or not at all.

    Yields the path of a new file beside `path` for the caller to write. On leaving the block it is flushed to
    the disk and renamed to `path`; if the block raises, or the disk is full, it is removed and `path` stays
    as it was. Missing folders are made.
    """
    final = Path(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    # The old name's ending stays: some writers choose the format by it.
    beside = final.with_name(f".{final.stem[:40]}.{secrets.token_hex(4)}{final.suffix}")
    try:
        open(beside, "xb").close()
        mode = os.stat(beside).st_mode
        yield beside
        os.chmod(beside, mode)  # a writer that replaces the file may leave it readable by its owner alone
        with open(beside, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(beside, final)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(beside)
        raise
    _sync_folder(final.parent)


def remove_torn(folder: PathLike) -> None:
    """Remove what writes that a kill interrupted have left in a folder and those in it."""
    for file in Path(folder).rglob(".*"):
        if _TORN.fullmatch(file.name) and file.is_file():
            file.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` last through a power cut, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_json(path: PathLike, value: Any) -> None:
    """Write `value` as indented JSON, atomically. Numbers that JSON lacks (NaN, ±Inf) become null."""
    with atomic_path(path) as beside:
        beside.write_bytes(_encoded(json.dumps(_plain(value), indent=2, ensure_ascii=False) + "\n"))


def append_jsonl(path: PathLike, record: Mapping[str, Any]) -> None:
    """Append one record as one line of JSON and hand it to the system at once. NaN and ±Inf become null."""
    line = _line(record)
    with open(path, "ab") as file:
        file.write(line)


def write_jsonl(path: PathLike, records: Iterable[Mapping[str, Any]]) -> None:
    """Write a file of records anew, atomically."""
    with atomic_path(path) as beside:
        beside.write_bytes(b"".join(map(_line, records)))


def _line(record: Mapping[str, Any]) -> bytes:
    return _encoded(json.dumps(_plain(dict(record)), ensure_ascii=False) + "\n")


def _encoded(text: str) -> bytes:
    # File names that are not UTF-8 hold lone surrogates; JSON writes those as \udcNN, and reads them back as they were.
    return text.encode("utf-8", "backslashreplace")


def read_jsonl(path: PathLike) -> list[dict[str, Any]]:
    """All records of a JSON-lines file. A last line without its end, left by a crash, is passed over.

    Raises:
        ValueError: the file is missing or another line is not a JSON object; names file and line.
    """
    shown = printable(os.fspath(path))
    try:
        data = Path(path).read_bytes()
    except (OSError, ValueError) as error:
        raise ValueError(f"{shown}: cannot be read ({printable(str(error))})") from error
    *lines, torn = data.removeprefix(codecs.BOM_UTF8).split(b"\n")
    records = []
    for number, line in enumerate([*lines, torn], start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            if number == len(lines) + 1:
                break
            raise ValueError(f"{shown}:{number}: not JSON ({error}); remove the line") from error
        if not isinstance(record, dict):
            text = ascii(line[:40].decode("utf-8", "replace"))
            raise ValueError(f"{shown}:{number}: expected a JSON object, got {text}; remove the line")
        records.append(record)
    return records


def _plain(value: Any) -> Any:
    """`value` in JSON's own types."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (Tensor, np.ndarray, np.generic)):
        return _plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value


@dataclasses.dataclass
class Checkpoint:
    """What a checkpoint file holds: tensors by name, the class names, the model's configuration, free
    extras."""

    tensors: dict[str, Tensor]
    class_names: list[str]
    config: dict[str, Any]
    extra: dict[str, Any]


def save_checkpoint(
    path: PathLike,
    tensors: Mapping[str, Tensor],
    *,
    class_names: Sequence[str],
    config: Mapping[str, Any],
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write a model as safetensors, atomically: an earlier checkpoint stays whole if this one cannot be
    written.

    Args:
        path: file name, by custom `model.safetensors`.
        tensors: for example `model.state_dict()`; any device, any strides. Tensors that share memory are
            written once each.
        class_names: label k is class_names[k - 1].
        config: whatever rebuilds the model, in JSON's types.
        extra: anything else worth keeping, in JSON's types, for example the iteration.

    Raises:
        OSError: the file could not be written; names the file.
    """
    metadata = {
        "format": _FORMAT,
        "class_names": json.dumps(list(class_names)),
        "config": json.dumps(_plain(config)),
        "extra": json.dumps(_plain(extra or {})),
    }
    write_tensors(path, tensors, metadata)


def write_tensors(path: PathLike, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors as safetensors with a checksum, atomically; the rules are those of `save_checkpoint`.

    Args:
        path: file name.
        tensors: any device, any strides. Tensors that share memory are written once each.
        metadata: texts by name. "checksum" is added, of all that the file holds.
    """
    save_file = require("safetensors.torch", "train").save_file
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    memory: set[int] = set()
    for name, tensor in whole.items():
        if tensor.untyped_storage().data_ptr() in memory:
            whole[name] = tensor.clone()
        memory.add(whole[name].untyped_storage().data_ptr())
    with atomic_path(path) as beside:
        try:
            save_file(whole, beside, metadata={**metadata, "checksum": _checksum(whole, metadata)})
        except require("safetensors", "train").SafetensorError as error:
            raise OSError(f"{path}: the checkpoint could not be written ({error})") from error


def _checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    digest = hashlib.blake2b(json.dumps(sorted(metadata.items())).encode(), digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_checkpoint(path: PathLike) -> Checkpoint:
    """Read a file of `save_checkpoint`; the tensors are on the CPU.

    Args:
        path: the file, or the folder of a run: its `best.safetensors` if it has one, else its `model.safetensors`.

    Raises:
        ValueError: the file is missing, broken, or not a checkpoint of this library; names it.
    """
    file = Path(path)
    if file.is_dir():
        best = file / "best.safetensors"
        file = best if best.is_file() else file / "model.safetensors"
    tensors, metadata = read_tensors(file)
    if metadata.get("format") != _FORMAT:
        found = metadata.get("format", "no such entry")
        raise ValueError(
            f"{file}: not a checkpoint of frcnn_fast (format: {found}, expected {_FORMAT!r});"
            " pre-trained weights without a detector go to --weights"
        )
    try:
        names, config, extra = (json.loads(metadata[key]) for key in ("class_names", "config", "extra"))
    except (KeyError, ValueError, RecursionError) as error:
        raise ValueError(f"{file}: its description of the model is broken ({error!r})") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise ValueError(
            f"{file}: its description of the model is broken (class_names: got {ascii(names)[:60]}, expected a list of "
            "different names)"
        )
    for key, value in (("config", config), ("extra", extra)):
        if not isinstance(value, dict):
            raise ValueError(
                f"{file}: its description of the model is broken ({key}: got {ascii(value)[:60]}, expected an object)"
            )
    return Checkpoint(tensors, names, config, extra)


def is_checkpoint(path: PathLike) -> bool:
    """Whether `load_checkpoint` is the one to read this: the folder of a run, or a file of `save_checkpoint`."""
    file = Path(path)
    if file.is_dir():
        return True
    return file.suffix == ".safetensors" and read_tensors(file)[1].get("format") == _FORMAT


def load_weights(path: PathLike) -> dict[str, Tensor]:
    """Read named tensors, such as published ImageNet weights, onto the CPU. Never runs code from the file.

    `.safetensors` and `.npz` as they are; `.pth` and `.pt` with `weights_only=True`; `.pkl` where it holds plain arrays
    (detectron2). In the last three the tensors may lie under a key `state_dict` or `model`, beside what a training
    script keeps, and a prefix `module.` that all names have is removed.

    Raises:
        ValueError: the file is missing, broken, of another kind, or the names hold anything but tensors; names it.
    """
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"{file}: no such file")
    if file.suffix == ".safetensors":
        return read_tensors(file)[0]
    if file.suffix == ".npz":
        return _read_npz(file)
    if file.suffix in (".pth", ".pt", ".pkl"):
        loaded = read_pkl(file) if file.suffix == ".pkl" else read_pth(file)
        try:
            return state_dict_of(loaded)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error
    raise ValueError(f"{file}: weights must be a .safetensors, .npz, .pth, .pt or .pkl file")


def read_tensors(path: PathLike) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors, on the CPU, and the metadata of a safetensors file, of `write_tensors` or of anybody.

    Raises:
        ValueError: the file is missing or broken, or its checksum, where it has one, is not that of its contents; names
            it.
    """
    file = Path(path)
    safetensors = require("safetensors", "train")
    require("safetensors.torch", "train")
    if not file.is_file():
        raise ValueError(f"{file}: no such file")
    try:
        with safetensors.safe_open(file, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # it is no dict
            metadata = dict(opened.metadata() or {})
    except Exception as error:  # a broken header raises whatever the step that met it raises
        raise ValueError(f"{file}: not a readable safetensors file ({error})") from error
    written = metadata.pop("checksum", None)
    if written is not None and written != _checksum(tensors, metadata):
        raise ValueError(f"{file}: its contents are not what was written (the checksum differs); the file is corrupt")
    return tensors, metadata


def _read_npz(file: Path) -> dict[str, Tensor]:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    except Exception as error:  # a broken archive raises whatever the step that met it raises
        raise ValueError(f"{file}: not a readable .npz file of plain arrays ({error})") from error
