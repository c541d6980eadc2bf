"""How good detections and proposals are: PASCAL VOC and COCO average precision, recall, mistakes."""

from frcnn_fast.evaluation.coco import CocoEvaluator, CocoResult
from frcnn_fast.evaluation.curves import Curve, pooled
from frcnn_fast.evaluation.mistakes import Mistakes, Verdict, confusion_matrix, worst_first
from frcnn_fast.evaluation.recall import RecallEvaluator, RecallResult, recall_table
from frcnn_fast.evaluation.voc import VocEvaluator, VocResult, voc_ap

__all__ = [
    "CocoEvaluator",
    "CocoResult",
    "Curve",
    "Mistakes",
    "RecallEvaluator",
    "RecallResult",
    "Verdict",
    "VocEvaluator",
    "VocResult",
    "confusion_matrix",
    "pooled",
    "recall_table",
    "voc_ap",
    "worst_first",
]
