"""The command `frcnn-fast`: train, evaluate, detect, explain, convert, export, propose, recall, check-data, doctor."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

import frcnn_fast

COMMANDS = {
    "train": "train a detector, evaluate it, draw what it finds",
    "evaluate": "average precision of a trained detector on a data set",
    "convert": "a run from a checkpoint of torchvision, detectron2 or mmdetection",
    "export": "a detector as an ONNX file or a program of torch.export",
    "detect": "find objects in images and videos",
    "explain": "how a detector comes to what it finds in one image, as an HTML page",
    "propose": "write the proposals of a detector, or of Selective Search, into a file",
    "recall": "recall of proposals: of files, detectors and Selective Search, side by side",
    "check-data": "list everything that is wrong or odd in a data set",
    "doctor": "what is installed, which backends work here, and why not the others",
}


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = arguments.pop(0) if arguments else "--help"
    if command in COMMANDS:
        # Only the chosen command is imported: the doctor must run where training's packages are missing.
        module = importlib.import_module(f"frcnn_fast.{command.replace('-', '_')}")
        return module.main(arguments, prog=f"frcnn-fast {command}")
    if command == "--version":
        print(f"frcnn_fast {frcnn_fast.__version__}")
        return 0
    print("usage: frcnn-fast COMMAND [options]\n")
    for name, text in COMMANDS.items():
        print(f"  {name:<12}{text}")
    print("\nfrcnn-fast COMMAND --help shows a command's options and their defaults; frcnn-fast --version, the version")
    if command in ("-h", "--help"):
        return 0
    print(f"\nfrcnn-fast: error: no command {command!r}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
