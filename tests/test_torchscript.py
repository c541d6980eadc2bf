"""The RoI modules under torch.jit.script, torch.jit.trace and torch.fx, as torchvision's modules allow it."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from frcnn_fast import ops

MODULES: list[nn.Module] = [
    ops.RoIPool(3, 0.25),
    ops.RoIPool((3, 2), 0.25),
    ops.RoIAlign(3, 0.25, 2),
    ops.RoIAlign((2, 3), 0.25, -1, True),
    ops.RoIAlign(3, 0.25, 2, memory_format=torch.channels_last),
    ops.PrRoIPool(3, 0.25),
]
ROIS = torch.tensor([[0, 1, 1, 40, 50.0], [1, 3, 3, 20, 60], [1, 0, 9, 44, 30]])
BOXES = [ROIS[:1, 1:], ROIS[1:, 1:]]
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")


def maps(*size: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(3))


def saved_and_loaded(scripted: Any) -> Any:
    file = io.BytesIO()
    torch.jit.save(scripted, file)
    file.seek(0)
    return torch.jit.load(file)


@pytest.mark.parametrize("listed", [False, True], ids=["rows", "list"])
@pytest.mark.parametrize("module", MODULES, ids=repr)
def test_scripted(module: nn.Module, listed: bool) -> None:
    scripted = saved_and_loaded(torch.jit.script(module))
    rois = BOXES if listed else ROIS
    x = maps(2, 8, 12, 12)
    for given in (x, x.to(memory_format=torch.channels_last), x[:, :, ::2], x.half(), x.double()):
        assert torch.equal(scripted(given, rois), module(given, rois))
        assert scripted(given, rois).stride() == module(given, rois).stride()

    def gradient(function: Any) -> Tensor:
        leaf = x.clone().requires_grad_()
        function(leaf, rois).square().sum().backward()
        assert leaf.grad is not None
        return leaf.grad

    assert torch.equal(gradient(scripted), gradient(module))


def test_scripted_modules_check_their_arguments() -> None:
    scripted = torch.jit.script(ops.RoIAlign(3, 0.25, 2))
    with pytest.raises(Exception, match=r"image index|names image"):
        scripted(maps(1, 8, 12, 12), ROIS)
    with pytest.raises(Exception, match=r"rois: expected \[R, 5\]"):
        scripted(maps(2, 8, 12, 12), ROIS[:, 1:])


@pytest.mark.parametrize("module", MODULES, ids=repr)
def test_traced(module: nn.Module) -> None:
    traced = saved_and_loaded(torch.jit.trace(module, (maps(2, 8, 12, 12), ROIS)))
    other = maps(2, 8, 15, 14)
    assert torch.equal(traced(other, ROIS[:2]), module(other, ROIS[:2]))


@pytest.mark.parametrize("listed", [False, True], ids=["rows", "list"])
@pytest.mark.parametrize("module", MODULES, ids=repr)
def test_symbolic(module: nn.Module, listed: bool) -> None:
    symbolic = torch.fx.symbolic_trace(module)
    assert len([node for node in symbolic.graph.nodes if node.op == "call_function"]) == 1
    x, rois = maps(2, 8, 12, 12), BOXES if listed else ROIS
    assert torch.equal(symbolic(x, rois), module(x, rois))


@pytest.mark.parametrize("size", [3, (2, 3), [3, 3]], ids=str)
def test_multiscale(size: Any) -> None:
    x = {"0": maps(2, 8, 12, 12), "1": maps(2, 8, 6, 6), "pool": maps(2, 8, 3, 3)}
    shapes = [(48, 48), (40, 48)]

    def module() -> nn.Module:
        return ops.MultiScaleRoIAlign(["0", "1"], size, 2, canonical_scale=32)

    eager, untouched = module(), module()
    wanted = eager(x, BOXES, shapes)
    scripted = saved_and_loaded(torch.jit.script(module()))
    assert torch.equal(scripted(x, BOXES, shapes), wanted)
    assert scripted.scales == eager.scales == [0.25, 0.125]
    symbolic = torch.fx.symbolic_trace(untouched)
    assert untouched.scales is None
    assert torch.equal(symbolic(x, BOXES, shapes), wanted)
    with pytest.raises(Exception, match="expected some of the maps"):
        scripted({"5": x["0"]}, BOXES, shapes)
