"""The stand-in for mmcv's compiled half: who is asked for it and when, and every function against loops in NumPy.

mmcv is not needed here; tests/compat has the tests with mmcv, mmdetection and torchvision.
"""

from __future__ import annotations

import inspect
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import frcnn_fast
from frcnn_fast import doctor, mmdet
from frcnn_fast.mmcv import table
from tests.samples import boxes

ROOT = Path(__file__).resolve().parents[1]
ext: Any = type("Extension", (), {name: staticmethod(served.function) for name, served in table.SERVED.items()})

# Who is asked, and when


@pytest.fixture
def mmcv_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package `mmcv` without its compiled half."""
    folder = tmp_path / "site" / "mmcv"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "ops.py").write_text("from mmcv import _ext\nfound = _ext\n")
    monkeypatch.syspath_prepend(folder.parent)
    yield folder
    for name in [name for name in sys.modules if name.split(".")[0] == "mmcv"]:
        del sys.modules[name]


def test_without_it_nothing_is_found(mmcv_package: Path) -> None:
    finders = list(sys.meta_path)
    with pytest.raises(ModuleNotFoundError), frcnn_fast.stand_in_for_mmcv():
        raise ModuleNotFoundError
    assert sys.meta_path == finders
    with pytest.raises(ImportError):
        __import__("mmcv.ops")


def test_it_answers_last_and_for_one_module_only(mmcv_package: Path) -> None:
    with frcnn_fast.stand_in_for_mmcv():
        assert "frcnn_fast" in type(sys.meta_path[-1]).__module__
        import mmcv.ops  # type: ignore[import-untyped]

        keep = mmcv.ops.found.nms(torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, 8]]), torch.tensor([0.1, 0.2]), 0.5, offset=0)
        assert keep.tolist() == [1]
        assert mmcv.ops.found.__spec__.origin == "frcnn_fast.mmcv"
        for other in ("mmcv._other", "other._ext"):
            with pytest.raises(ModuleNotFoundError):
                __import__(other)


def test_mmcvs_own_half_goes_first(mmcv_package: Path) -> None:
    (mmcv_package / "_ext.py").write_text("own = True\n")
    with frcnn_fast.stand_in_for_mmcv():
        import mmcv.ops

        assert mmcv.ops.found.own
        assert not hasattr(mmcv.ops.found, "nms")


def test_what_is_not_served_exists_and_raises(mmcv_package: Path) -> None:
    with frcnn_fast.stand_in_for_mmcv():
        import mmcv.ops

        refused = mmcv.ops.found.nms_rotated
        with pytest.raises(NotImplementedError, match=r"nms_rotated: mmcv's compiled half is not .* by mmrotate\)"):
            refused(torch.zeros(1), labels=None)
        with pytest.raises(NotImplementedError, match=r"_ext\.of_another_version: .* no such function;"):
            mmcv.ops.found.of_another_version()
        assert not hasattr(mmcv.ops.found, "__path__")


def test_stand_ins_count() -> None:
    finders = list(sys.meta_path)
    first = frcnn_fast.stand_in_for_mmcv()
    with frcnn_fast.stand_in_for_mmcv() as second:
        assert len(sys.meta_path) == len(finders) + 1
        first.undo()
        first.undo()
        assert len(sys.meta_path) == len(finders) + 1
        assert repr(second) == "<StandIn for mmcv._ext, in force>"
    assert sys.meta_path == finders
    with pytest.raises(RuntimeError, match="has been undone"), first:
        pass


def test_a_script_runs_unmodified(mmcv_package: Path, tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("value = 7\n")
    (tmp_path / "script.py").write_text(
        "import sys, beside\n"
        "assert 'frcnn_fast.mmcv.table' not in sys.modules, 'imported before it was asked for'\n"
        "from mmcv import ops\n"
        "assert __name__ == '__main__'\n"
        "print(sys.argv[1:], beside.value, ops.found.get_compiler_version())\n"
        "sys.exit(3)\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "frcnn_fast.mmdet", str(tmp_path / "script.py"), "config.py", "--help"],
        text=True,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(mmcv_package.parent), str(ROOT)])},
    )
    assert (done.returncode, done.stderr) == (3, "")
    assert done.stdout.startswith("['config.py', '--help'] 7 none: frcnn_fast")


def test_a_module_runs_unmodified(
    mmcv_package: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tool = mmcv_package.parent / "a_tool_of_theirs.py"
    tool.write_text("import sys\nfrom mmcv import ops\nprint(sys.argv[1:], __name__)\n")
    monkeypatch.setattr(sys, "argv", ["mmdet"])
    assert mmdet.main(["-m", "a_tool_of_theirs", "--out", "x"]) == 0
    assert capsys.readouterr().out == "['--out', 'x'] __main__\n"


@pytest.mark.parametrize("arguments", [[], ["-m"], ["--fast", "script.py"]])
def test_without_a_script_it_says_how(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert mmdet.main(arguments) == 2
    assert "usage: python -m frcnn_fast.mmdet [--no-patch] SCRIPT" in capsys.readouterr().err


@pytest.mark.skipif(bool(doctor._mmcv() != "not installed"), reason="mmcv is installed")
def test_a_missing_mmcv_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert mmdet.main(["train.py"]) == 1
    assert "pip install 'frcnn_fast[mmdet]'" in capsys.readouterr().err
    assert ("mmcv", "not installed") in doctor.report()


def test_the_doctor_tells_the_two_apart(mmcv_package: Path) -> None:
    assert "without a compiled half: frcnn_fast.stand_in_for_mmcv()" in doctor._mmcv()
    (mmcv_package / "_ext.py").write_text("")
    assert doctor._mmcv().endswith("with a compiled half of its own")


# The functions. As mmcv calls them: tensors by position, numbers by name; results mostly go into a tensor that came in.


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def distinct(n: int) -> Tensor:
    return (torch.randperm(n, generator=generator(7)).float() + 0.5) / n


def side(low: float, high: float, offset: int) -> np.float32:
    return np.float32(high) - np.float32(low) + np.float32(offset)


def overlap(a: np.ndarray, b: np.ndarray, offset: int = 0, mode: int = 0) -> np.float32:
    w = max(side(max(a[0], b[0]), min(a[2], b[2]), offset), np.float32(0))
    h = max(side(max(a[1], b[1]), min(a[3], b[3]), offset), np.float32(0))
    area_a, area_b = (side(c[0], c[2], offset) * side(c[1], c[3], offset) for c in (a, b))
    with np.errstate(invalid="ignore"):
        return w * h / (area_a if mode else area_a + area_b - w * h)


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
def test_nms(threshold: float, offset: int) -> None:
    box, scores = boxes(generator(), 120), distinct(120)
    kept: list[int] = []
    for i in scores.argsort(descending=True).tolist():
        if all(not overlap(box[k].numpy(), box[i].numpy(), offset) > np.float32(threshold) for k in kept):
            kept.append(i)
    assert ext.nms(box, scores, iou_threshold=threshold, offset=offset).tolist() == kept
    assert ext.nms(box[:0], scores[:0], iou_threshold=threshold, offset=offset).dtype == torch.int64


def swapping_soft_nms(
    box: np.ndarray, start: np.ndarray, threshold: float, sigma: float, floor: float, method: int, offset: int
) -> tuple[list[int], list[Any]]:
    """As published: the best comes to the front, what falls below the floor is overwritten by the last."""
    rows, scores, n = list(range(len(box))), list(start), len(box)
    i = 0
    while i < n:
        best = max(range(i, n), key=lambda k: (scores[k], -k))
        rows[i], rows[best], scores[i], scores[best] = rows[best], rows[i], scores[best], scores[i]
        k = i + 1
        while k < n:
            iou = overlap(box[rows[i]], box[rows[k]], offset)
            if method == 2:
                weight = np.exp(-(iou * iou) / np.float32(sigma))
            else:
                weight = (np.float32(0), np.float32(1) - iou)[method] if iou >= np.float32(threshold) else np.float32(1)
            scores[k] = scores[k] * weight
            if scores[k] < np.float32(floor):
                n -= 1
                rows[k], scores[k] = rows[n], scores[n]
            else:
                k += 1
        i += 1
    return rows[:n], scores[:n]


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("floor", [0.0, 1e-3, 0.2])
@pytest.mark.parametrize("method", [0, 1, 2])
def test_softnms(method: int, floor: float, offset: int) -> None:
    box, scores = boxes(generator(), 60, high=40.0), distinct(60)
    box[1] = box[0]
    dets = torch.full((60, 5), -7.0)
    inds = ext.softnms(
        box, scores, dets, iou_threshold=0.4, sigma=0.5, min_score=floor, method=method, offset=offset
    ).tolist()
    rows, lowered = swapping_soft_nms(box.numpy(), scores.numpy(), 0.4, 0.5, floor, method, offset)
    alive = sum(score > 0 for score in lowered)
    assert inds[:alive] == rows[:alive]
    assert set(inds) == set(rows)  # what was lowered to 0 exactly has no order
    assert torch.equal(dets[: len(inds), :4], box[inds])
    torch.testing.assert_close(dets[: len(inds), 4], torch.tensor(np.array(lowered)), rtol=1e-6, atol=0)
    assert (dets[len(inds) :] == -7).all()


def test_softnms_at_the_thresholds() -> None:
    """An IoU at its threshold lowers, a score at its own stays; the first box stays whatever its score."""
    box = torch.tensor([[0.0, 0, 2, 1], [0, 0, 1, 1], [9, 9, 10, 10]])
    dets = torch.zeros(3, 5)
    inds = ext.softnms(box, torch.tensor([0.9, 0.8, 0.25]), dets, 0.5, 0.5, 0.25, method=1, offset=0)
    assert inds.tolist() == [0, 1, 2]
    assert dets[:, 4].tolist() == pytest.approx([0.9, 0.4, 0.25])
    assert ext.softnms(box, torch.tensor([0.1, 0.2, 0.1]), dets, 0.5, 0.5, 0.5, method=1, offset=0).tolist() == [1]
    assert ext.softnms(box[:0], box[:0, 0], dets[:0], 0.5, 0.5, 0.5, method=1, offset=0).tolist() == []


@pytest.mark.parametrize("threshold", [0.2, 0.5])
def test_nms_match(threshold: float) -> None:
    box, scores = boxes(generator(), 80, high=50.0), distinct(80)
    left, groups = scores.argsort(descending=True).tolist(), []
    while left:
        first, *others = left
        near = [i for i in others if overlap(box[first].numpy(), box[i].numpy()) >= np.float32(threshold)]
        groups.append([first, *near])
        left = [i for i in others if i not in near]
    dets = torch.cat([box, scores[:, None]], 1)
    assert ext.nms_match(dets, iou_threshold=threshold) == groups
    half = torch.tensor([[0.0, 0, 2, 1, 0.9], [0, 0, 1, 1, 0.8]])
    assert ext.nms_match(half, iou_threshold=0.5) == [[0, 1]]
    assert ext.nms_match(half[:0], iou_threshold=0.5) == []


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("mode", [0, 1])
def test_bbox_overlaps(mode: int, offset: int) -> None:
    a, b = boxes(generator(), 9), boxes(generator(1), 9)
    matrix, pairs = torch.zeros(9, 9), torch.zeros(9)
    ext.bbox_overlaps(a, b, matrix, mode=mode, aligned=False, offset=offset)
    ext.bbox_overlaps(a, b, pairs, mode=mode, aligned=True, offset=offset)
    wanted = [[overlap(x, y, offset, mode) for y in b.numpy()] for x in a.numpy()]
    torch.testing.assert_close(matrix, torch.tensor(np.array(wanted)), rtol=1e-6, atol=0)
    torch.testing.assert_close(pairs, matrix.diagonal(), rtol=1e-6, atol=0)


def sample(image: np.ndarray, y: float, x: float) -> np.ndarray:
    """Bilinear, [C]."""
    _, H, W = image.shape
    if y < -1 or y > H or x < -1 or x > W:
        return np.zeros(len(image))
    y, x = min(max(y, 0), H - 1), min(max(x, 0), W - 1)
    i, j = int(y), int(x)
    k, m = min(i + 1, H - 1), min(j + 1, W - 1)
    top = image[:, i, j] * (1 - (x - j)) + image[:, i, m] * (x - j)
    bottom = image[:, k, j] * (1 - (x - j)) + image[:, k, m] * (x - j)
    return top * (1 - (y - i)) + bottom * (y - i)


def aligned_samples(
    image: np.ndarray, roi: np.ndarray, bins: tuple[int, int], scale: float, ratio: int, aligned: bool
) -> Iterator[tuple[int, int, float, float, np.ndarray]]:
    x1, y1, x2, y2 = roi[1:] * scale - (0.5 if aligned else 0)
    h, w = (y2 - y1, x2 - x1) if aligned else (max(y2 - y1, 1), max(x2 - x1, 1))
    bh, bw = h / bins[0], w / bins[1]
    gh, gw = (ratio, ratio) if ratio > 0 else (math.ceil(bh), math.ceil(bw))
    for i, j, a, b in np.ndindex(*bins, gh, gw):
        y, x = y1 + i * bh + (a + 0.5) * bh / gh, x1 + j * bw + (b + 0.5) * bw / gw
        yield i, j, y, x, sample(image, y, x)


def pooled_inputs(rows: int = 7) -> tuple[Tensor, Tensor]:
    """Maps in float64, and RoIs of which some lie across the border and one outside."""
    maps = torch.randn(2, 3, 9, 11, dtype=torch.float64, generator=generator())
    rois = torch.cat([torch.arange(rows).remainder(2)[:, None], boxes(generator(1), rows, high=30.0)], 1).double()
    rois[0, 1:] -= 9
    rois[1, 1:] += 200
    return maps, rois


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("pool_mode", [0, 1])
def test_roi_align(pool_mode: int, ratio: int, aligned: bool) -> None:
    maps, rois = pooled_inputs()
    bins, numbers = (2, 3), {"spatial_scale": 0.5, "sampling_ratio": ratio, "pool_mode": pool_mode, "aligned": aligned}
    named = {"aligned_height": 2, "aligned_width": 3, **numbers}
    shape = (7, 3, *bins)
    output = torch.zeros(shape, dtype=torch.float64)
    argmax = [torch.zeros(shape if pool_mode == 0 else 0, dtype=torch.float64) for _ in "yx"]
    ext.roi_align_forward(maps, rois, output, *argmax, **named)

    wanted, grad = np.zeros(shape), torch.randn(shape, dtype=torch.float64, generator=generator(2))
    gradient = torch.zeros_like(maps)
    at = [np.full(shape, -1.0) for _ in "yx"]
    reader = torch.eye(9 * 11, dtype=torch.float64).view(9 * 11, 9, 11).numpy()  # which cells a sample reads
    for r, roi in enumerate(rois.numpy()):
        image, values = int(roi[0]), {}
        for i, j, y, x, value in aligned_samples(maps[int(roi[0])].numpy(), roi, bins, 0.5, ratio, aligned):
            values.setdefault((i, j), []).append((value, y, x))
        for (i, j), found in values.items():
            for c in range(3):
                if pool_mode == 1:
                    wanted[r, c, i, j] = np.mean([value[c] for value, _, _ in found])
                    chosen = [(y, x, 1 / len(found)) for _, y, x in found]
                else:
                    value, y, x = max(found, key=lambda each: each[0][c])
                    wanted[r, c, i, j], at[0][r, c, i, j], at[1][r, c, i, j] = value[c], y, x
                    chosen = [(y, x, 1.0)]
                for y, x, share in chosen:
                    gradient[image, c] += grad[r, c, i, j] * share * torch.tensor(sample(reader, y, x)).view(9, 11)
    torch.testing.assert_close(output, torch.tensor(wanted), rtol=1e-12, atol=1e-12)
    if pool_mode == 0:
        for axis in range(2):
            torch.testing.assert_close(argmax[axis], torch.tensor(at[axis]), rtol=1e-12, atol=1e-12)
    into = torch.zeros_like(maps)
    ext.roi_align_backward(grad, rois, *argmax, into, **named)
    torch.testing.assert_close(into, gradient, rtol=1e-11, atol=1e-11)


def test_roi_align_of_any_layout_and_of_nothing() -> None:
    maps, rois = pooled_inputs()
    maps, rois = maps.float(), rois.float()
    named = {"aligned_height": 2, "aligned_width": 2, "spatial_scale": 0.5, "sampling_ratio": 0, "pool_mode": 1}
    plain, last, strided = (torch.zeros(7, 3, 2, 2) for _ in range(3))
    none = torch.zeros(0)
    ext.roi_align_forward(maps, rois, plain, none, none, **named, aligned=True)
    ext.roi_align_forward(maps.to(memory_format=torch.channels_last), rois, last, none, none, **named, aligned=True)
    wide = torch.stack([maps, maps], -1)
    ext.roi_align_forward(wide[..., 0], rois.half().float(), strided, none, none, **named, aligned=True)
    assert torch.equal(plain, last)
    torch.testing.assert_close(plain, strided, rtol=1e-2, atol=1e-2)
    ext.roi_align_forward(maps, rois[:0], plain[:0], none, none, **named, aligned=True)
    maps.requires_grad_()
    ext.roi_align_forward(maps, rois, plain, none, none, **named, aligned=True)
    assert not plain.requires_grad


def test_roi_pool() -> None:
    maps, rois = pooled_inputs()
    maps[0, 0, 3, 3] = math.nan
    rois[3, 3] = rois[3, 1] - 2  # no side
    shape, scale = (7, 3, 2, 3), 0.5
    output, argmax = torch.full(shape, 7.0, dtype=torch.float64), torch.zeros(shape, dtype=torch.int32)
    ext.roi_pool_forward(maps, rois, output, argmax, pooled_height=2, pooled_width=3, spatial_scale=scale)
    wanted, places = np.zeros(shape), np.full(shape, -1)
    grad = torch.randn(shape, dtype=torch.float64, generator=generator(2))
    gradient = torch.zeros_like(maps)
    for r, (image, x1, y1, x2, y2) in enumerate(rois.tolist()):
        x1, y1, x2, y2 = x1 * scale, y1 * scale, (x2 + 1) * scale, (y2 + 1) * scale
        if x2 <= x1 or y2 <= y1:
            continue
        bh, bw = (y2 - y1) / 2, (x2 - x1) / 3
        for c, i, j in np.ndindex(3, 2, 3):
            rows = range(max(math.floor(i * bh + y1), 0), min(math.ceil((i + 1) * bh + y1), 9))
            columns = range(max(math.floor(j * bw + x1), 0), min(math.ceil((j + 1) * bw + x1), 11))
            best = -math.inf
            for y in rows:
                for x in columns:
                    if float(maps[int(image), c, y, x]) > best:
                        best = float(maps[int(image), c, y, x])
                        wanted[r, c, i, j], places[r, c, i, j] = best, y * 11 + x
            if places[r, c, i, j] >= 0:
                gradient[int(image), c].view(-1)[places[r, c, i, j]] += grad[r, c, i, j]
    assert torch.equal(output, torch.tensor(wanted))
    assert torch.equal(argmax, torch.tensor(places, dtype=torch.int32))
    into = torch.zeros_like(maps)
    ext.roi_pool_backward(grad, rois, argmax, into, pooled_height=2, pooled_width=3, spatial_scale=scale)
    torch.testing.assert_close(into, gradient)


@pytest.mark.parametrize("ratio", [0, 2])
def test_deform_roi_pool(ratio: int) -> None:
    """Its gradients are those of finite differences, since it is differentiable inside the map."""
    maps = torch.randn(2, 2, 14, 15, dtype=torch.float64, generator=generator())
    rois = torch.tensor([[0.0, 6, 6, 15, 18], [1, 8.3, 7.1, 20, 14.2]], dtype=torch.float64)
    offset = torch.rand(2, 2, 2, 2, dtype=torch.float64, generator=generator(3)) - 0.5
    named = {"pooled_height": 2, "pooled_width": 2, "spatial_scale": 0.5, "sampling_ratio": ratio, "gamma": 0.1}

    def forward(maps: Tensor, offset: Tensor) -> Tensor:
        output = torch.zeros(2, 2, 2, 2, dtype=torch.float64)
        ext.deform_roi_pool_forward(maps, rois, offset, output, **named)
        return output

    moved = forward(maps, offset)
    for r, roi in enumerate(rois.numpy()):
        w, h = (roi[3:] - roi[1:3]) * 0.5
        for i, j in np.ndindex(2, 2):
            dx, dy = 0.1 * w * float(offset[r, 0, i, j]) / 0.5, 0.1 * h * float(offset[r, 1, i, j]) / 0.5
            shifted = roi + np.array([0, dx, dy, dx, dy])
            found = aligned_samples(maps[int(roi[0])].numpy(), shifted, (2, 2), 0.5, ratio, True)
            wanted = np.mean([value for a, b, _, _, value in found if (a, b) == (i, j)], 0)
            torch.testing.assert_close(moved[r, :, i, j], torch.tensor(wanted))
    still = forward(maps, torch.zeros(0, dtype=torch.float64))
    torch.testing.assert_close(still, forward(maps, torch.zeros_like(offset)))

    grad = torch.randn(2, 2, 2, 2, dtype=torch.float64, generator=generator(4))
    to_maps, to_offset = torch.zeros_like(maps), torch.zeros_like(offset)
    ext.deform_roi_pool_backward(grad, maps, rois, offset, to_maps, to_offset, **named)
    for tensor, gradient in ((maps, to_maps), (offset, to_offset)):
        direction = torch.randn(tensor.shape, dtype=torch.float64, generator=generator(5))
        step = 1e-6 * direction
        ends = [
            forward(*(t + sign * step if t is tensor else t for t in (maps, offset))).mul(grad).sum()
            for sign in (1, -1)
        ]
        torch.testing.assert_close((gradient * direction).sum(), (ends[0] - ends[1]) / 2e-6, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("gamma", [2.0, 1.5])
def test_sigmoid_focal_loss(gamma: float, weighted: bool) -> None:
    logits = torch.randn(12, 5, dtype=torch.float64, generator=generator()).mul(3).requires_grad_()
    target = torch.arange(12).remainder(7) - 1  # -1 and 5 are background
    weight = torch.rand(5, dtype=torch.float64, generator=generator(1)) if weighted else torch.zeros(0).double()
    one_hot = (target[:, None] == torch.arange(5)).double()
    p = logits.sigmoid()
    wanted = -one_hot * 0.25 * (1 - p) ** gamma * p.log() - (1 - one_hot) * 0.75 * p**gamma * (1 - p).log()
    if weighted:
        wanted = wanted * torch.tensor([float(weight[t]) if 0 <= t < 5 else 1.0 for t in target.tolist()])[:, None]
    (gradient,) = torch.autograd.grad(wanted.sum(), logits)
    output, grad_input = torch.zeros_like(wanted), torch.zeros_like(wanted)
    ext.sigmoid_focal_loss_forward(logits, target, weight, output, gamma=gamma, alpha=0.25)
    ext.sigmoid_focal_loss_backward(logits, target, weight, grad_input, gamma=gamma, alpha=0.25)
    torch.testing.assert_close(output, wanted.detach())
    torch.testing.assert_close(grad_input, gradient)
    assert not output.requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_sigmoid_focal_loss_into_tensors_of_any_kind(dtype: torch.dtype) -> None:
    """Halves, and strides of mmcv's own: the answer of float32, rounded once."""
    logits = torch.randn(5, 12, generator=generator()).to(dtype).T
    target, weight = torch.arange(12) % 7 - 1, torch.rand(5, generator=generator(1)).to(dtype)
    output, grad_input = torch.zeros_like(logits), torch.zeros_like(logits)
    assert not output.is_contiguous()
    ext.sigmoid_focal_loss_forward(logits, target, weight, output, gamma=2.0, alpha=0.25)
    ext.sigmoid_focal_loss_backward(logits, target, weight, grad_input, gamma=2.0, alpha=0.25)
    wide = logits.float().requires_grad_()
    wanted = frcnn_fast.ops.sigmoid_focal_loss(wide, target, weight=weight.float())
    assert torch.equal(output, wanted.detach().to(dtype))
    assert torch.equal(grad_input, torch.autograd.grad(wanted.sum(), wide)[0].to(dtype))


def test_focal_losses_of_certain_scores_are_finite() -> None:
    logits, target, none = torch.tensor([[200.0, -200.0]]), torch.tensor([1]), torch.zeros(0)
    output, grad = torch.zeros(1, 2), torch.zeros(1, 2)
    ext.sigmoid_focal_loss_forward(logits, target, none, output, gamma=2.0, alpha=0.25)
    ext.sigmoid_focal_loss_backward(logits, target, none, grad, gamma=2.0, alpha=0.25)
    assert output.isfinite().all()
    assert grad.isfinite().all()


@pytest.mark.parametrize("weighted", [False, True])
def test_softmax_focal_loss(weighted: bool) -> None:
    logits = torch.randn(9, 4, dtype=torch.float64, generator=generator()).requires_grad_()
    target = torch.arange(9).remainder(5) - 1  # -1: background
    weight = torch.rand(4, dtype=torch.float64, generator=generator(1)) if weighted else torch.zeros(0).double()
    p = logits.softmax(1).gather(1, target.clamp(min=0)[:, None])[:, 0]
    factor = (weight[target.clamp(min=0)] if weighted else 1) * (target >= 0)
    wanted = -0.25 * (1 - p) ** 2 * p.log() * factor
    (gradient,) = torch.autograd.grad(wanted.sum(), logits)
    softmax = logits.detach().softmax(1)
    output, buff, grad_input = torch.zeros(9).double(), torch.zeros(9).double(), torch.zeros(9, 4).double()
    ext.softmax_focal_loss_forward(softmax, target, weight, output, gamma=2.0, alpha=0.25)
    ext.softmax_focal_loss_backward(softmax, target, weight, buff, grad_input, gamma=2.0, alpha=0.25)
    torch.testing.assert_close(output, wanted.detach())
    torch.testing.assert_close(grad_input, gradient)


def test_masked_convolution() -> None:
    image, kernel = torch.randn(1, 3, 6, 7, generator=generator()), torch.randn(4, 3, 3, 5, generator=generator(1))
    mask = torch.rand(6, 7, generator=generator(2)) > 0.6
    rows, columns = mask.nonzero().unbind(1)
    col = torch.zeros(3 * 3 * 5, len(rows))
    ext.masked_im2col_forward(image, rows, columns, col, kernel_h=3, kernel_w=5, pad_h=1, pad_w=2)
    output = torch.zeros(1, 4, 6, 7)
    ext.masked_col2im_forward(kernel.view(4, -1) @ col, rows, columns, output, height=6, width=7, channels=4)
    torch.testing.assert_close(output, torch.nn.functional.conv2d(image, kernel, padding=(1, 2)) * mask)


@pytest.mark.parametrize("naive", [False, True])
def test_carafe(naive: bool) -> None:
    k, groups, s = 3, 2, 2
    features = torch.randn(2, 4, 3, 4, dtype=torch.float64, generator=generator()).requires_grad_()
    masks = torch.randn(2, k * k * groups, 6, 8, dtype=torch.float64, generator=generator(1)).requires_grad_()
    padded, by_tap = torch.nn.functional.pad(features, [1] * 4), masks.view(2, groups, k, k, 6, 8)
    rows = []
    for y, x, c in np.ndindex(6, 8, 4):
        window = padded[:, c, y // s : y // s + k, x // s : x // s + k]
        rows.append((window * by_tap[:, c // 2, :, :, y, x]).sum((1, 2)))
    wanted = torch.stack(rows, 1).view(2, 6, 8, 4).permute(0, 3, 1, 2)
    grad = torch.randn(2, 4, 6, 8, dtype=torch.float64, generator=generator(2))
    gradients = torch.autograd.grad(wanted, (features, masks), grad)
    named = {"kernel_size": k, "group_size": groups, "scale_factor": s}
    output, kept, to_features, to_masks = (torch.zeros_like(t) for t in (wanted, features, features, masks))
    buffers = [torch.zeros(0) for _ in range(4)]
    if naive:
        ext.carafe_naive_forward(features, masks, output, **named)
        ext.carafe_naive_backward(grad, features, masks, to_features, to_masks, **named)
    else:
        ext.carafe_forward(features, masks, kept, *buffers[:2], output, **named)
        ext.carafe_backward(grad, kept, masks, *buffers, to_features, to_masks, **named)
    torch.testing.assert_close(output, wanted.detach())
    torch.testing.assert_close((to_features, to_masks), gradients)


@pytest.mark.parametrize("affine", [False, True])
def test_sync_batch_norm(affine: bool) -> None:
    """In one process it is batch normalisation."""
    maps = torch.randn(3, 4, 5, generator=generator()).requires_grad_()
    weight, bias = (t.requires_grad_() for t in torch.rand(2, 4, generator=generator(1)).unbind())
    theirs = [torch.ones(4), torch.full((4,), 2.0)]
    named = {"weight": weight, "bias": bias} if affine else {}
    wanted = torch.nn.functional.batch_norm(maps, *theirs, **named, training=True, momentum=0.3)
    mean, var, norm, std, output = (torch.zeros(size) for size in (4, 4, (3, 4, 5), 4, (3, 4, 5)))
    ours = [torch.ones(4), torch.full((4,), 2.0)]
    ext.sync_bn_forward_mean(maps, mean)
    ext.sync_bn_forward_var(maps, mean, var)
    ext.sync_bn_forward_output(
        maps, mean, var, *((weight, bias) if affine else (None, None)), *ours, norm, std, output,
        eps=1e-5, momentum=torch.tensor([0.3]), group_size=1,
    )  # fmt: skip
    torch.testing.assert_close(output, wanted.detach())
    torch.testing.assert_close(ours, theirs)
    if affine:
        grad = torch.randn(3, 4, 5, generator=generator(2))
        gradients = torch.autograd.grad(wanted, (maps, weight, bias), grad)
        to_maps, to_weight, to_bias = (torch.zeros_like(t) for t in (maps, weight, bias))
        ext.sync_bn_backward_param(grad, norm, to_weight, to_bias)
        ext.sync_bn_backward_data(grad, weight, to_weight, to_bias, norm, std, to_maps)
        torch.testing.assert_close((to_maps, to_weight, to_bias), gradients, rtol=1e-4, atol=1e-5)


def test_every_function_has_a_line_in_the_guide() -> None:
    guide = (ROOT / "docs" / "mmdetection.md").read_text()
    lines = [line for line in guide.splitlines() if line.startswith("| `")]
    for name, served in table.SERVED.items():
        assert any(f"`{name}`" in line and f"| {served.by} |" in line for line in lines), name
        assert inspect.signature(served.function), name
