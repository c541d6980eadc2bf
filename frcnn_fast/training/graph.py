"""Whole training iterations as CUDA graphs: the host starts one, and waits for nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from frcnn_fast.data import Batch

Losses = dict[str, Tensor]
Step = Callable[[Batch], Losses]
Shapes = tuple[tuple[str, tuple[int, ...]], ...]

STRIDE = 128  # batches' heights and widths are rounded up to multiples of this: fewer shapes, fewer graphs
_WARM_UPS = 2  # iterations of a shape that run as they are: libraries choose their kernels, optimisers their buffers
_MOST_GRAPHS = 32  # each has its batch, and some megabytes in the driver; further shapes run as they are


class Recorder(Protocol):
    """Where a step runs, and how it becomes something that can be repeated."""

    def run(self, call: Callable[[], Losses]) -> Losses:
        """The call, now."""
        ...

    def record(self, call: Callable[[], Losses]) -> tuple[Callable[[], object], Losses]:
        """What repeats the call, which has not run yet, and where its results will be."""
        ...


class CudaRecorder:
    """Steps on a stream of their own, and their graphs, which share their memory: no two run at a time."""

    def __init__(self, device: torch.device) -> None:
        self._stream, self._pool = torch.cuda.Stream(device), torch.cuda.graph_pool_handle()

    def run(self, call: Callable[[], Losses]) -> Losses:
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            losses = call()
        torch.cuda.current_stream().wait_stream(self._stream)
        return losses

    def record(self, call: Callable[[], Losses]) -> tuple[Callable[[], object], Losses]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            losses = call()
        return graph.replay, losses


class GraphedStep:
    """An iteration that is replayed as a graph, one for each shape that a batch comes in.

    The first iterations of a shape run as they are, on the recorder's stream; then one is recorded. A graph reads its
    batch from buffers of its own, into which every batch of the shape is copied. So the number of objects is padded to
    a power of two, which changes no result: padded rows take no part.

    Args:
        step: forward, losses, backward and update. What changes between two calls has to lie in tensors: the weights,
            the learning rate, the random state.
        recorder: `CudaRecorder`.
    """

    def __init__(self, step: Step, recorder: Recorder) -> None:
        self._step, self._recorder = step, recorder
        self._warm: dict[Shapes, int] = {}
        self._graphs: dict[Shapes, _Graph] = {}

    def __call__(self, batch: Batch) -> Losses:
        batch = padded(batch)
        shapes = _shapes(batch)
        graph = self._graphs.get(shapes)
        if graph is None:
            warm = self._warm[shapes] = self._warm.get(shapes, 0) + 1
            if warm <= _WARM_UPS or len(self._graphs) == _MOST_GRAPHS:
                return self._recorder.run(lambda: self._step(batch))
            graph = self._graphs[shapes] = _Graph(self._step, batch, self._recorder)
        return graph(batch)


class _Graph:
    """A recorded step, the batch that it reads and the losses that it writes."""

    def __init__(self, step: Step, batch: Batch, recorder: Recorder) -> None:
        own: dict[str, Any] = {name: tensor.clone() for name, tensor in _tensors(batch).items()}
        self._batch = dataclasses.replace(batch, **own)
        self._replay, self._losses = recorder.record(lambda: step(self._batch))

    def __call__(self, batch: Batch) -> Losses:
        own, given = _tensors(self._batch), _tensors(batch)
        for name, tensor in own.items():
            tensor.copy_(given[name], non_blocking=True)
        self._replay()
        return {name: loss.clone() for name, loss in self._losses.items()}


def _tensors(batch: Batch) -> dict[str, Tensor]:
    fields = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    return {name: value for name, value in fields.items() if isinstance(value, Tensor)}


def _shapes(batch: Batch) -> Shapes:
    return tuple((name, tuple(tensor.shape)) for name, tensor in _tensors(batch).items())


def padded(batch: Batch) -> Batch:
    """The batch with its rows of ground truth, and of given proposals, filled up to a power of two."""
    truth = _missing(batch.gt_labels.shape[1], 16)
    more: dict[str, Any] = {
        "gt_boxes": pad(batch.gt_boxes, (0, 0, 0, truth)),
        "gt_labels": pad(batch.gt_labels, (0, truth), value=-1),
        "crowd": pad(batch.crowd, (0, truth), value=False),
    }
    if batch.proposals is not None:
        more["proposals"] = pad(batch.proposals, (0, 0, 0, _missing(batch.proposals.shape[1], 256)))
    return dataclasses.replace(batch, **more)


def _missing(rows: int, least: int) -> int:
    return max(least, 1 << (rows - 1).bit_length() if rows else 0) - rows
