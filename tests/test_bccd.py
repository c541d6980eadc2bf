"""The comparison of the detectors: its runs, its files and its table, on a few small images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bench import bccd, bccd_table, r50, report, schema
from bench.competitors import torchvision_missing
from bench.measure import summary
from frcnn_fast.model import SqueezeNet, preset
from frcnn_fast.training import recipe

CONFIG = preset("squeezenet1_0", shorter=64, longer=128, head_channels=16, roi_batch_size=16)
PRESENT = [system for system in bccd.SYSTEMS if system != "torchvision" or not torchvision_missing]


ANNOTATION = "<annotation><size><width>100</width><height>60</height><depth>3</depth></size>{}</annotation>"
OBJECT = "<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A VOC tree of five images with two objects each, and weights that nobody trained."""
    root = tmp_path_factory.mktemp("cells")
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    objects = OBJECT.format("cat", 11, 11, 50, 50) + OBJECT.format("dog", 41, 21, 90, 55)
    pixels = np.random.default_rng(0).integers(0, 256, (60, 100, 3), np.uint8)
    for split, names in (("trainval", "abc"), ("test", "de")):
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(names))
        for name in names:
            (root / "Annotations" / f"{name}.xml").write_text(ANNOTATION.format(objects))
            Image.fromarray(pixels).save(root / "JPEGImages" / f"{name}.jpg")
    torch.manual_seed(0)
    torch.save(SqueezeNet().state_dict(), root / "backbone.pth")
    return {"data": root, "weights": root / "backbone.pth"}


@pytest.mark.parametrize("system", PRESENT)
def test_a_run_trains_and_evaluates(system: str, files: dict[str, Path], tmp_path: Path) -> None:
    options = recipe("squeezenet1_0", iterations=2, warmup=1)
    found = bccd.accuracy_run(system, **files, config=CONFIG, options=options)
    schema.save(found, tmp_path / "bccd-a.json")
    again = schema.load(tmp_path / "bccd-a.json")
    assert {name: of["objects"] for name, of in again["test"]["classes"].items()} == {"cat": 2, "dog": 2}
    assert again["times"][system]["iteration"]["samples"] == 2
    assert again["times"][system]["image"]["samples"] == 2
    assert again["recipe"]["options"]["lr"] == 0.004


@pytest.mark.parametrize("system", PRESENT)
def test_training_moves_the_whole_backbone_as_scheduled(system: str, files: dict[str, Path]) -> None:
    one = bccd.built(system, **files, config=CONFIG, options=recipe("squeezenet1_0", iterations=3, warmup=2))
    before = {name: value.clone() for name, value in one.detector.named_parameters()}
    assert len(list(one.train(2))) == 2
    assert one.optimizer.param_groups[0]["lr"] == 0.004  # the warm-up's end
    assert len(list(one.train(9))) == 1  # the schedule's end
    still = [name for name, value in one.detector.named_parameters() if torch.equal(value, before[name])]
    assert not still, f"never trained: {still}"


@pytest.mark.parametrize("system", PRESENT)
def test_the_backbone_sees_the_batch_as_it_is(system: str, files: dict[str, Path]) -> None:
    one = bccd.built(system, **files, config=CONFIG, options=recipe("squeezenet1_0", iterations=1))
    seen = []
    first = next(module for module in one.detector.modules() if isinstance(module, torch.nn.Conv2d))
    first.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].detach().clone()))
    list(one.train(1))
    list(one.detect(1))
    trained = next(iter(bccd.TrainingBatches(one.training, CONFIG, one.options)))
    tested = next(iter(one.test_batches))
    assert torch.equal(seen[0], trained.images)
    assert torch.equal(seen[1], tested.images)


@pytest.mark.skipif(bool(torchvision_missing), reason=torchvision_missing or "torchvision is there")
def test_both_get_the_same_images_and_are_timed_in_turns(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bccd, "SLICE", 2)
    options = recipe("squeezenet1_0", iterations=2)
    one, other = (bccd.built(system, **files, config=CONFIG, options=options) for system in bccd.SYSTEMS)
    for (_, mine), (_, theirs) in zip(one.batches, other.batches, strict=True):
        assert mine.image_ids == theirs.image_ids
        assert torch.equal(mine.images, theirs.images)
    found = bccd.timing_run(2, **files, config=CONFIG, options=options)
    schema.save(found, tmp_path / "bccd-t.json")
    assert all(of["iteration"]["samples"] == 4 for of in found["times"].values())
    medians = [found["times"][system]["image"]["p50"] for system in bccd.SYSTEMS]
    assert found["ratio"]["image"] == pytest.approx(medians[1] / medians[0])


def test_what_is_missing_is_named(files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, weights = ["--data", str(files["data"])], ["--weights", str(files["weights"])]
    for arguments, named in (
        ([*data, "--weights", str(tmp_path / "none.npz")], "none.npz: no such file"),
        (["--data", str(tmp_path), *weights], f"{tmp_path}: no PASCAL VOC data"),
    ):
        assert bccd.main(["--system", "frcnn_fast", *arguments]) == 2
        assert named in capsys.readouterr().err
    assert bccd.main(["--time", "0", *data, *weights]) == 2
    assert "--time: got 0, expected at least 1 round" in capsys.readouterr().err


def made_up(date: str, **more: object) -> dict[str, object]:
    """A report by hand."""
    environment = {
        "date": date, "commit": "0123456789ab", "changed": False, "cpu": "a processor", "threads": 2,
        "torch": "2.14.1+cpu", "torchvision": "0.29.1", "missing": [],
    }  # fmt: skip
    recipe_ = {"config": {}, "options": {"iterations": 600, "batch_size": 2}}
    return {"schema": 1, "benchmark": "bccd", "environment": environment, "recipe": recipe_, "times": {}, **more}


def accuracy(system: str, seed: int, ap: float, date: str = "2026-01-01") -> dict[str, object]:
    cat = {"ap07": ap, "ap_area": ap / 2, "objects": 1, "detections": 1}
    test = {"iou_threshold": 0.5, "map07": ap, "map_area": ap / 2, "classes": {"cat": cat}}
    return made_up(date, system=system, seed=seed, test=test)


def in_halves(times: dict[str, object]) -> dict[str, object]:
    recipe_ = {"config": {}, "options": {"iterations": 600, "batch_size": 2, "precision": "bfloat16"}}
    return {**made_up("2026-01-01", times=times, ratio={"iteration": 3.0, "image": 3.0}), "recipe": recipe_}


def test_the_table_has_means_seeds_and_the_newest_times(tmp_path: Path) -> None:
    quantiles = {"p10": 1e6, "p50": 1e6, "p90": 2e6, "samples": 30, "repeats": 1}
    slower = {**quantiles, "p50": 1.5e6}
    times = {
        "frcnn_fast": {"iteration": quantiles, "image": quantiles},
        "torchvision": {"iteration": slower, "image": slower},
    }
    reports = [
        accuracy("frcnn_fast", 0, 0.1),  # superseded
        accuracy("frcnn_fast", 1, 0.8),
        accuracy("frcnn_fast", 0, 0.6, "2026-01-02"),
        made_up("2026-01-02", times=times, ratio={"iteration": 1.5, "image": 1.5}),
        made_up("2026-01-01", times=times, ratio={"iteration": 9.0, "image": 9.0}),
        in_halves(times),
        accuracy("torchvision", 0, 0.5),
    ]
    paths = [tmp_path / f"bccd-{i}.json" for i in range(len(reports))]
    for path, one in zip(paths, reports):
        schema.save(one, path)
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- bench:bccd -->\nold\n<!-- /bench:bccd -->\nafter\n")
    assert report.main([*map(str, paths), "--page", str(readme)]) == 0
    text = readme.read_text()
    assert "| AP50 cat, 11-point | 0.700 (0.600, 0.800) | 0.500 (0.500) |" in text
    assert "| mean, area | 0.350 (0.300, 0.400) | 0.250 (0.250) |" in text
    assert "| seconds a test image, float32 | 1.000 (1.50 times faster) | 1.500 |" in text
    assert "| seconds a training iteration, bfloat16 | 1.000 (3.00 times faster) | 1.500 |" in text
    assert "old" not in text
    assert text.endswith("after\n")
    assert list(tmp_path.glob("*.png")) == []  # the plots are the kernels'


@pytest.mark.parametrize("damage", ["system", "ratio", "times", "schema"])
def test_the_schema_refuses(damage: str) -> None:
    found = accuracy("frcnn_fast", 0, 0.5)
    if damage == "system":
        del found["system"]
    elif damage == "ratio":
        found["ratio"] = {"iteration": "fast", "image": 1.0}
    elif damage == "times":
        found["times"] = {"frcnn_fast": {"iteration": {}}}
    else:
        found["schema"] = 0
    with pytest.raises(ValueError, match="report"):
        schema.check_report(json.loads(json.dumps(found)))


def test_an_empty_comparison_is_an_empty_table() -> None:
    assert bccd_table.body([]) == ["", "| test split of BCCD | frcnn_fast | torchvision |", "| --- | ---: | ---: |"]


def test_a_report_of_r50_has_the_form_of_the_other_timings(tmp_path: Path) -> None:
    times = {system: dict.fromkeys(("iteration", "image"), summary([1.0, 2.0])) for system in bccd.SYSTEMS}
    report = {**bccd.new_report(CONFIG, recipe("squeezenet1_0")), "times": times, "ratio": {"iteration": 1, "image": 1}}
    schema.save({**report, "benchmark": "r50"}, tmp_path / "r50.json")
    with pytest.raises(ValueError, match="lacks"):
        schema.save({**report, "benchmark": "r51"}, tmp_path / "r51.json")


@pytest.mark.skipif(not torchvision_missing, reason="torchvision is there")
def test_r50_says_what_it_lacks(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert r50.main(["--data", str(files["data"]), "--rounds", "0"]) == 2
    assert "--rounds: got 0, expected at least 1" in capsys.readouterr().err
    assert r50.main(["--data", str(files["data"])]) == 2
    assert "`make bench-env` installs it" in capsys.readouterr().err


@pytest.mark.skipif(bool(torchvision_missing), reason=torchvision_missing or "torchvision is there")
def test_r50_is_one_detector_in_two_libraries(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(r50, "SIZES", {"shorter": 64, "longer": 128})
    made, _, options = r50.contestants(files["data"], 1, "float32")
    assert options.iterations == 1 + bccd.SLICE
    ((_, mine),), ((_, other),) = (list(one.detect(1)) for one in made.values())
    assert len(mine["labels"]) > 0
    assert mine["labels"].tolist() == other["labels"].tolist()  # tests/compat compares boxes, with calibrated weights
