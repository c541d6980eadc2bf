"""Data sets, transforms and batching.

A data set is anything with `__len__`, `__getitem__(index) -> (image, target)` and `class_names` (a list
without the background). `image` is a uint8 tensor [3, H, W], RGB; `target` a dict:

    boxes      float32 [G, 4]  x1, y1, x2, y2 in pixels, half-open: the whole image is (0, 0, W, H)
    labels     int64 [G]       1..K; label k is class_names[k - 1]; 0 is the background
    difficult  bool [G]        no positive in training, not counted in evaluation
    image_id   str
"""

from frcnn_fast.data.batch import Batch, Collate
from frcnn_fast.data.digits import DigitsDetection
from frcnn_fast.data.transforms import (
    DetectionDataset,
    DetectionView,
    Preprocess,
    boxes_to_original,
    horizontal_flip,
    read_image,
    resize,
)
from frcnn_fast.data.voc import VocDetection

__all__ = [
    "Batch",
    "Collate",
    "DetectionDataset",
    "DetectionView",
    "DigitsDetection",
    "Preprocess",
    "VocDetection",
    "boxes_to_original",
    "horizontal_flip",
    "read_image",
    "resize",
]
