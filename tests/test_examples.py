"""The examples in docs/examples do run, and do what they say."""

from __future__ import annotations

import importlib.util
import re
import runpy
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from frcnn_fast.inference import Detector
from frcnn_fast.model import build_detector, preset

EXAMPLES = Path(__file__).resolve().parents[1] / "docs/examples"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_list_names_every_example() -> None:
    named = set(re.findall(r"\]\(([^)\s]+)\)", (EXAMPLES / "README.md").read_text()))
    there = {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb")}
    assert named >= there
    assert all((EXAMPLES / name).exists() for name in named)


def test_ops(capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    runpy.run_path(str(EXAMPLES / "ops.py"), run_name="__main__")
    assert capsys.readouterr().out.startswith("17100 anchors, 300 proposals, 100 detections")
    code = [line for line in (EXAMPLES / "ops.py").read_text().split("ops\n", 2)[-1].splitlines() if line.strip()]
    assert len(code) <= 10


def test_own_backbone(tmp_path: Path) -> None:
    detector = example("own_backbone").main(str(tmp_path / "run"), iterations=2)
    assert type(detector.model.backbone).__name__ == "Backbone"
    assert detector.class_names == [str(digit) for digit in range(10)]
    with pytest.raises(ValueError, match="backbone"):
        Detector(tmp_path / "run")


def test_own_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = example("own_data")
    image, target = module.Shapes(3, seed=0)[2]
    for (x1, y1, x2, y2), label in zip(target["boxes"].tolist(), target["labels"].tolist(), strict=True):
        # Of one colour from edge to edge, and the corner belongs to it or not.
        row, column = image[:, (y1 + y2) // 2, x1:x2], image[:, y1:y2, (x1 + x2) // 2]
        assert (row == row[:, :1]).all()
        assert (column == column[:, :1]).all()
        assert bool((image[:, y1, x1] == row[:, 0]).all()) == (label == 1)
    detector = module.main(str(tmp_path / "run"), iterations=2)
    assert detector.class_names == ["square", "disc"]
    assert "disc" in capsys.readouterr().out


def test_another_head() -> None:
    torch.manual_seed(0)
    model = build_detector([str(digit) for digit in range(10)], preset("small"))
    losses = example("another_head").main(model, iterations=3)
    assert len(losses) == 3
    assert 0 < losses[-1] < 1.2
    assert all(parameter.grad is None for parameter in model.parameters())


def test_under_torchvision(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torchvision")
    example("under_torchvision").main()
    assert "detections, the same" in capsys.readouterr().out


def test_the_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every cell, in a kernel of its own, with fewer iterations."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    manager = pytest.importorskip("jupyter_client.manager")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(EXAMPLES / "digits.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells), "outputs are not kept in the repository"
    for cell in notebook.cells:
        cell.source = cell.source.replace("ITERATIONS = 400", "ITERATIONS = 2")
    assert any("ITERATIONS = 2\n" in cell.source for cell in notebook.cells)
    # The interpreter of the tests, whichever kernels are installed for others.
    kernels = manager.KernelManager()
    kernels.kernel_spec.argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    root = EXAMPLES.parents[1]
    monkeypatch.setenv("PYTHONPATH", str(root))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    place = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, km=kernels, timeout=900, resources=place).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    assert any("proposals" in output.get("text", "") for output in outputs)
