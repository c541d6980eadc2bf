"""The ops on arrays that torch cannot view: CuPy's, where torch was installed without CUDA.

The op's own Python code runs on meta tensors: shapes and dtypes without data, so that its checks, its errors and the
shapes of its results are the usual ones. Behind every meta tensor's storage stands memory of the array library. What
the code does between (a copy into another dtype, rows put together) is done there, and the op itself is the compiled
module's function, called with the arrays.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from frcnn_fast._extension import extension
from frcnn_fast.ops._operator import Operator

_DTYPES = {
    np.dtype(name): getattr(torch, name)
    for name in ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64")
}
_ARRAY_DTYPES = {dtype: name for name, dtype in _DTYPES.items()}
aten = torch.ops.aten

Launch = Callable[[Operator, Any, tuple[Any, ...]], None]  # (op, arguments, results), with arrays for tensors

# How the new memory of a result is filled, from the arguments with arrays in the places of tensors. Views need no rule:
# they have the memory of what they view.
Fill = Callable[..., None]
_FILL: dict[Any, Fill] = {
    aten.empty: lambda out, *args, **options: None,
    aten.empty_like: lambda out, *args, **options: None,
    aten.new_empty: lambda out, *args, **options: None,
    aten.clone: lambda out, source, **options: _assign(out, source),
    aten._to_copy: lambda out, source, **options: _assign(out, source),
    aten.cat: lambda out, sources, dim=0: _concatenate(out, sources, dim),
    aten.sum: lambda out, source, **options: _assign(out, source.sum()),
    aten.div: lambda out, dividend, divisor, **options: _assign(out, dividend / divisor),
    aten.constant_pad_nd: lambda out, source, pad, value=0: _pad(out, source, pad, value),
}


def _assign(out: Any, source: Any) -> None:
    out[...] = source


def _concatenate(out: Any, sources: list[Any], dim: int) -> None:
    first = 0
    for source in sources:
        size = source.shape[dim]
        out[(slice(None),) * (dim % out.ndim) + (slice(first, first + size),)] = source
        first += size


def _pad(out: Any, source: Any, pad: list[int], value: float) -> None:
    """pad: (before, after) of the last dimension, then of the one before it."""
    out[...] = value
    inside = [slice(None)] * out.ndim
    for i, before in enumerate(pad[0::2]):
        dim = out.ndim - 1 - i
        inside[dim] = slice(before, before + source.shape[dim])
    out[tuple(inside)] = source


class Arrays(TorchDispatchMode):
    """While it is entered, meta tensors made by `tensor` compute with arrays.

    Args:
        library: cupy; numpy does the same on the processor, and is what the tests use.
        launch: runs an op; default: `compiled`.
    """

    def __init__(self, library: Any, launch: Launch | None = None) -> None:
        super().__init__()
        self.library = library
        self.launch = launch or self.compiled
        # Flat memory by the storage that it stands for. The tensors keep their storages, and so their numbers, alive.
        self._memory: dict[int, Any] = {}
        self._alive: list[Tensor] = []

    def given(self, value: Any) -> Any:
        """An argument of a call with meta tensors in the places of arrays."""
        if isinstance(value, self.library.ndarray):
            return self.tensor(value)
        if hasattr(value, "with_cells"):  # AnchorGrids, whose cells are tensors of the host
            return value.with_cells(lambda cells: self.tensor(self.library.asarray(cells.numpy())))
        return type(value)(map(self.given, value)) if type(value) in (list, tuple) else value

    def tensor(self, array: Any) -> Tensor:
        """The meta tensor of an array, which it views."""
        if array.dtype not in _DTYPES:
            raise TypeError(f"expected numbers of up to 64 bits, got an array of {array.dtype}")
        strides = [stride // array.itemsize for stride in array.strides]
        if any(stride % array.itemsize or stride < 0 for stride in array.strides):
            return self.tensor(array.copy())
        meta = torch.empty_strided(array.shape, strides, dtype=_DTYPES[array.dtype], device="meta")
        extent = 1 + sum((n - 1) * stride for n, stride in zip(array.shape, strides)) if array.size else 0
        self._remember(meta, self._strided(array, (extent,), (1,)))
        return meta

    def array(self, tensor: Tensor) -> Any:
        """What stands behind a meta tensor, as it views it."""
        flat = self._memory[tensor.untyped_storage()._cdata]
        return self._strided(flat[tensor.storage_offset() :], tuple(tensor.shape), tensor.stride())

    def empty(self, bytes_: int) -> Any:
        """Bytes that start where kernels want their workspace to."""
        if self.library is not np:
            return self.library.empty(bytes_, np.uint8)
        raw = np.empty(bytes_ + 63, np.uint8)
        return raw[-raw.ctypes.data % 64 :][:bytes_]

    def compiled(self, op: Operator, a: Any, results: tuple[Any, ...]) -> None:
        """Runs an op by the compiled module, on CuPy's current stream."""
        C = extension()
        if self.library is not np:
            C.use_stream(self.library.cuda.get_current_stream().ptr)
        try:
            workspace = []
            if op.workspace is not None:
                size = op.workspace(C, a)
                workspace = [self.empty(size) if size else None]
            getattr(C, op.name)(*a, *workspace, *results)
        finally:
            C.use_stream(0)

    def _strided(self, array: Any, shape: tuple[int, ...], strides: tuple[int, ...]) -> Any:
        as_strided = self.library.lib.stride_tricks.as_strided
        return as_strided(array, shape, tuple(stride * array.itemsize for stride in strides))

    def _remember(self, tensor: Tensor, flat: Any) -> None:
        self._memory[tensor.untyped_storage()._cdata] = flat
        self._alive.append(tensor)

    def _arrays(self, value: Any) -> Any:
        """The value with arrays in the places of tensors."""
        if isinstance(value, Tensor):
            on_host = value.device.type == "cpu"  # a few numbers that the caller gave as a list
            return self.library.asarray(value.numpy()) if on_host else self.array(value)
        return [self._arrays(each) for each in value] if isinstance(value, (list, tuple)) else value

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if function.namespace == "frcnn_fast":
            return self._run(Operator.named[function._schema.name.partition("::")[2]], args)
        result = function(*args, **(kwargs or {}))
        for made in result if isinstance(result, (list, tuple)) else (result,):
            known = not isinstance(made, Tensor) or made.untyped_storage()._cdata in self._memory
            if known or made.device.type != "meta":
                continue
            fill = _FILL.get(function.overloadpacket)
            if fill is None:
                raise NotImplementedError(f"{function} is not done on arrays without torch's CUDA half")
            flat = self.library.empty(made.untyped_storage().nbytes() // made.itemsize, _ARRAY_DTYPES[made.dtype])
            self._remember(made, flat)
            fill(self.array(made), *self._arrays(args), **(kwargs or {}))
        return result

    def _run(self, op: Operator, args: tuple[Any, ...]) -> Any:
        *values, backend = args
        if backend not in (None, "cuda"):
            raise ValueError(
                f"{op.name}: backend {backend!r} needs tensors, and torch, which was installed without CUDA, cannot "
                f"view arrays on a GPU; install torch for CUDA, or leave the choice of the backend"
            )
        with self:
            results = tuple(op.outputs(op.schema.Arguments(*values)))
            if op.dynamic_rows:
                results = (*results, results[0].new_empty(1))
        self.launch(op, op.schema.Arguments(*[self._arrays(value) for value in values]), tuple(self._arrays(results)))
        if op.dynamic_rows:
            padded, count = results
            return padded[: int(self.array(count)[0])]
        return results if len(op.schema.results) > 1 else results[0]


def call(
    function: Callable[..., Any], args: list[Any], kwargs: dict[str, Any], library: Any, launch: Launch | None = None
) -> Any:
    """One call of an op, whose arguments are arrays of `library`; so are its results."""
    arrays = Arrays(library, launch)
    given = [arrays.given(value) for value in args], {name: arrays.given(value) for name, value in kwargs.items()}
    with arrays:
        result = function(*given[0], **given[1])
    found = [arrays.array(each) if isinstance(each, Tensor) else each for each in _several(result)]
    if not isinstance(result, tuple):
        return found[0]
    return result._make(found) if hasattr(result, "_make") else tuple(found)


def _several(result: Any) -> tuple[Any, ...]:
    return result if isinstance(result, tuple) else (result,)
