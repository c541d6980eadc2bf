"""The package for C++: it builds without Python, is found by CMake, and detects what Python detects."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from frcnn_fast import Detector, _extension, cmake_prefix, ops
from frcnn_fast.data import Preprocess
from frcnn_fast.model import FasterRCNN, build_detector, preset
from frcnn_fast.model.head import rows_of_images
from tests.test_inference import picture, untrained

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "cpp"
EXAMPLE = ROOT / "docs" / "examples" / "cpp"
GUIDE = ROOT / "docs" / "cpp.md"
# The functions of every header for users, by its path in an #include.
LAUNCHERS: dict[str, list[str]] = {}
for path in sorted((ROOT / "kernels").glob("*/*.h")):
    functions = re.findall(r"^Status (\w+)_cpu\(", path.read_text(), re.MULTILINE)
    if functions and not path.stem.endswith("_cpu"):
        LAUNCHERS[f"frcnn_fast/{path.relative_to(ROOT / 'kernels')}"] = functions

pytestmark = pytest.mark.skipif(not shutil.which("cmake"), reason="needs cmake")


def cmake(*arguments: object) -> str:
    done = subprocess.run(["cmake", *map(str, arguments)], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package, CPU half, installed in a folder of its own."""
    cmake("-S", ROOT, "-B", BUILD, "-G", "Ninja", "-DFRCNN_FAST_PYTHON=OFF", "-DFRCNN_FAST_CUDA=OFF")
    cmake("--build", BUILD, "-j", 2)
    installed = tmp_path_factory.mktemp("prefix")
    cmake("--install", BUILD, "--prefix", installed)
    return installed


def test_the_library_needs_no_python(prefix: Path) -> None:
    cache = (BUILD / "CMakeCache.txt").read_text()
    assert "pybind11" not in cache
    assert "Python_EXECUTABLE" not in cache
    for text in (prefix / "lib" / "cmake" / "frcnn_fast").glob("*.cmake"):
        assert str(ROOT) not in text.read_text(), f"{text} points into the source tree"


@pytest.mark.parametrize("header", LAUNCHERS)
def test_a_header_stands_alone(prefix: Path, tmp_path: Path, header: str) -> None:
    """Whatever warnings its user has switched on."""
    source = tmp_path / "use.cpp"
    source.write_text(f"#include <{header}>\nint main() {{}}\n")
    command = ["c++", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", f"-I{prefix / 'include'}", source]
    done = subprocess.run(command, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr


def test_the_guide_names_every_function() -> None:
    table = dict(re.findall(r"^\| `(frcnn_fast/\S+)` \| (.*) \|$", GUIDE.read_text(), re.MULTILINE))
    assert table.keys() == LAUNCHERS.keys()
    for header, functions in LAUNCHERS.items():
        assert [name for name in functions if f"`{name}`" not in table[header]] == [], header


def test_the_guides_program(prefix: Path, tmp_path: Path) -> None:
    (tmp_path / "main.cpp").write_text(*re.findall(r"^```cpp\n(.*?)^```", GUIDE.read_text(), re.MULTILINE | re.DOTALL))
    (lines,) = re.findall(r"^```cmake\n(.*?)^```", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    start = "cmake_minimum_required(VERSION 3.24)\nproject(p CXX)\nadd_executable(my_program main.cpp)\n"
    (tmp_path / "CMakeLists.txt").write_text(start + lines)
    cmake("-S", tmp_path, "-B", tmp_path / "build", "-G", "Ninja", f"-DCMAKE_PREFIX_PATH={prefix}")
    cmake("--build", tmp_path / "build")
    assert subprocess.check_output([tmp_path / "build" / "my_program"], text=True) == "0\n2\n"


def test_a_build_without_cuda_says_so(prefix: Path, tmp_path: Path) -> None:
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.24)\nproject(p CXX)\nfind_package(frcnn_fast 0.1 REQUIRED COMPONENTS cuda)\n"
    )
    command = ["cmake", "-S", tmp_path, "-B", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={prefix}"]
    done = subprocess.run(command, text=True, capture_output=True)
    assert done.returncode != 0
    assert "built without its CUDA half" in done.stderr


def test_cmake_prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_extension, "__file__", str(tmp_path / "_extension.py"))
    with pytest.raises(RuntimeError, match="FRCNN_FAST_PYTHON=OFF"):
        cmake_prefix()
    (tmp_path / "lib" / "cmake").mkdir(parents=True)
    assert cmake_prefix() == str(tmp_path)


# The example.


def convolution(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, stride: int = 1) -> np.ndarray:
    """[C, H, W] -> [O, h, w], the sums in float64 and in the order of the weights, as layers.h has them."""
    size = weight.shape[2]
    h, w = ((side - 1) // stride + 1 for side in x.shape[1:])
    padded = np.pad(x.astype(np.float64), [(0, 0)] + 2 * [(size // 2, size // 2)])
    sums = np.zeros((len(weight), h, w))
    for c, y, x0 in np.ndindex(weight.shape[1:]):
        part = padded[c, y : y + (h - 1) * stride + 1 : stride, x0 : x0 + (w - 1) * stride + 1 : stride]
        sums += weight[:, c, y, x0].astype(np.float64)[:, None, None] * part
    return (sums + bias[:, None, None]).astype(np.float32)


def in_order(model: FasterRCNN, weights: dict[str, np.ndarray], image: Tensor) -> list[Tensor]:
    """Boxes, scores and labels as detect.cpp finds them: its layers in NumPy, and the ops of Python between them."""

    def layer(x: np.ndarray, name: str, stride: int = 1, relu: bool = False) -> np.ndarray:
        weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        if weight.ndim == 4:
            found = convolution(x, weight, bias, stride)
        else:  # rows [R, K] are a map of K channels
            found = convolution(x.T[:, :, None], weight[:, :, None, None], bias)[:, :, 0].T
        return np.maximum(found, np.float32(0)) if relu else found

    height, width = image.shape[1:]
    pixels = torch.zeros(3, -(-height // 32) * 32, -(-width // 32) * 32)
    Preprocess(model.config.preprocess)(image, out=pixels[:, :height, :width])
    fine = pixels.numpy()
    for i, stride in enumerate((2, 2, 1)):
        fine = layer(fine, f"fine.{i}", stride, relu=True)
    coarse = fine
    for i, stride in enumerate((2, 1, 1)):
        coarse = layer(coarse, f"coarse.{i}", stride, relu=True)
    coarse = layer(coarse, "lateral_coarse")
    fine = layer(fine, "lateral_fine") + coarse.repeat(2, axis=1).repeat(2, axis=2)
    logits, deltas, grids = [], [], []
    for level, one in enumerate((fine, coarse)):
        hidden = layer(one, "rpn.conv", relu=True)
        logits.append(layer(hidden, "rpn.cls_logits").transpose(1, 2, 0).reshape(-1))
        deltas.append(layer(hidden, "rpn.bbox_pred").transpose(1, 2, 0).reshape(-1, 4))
        stride = model.shape.rpn_strides[level]
        cells = torch.from_numpy(weights[f"cell_anchors_{level}"])
        grids.append((cells, one.shape[1:], (stride, stride)))
    config, sizes = model.config, [(height, width)]
    proposals = ops.rpn_proposals(
        torch.from_numpy(np.concatenate(logits))[None],
        torch.from_numpy(np.concatenate(deltas))[None],
        ops.AnchorGrids(grids, offset=config.anchor_offset),
        sizes,
        pre_nms_top_n=config.proposals_test[0],
        post_nms_top_n=config.proposals_test[1],
        iou_threshold=config.proposal_iou,
        min_size=config.min_size,
        filter_order=config.filter_order,
    )
    assert proposals.counts > 10
    rois = rows_of_images(proposals.boxes, proposals.counts)
    maps = [torch.from_numpy(one)[None] for one in (fine, coarse)]
    pooled = model.roi_head.pool(maps, rois).flatten(1).numpy()
    hidden = layer(layer(pooled, "fc6", relu=True), "fc7", relu=True)
    found = ops.detections(
        torch.from_numpy(layer(hidden, "cls_score"))[None],
        torch.from_numpy(layer(hidden, "bbox_pred"))[None],
        proposals.boxes,
        proposals.counts,
        sizes,
        score_threshold=config.score_threshold,
        iou_threshold=config.detection_iou,
        max_detections=config.max_detections,
        min_size=config.detection_min_size,
        weights=config.box_weights,
    )
    count = int(found.counts)
    return [found.boxes[0, :count], found.scores[0, :count], found.labels[0, :count]]


@pytest.fixture(scope="module")
def program(prefix: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    build = tmp_path_factory.mktemp("example")
    cmake("-S", EXAMPLE, "-B", build, "-G", "Ninja", f"-DCMAKE_PREFIX_PATH={prefix}")
    cmake("--build", build)
    return build / "detect"


def detected(program: Path, model: Path, image: Path) -> list[list[str]]:
    """The printed lines, split."""
    done = subprocess.run([program, model, image], text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    return [line.rsplit(" ", 5) for line in done.stdout.splitlines()]


def write_ppm(path: Path, image: Tensor) -> Path:
    _, height, width = image.shape
    path.write_bytes(b"P6\n%d %d\n255\n" % (width, height) + image.permute(1, 2, 0).contiguous().numpy().tobytes())
    return path


@torch.no_grad()
def strewn() -> FasterRCNN:
    """Weights that keep the size of what goes through the layers, so that boxes, scores and classes differ."""
    torch.manual_seed(0)
    model = build_detector(["cat", "guide dog"], preset("small", max_detections=20, score_threshold=0.2)).eval()
    for layer in model.modules():
        if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear)):
            torch.nn.init.normal_(layer.weight, 0.0, (2 / layer.weight[0].numel()) ** 0.5)
        if isinstance(getattr(layer, "bias", None), Tensor):
            torch.nn.init.normal_(layer.bias, 0.0, 0.1)
    model.rpn.bbox_pred.weight *= 0.1
    model.roi_head.bbox_pred.weight *= 0.5
    return model


def test_the_example_detects_what_python_detects(program: Path, tmp_path: Path) -> None:
    exporter: dict[str, Any] = runpy.run_path(str(EXAMPLE / "export.py"))
    model = strewn()
    image = torch.nn.functional.interpolate(picture(7, 10).float()[None], (70, 100), mode="bicubic")[0]
    image = image.clamp(0, 255).to(torch.uint8)
    exporter["export"](model, tmp_path / "model.txt")
    lines = detected(program, tmp_path / "model.txt", write_ppm(tmp_path / "image.ppm", image))
    numbers = torch.from_numpy(np.array([line[1:] for line in lines]).astype(np.float32))
    labels = torch.tensor([model.class_names.index(line[0]) + 1 for line in lines])

    weights = {name: tensor.detach().numpy() for name, tensor in exporter["tensors"](model)}
    boxes, scores, expected_labels = in_order(model, weights, image)
    assert len(lines) > 5
    assert len(set(labels.tolist())) == 2
    assert torch.equal(labels, expected_labels)
    assert torch.equal(numbers[:, 0], scores)
    assert torch.equal(numbers[:, 1:], boxes)

    # And the detector itself, whose sums are float32 and in an order of torch's.
    result = Detector(model, device="cpu")(image)
    assert torch.equal(labels, result.labels)
    assert torch.allclose(numbers[:, 0], result.scores, atol=1e-4)
    assert torch.allclose(numbers[:, 1:], result.boxes, atol=1e-2)


@pytest.mark.parametrize(
    ("model", "image", "error"),
    [
        (None, b"P6\n1 1\n255\nrgb", "model.txt: cannot be read"),
        (b"tensor a 3\nend\n1234", b"P6\n1 1\n255\nrgb", "ends within the tensor a"),
        (b"what\n", b"P6\n1 1\n255\nrgb", "expected a class, a number or a tensor, got the line what"),
        (b"end\n", b"P6\n1 1\n255\nrgb", "the model file has no number pixel_offset"),
        (b"end\n", b"P5\n1 1\n255\nrgb", "expected a binary PPM"),
        (b"end\n", b"P6\n9 9\n255\nrgb", "ends within the image"),
    ],
)
def test_the_example_refuses(program: Path, tmp_path: Path, model: bytes | None, image: bytes, error: str) -> None:
    if model is not None:
        (tmp_path / "model.txt").write_bytes(model)
    (tmp_path / "image.ppm").write_bytes(image)
    command: Sequence[str | os.PathLike[str]] = [program, tmp_path / "model.txt", tmp_path / "image.ppm"]
    done = subprocess.run(command, text=True, capture_output=True)
    assert done.returncode == 1
    assert error in done.stderr


def test_a_detector_that_the_example_cannot_run_is_refused(tmp_path: Path) -> None:
    exporter: dict[str, Any] = runpy.run_path(str(EXAMPLE / "export.py"))
    with pytest.raises(ValueError, match="'pooling': 'prroi_pool'"):
        exporter["export"](untrained(pooling="prroi_pool"), tmp_path / "model.txt")
    assert not list(tmp_path.iterdir())
