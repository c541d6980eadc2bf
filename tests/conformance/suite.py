"""Every op under test, with its cases."""

from __future__ import annotations

from . import cases_anchor_decode, cases_anchor_target, cases_detections, cases_nms, cases_roi_pool, cases_top_n
from .harness import Op

FAMILIES = (cases_anchor_decode, cases_top_n, cases_nms, cases_anchor_target, cases_roi_pool, cases_detections)
OPS: tuple[Op, ...] = tuple(op for family in FAMILIES for op in family.OPS)
BY_NAME = {op.name: op for op in OPS}
