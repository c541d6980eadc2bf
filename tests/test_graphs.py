"""Every fixed-shape op inside a CUDA graph, under torch's synchronisation debug mode. Needs a GPU."""

from __future__ import annotations

import os

import pytest
import torch

from tests.samples import samples
from tests.test_compile import same

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() and "cuda" not in os.environ.get("FRCNN_REQUIRE", ""), reason="needs a CUDA device"
)
FIXED = sorted(name for name, sample in samples().items() if not sample.dynamic)
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", FIXED)
def test_captured_graph_replays_the_eager_result(name: str, dtype: torch.dtype) -> None:
    sample = samples("cuda", dtype)[name]
    wanted = sample()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.cuda.stream(stream):
            same(sample(), wanted)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = sample()
        for _ in range(3):
            graph.replay()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    same(captured, wanted)


@pytest.mark.parametrize("name", ["sample_anchors", "rpn_targets", "sample_rois"])
def test_captured_sampling_draws_anew_when_the_step_advances(name: str) -> None:
    sample = samples("cuda")[name]
    rng = sample.tensors[-1]
    graph = torch.cuda.CUDAGraph()
    sample()
    with torch.cuda.graph(graph):
        captured = sample()
    for step in range(3):
        rng[1] = step
        graph.replay()
        same(captured, sample())


@pytest.mark.parametrize("name", FIXED)
def test_repeats_are_equal_to_the_bit(name: str) -> None:
    sample = samples("cuda")[name]
    wanted = sample()
    for _ in range(100):
        same(sample(), wanted)
