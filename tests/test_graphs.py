"""Every fixed-shape op, and a whole detector, inside a CUDA graph that does not synchronise. Needs a GPU."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch

import frcnn_fast
from frcnn_fast.data import Batch, DigitsDetection
from frcnn_fast.model import FasterRCNN, SmallBackbone, preset
from frcnn_fast.training import Training, recipe
from frcnn_fast.training.batches import TrainingBatches
from frcnn_fast.training.graph import padded
from tests.samples import samples
from tests.test_compile import same

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() and "cuda" not in os.environ.get("FRCNN_REQUIRE", ""), reason="needs a CUDA device"
)
FIXED = sorted(name for name, sample in samples().items() if not sample.dynamic)
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
BACKENDS = ["cuda", "triton"]


def capture(call: Callable[[], Any]) -> tuple[torch.cuda.CUDAGraph, Any]:
    """The call's graph and its results there. It has run once before, on another stream, and must not synchronise."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.cuda.stream(stream):
            call()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return graph, captured


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", FIXED)
def test_captured_graph_replays_the_eager_result(name: str, backend: str, dtype: torch.dtype) -> None:
    sample = samples("cuda", dtype)[name]
    with frcnn_fast.use_backend(backend):
        wanted = sample()
        graph, captured = capture(sample)
    for _ in range(3):
        graph.replay()
    torch.cuda.synchronize()
    same(captured, wanted)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["sample_anchors", "rpn_targets", "sample_rois"])
def test_captured_sampling_draws_anew_when_the_step_advances(name: str, backend: str) -> None:
    sample = samples("cuda")[name]
    rng = sample.tensors[-1]
    with frcnn_fast.use_backend(backend):
        sample()
        graph, captured = capture(sample)
        for step in range(3):
            rng[1] = step
            graph.replay()
            same(captured, sample())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", FIXED)
def test_repeats_are_equal_to_the_bit(name: str, backend: str) -> None:
    sample = samples("cuda")[name]
    with frcnn_fast.use_backend(backend):
        wanted = sample()
        for _ in range(100):
            same(sample(), wanted)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_replayed_iterations_train_as_eager_ones(optimizer: str) -> None:
    detectors = []
    batches: list[Batch] = []
    for cuda_graph in (False, True):
        options = recipe("small", iterations=12, warmup=3, optimizer=optimizer, lr=1e-3, cuda_graph=cuda_graph)
        torch.manual_seed(0)
        detector = FasterRCNN(SmallBackbone(), 11, preset("small")).cuda()
        batches = batches or list(TrainingBatches(DigitsDetection("train", length=16), detector.config, options))
        training = Training(detector, options, torch.device("cuda"))
        with torch.backends.cudnn.flags(deterministic=True):
            losses = [training.update(padded(batch).to("cuda")) for batch in batches]
        torch.cuda.synchronize()
        assert all(torch.isfinite(torch.stack(list(loss.values()))).all() for loss in losses)
        detectors.append(detector)
    for eager, replayed in zip(*(detector.parameters() for detector in detectors), strict=True):
        torch.testing.assert_close(replayed, eager, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_whole_detection_is_one_graph(backend: str) -> None:
    torch.manual_seed(0)
    detector = FasterRCNN(SmallBackbone(), 4, preset("small")).cuda().eval()
    images, sizes = torch.randn(2, 3, 192, 256, device="cuda"), torch.tensor([[192, 256], [160, 200]], device="cuda")
    exact = torch.backends.cudnn.flags(deterministic=True)
    with torch.inference_mode(), frcnn_fast.use_backend(backend), exact:
        wanted = detector(images, sizes)
        graph, captured = capture(lambda: detector(images, sizes))
        graph.replay()
    torch.cuda.synchronize()
    same(tuple(captured), tuple(wanted))
