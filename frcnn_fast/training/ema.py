"""A detector whose weights are a running mean of another's."""

from __future__ import annotations

import copy

import torch

from frcnn_fast.model import FasterRCNN


class Averaged:
    """An exponential moving average of a detector's weights, in a detector of its own (`detector`).

    After update n the average keeps min(decay, (1 + n) / (10 + n)) of itself, so that it soon forgets the weights that
    training began with. Batch statistics are averaged too; whole numbers are copied.
    """

    def __init__(self, detector: FasterRCNN, decay: float) -> None:
        self.detector, self.decay = copy.deepcopy(detector).eval().requires_grad_(False), decay

    @torch.no_grad()
    def update(self, detector: FasterRCNN, updates: int) -> None:
        """Take in the weights after so many updates."""
        share = 1.0 - min(self.decay, (1 + updates) / (10 + updates))
        ours, theirs = self.detector.state_dict(), detector.state_dict()
        floats = [name for name, tensor in ours.items() if tensor.is_floating_point()]
        torch._foreach_lerp_([ours[name] for name in floats], [theirs[name] for name in floats], share)
        for name in ours.keys() - set(floats):
            ours[name].copy_(theirs[name])
