"""How good detections are: PASCAL VOC and COCO average precision."""

from frcnn_fast.evaluation.coco import CocoEvaluator, CocoResult
from frcnn_fast.evaluation.voc import VocEvaluator, VocResult, voc_ap

__all__ = ["CocoEvaluator", "CocoResult", "VocEvaluator", "VocResult", "voc_ap"]
