"""The Triton kernels without a GPU: every one compiles for every target, without spills and without fused
multiply-adds. What they compute is the conformance suite's matter (TRITON_INTERPRET=1)."""

from __future__ import annotations

import os
import re

import pytest

from tests.conformance.backends import TRITON_OPS
from tests.conformance.harness import Op, inputs, to_device
from tests.conformance.suite import OPS

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

from tests.triton_ahead import TARGETS, kernels_of, resources

LONG = bool(os.environ.get("FRCNN_LONG"))
SERVED = [op for op in OPS if op.name in TRITON_OPS]


def kernels(op: Op, target: str) -> list:
    """Of all small cases of the op; outside the long run those in float32, one of each in another type."""
    cases = [case for case in op.cases if case.small and case.as_if is None]
    if not LONG:
        cases = [case for case in cases if not case.name.startswith(("f64", "f16", "bf16"))]
        if op.name.startswith(("roi_", "multiscale_")):  # compiled anew for each number of channels and of bins
            cases = [case for i, case in enumerate(cases) if i % 4 == 1 or "channels" in case.name]
    found: dict[int, object] = {}
    for case in cases:
        args = {name: to_device(value, "cpu") for name, value in inputs(case).items()}
        found |= {id(kernel): kernel for kernel in kernels_of(lambda args=args: op.call(args), TARGETS[target])}
    assert found, f"{op.name} launches no Triton kernel"
    return list(found.values())


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("op", SERVED, ids=lambda op: op.name)
def test_compiles_ahead(op: Op, target: str) -> None:
    for kernel in kernels(op, target):
        used = resources(kernel)
        assert used.spills == 0, f"{kernel.name} on {target} spills: {used}"
        if "ptx" in kernel.asm:
            fused = re.findall(r"\bfma\.\S+", kernel.asm["ptx"])
            assert not fused, f"{kernel.name} on {target} has fused multiply-adds: {set(fused)}"
            assert "div.full" not in kernel.asm["ptx"], f"{kernel.name} on {target} divides approximately"
