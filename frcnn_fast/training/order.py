"""Which images make a mini-batch, and at what size: functions of the place in the stream, so that a resumed run goes on
as it would have."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from frcnn_fast.data.datasets import quick_target


class ShapeGroups:
    """Rearranges the order of a round so that mini-batches are of wide or of tall images alone, as far as they come out
    even: less padding, and smaller mini-batches to compute. Every image stays in its round.

    Args:
        wide: bool [N], of each image whether it is at least as wide as high.
        batch_size: B; places 0..B-1 of the stream are the first mini-batch.
    """

    def __init__(self, wide: Tensor, batch_size: int) -> None:
        self.wide, self.batch_size = wide, batch_size

    def __call__(self, order: Tensor, first_place: int) -> Tensor:
        """`order`, int64 [N], from the place `first_place` of the stream on.

        The first image that is left decides which shape a mini-batch has; it is filled up with the next ones of that
        shape, and, where there are too few, with the next of the other.
        """
        left = order[self.wide[order]].tolist()[::-1], order[~self.wide[order]].tolist()[::-1]
        rank = {image: place for place, image in enumerate(order.tolist())}
        arranged: list[int] = []
        while len(arranged) < len(order):
            free = self.batch_size - (first_place + len(arranged)) % self.batch_size
            firsts = [rank[images[-1]] if images else len(order) for images in left]
            chosen = left if firsts[0] < firsts[1] else left[::-1]
            for images in chosen:
                while images and free:
                    arranged.append(images.pop())
                    free -= 1
        return torch.tensor(arranged, dtype=order.dtype)


def wide_images(dataset: Any, flips: bool) -> Tensor:
    """bool [N]: of each item of a view of the data set whether its image is at least as wide as high.

    Raises:
        ValueError: the data set does not tell the images' sizes.
    """
    sizes = [quick[1] if (quick := quick_target(dataset, k)) is not None else None for k in range(len(dataset))]
    if all(size is None for size in sizes):
        raise ValueError(
            "group_shapes: the data set does not tell its images' sizes; give it target(index) and image_size(index), "
            "or leave the option out"
        )
    wide = torch.tensor([size is None or size[1] >= size[0] for size in sizes])
    return torch.cat([wide, wide]) if flips else wide


class Scales:
    """The length of the shorter side at each place of the stream: one for all images of a mini-batch.

    Args:
        sides: what it is drawn from; None leaves `shorter` as it is.
    """

    def __init__(self, sides: Sequence[int] | None, shorter: int | None, seed: int, batch_size: int) -> None:
        self.sides, self.shorter, self.seed, self.batch_size = sides, shorter, seed, batch_size

    def at(self, place: int) -> int | None:
        if not self.sides:
            return self.shorter
        return random.Random(f"{self.seed} {place // self.batch_size}").choice(self.sides)
