"""How many launches (and fills) the CUDA half needs for a call: each is a node of a captured graph, and costs as much
as a small kernel."""

from __future__ import annotations

import pytest

from tests.simt.backend import missing_reason, use_simt

from .harness import inputs, to_device
from .suite import BY_NAME

# By op and case.
NODES = {
    ("decode_clip", "one-level"): 1,
    ("encode", "legacy"): 1,
    ("top_n", "many-rows"): 1,
    ("rpn_proposals", "grid"): 1,
    ("rpn_proposals", "five-levels"): 2,
    ("assign_anchors", "grid"): 2,
    ("sample_anchors", "few-positives"): 2,
    ("rpn_targets", "grid"): 2,
    ("sample_rois", "crowd"): 2,
    ("roi_pool", "K33"): 1,
    ("roi_align", "K33"): 2,
}


@pytest.mark.skipif(bool(missing_reason()), reason=missing_reason())
@pytest.mark.parametrize(("op", "case"), NODES, ids=[f"{op}-{case}" for op, case in NODES])
def test_launches(op: str, case: str) -> None:
    """On a device that has clusters of blocks."""
    from frcnn_fast import _C  # type: ignore[attr-defined]

    (found,) = [c for c in BY_NAME[op].cases if c.name == case]
    args = {name: to_device(value, "cpu") for name, value in inputs(found).items()}
    with use_simt():
        before = _C.launches()
        BY_NAME[op].call(args)
    assert _C.launches() - before == NODES[op, case]
