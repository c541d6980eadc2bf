"""An endless, seeded stream of training batches."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader, Sampler

from frcnn_fast.data import Batch, Collate, DetectionDataset, DetectionView
from frcnn_fast.model.config import DetectorConfig
from frcnn_fast.training.interrupt import ignore_interrupts
from frcnn_fast.training.options import TrainOptions


class ShuffledForever(Sampler[int]):
    """Indices 0..length-1 in random order, then in another one, and so on; `total` of them."""

    def __init__(self, length: int, total: int, seed: int) -> None:
        self.length, self.total, self.seed = length, total, seed

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed)
        left = self.total
        while left > 0:
            order = torch.randperm(self.length, generator=generator)[:left]
            yield from order.tolist()
            left -= len(order)


def training_batches(
    dataset: DetectionDataset, config: DetectorConfig, options: TrainOptions, pin_memory: bool = False
) -> DataLoader[Batch]:
    """options.iterations batches of resized (and mirrored) images of `dataset`."""
    if len(dataset) == 0:
        raise ValueError("dataset: got an empty data set, expected at least one image")
    view = DetectionView(dataset, config.shorter, config.longer, flips=options.flips)
    sampler = ShuffledForever(len(view), options.iterations * options.batch_size, options.seed)
    return DataLoader(
        view,  # type: ignore[arg-type]  # any map-style object will do
        batch_size=options.batch_size,
        sampler=sampler,
        collate_fn=Collate(config.preprocess),
        num_workers=options.workers,
        worker_init_fn=ignore_interrupts,
        pin_memory=pin_memory,
    )
