"""Which RoIs belong on which level of a pyramid. Not of Triton alone: every launcher is handed them."""

from __future__ import annotations

import functools
import math


@functools.lru_cache(maxsize=64)
def level_thresholds(
    spatial_scales: tuple[float, ...], canonical_scale: float, canonical_level: int
) -> tuple[float, ...]:
    """The least areas (squared pixels) of all levels but the finest.

    Level canonical_level + floor(log2(sqrt(area) / canonical_scale)), with torchvision's 1e-6 of tolerance.
    """
    finest, coarsest = (-round(math.log2(scale)) for scale in (spatial_scales[0], spatial_scales[-1]))
    if coarsest - finest >= len(spatial_scales):
        raise ValueError(
            f"spatial_scales: expected neighbouring powers of two, finest first, got {list(spatial_scales)}: "
            f"{len(spatial_scales)} levels cannot serve the scales 2^-{finest} to 2^-{coarsest}"
        )
    return tuple(
        (canonical_scale * 2.0 ** (level - canonical_level - 1e-6)) ** 2 for level in range(finest + 1, coarsest + 1)
    )
