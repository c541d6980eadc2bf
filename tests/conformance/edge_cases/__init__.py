"""Small cases whose answers were worked out by hand; the comment beside each shows the calculation.

The oracle must give these answers, and so must every backend.
"""

from .decode import ANCHORS, DECODE, ENCODE, PROPOSALS
from .detections import DETECTIONS
from .nms import BOX_IOU, NMS, NMS_PADDED, TOP_N
from .pooling import ROI_ALIGN, ROI_POOL
from .table import EdgeCase
from .targets import ASSIGN, ROIS, SAMPLE

EDGE_CASES: tuple[EdgeCase, ...] = (
    *BOX_IOU,
    *NMS,
    *NMS_PADDED,
    *TOP_N,
    *DECODE,
    *ENCODE,
    *ANCHORS,
    *PROPOSALS,
    *ASSIGN,
    *SAMPLE,
    *ROIS,
    *ROI_POOL,
    *ROI_ALIGN,
    *DETECTIONS,
)

__all__ = ["EDGE_CASES", "EdgeCase"]
