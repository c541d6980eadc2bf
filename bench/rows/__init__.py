"""All rows, family by family: importing this fills the registry."""

from bench.rows import anchors, detections, pooling, proposals, suppression, targets, top_n, whole

__all__ = ["anchors", "detections", "pooling", "proposals", "suppression", "targets", "top_n", "whole"]
