"""What a case is, how an op is run on it, and when its results equal the oracle's."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

import frcnn_fast.ops
from frcnn_fast import reference

from .backends import Backend

Args = dict[str, Any]
Arrays = tuple[np.ndarray, ...]

# Sums of floats may differ from the float64 oracle by this many units in the last place of the sum of magnitudes.
SUM_UNITS = 64
HALVES = (torch.float16, torch.bfloat16)


@dataclass(frozen=True, eq=False)
class Case:
    """make: builds the op's keyword arguments, with tensors on the CPU; the same at every call.

    small: cheap enough for backends that simulate a GPU.
    as_if: arguments whose data is out of range (a count, a RoI's image): a CPU refuses them with a ValueError, a GPU,
    which does not wait for data, computes what these arguments would give.
    """

    name: str
    make: Callable[[], Args]
    small: bool = False
    as_if: Args | None = None

    def refused_by(self, backend: Backend) -> bool:
        return self.as_if is not None and backend.name == "cpu"


@dataclass(frozen=True, eq=False)
class Op:
    """One public op under test.

    outputs: "name:dtype" of each result; dtype is a torch name, or "input" (the dtype of argument `lead`), or "compute"
    (float64 for float64 input, else float32).
    precise: for results that are sums of floats: oracle(args) -> (float64 results, float64 sums of magnitudes); None:
    results equal the oracle's to the bit.
    """

    name: str
    outputs: tuple[str, ...]
    cases: tuple[Case, ...]
    lead: str
    call: Callable[[Args], Any]
    oracle: Callable[[Args], Any]
    precise: bool = False


def simple_op(name: str, outputs: str, cases: tuple[Case, ...], *, lead: str) -> Op:
    """An op whose oracle has its name and arguments (what is one of two words here is a flag there)."""

    def call(args: Args) -> Any:
        return getattr(frcnn_fast.ops, name)(**args)

    def oracle(args: Args) -> Any:
        args = dict(args)
        if "filter_order" in args:
            args["filter_before_top_n"] = args.pop("filter_order") == "before_top_n"
        if "background" in args:
            args["background_last"] = args.pop("background") == "last"
        return getattr(reference, name)(**args)

    return Op(name, tuple(outputs.split()), cases, lead, call, oracle)


@dataclass(frozen=True)
class Grids:
    """Anchors by grid: an AnchorGrids for the op, explicit anchors for the oracle."""

    levels: tuple[tuple[Tensor, tuple[int, int], tuple[int, int]], ...]
    offset: float = 0.0

    def for_op(self, device: str) -> Any:
        levels = [(cells.to(device), size, stride) for cells, size, stride in self.levels]
        return frcnn_fast.ops.AnchorGrids(levels, offset=self.offset)

    def explicit(self, dtype: type) -> np.ndarray:
        tables = [
            reference.grid_anchors(cells.numpy().astype(dtype), size, stride, offset=self.offset)
            for cells, size, stride in self.levels
        ]
        return np.concatenate(tables)

    @property
    def level_sizes(self) -> list[int]:
        return [len(cells) * size[0] * size[1] for cells, size, _ in self.levels]


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def to_numpy(value: Any) -> Any:
    """Tensors as arrays, halves widened exactly to float32; everything else as it is."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        return (value.float() if value.dtype in HALVES else value).numpy()
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], Tensor):
        return [to_numpy(v) for v in value]
    return value


def to_device(value: Any, device: str) -> Any:
    if isinstance(value, Tensor):
        return with_strides(value, device)
    if isinstance(value, Grids):
        return value.for_op(device)
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], Tensor):
        return [to_device(v, device) for v in value]
    return value


def with_strides(t: Tensor, device: str) -> Tensor:
    """`t` there, with its strides. Of what has holes or overlaps, `to` makes something contiguous."""
    if t.device.type == device:
        return t
    whole = torch.empty(0, dtype=t.dtype).set_(t.untyped_storage())
    return whole.to(device).as_strided(t.shape, t.stride(), t.storage_offset())


@functools.lru_cache(maxsize=4)
def inputs(case: Case) -> Args:
    return case.make()


@functools.lru_cache(maxsize=4)
def expected(op: Op, case: Case) -> Arrays:
    """The oracle's results; for a precise op those and then the magnitudes."""
    args = inputs(case) | (case.as_if or {})
    lead = tensors(args[op.lead])[0] if op.lead else None
    for name, value in args.items():
        if isinstance(value, Grids):
            args[name] = value.explicit(np.float64 if lead.dtype == torch.float64 else np.float32)
    if op.name == "rpn_proposals" and isinstance(inputs(case)["anchors"], Grids):
        args["level_sizes"] = inputs(case)["anchors"].level_sizes
    return as_tuple(op.oracle({name: to_numpy(value) for name, value in args.items()}))


def as_tuple(value: Any) -> tuple:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


@contextlib.contextmanager
def poisoned_memory() -> Iterator[None]:
    """torch.empty returns NaN and the largest integers, so that an element left unwritten is seen. With FRCNN_POISON=0
    it does not, for a tool that itself sees what is read before it is written.
    """
    if os.environ.get("FRCNN_POISON") == "0":
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def run(op: Op, backend: Backend, case: Case) -> tuple[Tensor, ...]:
    """The op's results on that backend. Its inputs must come back untouched."""
    args = {name: to_device(value, backend.device) for name, value in inputs(case).items()}
    before = {name: [to_numpy(t).copy() for t in tensors(value)] for name, value in args.items()}
    with backend.activate(), poisoned_memory():
        results = as_tuple(op.call(args))
    for name, values in before.items():
        for old, now in zip(values, tensors(args[name])):
            assert same(old, to_numpy(now)).all(), f"{op.name} on {backend.name} wrote to {name}"
    return results


def tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [v for v in value if isinstance(v, Tensor)] if isinstance(value, (list, tuple)) else []


def same(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Elementwise: the same bits, or both NaN."""
    if not np.issubdtype(a.dtype, np.floating):
        return np.asarray(a == b)
    bits = np.dtype(f"u{a.dtype.itemsize}")
    a, b = np.ascontiguousarray(a), np.ascontiguousarray(b)
    return (a.view(bits) == b.view(bits)) | (np.isnan(a) & np.isnan(b))


def near(got: np.ndarray, want: np.ndarray, magnitude: np.ndarray, result: torch.dtype, compute: torch.dtype):
    """Elementwise: within SUM_UNITS of the float64 result, and the rounding to the result's own type."""
    own, unit = torch.finfo(result), torch.finfo(compute).eps
    with np.errstate(all="ignore"):
        slack = SUM_UNITS * unit * magnitude + 0.5 * own.eps * np.abs(want) + own.smallest_normal * own.eps
        overflow = np.abs(want) + slack >= own.max  # a half may round to infinity
        close = np.isfinite(want) & (np.abs(got - want) <= slack)
    agree = (got == want) | (np.isnan(got) & np.isnan(want))
    return agree | close | (overflow & np.isinf(got) & (np.sign(got) == np.sign(want)))


def stored(want: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """What is left of the oracle's numbers in that dtype: a half is rounded once, when it is stored."""
    return to_numpy(torch.from_numpy(np.ascontiguousarray(want)).to(dtype)) if dtype in HALVES else want


def first_mismatch(got: np.ndarray, want: np.ndarray, right: np.ndarray) -> str:
    where = tuple(int(i) for i in np.argwhere(~right)[0])
    return (
        f"{int((~right).sum())} of {right.size} elements differ, first at {list(where)}: "
        f"got {got[where].item()!r}, expected {want[where].item()!r}"
    )


def wanted_dtype(spec: str, lead: torch.dtype | None) -> torch.dtype:
    kind = spec.split(":")[1]
    if kind in ("input", "compute"):
        assert lead is not None
        return lead if kind == "input" else compute_dtype(lead)
    return getattr(torch, kind)


def assert_conforms(
    op: Op, results: tuple[Tensor, ...], want: Arrays, args: Args, label: str, *, exactly: bool = False
) -> None:
    """Every result has the promised shape and dtype, and equals what is wanted: to the bit (NaN equal to NaN), or
    within the bound for a precise op, unless told `exactly`."""
    lead = next((t.dtype for t in tensors(args[op.lead])), None) if op.lead else None
    # "grad:input*" stands for as many results as there are.
    specs = op.outputs * len(results) if op.outputs[0].endswith("*") else op.outputs
    assert len(results) == len(specs), f"{label}: {len(results)} results, expected {len(specs)}"
    for i, (spec, result) in enumerate(zip(specs, results)):
        where = f"{label}, {spec.split(':')[0]}"
        dtype = wanted_dtype(spec.rstrip("*"), lead)
        assert result.dtype == dtype, f"{where}: dtype {result.dtype}, expected {dtype}"
        got = to_numpy(result)
        assert got.shape == want[i].shape, f"{where}: shape {got.shape}, expected {want[i].shape}"
        if op.precise and not exactly:
            assert lead is not None
            right = near(got, want[i], want[len(results) + i], dtype, compute_dtype(lead))
        else:
            assert want[i].dtype == got.dtype, f"{where}: the oracle gives {want[i].dtype}, the op {got.dtype}"
            right = same(got, stored(want[i], dtype))
        assert right.all(), f"{where}: {first_mismatch(got, want[i], right)}"
