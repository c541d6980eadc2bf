"""What README.md and docs/inference.md tell users to paste does run."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from frcnn_fast import detect
from frcnn_fast.model import save_detector
from tests.test_inference import picture, untrained

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
GUIDE = (ROOT / "docs/inference.md").read_text()


def blocks(text: str, language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [code for of, code in found if of == language]


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A folder with a run, a photo and a folder of photos."""
    save_detector(tmp_path / "runs/digits/model.safetensors", untrained())
    for name in ("photo.jpg", "photos/7.jpg", "photos/other.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(picture(60, 100).permute(1, 2, 0).numpy()).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_pasted(code: str, monkeypatch) -> None:
    """OpenCV, which the tests do without, is one function here."""
    opencv: Any = types.ModuleType("cv2")
    opencv.imread = lambda name: np.ascontiguousarray(np.array(Image.open(name))[:, :, ::-1])
    monkeypatch.setitem(sys.modules, "cv2", opencv)
    # The run is untrained: it is not that sure of anything.
    exec(compile(code.replace("score_threshold=0.5", "score_threshold=0.1"), "pasted", "exec"), {})


def test_the_readmes_example(place, monkeypatch, capsys):
    (example,) = blocks(README.split("## Finding objects", 1)[1], "python")
    assert len(example.splitlines()) <= 6
    run_pasted(example, monkeypatch)
    assert capsys.readouterr().out.startswith("['dog'")
    with Image.open(place / "found.png") as drawing:
        assert min(drawing.size) > 400


@pytest.mark.parametrize("number", range(len(blocks(GUIDE, "python"))))
def test_the_guides_examples(place, monkeypatch, number):
    run_pasted(blocks(GUIDE, "python")[number], monkeypatch)


def test_the_commands():
    """Every option exists, and every argument is of its kind."""
    parser = detect._parser(None)
    lines = [line for text in (README, GUIDE) for block in blocks(text, "") for line in block.splitlines()]
    commands = [line for line in lines if re.search(r"frcnn-fast detect|frcnn_fast\.detect", line)]
    assert len(commands) >= 8
    for line in commands:
        words = shlex.split(line, comments=True)
        at = words.index("detect") if "detect" in words else words.index("frcnn_fast.detect")
        arguments = parser.parse_args(words[at + 1 :])
        assert isinstance(arguments, argparse.Namespace)
        assert arguments.checkpoint.startswith("runs/")


def test_the_table_of_a_result():
    """Every name in it is one of a Result."""
    result = detect.Result(
        torch.zeros(0, 4), torch.zeros(0), torch.zeros(0).long(), class_names=["a"], image_size=(1, 1)
    )
    table = GUIDE.split("### Results", 1)[1].split("\n\n")[1]
    names = re.findall(r"^\| `(\w+)(?:`|\()", table, re.MULTILINE)
    assert len(names) >= 10
    for name in names:
        assert name == "len" or hasattr(result, name), name
