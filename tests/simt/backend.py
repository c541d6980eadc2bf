"""The conformance suite's backends "simt" and "simt80": the CUDA kernels, run on the CPU by the test module, as on a
device of compute capability 9.0 and of 8.0, which has no clusters. A third device, OLD_CODE, is of 9.0 and has the code
of 8.0.

The test module takes the place of frcnn_fast._C, so it must be loaded before frcnn_fast is imported; a process that
does so is started by `python -m tests.run_sanitized` and knows the module by FRCNN_TEST_MODULE.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
import zlib
from collections.abc import Iterator

VARIABLE = "FRCNN_TEST_MODULE"

# Devices of the harness (tests/simt/runtime.h).
HOPPER, AMPERE, OLD_CODE = range(3)


def load_test_module() -> None:
    """Puts the module that FRCNN_TEST_MODULE names in the place of frcnn_fast._C."""
    import torch  # noqa: F401  (first: it brings the OpenMP runtime)

    path = os.environ[VARIABLE]
    assert "frcnn_fast" not in sys.modules, "frcnn_fast was imported before the test module could take its place"
    spec = importlib.util.spec_from_file_location("frcnn_fast._C", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["frcnn_fast._C"] = module
    spec.loader.exec_module(module)


def missing_reason() -> str:
    """Why this process has no backend "simt"; empty where it has one."""
    if not os.environ.get(VARIABLE):
        return "needs the instrumented test module: python -m tests.run_sanitized"
    return ""


@contextlib.contextmanager
def use_simt(device: int = HOPPER) -> Iterator[None]:
    """CPU tensors go to the CUDA launchers. SIMT_ORDER names the schedule; else each test has one of the three, always
    the same."""
    from frcnn_fast import _C  # type: ignore[attr-defined]

    if "SIMT_ORDER" not in os.environ:
        _C.set_order(zlib.crc32(os.environ.get("PYTEST_CURRENT_TEST", "").encode()) % 3)
    _C.set_device(device)
    _C.set_emulated(True)
    try:
        yield
    finally:
        _C.set_emulated(False)
