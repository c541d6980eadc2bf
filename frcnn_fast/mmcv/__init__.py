"""Stands in for mmcv's compiled half, `mmcv._ext`, where it is not installed: docs/mmdetection.md.

finder.py is all that is imported until somebody imports mmcv._ext; table.py says what serves each of its functions.
"""

from frcnn_fast.mmcv.finder import StandIn, stand_in_for_mmcv

__all__ = ["StandIn", "stand_in_for_mmcv"]
