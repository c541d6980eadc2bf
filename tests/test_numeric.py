"""exp and log of decode and encode: within two units in the last place of the true value, everywhere.

Both are reached through the public ops: a unit anchor centred on 0 decodes (0, 0, x, 0) to a right edge of exp(x) / 2,
and a box of width x against an anchor of width 1 encodes to log(x).
"""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from frcnn_fast import ops

CHUNK = 1 << 19
LONG_DOUBLE_IS_LONG = np.finfo(np.longdouble).eps < 2.0**-60


def our_exp(x: np.ndarray) -> np.ndarray:
    deltas = torch.zeros(1, len(x), 4, dtype=torch.from_numpy(x).dtype)
    deltas[0, :, 2] = torch.from_numpy(x)
    anchors = torch.tensor([[-0.5, -0.5, 0.5, 0.5]], dtype=deltas.dtype).expand(len(x), 4)
    boxes, _ = ops.decode_clip(deltas, anchors, [(float("inf"), float("inf"))], clamp=float("inf"))
    return 2 * boxes[0, :, 2].numpy()


def our_log(x: np.ndarray) -> np.ndarray:
    boxes = torch.zeros(len(x), 4, dtype=torch.from_numpy(x).dtype)
    boxes[:, 2], boxes[:, 3] = torch.from_numpy(x), 1
    anchors = torch.tensor([[0.0, 0.0, 1.0, 1.0]], dtype=boxes.dtype)
    return ops.encode(boxes, anchors)[:, 2].numpy()


def units_off(got: np.ndarray, true: np.ndarray) -> np.ndarray:
    """|got - true| in units in the last place of got's type at the true value; true in a wider type."""
    info = np.finfo(got.dtype)
    exponent = np.frexp(np.where(true == 0, 1, true))[1]
    unit = np.ldexp(np.ones_like(true), np.maximum(exponent - info.nmant - 1, info.minexp - info.nmant))
    return np.abs(got - true) / unit


def floats() -> np.ndarray:
    """Every 1,009th bit pattern of float32 (FRCNN_LONG=1: every 61st) that is not NaN."""
    step = 61 if os.environ.get("FRCNN_LONG") else 1009
    values = np.arange(0, 1 << 32, step, dtype=np.uint64).astype(np.uint32).view(np.float32)
    return values[~np.isnan(values)]


def doubles(kind: str) -> np.ndarray:
    g = np.random.default_rng(5)
    if kind == "exp":
        return np.concatenate([g.uniform(-744, 709, 300_000), g.normal(0, 3, 300_000), g.normal(0, 1e-3, 100_000)])
    patterns = g.integers(1, 0x7FEFFFFFFFFFFFFF, 300_000).view(np.float64)
    near_one = 1 + np.ldexp(g.uniform(-1, 1, 200_000), -g.integers(1, 50, 200_000))
    return np.concatenate([patterns, g.uniform(0.3, 3, 300_000), near_one])


def test_float_exp() -> None:
    x = floats()
    x = x[(x > -87.0) & (x < 88.7)]  # below, the halved result is rounded once more
    worst = max(
        units_off(our_exp(c), np.exp(c.astype(np.float64))).max() for c in np.split(x, range(CHUNK, len(x), CHUNK))
    )
    assert worst <= 2


def test_float_log() -> None:
    x = floats()
    x = x[(x > 0) & np.isfinite(x)]
    worst = max(
        units_off(our_log(c), np.log(c.astype(np.float64))).max() for c in np.split(x, range(CHUNK, len(x), CHUNK))
    )
    assert worst <= 2


@pytest.mark.skipif(not LONG_DOUBLE_IS_LONG, reason="needs a long double that is wider than double")
def test_double_exp_and_log() -> None:
    x = doubles("exp")
    x = x[x > -707.0]
    assert units_off(our_exp(x), np.exp(x.astype(np.longdouble))).max() <= 2
    x = doubles("log")
    assert units_off(our_log(x), np.log(x.astype(np.longdouble))).max() <= 2


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_ends_of_the_range(dtype: type) -> None:
    inf, nan = np.inf, np.nan
    x = np.array([-inf, -1e4, -0.0, 0.0, 1e4, inf, nan], dtype)
    assert np.array_equal(our_exp(x), np.array([0, 0, 1, 1, inf, inf, nan], dtype), equal_nan=True)
    x = np.array([0.0, -1.0, -inf, inf, nan, 1.0], dtype)
    assert np.array_equal(our_log(x), np.array([-inf, nan, nan, inf, nan, 0], dtype), equal_nan=True)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_exp_goes_down_to_the_smallest_numbers(dtype: type) -> None:
    """Monotone, and within a unit of the smallest number, where the result is too small for full precision."""
    info = np.finfo(dtype)
    lowest, highest = np.log(float(info.smallest_subnormal)), np.log(float(info.tiny))
    x = np.linspace(lowest - 3, highest, 20001).astype(dtype)
    got = our_exp(x)
    assert (np.diff(got) >= 0).all()
    assert got[0] == 0
    wide = np.float64 if dtype == np.float32 else np.longdouble
    assert np.abs(got - np.exp(x.astype(wide))).max() <= 2 * info.smallest_subnormal
