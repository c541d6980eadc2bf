"""Selective Search (Uijlings et al. 2013), the proposals before there were networks for them, as OpenCV has it."""

from __future__ import annotations

import contextlib
import ctypes

import torch
from torch import Tensor

from frcnn_fast._extras import require
from frcnn_fast.data.transforms import resize, scale_boxes

MODES = ("fast", "quality")


def selective_search(image: Tensor, mode: str = "fast", *, width: int = 500) -> Tensor:
    """Boxes around the segments of an image at every level of a hierarchical grouping, best first.

    Args:
        image: uint8 [3, H, W], RGB.
        mode: "fast" (about 2,000 boxes, seconds an image) or "quality" (several times as many, and as long).
        width: wider images are searched at this width, as R-CNN did (Girshick et al. 2014).

    Returns:
        float32 [N, 4], half-open, in pixels of `image`; no box twice. Their order is partly random, by the paper's
        design; it is the same in every call where the C library's generator can be seeded (not on Windows).

    Raises:
        ImportError: OpenCV with its contrib modules is missing (extra "selective-search").
        ValueError: another mode.
    """
    if mode not in MODES:
        raise ValueError(f"mode: got {mode!r}, expected {' or '.join(map(repr, MODES))}")
    cv2 = require("cv2", "selective-search")
    if not hasattr(cv2, "ximgproc"):
        raise ImportError(
            "this OpenCV lacks its contrib modules: pip uninstall it, then pip install 'frcnn_fast[selective-search]'"
        )
    small, _ = resize(image, None, max(1, round(width * max(image.shape[1:]) / image.shape[2])))
    search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(small.flip(0).permute(1, 2, 0).contiguous().numpy())
    (search.switchToSelectiveSearchFast if mode == "fast" else search.switchToSelectiveSearchQuality)()
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).srand(1)  # the order is drawn with rand()
    found = search.process()
    if not len(found):
        return torch.zeros(0, 4)
    boxes = torch.from_numpy(found).float()
    boxes[:, 2:] += boxes[:, :2]
    return scale_boxes(boxes, small.shape[1:], image.shape[1:])
