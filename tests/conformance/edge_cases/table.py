"""What a hand-worked case is, and the boxes that several of them use."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..harness import Args, Arrays, Case

NAN, INF = float("nan"), float("inf")


@dataclass(frozen=True, eq=False)
class EdgeCase(Case):
    op: str = ""
    want: Arrays = ()

    def answer(self) -> Arrays:
        return self.want


def edge(op: str, name: str, args: Args, *want: np.ndarray) -> EdgeCase:
    return EdgeCase(name, lambda: dict(args), small=True, op=op, want=want)


def f32(values: object) -> np.ndarray:
    return np.asarray(values, np.float64).astype(np.float32)


def f64(values: object) -> np.ndarray:
    return np.asarray(values, np.float64)


def i64(values: object) -> np.ndarray:
    return np.asarray(values, np.int64)


def i32(values: object) -> np.ndarray:
    return np.asarray(values, np.int32)


def i8(values: object) -> np.ndarray:
    return np.asarray(values, np.int8)


def flag(values: object) -> np.ndarray:
    return np.asarray(values, bool)


SQUARE = [0, 0, 2, 2]  # area 4

HALF = [SQUARE, [0, 0, 2, 1]]  # IoU 1/2
THIRD = [[0, 0, 2, 1], [1, 0, 3, 1]]  # IoU 1 / (2 + 2 - 1)
THREE_TENTHS = [[0, 0, 10, 1], [7, 0, 10, 1]]  # IoU 3/10
APART = [[0, 0, 1, 1], [10, 0, 11, 1], [20, 0, 21, 1], [30, 0, 31, 1]]

TALL = [10, 20, 30, 60]  # 20 wide, 40 high, centre (20, 40)

TEN = [0, 0, 10, 10]
FAR = [500, 500, 510, 510]


PAD = [0] * 4
