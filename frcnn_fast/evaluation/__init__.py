"""How good detections and proposals are: PASCAL VOC and COCO average precision, recall."""

from frcnn_fast.evaluation.coco import CocoEvaluator, CocoResult
from frcnn_fast.evaluation.recall import RecallEvaluator, RecallResult, recall_table
from frcnn_fast.evaluation.voc import VocEvaluator, VocResult, voc_ap

__all__ = [
    "CocoEvaluator",
    "CocoResult",
    "RecallEvaluator",
    "RecallResult",
    "VocEvaluator",
    "VocResult",
    "recall_table",
    "voc_ap",
]
