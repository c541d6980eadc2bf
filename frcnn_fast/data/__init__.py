"""Data sets, transforms and batching.

A data set is anything with `__len__`, `__getitem__(index) -> (image, target)` and `class_names` (a list
without the background). `image` is a uint8 tensor [3, H, W], RGB; `target` a dict:

    boxes      float32 [G, 4]  x1, y1, x2, y2 in pixels, half-open: the whole image is (0, 0, W, H)
    labels     int64 [G]       1..K; label k is class_names[k - 1]; 0 is the background
    difficult  bool [G]        no positive in training, not counted in evaluation
    image_id   str

It may have `area`, float [G], where the data says another size of an object than its box's (COCO's evaluation asks).

`checked_target` is these rules; other types are taken where their meaning is plain (its docstring says which), and the
rest is refused before the first update. A data set that also has `target(index)`, the target without its image (and
perhaps `image_size(index)`), is checked whole in no time. `torch.utils.data.Subset`, so `random_split`, and
`ConcatDataset` of such data sets will do.
"""

from frcnn_fast._names import checked_class_names
from frcnn_fast.data.augment import AugmentedDetection
from frcnn_fast.data.batch import Batch, Collate
from frcnn_fast.data.cache import CachedDetection
from frcnn_fast.data.coco import CocoDetection
from frcnn_fast.data.config import DataConfig
from frcnn_fast.data.datasets import check_dataset, check_datasets, class_names_of
from frcnn_fast.data.digits import DigitsDetection
from frcnn_fast.data.images import read_image
from frcnn_fast.data.proposals import ProposalSet, read_proposals, write_proposals
from frcnn_fast.data.selective_search import selective_search
from frcnn_fast.data.table import CsvDetection
from frcnn_fast.data.targets import check_target, checked_target
from frcnn_fast.data.transforms import (
    DetectionDataset,
    DetectionView,
    Preprocess,
    boxes_to_original,
    horizontal_flip,
    resize,
)
from frcnn_fast.data.voc import VocDetection
from frcnn_fast.data.yolo import YoloDetection

__all__ = [
    "AugmentedDetection",
    "Batch",
    "CachedDetection",
    "CocoDetection",
    "Collate",
    "CsvDetection",
    "DataConfig",
    "DetectionDataset",
    "DetectionView",
    "DigitsDetection",
    "Preprocess",
    "ProposalSet",
    "VocDetection",
    "YoloDetection",
    "boxes_to_original",
    "check_dataset",
    "check_datasets",
    "check_target",
    "checked_class_names",
    "checked_target",
    "class_names_of",
    "horizontal_flip",
    "read_image",
    "read_proposals",
    "resize",
    "selective_search",
    "write_proposals",
]
