"""The folder of real data sets that some tests read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def real_data(name: str) -> Path:
    """The folder `name` under FRCNN_DATA; skips the test where that is not set, unless FRCNN_REQUIRE has `data`."""
    root = os.environ.get("FRCNN_DATA")
    if not root:
        reason = f"FRCNN_DATA is not set, so there is no {name}"
        if "data" in os.environ.get("FRCNN_REQUIRE", "").split(","):
            pytest.fail(reason)
        pytest.skip(reason)
    folder = Path(root) / name
    assert folder.is_dir(), f"FRCNN_DATA is set, but {folder} is missing"
    return folder
