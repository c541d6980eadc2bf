"""The Triton kernels without a GPU: every one compiles for every target, without spills and without fused
multiply-adds. What they compute is the conformance suite's matter (TRITON_INTERPRET=1)."""

from __future__ import annotations

import os
import re

import pytest

from tests.conformance.harness import Op, inputs, to_device
from tests.conformance.suite import OPS

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

from bench.triton_ahead import TARGETS, compiling, resources

LONG = bool(os.environ.get("FRCNN_LONG"))
KNOWN: dict[str, set] = {}
WITH_KERNELS = [op for op in OPS if op.name != "generate_anchors"]  # that one is made on the host, once a model


def kernels(op: Op, target: str) -> list:
    """Of all cases of the op, since some kernels serve large ones only: in the long run every form of every kernel,
    else one form of each, found by whichever op comes first."""
    known = None if LONG else KNOWN.setdefault(target, set())
    with compiling(TARGETS[target], known) as found:
        for case in op.cases:
            if case.as_if is None:
                op.call({name: to_device(value, "cpu") for name, value in inputs(case).items()})
    assert found.launches, f"{op.name} launches no Triton kernel"
    return found.kernels


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("op", WITH_KERNELS, ids=lambda op: op.name)
def test_compiles_ahead(op: Op, target: str) -> None:
    for kernel in kernels(op, target):
        used = resources(kernel)
        assert used.spills == 0, f"{kernel.name} on {target} spills: {used}"
        if "ptx" in kernel.asm:
            fused = re.findall(r"\bfma\.\S+", kernel.asm["ptx"])
            assert not fused, f"{kernel.name} on {target} has fused multiply-adds: {set(fused)}"
            assert "div.full" not in kernel.asm["ptx"], f"{kernel.name} on {target} divides approximately"
