"""NumPy and CuPy arrays in, the same kind out, without a copy (DLPack), on the stream that CuPy works on."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor

F = TypeVar("F", bound=Callable[..., Any])


def accepts_arrays(function: F) -> F:
    """Lets a function of tensors take NumPy or CuPy arrays too, positional, by keyword, or in lists.

    Where tensors come as well, its results are tensors; else arrays of that kind, in a named result each field. Arrays
    are viewed, not copied, except where torch cannot view them: read-only, reversed, of the other byte order, or of
    unsigned integers above 8 bits, which become signed ones of twice the width. With CuPy arrays alone everything runs
    on CuPy's current stream; where tensors come as well, on torch's, which waits for CuPy's. A torch that sees no GPU
    cannot view CuPy's arrays: then the op runs without it (_direct.py).
    """

    names = list(inspect.signature(function).parameters)

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if args and (type(args[0]) is Tensor or _is_tensor(args[0])):
            # Nearly every call. Only one that fails is searched for arrays among the other arguments.
            try:
                return function(*args, **kwargs)
            except (TypeError, AttributeError):
                if not _kinds(args, kwargs):
                    raise
        kinds = _kinds(args, kwargs)
        if not kinds:
            return function(*args, **kwargs)
        args = tuple(map(_prepared, args, names))
        kwargs = {name: _prepared(value, name) for name, value in kwargs.items()}
        on_gpu = next((a for a in _flat(args, kwargs) if _is_array(a) and _module(a) == "cupy"), None)
        if on_gpu is not None and not torch.cuda.is_available():
            with on_gpu.device:
                return _without_torch(function, names, args, kwargs)
        mixed = any(isinstance(a, Tensor) for a in _flat(args, kwargs))
        with nullcontext() if mixed or on_gpu is None else _on_stream_of(on_gpu.device):
            result = function(*map(_tensor, args), **{name: _tensor(value) for name, value in kwargs.items()})
            if mixed:
                return result
            if not isinstance(result, tuple):
                return _array(result, kinds[0])
            arrays = [_array(r, kinds[0]) for r in result]
            return result._make(arrays) if hasattr(result, "_make") else tuple(arrays)

    return wrapper  # type: ignore[return-value]


def tensor_of(value: Any, name: str) -> Any:
    """A tensor in the place of an array; CuPy's on the host where torch sees no GPU. Anything else as it is."""
    value = _prepared(value, name)
    if _is_array(value) and _module(value) == "cupy" and not torch.cuda.is_available():
        value = value.get()
    return _tensor(value)


def _is_tensor(first: Any) -> bool:
    """Whether an op's first argument is a tensor, or a list that begins with one."""
    return type(first[0] if isinstance(first, (list, tuple)) and first else first) is Tensor


def _flat(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Any]:
    for a in (*args, *kwargs.values()):
        if isinstance(a, (list, tuple)):
            yield from a
        else:
            yield a


def _kinds(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[str]:
    """The libraries whose arrays are among the arguments, in their order."""
    return [_module(a) for a in _flat(args, kwargs) if _is_array(a)]


def _module(value: Any) -> str:
    return type(value).__module__.split(".", 1)[0]


def _is_array(value: Any) -> bool:
    if isinstance(value, (int, float)):  # in a graph it may be a symbol, which cannot be asked for attributes
        return False
    return hasattr(value, "__dlpack__") and _module(value) in ("numpy", "cupy") and hasattr(value, "strides")


def _prepared(value: Any, name: str) -> Any:
    """Arrays that DLPack can hand over, or a copy that it can; in lists too."""
    if isinstance(value, (list, tuple)) and any(map(_is_array, value)):
        return type(value)(_prepared(each, f"{name}[{i}]") for i, each in enumerate(value))
    if not _is_array(value):
        return value
    if value.dtype.kind not in "biuf":
        raise TypeError(f"{name}: expected numbers, got an array of {value.dtype}")
    if value.dtype.kind == "u" and value.dtype.itemsize in (2, 4):
        value = value.astype(f"i{2 * value.dtype.itemsize}")  # torch computes little with unsigned integers
    if _module(value) == "numpy":
        if not value.dtype.isnative:
            value = value.astype(value.dtype.newbyteorder("="))
        if not value.flags.writeable:
            value = value.copy()
    return value.copy() if min(value.strides, default=0) < 0 else value


def _tensor(value: Any) -> Any:
    if isinstance(value, (list, tuple)) and any(map(_is_array, value)):
        return type(value)(map(_tensor, value))
    return torch.from_dlpack(value) if _is_array(value) else value


def _array(value: Any, kind: str) -> Any:
    if not isinstance(value, Tensor):
        return value
    if kind == "numpy":
        return value.numpy()
    import cupy

    return cupy.from_dlpack(value)


@contextmanager
def _on_stream_of(device: Any) -> Iterator[None]:
    """torch works on CuPy's current stream of that device, too, so that neither waits for the other."""
    import cupy

    with device:
        pointer, own = cupy.cuda.get_current_stream().ptr, torch.cuda.default_stream(device.id)
        shared = own if pointer == own.cuda_stream else torch.cuda.ExternalStream(pointer, device=device.id)
        with torch.cuda.stream(shared):
            yield


def _without_torch(
    function: Callable[..., Any], names: list[str], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """The op on CuPy's arrays, on CuPy's current device and stream: by the compiled module itself, or, where that has
    no code for the device, by NVRTC."""
    import cupy

    from frcnn_fast import cupy_kernels
    from frcnn_fast.ops import _backends, _direct

    for name, value in [*zip(names, args), *kwargs.items()]:
        strangers = [a for a in _flat((value,), {}) if isinstance(a, Tensor) or (_is_array(a) and _module(a) != "cupy")]
        if strangers:
            raise TypeError(
                f"{name}: expected an array of CuPy, as the other arguments are, got {type(strangers[0]).__name__}; "
                "torch sees no GPU and cannot help: move it with cupy.asarray"
            )
    digits = cupy.cuda.Device().compute_capability
    reason = _backends.why_no_cuda((int(digits[:-1]), int(digits[-1])))
    launch = functools.partial(cupy_kernels.run, cupy_kernels.Launcher(cupy), reason) if reason else None
    return _direct.call(function, list(args), kwargs, cupy, launch)
