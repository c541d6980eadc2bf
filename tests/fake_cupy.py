"""A library that stands in for CuPy on a machine without a GPU: NumPy's functions under CuPy's names."""

from __future__ import annotations

import contextlib
import types
from typing import Any

import numpy as np
import torch

STREAM = 0x5000


class FakeArray(np.ndarray):
    """Its type says that it is CuPy's."""

    def get(self) -> np.ndarray:
        return self.view(np.ndarray)

    @property
    def device(self) -> Any:
        return contextlib.nullcontext()


FakeArray.__module__ = "cupy"


def fake_array(tensor: torch.Tensor) -> FakeArray:
    return tensor.numpy().view(FakeArray)


def empty(shape: int | tuple[int, ...], dtype: Any) -> FakeArray:
    """From a multiple of 512 bytes on, as CuPy's, and filled with what a kernel has to write over."""
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    raw = np.full(size + 511, 0xA5, np.uint8)
    return raw[-raw.ctypes.data % 512 :][:size].view(dtype).reshape(shape).view(FakeArray)


def as_strided(array: np.ndarray, shape: tuple[int, ...], strides: tuple[int, ...]) -> np.ndarray:
    return np.lib.stride_tricks.as_strided(array, shape, strides, subok=True)


def fake_cupy(compute_capability: str = "80") -> Any:
    """A kernel on the processor asks for no stream, so the one it is given may be any."""
    fake: Any = types.ModuleType("cupy")
    vars(fake).update({name: value for name, value in vars(np).items() if not name.startswith("_")})
    fake.ndarray = FakeArray
    fake.asarray = lambda a, *rest: np.asarray(a, *rest).view(FakeArray)
    fake.empty = empty
    fake.lib = types.SimpleNamespace(stride_tricks=types.SimpleNamespace(as_strided=as_strided))
    stream, device = types.SimpleNamespace(ptr=STREAM), types.SimpleNamespace(compute_capability=compute_capability)
    fake.cuda = types.SimpleNamespace(get_current_stream=lambda: stream, Device=lambda: device)
    return fake
