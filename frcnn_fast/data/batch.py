"""From samples of different sizes to one padded batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from frcnn_fast.data.targets import checked_sample, checked_target, image_name
from frcnn_fast.data.transforms import Preprocess, Sample


@dataclasses.dataclass
class Batch:
    """B images with their objects, padded to common shapes.

    Attributes:
        images: float32 [B, 3, H, W], preprocessed; zero (the mean colour) right of and below each image.
        image_sizes: int64 [B, 2], height and width of each image inside `images`.
        image_scales: float32 [B], size in `images` per size in the original image.
        original_sizes: int64 [B, 2], height and width before resizing.
        gt_boxes: float32 [B, G, 4], pixels of `images`, zero in padded rows.
        gt_labels: int64 [B, G], 1..K, -1 in padded rows.
        gt_counts: int64 [B], objects of each image, padded rows not counted.
        crowd: bool [B, G], the difficult objects; False in padded rows.
        image_ids: B strings.
        proposals: float32 [B, N, 4], pixels of `images`, zero in padded rows; None where the samples have none.
        proposal_counts: int64 [B].
    """

    images: Tensor
    image_sizes: Tensor
    image_scales: Tensor
    original_sizes: Tensor
    gt_boxes: Tensor
    gt_labels: Tensor
    gt_counts: Tensor
    crowd: Tensor
    image_ids: list[str]
    proposals: Tensor | None = None
    proposal_counts: Tensor | None = None

    def __len__(self) -> int:
        return len(self.image_ids)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch with every tensor on `device`."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory; a DataLoader with pin_memory=True calls this."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, function) -> Batch:
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return Batch(**{name: function(v) if isinstance(v, Tensor) else v for name, v in fields.items()})


class Collate:
    """Makes a `Batch` of a list of samples; give it to a DataLoader as `collate_fn`.

    Args:
        preprocess: "caffe", "torch" or a `Preprocess`.
        stride: height and width of the batch are rounded up to a multiple of this, so that a network's maps
            are whole.
        max_boxes: G is always this (an image with more objects is an error); None takes the largest count of
            the batch. With it, and images of one size, every batch has the same shapes.
        num_classes: K; None leaves the labels without an upper bound.

    Raises:
        ValueError: a sample breaks the rules of `frcnn_fast.data.checked_target`; names the image, the key, its value.
    """

    def __init__(
        self,
        preprocess: Preprocess | str = "torch",
        stride: int = 32,
        max_boxes: int | None = None,
        num_classes: int | None = None,
    ) -> None:
        if stride < 1:
            raise ValueError(f"stride must be at least 1, got {stride}")
        self.preprocess = Preprocess(preprocess) if isinstance(preprocess, str) else preprocess
        self.stride = stride
        self.max_boxes, self.num_classes = max_boxes, num_classes

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        if not samples:
            raise ValueError("samples is empty: a batch needs at least one image")
        samples = [self._checked(sample, place) for place, sample in enumerate(samples)]
        sizes = [(int(image.shape[-2]), int(image.shape[-1])) for image, _ in samples]
        counts = [len(target["labels"]) for _, target in samples]
        batch_size = len(samples)
        padded = max(counts) if self.max_boxes is None else self.max_boxes

        height, width = self.padded(*map(max, zip(*sizes)))
        images = torch.empty(batch_size, 3, height, width)
        gt_boxes = torch.zeros(batch_size, padded, 4)
        gt_labels = torch.full((batch_size, padded), -1, dtype=torch.int64)
        crowd = torch.zeros(batch_size, padded, dtype=torch.bool)
        for b, (image, target) in enumerate(samples):
            (h, w), count = sizes[b], counts[b]
            self.preprocess(image, out=images[b, :, :h, :w], whole=image.dtype == torch.uint8)
            images[b, :, h:, :] = 0
            images[b, :, :h, w:] = 0
            gt_boxes[b, :count] = target["boxes"]
            gt_labels[b, :count] = target["labels"]
            crowd[b, :count] = target["difficult"]
        return Batch(
            images=images,
            image_sizes=torch.tensor(sizes, dtype=torch.int64),
            image_scales=torch.tensor([target.get("scale", 1.0) for _, target in samples], dtype=torch.float32),
            original_sizes=torch.tensor(
                [target.get("original_size", size) for (_, target), size in zip(samples, sizes)],
                dtype=torch.int64,
            ),
            gt_boxes=gt_boxes,
            gt_labels=gt_labels,
            gt_counts=torch.tensor(counts, dtype=torch.int64),
            crowd=crowd,
            image_ids=[target["image_id"] for _, target in samples],
            **_padded_proposals([target.get("proposals") for _, target in samples]),
        )

    def padded(self, height: int, width: int) -> tuple[int, int]:
        """The shape that an image of this size has in a batch of its own."""
        return -(-height // self.stride) * self.stride, -(-width // self.stride) * self.stride

    def _checked(self, sample: Sample, place: int) -> Sample:
        if self.max_boxes is not None and isinstance(sample[1], Mapping):
            boxes: Any = sample[1].get("boxes")
            if hasattr(boxes, "__len__") and len(boxes) > self.max_boxes:
                name = image_name(sample[1], place)
                raise ValueError(f"image {name} has {len(boxes)} boxes, max_boxes is {self.max_boxes}: raise it")
        image, target = sample
        if isinstance(image, Tensor) and image.dtype == torch.float32 and "scale" in target:
            # `resize` made it, without rounding; anybody else's floats may be of any range.
            size = int(image.shape[1]), int(image.shape[2])
            return image, checked_target(target, size, self.num_classes, name=place)
        return checked_sample(sample, self.num_classes, name=place)


def _padded_proposals(proposals: Sequence[Tensor | None]) -> dict[str, Tensor]:
    """The batch's entries of given proposals [N, 4]; none where an image comes without."""
    given = [boxes for boxes in proposals if boxes is not None]
    if not given:
        return {}
    if len(given) < len(proposals):
        raise ValueError("samples: some have proposals and some have none, expected all or none of a batch")
    return {"proposals": pad_sequence(given, batch_first=True), "proposal_counts": torch.tensor([*map(len, given)])}
