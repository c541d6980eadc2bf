"""The compiled half, or the reason why it is missing."""

from __future__ import annotations

from types import ModuleType

_C: ModuleType | None
try:
    # torch first: it brings the OpenMP runtime that both share.
    import torch  # noqa: F401

    from frcnn_fast import _C  # type: ignore[attr-defined,no-redef]

    missing_reason = ""
except ImportError as error:
    _C = None
    missing_reason = f"frcnn_fast._C could not be imported ({error}); build it with `pip install -e .`"


def extension() -> ModuleType:
    """The extension module; RuntimeError with the reason where it is missing."""
    if _C is None:
        raise RuntimeError(missing_reason)
    return _C
