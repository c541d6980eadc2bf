"""Which backend serves a call."""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import warnings
from collections.abc import Callable, Iterator
from contextvars import ContextVar

import torch

from frcnn_fast import _extension
from frcnn_fast._extras import require
from frcnn_fast.ops._torch_private import constant_when_compiled

BACKENDS = ("cpu", "cuda", "triton", "reference")

_chosen: ContextVar[str | None] = ContextVar("frcnn_fast_backend", default=None)


@contextlib.contextmanager
def use_backend(name: str | None) -> Iterator[None]:
    """Runs every op inside the block on one backend: "cpu", "cuda", "triton", "reference"; None: chosen by device.

    "reference" is the NumPy oracle and takes tensors of any device. "triton" takes CUDA tensors, and with
    TRITON_INTERPRET=1 in the environment CPU tensors, in Triton's interpreter. A backend that cannot serve a call
    raises. A gradient is computed by the backend of its result, wherever it is asked for. Without a choice, CPU tensors
    go to "cpu" and CUDA tensors to "cuda"; where the binary has no CUDA half, or no code for the device, to "triton",
    with one warning.
    """
    _require_name(name)
    token = _chosen.set(name)
    try:
        yield
    finally:
        _chosen.reset(token)


def choose(op: str, backend: str | None, device: torch.device) -> str:
    """The backend for a call: the one it names, or that of the block it stands in, or the device's."""
    _require_name(backend)
    chosen = asked_for(backend)
    if chosen is None:
        return "cpu" if device.type == "cpu" else _default_on(device)
    if chosen == "reference" or chosen == device.type:
        return chosen
    if chosen == "triton" and (device.type == "cuda" or triton_interprets()):
        return chosen
    if chosen == "triton" and device.type == "cpu":
        raise ValueError(
            f"{op}: backend 'triton' cannot serve tensors on 'cpu'; move them to a GPU, or set TRITON_INTERPRET=1 "
            "before the first call to run its kernels in Triton's interpreter, slowly"
        )
    raise ValueError(f"{op}: backend {chosen!r} cannot serve tensors on {device.type!r}; move them first")


@constant_when_compiled
def asked_for(backend: str | None) -> str | None:
    """The backend that a call names, or the block it stands in; None: chosen by device. A constant to the compiler:
    code compiled in a block keeps the block's backend, forward and backward."""
    return backend or _chosen.get()


def triton_interprets() -> bool:
    """Whether Triton kernels run in its interpreter, on the processor."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def triton_launcher(path: str) -> Callable[..., None]:
    """The function behind "family.module:function" under kernels/. Without Triton an ImportError names the extra."""
    require("triton", "triton")
    module, _, function = path.partition(":")
    return getattr(importlib.import_module(f"frcnn_fast.kernels.{module}"), function)


def why_no_cuda(capability: tuple[int, int]) -> str:
    """Why the CUDA kernels cannot serve a GPU of that compute capability; "" where they can."""
    if _extension.missing_reason:
        return _extension.missing_reason
    info = _extension.extension().build_info()
    if not info["cuda"]:
        return "the binary was built without its CUDA half; build it where nvcc is found (FRCNN_FAST_CUDA=ON insists)"
    if torch.version.hip or not carries_code_for(info["cuda_architectures"], capability):
        device = "an AMD GPU" if torch.version.hip else f"sm_{capability[0]}{capability[1]}"
        return f"the binary ({info['cuda_architectures']}) carries no code for {device}"
    return ""


def carries_code_for(architectures: str, capability: tuple[int, int]) -> str:
    """How a binary for `architectures` serves a GPU of that compute capability.

    Args:
        architectures: as CMake names them, "80-real 90-real 100": real code, or (without a suffix, or "-virtual")
            also PTX that the driver compiles.
        capability: (major, minor).

    Returns:
        "machine code (sm_90)", "PTX (compute_100), compiled by the driver at first use", or "".
    """
    gpu = capability[0] * 10 + capability[1]
    real, virtual = [], []
    for entry in architectures.split():
        number, _, kind = entry.partition("-")
        value = int(number.rstrip("af"))
        real += [value] if kind != "virtual" else []
        virtual += [value] if kind != "real" else []
    # Machine code serves GPUs of the same major version and at least the same minor one; PTX all newer ones.
    fitting = [value for value in real if value // 10 == capability[0] and value <= gpu]
    if fitting:
        return f"machine code (sm_{max(fitting)})"
    older = [value for value in virtual if value <= gpu]
    return f"PTX (compute_{max(older)}), compiled by the driver at first use" if older else ""


def _require_name(name: str | None) -> None:
    if name is not None and name not in BACKENDS:
        raise ValueError(f"backend: expected one of {', '.join(BACKENDS)} or None, got {name!r}")


@functools.cache
def _default_on(device: torch.device) -> str:
    """Worked out once a device: "cuda", or "triton" with a warning that says why."""
    if device.type != "cuda":
        raise ValueError(f"no backend serves tensors on {device.type!r}; move them to a CPU or a GPU")
    reason = why_no_cuda(torch.cuda.get_device_capability(device))
    if not reason:
        return "cuda"
    try:
        require("triton", "triton")
    except ImportError as error:
        raise RuntimeError(f"no backend serves {device}: {reason}, and {error}") from error
    warnings.warn(f"frcnn_fast runs its Triton kernels on {device}: {reason}", RuntimeWarning, stacklevel=2)
    return "triton"
