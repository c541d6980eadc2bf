"""How the CUDA half launches: in how many launches (and fills) a call is done, each of which is a node of a captured
graph and costs as much as a small kernel; and by which way, on devices and with code that lack clusters of blocks.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from torch import Tensor

from tests.simt.backend import AMPERE, HOPPER, OLD_CODE, missing_reason, use_simt

from .backends import CLUSTER_OPS, Backend
from .harness import Case, Op, assert_conforms, expected, inputs, run
from .suite import BY_NAME

pytestmark = pytest.mark.skipif(bool(missing_reason()), reason=missing_reason())

# By op and case: on a device that has clusters, and, where that is another number, on one that has not.
NODES = {
    ("decode_clip", "one-level"): (1,),
    ("encode", "legacy"): (1,),
    ("top_n", "N2049-n300"): (1,),
    ("nms", "N65"): (1, 6),
    ("batched_nms", "strided"): (1, 6),
    ("nms_padded", "counts-classes-odd"): (1, 8),
    ("nms_padded", "max-output-64"): (16,),  # too many boxes for a cluster of the test build
    ("rpn_proposals", "grid"): (1, 8),
    ("rpn_proposals", "five-levels"): (2, 6),
    ("assign_anchors", "grid"): (2,),
    ("sample_anchors", "few-positives"): (2,),
    ("rpn_targets", "grid"): (2,),
    ("sample_rois", "crowd"): (2,),
    ("detections", "K20"): (1,),
    ("detections", "K80"): (28,),  # too many classes for a cluster of the test build
    ("roi_pool", "K33"): (1,),
    ("roi_align", "K33"): (2,),
}


def find(op: str, case: str) -> tuple[Op, Case]:
    (found,) = [c for c in BY_NAME[op].cases if c.name == case]
    return BY_NAME[op], found


def right_results(op: Op, case: Case, device: int) -> tuple[tuple[Tensor, ...], int]:
    """What the op gives on a device of the harness, equal to what the oracle gives, and in how many launches."""
    from frcnn_fast import _C  # type: ignore[attr-defined]

    before = _C.launches()
    results = run(op, Backend("simt", lambda: use_simt(device)), case)
    launches = _C.launches() - before
    assert_conforms(op, results, expected(op, case), inputs(case), f"{op.name} on device {device}, {case.name}")
    return results, launches


@pytest.mark.parametrize(("op", "case"), NODES, ids=[f"{op}-{case}" for op, case in NODES])
def test_launches(op: str, case: str) -> None:
    """Code without clusters, on a device that could have them, goes the way of a device that could not."""
    found = find(op, case)
    with_clusters, without = NODES[op, case][0], NODES[op, case][-1]
    assert right_results(*found, HOPPER)[1] == with_clusters
    if op in CLUSTER_OPS:
        assert right_results(*found, AMPERE)[1] == without
        assert right_results(*found, OLD_CODE)[1] == without


@pytest.fixture
def few_rows() -> Iterator[None]:
    """Grids whose second and third dimension end early, as they do at 65,535."""
    from frcnn_fast import _C  # type: ignore[attr-defined]

    _C.set_most_grid_yz(9)
    yield
    _C.set_most_grid_yz(65535)


@pytest.mark.parametrize("device", [HOPPER, AMPERE])
@pytest.mark.usefixtures("few_rows")
def test_more_segments_than_a_grid_has_rows(device: int) -> None:
    """Ten segments: two images of five levels."""
    right_results(*find("rpn_proposals", "five-levels"), device)
