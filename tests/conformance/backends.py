"""The backends that the suite runs on: how each is switched on, on which device, and why one is missing."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass

import torch

import frcnn_fast
from frcnn_fast import _extension

ALWAYS = {"reference", "cpu"}
REQUIRED = ALWAYS | set(os.environ.get("FRCNN_REQUIRE", "").replace(" ", "").split(","))

# The ops that have a Triton kernel; a name here without one fails.
TRITON_OPS = frozenset(
    {
        "batched_nms",
        "box_iou",
        "box_iou_backward",
        "decode_clip",
        "detections",
        "encode",
        "grid_anchors",
        "nms",
        "nms_padded",
        "rpn_proposals",
        "top_n",
    }
)


@dataclass(frozen=True)
class Backend:
    """slow: only cases marked `small` run on it. missing: why it cannot run, empty where it can."""

    name: str
    activate: Callable[[], contextlib.AbstractContextManager]
    device: str = "cpu"
    missing: str = ""
    slow: bool = False

    def serves(self, op: str) -> bool:
        return self.name != "triton" or op in TRITON_OPS


def _cuda_missing() -> str:
    if not torch.cuda.is_available():
        return "torch.cuda.is_available() is False"
    return _extension.missing_reason


def _triton_missing() -> str:
    if not TRITON_OPS:
        return "no op has a Triton kernel yet"
    if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
        return "neither a GPU nor TRITON_INTERPRET=1"
    return ""


def _simt() -> tuple[Callable[[], contextlib.AbstractContextManager], str]:
    try:
        from tests.simt.backend import missing_reason, use_simt
    except ImportError as error:
        return contextlib.nullcontext, f"the SIMT harness could not be imported ({error})"
    return use_simt, missing_reason()


def _named(name: str) -> Callable[[], contextlib.AbstractContextManager]:
    return lambda: frcnn_fast.use_backend(name)


def _all() -> tuple[Backend, ...]:
    use_simt, simt_missing = _simt()
    on_gpu = torch.cuda.is_available()
    return (
        Backend("reference", _named("reference")),
        Backend("cpu", _named("cpu"), missing=_extension.missing_reason),
        Backend("cuda", _named("cuda"), device="cuda", missing=_cuda_missing()),
        Backend("simt", use_simt, missing=simt_missing, slow=True),
        Backend(
            "triton", _named("triton"), device="cuda" if on_gpu else "cpu", missing=_triton_missing(), slow=not on_gpu
        ),
    )


BACKENDS = _all()
