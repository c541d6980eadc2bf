"""Proposals for another head: a detector's backbone and proposal network, kept as they are, and a small head that
learns something else about their regions: here whether a digit is even or odd.

python docs/examples/another_head.py --checkpoint runs/digits
"""

import argparse

import torch
from torch import Tensor, nn

from frcnn_fast import Detector, ops
from frcnn_fast.data import Collate, DigitsDetection
from frcnn_fast.model import FasterRCNN


class ParityHead(nn.Module):
    """Regions (image, x1, y1, x2, y2) on maps of several strides -> logits of background, even, odd."""

    def __init__(self, channels: int, strides: tuple[int, ...]) -> None:
        super().__init__()
        self.scales = [1 / stride for stride in strides]
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(channels * 25, 64), nn.ReLU(), nn.Linear(64, 3))

    def forward(self, features: tuple[Tensor, ...], rois: Tensor) -> Tensor:
        pooled = ops.multiscale_roi_align(
            features,
            rois,
            output_size=5,
            spatial_scales=self.scales,
            sampling_ratio=2,
            canonical_scale=32,
            memory_format=torch.contiguous_format,  # what nn.Flatten need not copy; the maps are channels_last
        )
        return self.layers(pooled)


def main(model: FasterRCNN, iterations: int = 200) -> list[float]:
    model.eval()
    shape, data, collate = model.shape, DigitsDetection("train"), Collate(model.config.preprocess)
    head = ParityHead(shape.channels, shape.roi_strides)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.02, momentum=0.9)
    rng = torch.tensor([0, 0])  # seed and step of the samples
    losses = []
    for step in range(iterations):
        batch = collate([data[(2 * step + i) % len(data)] for i in range(2)])
        with torch.no_grad():
            features = model.features(batch.images)
            rpn = model.rpn(features, tuple(batch.images.shape[2:]))
            proposals = model.propose(rpn, batch.image_sizes, batch.image_scales)
        # Label 1 is the digit 0: 1 for even, 2 for odd.
        parity = torch.where(batch.gt_labels > 0, (batch.gt_labels - 1) % 2 + 1, -1)
        sampled = ops.sample_rois(
            proposals.boxes, proposals.counts, batch.gt_boxes, parity, batch.gt_counts, rng, batch_size=32
        )
        image = torch.arange(len(batch))[:, None, None].expand(-1, 32, 1).float()
        image = torch.where(sampled.labels[..., None] >= 0, image, -1)  # -1: a row of padding
        rois = torch.cat([image, sampled.rois], -1).flatten(0, 1)
        maps = tuple(features[level] for level in shape.roi_levels)
        loss = nn.functional.cross_entropy(head(maps, rois), sampled.labels.flatten(), ignore_index=-1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rng[1] += 1
        losses.append(float(loss.detach()))
        if step % 20 == 0:
            print(f"step {step}: loss {losses[-1]:.3f}")
    return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", required=True, metavar="RUN", help="of the embedded digits: make train")
    main(Detector(parser.parse_args().checkpoint).model)
