"""Every op under torch.library's own checks, torch.compile(fullgraph=True) and torch.export."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from frcnn_fast import ops
from tests.samples import samples

NAMES = sorted(samples())


class Recorder(TorchDispatchMode):
    """Notes the calls of this library's registered ops."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "frcnn_fast":
            self.calls.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))


def same(got: Any, wanted: Any) -> None:
    got = got if isinstance(got, (tuple, list)) else (got,)
    wanted = wanted if isinstance(wanted, (tuple, list)) else (wanted,)
    for g, w in zip(got, wanted, strict=True):
        torch.testing.assert_close(g, w, rtol=0, atol=0, equal_nan=True)


def test_every_public_op_has_a_sample() -> None:
    functions = {name for name in ops.__all__ if callable(getattr(ops, name)) and name.islower()}
    assert functions - {"use_backend", "generate_anchors"} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_opcheck(name: str) -> None:
    sample = samples()[name]
    with Recorder() as recorder:
        sample()
    assert recorder.calls, f"{name} went past the dispatcher under a dispatch mode"
    for func, args, kwargs in recorder.calls:
        torch.library.opcheck(func, args, kwargs)


@pytest.mark.parametrize("name", NAMES)
def test_compiles_to_one_graph(name: str) -> None:
    sample = samples()[name]
    torch._dynamo.reset()
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(sample, fullgraph=True, backend="aot_eager")
        same(compiled(*sample.tensors), sample())


@pytest.mark.parametrize("name", NAMES)
def test_exports(name: str) -> None:
    sample = samples()[name]

    class Module(torch.nn.Module):
        def forward(self, tensors: list[torch.Tensor]) -> Any:
            return sample(*tensors)

    program = torch.export.export(Module(), (sample.tensors,))
    assert any("frcnn_fast" in str(node.target) for node in program.graph.nodes)
    same(program.module()(sample.tensors), sample())


@pytest.mark.parametrize(
    "name", ["roi_pool", "roi_align", "prroi_pool", "multiscale_roi_align", "decode_clip", "box_iou"]
)
def test_gradients_survive_compilation(name: str) -> None:
    sample = samples()[name]

    def gradients(function: Any) -> list[torch.Tensor]:
        inputs = [t.clone().requires_grad_(i == 0) for i, t in enumerate(sample.tensors)]
        result = function(*inputs)
        first = result[0] if isinstance(result, tuple) else result
        first.square().sum().backward()
        assert inputs[0].grad is not None
        return [inputs[0].grad]

    torch._dynamo.reset()
    same(gradients(torch.compile(sample, fullgraph=True, backend="aot_eager")), gradients(sample))
