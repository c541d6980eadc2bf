"""Runs an unmodified script or module with frcnn_fast standing in for mmcv's compiled half.

python -m frcnn_fast.mmdet tools/train.py configs/faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py
python -m frcnn_fast.mmdet tools/test.py CONFIG CHECKPOINT
python -m frcnn_fast.mmdet -m MODULE ...
torchrun --nproc-per-node 8 -m frcnn_fast.mmdet tools/train.py CONFIG --launcher pytorch
"""

from __future__ import annotations

import importlib.util
import os
import runpy
import sys
from collections.abc import Sequence

from frcnn_fast.mmcv import stand_in_for_mmcv

USAGE = "usage: python -m frcnn_fast.mmdet SCRIPT [arguments]\n       python -m frcnn_fast.mmdet -m MODULE [arguments]"


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] in (["-h"], ["--help"]):
        print(f"{USAGE}\n\n{__doc__}")
        return 0
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
    with stand_in_for_mmcv():
        sys.argv = arguments
        if is_module:
            runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
        else:
            # As `python SCRIPT` does it: modules are looked for beside the script.
            sys.path[0] = os.path.dirname(os.path.realpath(arguments[0]))
            runpy.run_path(arguments[0], run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main())
