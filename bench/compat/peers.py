"""mmcv's own tests of its functions, from a source tree of mmcv 2.1.0, over what stands in for its compiled half."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# The plugin that stands in, before any test is imported.
STAND_IN = "bench.compat.stand_in_plugin"

FILES = (
    "nms", "roi_align", "roi_pool", "bbox", "focal_loss", "deform_conv", "modulated_deform_conv", "ms_deformable_attn",
    "masked_conv2d", "carafe", "deform_roi_pool", "syncbn", "info",
)  # fmt: skip


def run(root: Path, files: Sequence[str] = FILES) -> list[dict[str, Any]]:
    """How many tests passed, failed and were skipped (mostly: no GPU), by file.

    The tests are not copied: a folder with a link to them, since beside them lies an mmcv that must not be imported.
    """
    project = Path(__file__).resolve().parents[2]
    found = []
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "tests").symlink_to(root.resolve() / "tests")
        for name in files:
            test = f"tests/test_ops/test_{name}.py"
            done = subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "pytest",
                    "-q",
                    "-p",
                    STAND_IN,
                    "-p",
                    "no:cacheprovider",
                    "--import-mode=importlib",
                    test,
                ],
                text=True,
                capture_output=True,
                cwd=folder,
                env={**os.environ, "PYTHONPATH": str(project)},
            )
            counts = {what: int(n) for n, what in re.findall(r"(\d+) (passed|failed|skipped|error)", done.stdout)}
            if not counts:
                raise RuntimeError(f"{test}: {done.stdout[-500:]}{done.stderr[-500:]}")
            failed = re.findall(r"^FAILED \S+::(\S+)", done.stdout, re.MULTILINE)
            found.append(
                {
                    "file": test,
                    "passed": counts.get("passed", 0),
                    "failed": counts.get("failed", 0) + counts.get("error", 0),
                    "skipped": counts.get("skipped", 0),
                    "failures": failed,
                }
            )
            print(f"{test:<48} {done.stdout.strip().splitlines()[-1]}", flush=True)
    return found
