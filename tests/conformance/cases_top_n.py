"""Cases of top_n."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from .build import DTYPES, generator, odd_scores, strided, tensor, tied_scores, transposed
from .harness import Args, Case, Op, simple_op


def _scores(B: int, N: int, n: int, kind: str = "random", dtype: torch.dtype = torch.float32) -> Args:
    g = generator(2, B, N)
    values = {
        "random": lambda: g.normal(size=(B, N)),
        "tied": lambda: tied_scores(g, (B, N)),
        "odd": lambda: odd_scores(g, (B, N)),
        "equal": lambda: np.full((B, N), 0.25),
        "NaN": lambda: np.full((B, N), np.nan),
        "infinite": lambda: g.choice([np.inf, -np.inf], (B, N)),
        "-infinite": lambda: g.choice([np.nan, -np.inf], (B, N)),
        "ascending": lambda: np.broadcast_to(np.arange(N, dtype=np.float64), (B, N)),
        # All within one bit pattern's neighbourhood: a radix select that looks at the high bits alone cannot decide.
        "close": lambda: 1.0 + g.integers(0, 4096, (B, N)) * 2.0**-23,
        # From the smallest to the largest magnitudes.
        "wide": lambda: g.choice([-1.0, 1.0], (B, N)) * 10.0 ** g.uniform(-30, 30, (B, N)),
        # The best four, and then far below them the rest.
        "four": lambda: np.where(np.arange(N) % (N // 4) == 1, 100.0, g.uniform(1, 1.1, (B, N))),
    }
    return {"scores": tensor(values[kind](), dtype), "n": n}


def _few_infinities(dtype: torch.dtype) -> Args:
    args = _scores(1, 90, 0, "-infinite", dtype)
    return args | {"n": int(args["scores"].isinf().sum())}


def _cases() -> Iterator[Case]:
    for N in (0, 1, 2, 63, 64, 65, 255, 257):
        yield Case(f"N{N}", lambda N=N: _scores(1, N, 64), small=True)
    for N, n in ((1000, 1), (1000, 999), (1000, 1000), (1000, 1001), (2049, 300)):
        yield Case(f"N{N}-n{n}", lambda N=N, n=n: _scores(2, N, n), small=True)
    for N, n in ((5000, 2000), (20000, 6000), (20646, 12000), (100_000, 1000), (300_000, 300_000)):
        yield Case(f"N{N}-n{n}", lambda N=N, n=n: _scores(1, N, n))
    for kind in ("tied", "odd", "equal", "NaN", "infinite", "ascending", "close"):
        yield Case(f"{kind}", lambda k=kind: _scores(3, 700, 300, k), small=True)
        yield Case(f"{kind}-N30000", lambda k=kind: _scores(2, 30000, 6000, k))
    # More than is sorted at once, and several chunks of it; more than a block of threads sorts in its shared memory.
    yield Case("N7500-n7000", lambda: _scores(1, 7500, 7000, "odd"), small=True)
    for kind in ("random", "tied", "odd", "equal", "close"):
        yield Case(f"{kind}-N7000", lambda k=kind: _scores(1, 7000, 5200, k), small=True)
    # What leaves out early those that cannot be among the best: magnitudes beyond its steps, and one step too few.
    yield Case("wide-N2100", lambda: _scores(1, 2100, 500, "wide"), small=True)
    yield Case("four-N2100", lambda: _scores(1, 2100, 5, "four"), small=True)
    for name, dtype in DTYPES.items():
        for kind in ("random", "odd"):
            yield Case(f"{name}-{kind}", lambda d=dtype, k=kind: _scores(2, 500, 100, k, d), small=True)
        yield Case(f"{name}-N20000", lambda d=dtype: _scores(1, 20000, 2000, "odd", d))
    # All that is not NaN is taken, and is of one score.
    for name, dtype in DTYPES.items():
        yield Case(f"{name}-minus-infinity-and-NaN", lambda d=dtype: _few_infinities(d), small=True)
    yield Case("many-rows", lambda: _scores(40, 130, 20, "odd"), small=True)
    yield Case("no-rows", lambda: _scores(0, 130, 20), small=True)
    yield Case("strided", lambda: {"scores": strided(_scores(3, 200, 0)["scores"]), "n": 50}, small=True)
    yield Case("transposed", lambda: {"scores": transposed(_scores(3, 200, 0)["scores"]), "n": 50}, small=True)


OPS: tuple[Op, ...] = (simple_op("top_n", "values:input indices:int64 counts:int64", tuple(_cases()), lead="scores"),)
