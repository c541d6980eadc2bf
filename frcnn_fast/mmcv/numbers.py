"""mmcv's functions take thresholds and scales as C floats."""

from __future__ import annotations

import numpy as np


def c_float(value: float) -> float:
    """As C++ gets it: rounded to float32."""
    return float(np.float32(value))


def just_below(value: float) -> float:
    """A float32 is above it exactly where it is at least `value`. Of 0, 0 itself: no threshold of ours is negative."""
    return max(float(np.nextafter(np.float32(value), np.float32(-np.inf))), 0.0)
