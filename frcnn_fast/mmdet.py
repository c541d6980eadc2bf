"""Runs an unmodified script or module of mmdetection with frcnn_fast standing in for mmcv's compiled half, and with the
fast steps of `patch_mmdet` (--no-patch: without them).

python -m frcnn_fast.mmdet tools/train.py configs/faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py
python -m frcnn_fast.mmdet tools/test.py CONFIG CHECKPOINT
python -m frcnn_fast.mmdet -m MODULE ...
torchrun --nproc-per-node 8 -m frcnn_fast.mmdet tools/train.py CONFIG --launcher pytorch
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import runpy
import sys
from collections.abc import Sequence

from frcnn_fast.mmcv import stand_in_for_mmcv
from frcnn_fast.patch import patch_mmdet

USAGE = """\
usage: python -m frcnn_fast.mmdet [--no-patch] SCRIPT [arguments]
       python -m frcnn_fast.mmdet [--no-patch] -m MODULE [arguments]"""


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] in (["-h"], ["--help"]):
        print(f"{USAGE}\n\n{__doc__}")
        return 0
    patched = arguments[:1] != ["--no-patch"]
    arguments = arguments[not patched :]
    is_module = arguments[:1] == ["-m"]
    arguments = arguments[is_module:]
    if not arguments or arguments[0].startswith("-"):
        print(f"{USAGE}\nfrcnn_fast.mmdet: error: no script or module", file=sys.stderr)
        return 2
    if importlib.util.find_spec("mmcv") is None:
        print(
            "frcnn_fast.mmdet: error: mmcv is needed here and is not installed: pip install 'frcnn_fast[mmdet]'",
            file=sys.stderr,
        )
        return 1
    with stand_in_for_mmcv(), _patch() if patched else contextlib.nullcontext():
        sys.argv = arguments
        if is_module:
            runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
        else:
            # As `python SCRIPT` does it: modules are looked for beside the script.
            sys.path[0] = os.path.dirname(os.path.realpath(arguments[0]))
            runpy.run_path(arguments[0], run_name="__main__")
    return 0


def _patch() -> contextlib.AbstractContextManager[object]:
    """Of mmdetection where it is there, and as this package knows it; mmcv has other users, too."""
    if importlib.util.find_spec("mmdet") is not None:
        try:
            return patch_mmdet()
        except ImportError as error:
            print(f"frcnn_fast.mmdet: mmdetection runs its own steps: {error}", file=sys.stderr)
    return contextlib.nullcontext()


if __name__ == "__main__":
    sys.exit(main())
