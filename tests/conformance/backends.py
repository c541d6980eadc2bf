"""The backends that the suite runs on: how each is switched on, on which device, and why one is missing."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

import frcnn_fast
from frcnn_fast import _extension
from tests.simt.backend import AMPERE, missing_reason, use_simt
from tests.triton_interpreter import patching_once_a_launch

ALWAYS = {"reference", "cpu"}
REQUIRED = ALWAYS | set(os.environ.get("FRCNN_REQUIRE", "").replace(" ", "").split(","))

LONG = bool(os.environ.get("FRCNN_LONG"))
# The ops that go another way on a device without clusters of blocks.
CLUSTER_OPS = frozenset({"top_n", "rpn_proposals", "nms", "batched_nms", "nms_padded", "detections"})


@dataclass(frozen=True)
class Backend:
    """slow: only cases marked `small` run on it, and one_in so many of an op's. missing: why it cannot run,
    empty where it can. ops: those it serves; None: all."""

    name: str
    activate: Callable[[], contextlib.AbstractContextManager]
    device: str = "cpu"
    missing: str = ""
    slow: bool = False
    one_in: int = 1
    ops: frozenset[str] | None = None

    def serves(self, op: str) -> bool:
        return self.ops is None or op in self.ops


def _cuda_missing() -> str:
    if not torch.cuda.is_available():
        return "torch.cuda.is_available() is False"
    return _extension.missing_reason


def _triton_missing() -> str:
    if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
        return "neither a GPU nor TRITON_INTERPRET=1"
    return ""


def _named(name: str) -> Callable[[], contextlib.AbstractContextManager]:
    return lambda: frcnn_fast.use_backend(name)


@contextlib.contextmanager
def _triton() -> Iterator[None]:
    interprets = os.environ.get("TRITON_INTERPRET") == "1"
    with frcnn_fast.use_backend("triton"), patching_once_a_launch() if interprets else contextlib.nullcontext():
        yield


def _all() -> tuple[Backend, ...]:
    simt_missing = missing_reason()
    on_gpu = torch.cuda.is_available()
    return (
        Backend("reference", _named("reference")),
        Backend("cpu", _named("cpu"), missing=_extension.missing_reason),
        Backend("cuda", _named("cuda"), device="cuda", missing=_cuda_missing()),
        Backend("simt", use_simt, missing=simt_missing, slow=True),
        Backend("simt80", lambda: use_simt(AMPERE), missing=simt_missing, slow=True, ops=CLUSTER_OPS),
        Backend(
            "triton",
            _triton,
            device="cuda" if on_gpu else "cpu",
            missing=_triton_missing(),
            slow=not on_gpu,
            one_in=1 if on_gpu or LONG else 5,  # the interpreter takes seconds a case
        ),
    )


BACKENDS = _all()
