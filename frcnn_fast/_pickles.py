"""Tensors from files that are pickles, without running anything that such a file asks for."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


def read_pth(file: Path) -> Any:
    """What `torch.save` wrote. Objects of classes other than torch's own stand as inert placeholders: a training
    script's options or records beside the tensors do no harm, and nothing of theirs is called.

    Raises:
        ValueError: the file cannot be read so; names it.
    """
    try:
        # By name, not by import: the modules that a file names need not exist, and are not touched.
        foreign = torch.serialization.get_unsafe_globals_in_checkpoint(file)
        with torch.serialization.safe_globals([(_Inert, name) for name in foreign]):
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{file}: holds more than tensors, or is no torch file; save it as state_dict() or .safetensors"
        ) from error
    except Exception as error:  # a broken archive raises whatever the step that met it raises
        raise ValueError(f"{file}: not a readable torch file ({error!r})") from error


class _Inert:
    """In the place of an object of a class that is not looked up. It takes any arguments, items and state."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        pass

    def extend(self, items: Any) -> None:
        pass


def read_pkl(file: Path) -> Any:
    """A plain pickle of containers, numbers, strings and NumPy arrays, as detectron2's model zoo has them.

    Raises:
        ValueError: it holds anything else, or is broken; names the file.
    """
    try:
        with open(file, "rb") as opened:
            return _tensors(_ArraysOnly(opened, encoding="latin1").load())
    except Exception as error:  # as above
        raise ValueError(f"{file}: not a readable pickle of arrays ({error})") from error


def _latin1(text: Any, encoding: str) -> bytes:
    """How old protocols write bytes; other encodings would be looked up."""
    if encoding != "latin1" or not isinstance(text, str):
        raise pickle.UnpicklingError(f"text in the encoding {encoding!r}")
    return text.encode("latin1")


class _DType:
    """A dtype of the file. NumPy's own would take any state from it."""

    def __init__(self, code: str, *rest: Any) -> None:
        self.code, self.order = code, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]

    def numpy(self) -> np.dtype:
        kind = np.dtype(self.code)
        if kind.kind not in "biuf":
            raise pickle.UnpicklingError(f"an array of {kind}")
        return kind.newbyteorder(">") if self.order == ">" else kind


class _Array:
    """An array of the file, likewise."""

    tensor: Tensor

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, fortran, data = state
        self.fill(data, kind, shape, "F" if fortran else "C")

    def fill(self, data: Any, kind: _DType, shape: Any, order: str) -> _Array:
        raw = _latin1(data, "latin1") if isinstance(data, str) else data
        values = np.frombuffer(raw, kind.numpy()).reshape(shape, order="F" if order == "F" else "C")
        self.tensor = torch.from_numpy(values.astype(values.dtype.newbyteorder("=")))
        return self


def _from_buffer(data: Any, kind: _DType, shape: Any, order: str) -> _Array:
    return _Array().fill(data, kind, shape, order)


def _number(kind: _DType, data: Any) -> Any:
    return _from_buffer(data, kind, (), "C").tensor.item()


_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _latin1,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _DType,
}
for _core in ("numpy.core", "numpy._core"):
    _ALLOWED[f"{_core}.multiarray", "_reconstruct"] = lambda *empty: _Array()
    _ALLOWED[f"{_core}.multiarray", "scalar"] = _number
    _ALLOWED[f"{_core}.numeric", "_frombuffer"] = _from_buffer


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _ALLOWED[module, name]


def _tensors(value: Any) -> Any:
    """Arrays as tensors."""
    if isinstance(value, dict):
        return {key: _tensors(item) for key, item in value.items()}
    return value.tensor if isinstance(value, _Array) else value


def state_dict_of(loaded: Any) -> dict[str, Tensor]:
    """The tensors by name in what a file holds: itself, or what lies under `state_dict` or `model`.

    A prefix `module.` that all names have is removed.

    Raises:
        ValueError: there are none.
    """
    for key in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise ValueError("expected a state_dict, a dict of tensors by name")
    if not all(isinstance(name, str) for name in loaded):
        raise ValueError("expected a state_dict, a dict of tensors by name")
    if loaded and all(name.startswith("module.") for name in loaded):
        loaded = {name.removeprefix("module."): tensor for name, tensor in loaded.items()}
    return dict(loaded)
