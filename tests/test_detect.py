"""The commands detect and evaluate: one bad item costs only itself, and work done is kept."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from frcnn_fast import cli, detect, evaluate
from frcnn_fast.inference import Detector, Result, files, sources
from frcnn_fast.inference.inputs import input_files
from frcnn_fast.io import read_jsonl
from frcnn_fast.model import FasterRCNN, build_detector, load_detector, preset, save_detector
from tests.test_data import image_file, voc_object, voc_tree, voc_xml
from tests.test_files import oriented

LATIN = os.fsdecode(b"caf\xe9.jpg")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """An untrained detector: it finds a hundred things of low scores everywhere."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    save_detector(folder / "model.safetensors", build_detector(["ratón", "dog"], preset("small", max_detections=20)))
    return folder


def found(out: Path) -> list[dict[str, Any]]:
    records = read_jsonl(out / "detections.jsonl")
    assert json.loads((out / "detections.json").read_text(encoding="utf-8")) == records
    return records


def call(run: Path, out: Path, *images: str | Path, threshold: str = "0") -> int:
    return detect.main([*map(str, images), "--checkpoint", str(run), "-o", str(out), "--score-threshold", threshold])


class TestNames:
    def test_a_name_that_is_no_utf_8(self, run, tmp_path, capsys):
        for name in ("a.jpg", LATIN, "line\nbreak.jpg"):
            image_file(tmp_path / "in" / name)
        assert call(run, tmp_path / "out", tmp_path / "in") == 0
        records = found(tmp_path / "out")
        assert [os.path.basename(record["image"]) for record in records] == ["a.jpg", LATIN, "line\nbreak.jpg"]
        assert all((tmp_path / "out" / record["drawing"]).is_file() for record in records)
        assert r"caf\xe9.jpg: 20 objects" in capsys.readouterr().out

    @pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
    def test_consoles_that_cannot_print_it(self, run, tmp_path, encoding):
        for name in ("鼠标.jpg", LATIN):
            image_file(tmp_path / "in" / name)
        command = [sys.executable, "-m", "frcnn_fast.cli", "detect", "in", "gone-ó.jpg", "--checkpoint", str(run)]
        environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*command, "-o", "out"], cwd=tmp_path, env=environment, capture_output=True, timeout=600, check=False
        )
        assert done.returncode == 1, done.stderr
        assert b"Traceback" not in done.stderr
        assert b"no such image file" in done.stderr
        assert len(found(tmp_path / "out")) == 2
        assert done.stdout.count(b" objects, ") == 2

    @pytest.mark.parametrize("command", ["evaluate", "train"])
    def test_class_names_that_a_console_cannot_print(self, run, tmp_path, command):
        root = voc_tree(tmp_path, a=voc_xml(voc_object("ratón"), voc_object("dog", ("40", "30", "60", "50"))))
        voc_tree(tmp_path, "test", b=voc_xml(voc_object("ratón")))
        arguments = {
            "evaluate": ["--checkpoint", str(run)],
            "train": [
                "--backbone",
                "small",
                "--iterations",
                "1",
                "--train-split",
                "train",
                "--out",
                str(tmp_path / "n"),
            ],
        }
        done = subprocess.run(
            [sys.executable, "-m", "frcnn_fast.cli", command, "--data-root", str(root), *arguments[command]],
            env={**os.environ, "PYTHONIOENCODING": "ascii", "OMP_NUM_THREADS": "1"},
            capture_output=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert b"rat\\xf3n" in done.stdout
        assert done.stdout.splitlines()[-1].startswith(b"VOC07 mAP ")

    def test_addresses_are_echoed_as_typed(self, run, tmp_path, capsys):
        image_file(tmp_path / "a.jpg")
        assert call(run, tmp_path / "out", "http://x/a.jpg", f"{tmp_path}//./a.jpg") == 1
        error = capsys.readouterr().err
        assert "error: http://x/a.jpg: no such image file; download it first" in error
        assert [record["image"] for record in found(tmp_path / "out")] == [f"{tmp_path}//./a.jpg"]

    def test_folders_hold_more_than_images(self, run, tmp_path):
        image_file(tmp_path / "in/b.JPG")
        (tmp_path / "in/c.jpg").mkdir()
        for name in ("._b.JPG", ".hidden.png", "notes.txt"):
            (tmp_path / "in" / name).write_text("no image")
        assert call(run, tmp_path / "out", tmp_path / "in") == 0
        assert len(found(tmp_path / "out")) == 1
        with pytest.raises(ValueError, match=r"c\.jpg: no images or videos in this folder"):
            input_files([str(tmp_path / "in/c.jpg")])


class TestBadItems:
    def test_each_costs_only_itself(self, run, tmp_path, capsys, monkeypatch):
        """A broken file, one for which the memory does not do, one that cannot be drawn, one that cannot be saved."""
        for name in "abcdef":
            image_file(tmp_path / "in" / f"{name}.png")
        (tmp_path / "in/b.png").write_bytes((tmp_path / "in/b.png").read_bytes()[:80])
        right_forward, right_plot, right_save = FasterRCNN.forward, Result.plot, files.save_image
        asked: list[str] = []

        def no_memory(*args: Any, **kwargs: Any) -> Any:
            asked.append("detect")
            if len(asked) == 2:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory\nmore of it")
            return right_forward(*args, **kwargs)

        def no_drawing(result: Result) -> Any:
            if len(asked) == 3:
                raise MemoryError
            return right_plot(result)

        def no_space(path: Path, drawing: Any) -> None:
            if path.name == "e.png":
                raise OSError(28, "No space left on device", str(path))
            right_save(path, drawing)

        monkeypatch.setattr(FasterRCNN, "forward", no_memory)
        monkeypatch.setattr(Result, "plot", no_drawing)
        monkeypatch.setattr(files, "save_image", no_space)
        assert call(run, tmp_path / "out", tmp_path / "in") == 1
        records = found(tmp_path / "out")
        assert [(Path(record["image"]).stem, record["drawing"]) for record in records] == [
            ("a", "a.png"),
            ("d", None),
            ("e", None),
            ("f", "f.png"),
        ]
        assert all(len(record["detections"]) == 20 for record in records)
        errors = capsys.readouterr().err.splitlines()
        assert len(errors) == 4
        assert all(error.startswith("python -m frcnn_fast.detect: error: ") for error in errors)

    def test_what_is_done_stays_when_it_is_interrupted(self, run, tmp_path, monkeypatch):
        for name in "abc":
            image_file(tmp_path / "in" / f"{name}.png")
        right = sources.read_image

        def interrupted(path, **options):
            if path.endswith("c.png"):
                raise KeyboardInterrupt
            return right(path, **options)

        monkeypatch.setattr(sources, "read_image", interrupted)
        with pytest.raises(SystemExit) as stop:
            call(run, tmp_path / "out", tmp_path / "in")
        assert stop.value.code == 130
        assert len(read_jsonl(tmp_path / "out/detections.jsonl")) == 2

    @pytest.mark.parametrize("size", [(2, 40000), (40000, 2), (1, 1), (1, 3000)])
    def test_strips_are_drawn_within_bounds(self, run, tmp_path, size):
        Image.fromarray(np.zeros((*size, 3), np.uint8)).save(tmp_path / "a.png")
        assert call(run, tmp_path / "out", tmp_path / "a.png") == 0
        (record,) = found(tmp_path / "out")
        with Image.open(tmp_path / "out" / record["drawing"]) as drawing:
            assert max(drawing.size) <= max(4000, *size)
        for item in record["detections"]:
            x1, y1, x2, y2 = item["box"]
            assert 0 <= x1 <= x2 <= size[1]
            assert 0 <= y1 <= y2 <= size[0]

    def test_long_names_are_drawn(self, run, tmp_path):
        image_file(tmp_path / f"{'a' * 251}.png")
        assert call(run, tmp_path / "out", tmp_path / f"{'a' * 251}.png") == 0


class TestThreshold:
    @pytest.mark.parametrize("value", ["50", "-0.1", "1.01", "nan", "inf"])
    def test_no_score(self, run, tmp_path, value, capsys):
        with pytest.raises(SystemExit) as stop:
            cli.main(
                ["detect", "a.jpg", "--checkpoint", str(run), "-o", str(tmp_path / "o"), "--score-threshold", value]
            )
        assert stop.value.code == 1
        assert "expected a score from 0 to 1" in capsys.readouterr().err
        assert not (tmp_path / "o").exists()

    def test_it_is_the_least_score_also_below_the_detectors_own(self, run):
        model = load_detector(run)
        model.config = preset("small", score_threshold=0.4)
        detector = Detector(model)
        image = torch.randint(0, 256, (3, 60, 100), dtype=torch.uint8)
        everything = detector(image, score_threshold=0.0)
        assert len(everything) > 30
        assert model.config.score_threshold == 0.4
        scores = everything.scores.sort().values
        for threshold in (float(scores[-1]), float(scores[15]), 0.3, 0.5, 1.0):
            kept = detector(image, score_threshold=threshold).scores
            assert (kept >= threshold).all()
            if threshold == float(scores[-1]):
                assert len(kept) >= 1
        assert torch.equal(detector(image).scores, detector(image, score_threshold=0.4).scores)
        with pytest.raises(ValueError, match="score_threshold: got 50, expected a score from 0 to 1"):
            detector(image, score_threshold=50)

    def test_zero_means_zero(self, run, tmp_path):
        image_file(tmp_path / "a.png")
        assert call(run, tmp_path / "out", tmp_path / "a.png", threshold="0.0") == 0
        assert len(found(tmp_path / "out")[0]["detections"]) == 20


class TestResults:
    def test_an_earlier_one_is_not_replaced(self, run, tmp_path, capsys):
        image_file(tmp_path / "a.png")
        image_file(tmp_path / "b.png")
        out = tmp_path / "out"
        assert call(run, out, tmp_path / "a.png") == 0
        before = {path.name: path.read_bytes() for path in out.iterdir()}
        with pytest.raises(SystemExit) as stop:
            call(run, out, tmp_path / "b.png")
        assert stop.value.code == 1
        error = capsys.readouterr().err
        assert "is an earlier result; choose another folder, go on with it with --resume, or replace it with" in error
        assert {path.name: path.read_bytes() for path in out.iterdir()} == before
        (out / "mine.png").write_bytes(b"mine")
        arguments = [str(tmp_path / "b.png"), "--checkpoint", str(run), "-o", str(out), "--overwrite"]
        assert detect.main(arguments) == 0
        assert {path.name for path in out.iterdir()} == {
            "b.png",
            "mine.png",
            "detections.json",
            "detections.jsonl",
            "plan.json",
        }
        assert (out / "mine.png").read_bytes() == b"mine"

    def test_drawings_never_replace_the_images(self, run, tmp_path):
        image_file(tmp_path / "a.png")
        original = (tmp_path / "a.png").read_bytes()
        assert call(run, tmp_path, tmp_path) == 0
        assert (tmp_path / "a.png").read_bytes() == original
        assert found(tmp_path)[0]["drawing"] == "a-2.png"

    def test_a_folder_that_is_none_is_found_out_at_once(self, run, tmp_path, capsys):
        (tmp_path / "out").write_text("a file")
        with pytest.raises(SystemExit):
            call(run, tmp_path / "out", tmp_path)
        assert "error: " in capsys.readouterr().err

    def test_an_evaluation_is_not_replaced_either(self, run, tmp_path, capsys):
        root = voc_tree(tmp_path, "test", a=voc_xml(voc_object("ratón"), voc_object("dog")))
        arguments = ["--checkpoint", str(run), "--data-root", str(root), "-o", str(tmp_path / "r.json")]
        assert evaluate.main(arguments) == 0
        with pytest.raises(SystemExit):
            evaluate.main(arguments)
        assert "r.json is there already; choose another file or --overwrite it" in capsys.readouterr().err
        assert evaluate.main([*arguments, "--overwrite"]) == 0

    def test_turned_images_are_seen_upright(self, run, tmp_path):
        oriented(tmp_path / "a.jpg", 6)
        assert call(run, tmp_path / "out", tmp_path / "a.jpg") == 0
        (record,) = found(tmp_path / "out")
        assert (record["width"], record["height"]) == (60, 100)


class TestEvaluate:
    def test_an_item_is_read_once(self, run):
        """Its target is the one of the image that was looked at: a data set may change both at random."""

        class Counting:
            class_names = ("ratón", "dog")
            asked: list[int] = []  # noqa: RUF012

            def __len__(self):
                return 3

            def __getitem__(self, index):
                self.asked.append(index)
                return torch.zeros(3, 40, 50, dtype=torch.uint8), {"boxes": [[1, 2, 9, 9]], "labels": [1.0]}

        dataset: Any = Counting()
        result = evaluate.evaluate(load_detector(run), dataset, progress=False)
        assert result.num_objects == {"ratón": 3, "dog": 0}
        assert dataset.asked == [0, 1, 2]

    def test_subsets(self, run, tmp_path):
        from torch.utils.data import Subset

        from frcnn_fast.data import VocDetection

        xml = voc_xml(voc_object("dog"))
        dataset: Any = VocDetection(voc_tree(tmp_path, a=xml, b=xml), "train", class_names=["ratón", "dog"])
        result = evaluate.evaluate(load_detector(run), Subset(dataset, [1]), progress=False)  # type: ignore[arg-type]
        assert result.num_objects["dog"] == 1

    def test_a_wrong_target_is_named(self, run):
        class Wrong:
            class_names = ("ratón", "dog")

            def __len__(self):
                return 1

            def __getitem__(self, index):
                return torch.zeros(3, 40, 50, dtype=torch.uint8), {"boxes": [[9, 2, 1, 9]], "labels": [1]}

        with pytest.raises(ValueError, match=r"image 0: target\['boxes'\]\[0\] is \[9, 2, 1, 9\]"):
            evaluate.evaluate(load_detector(run), Wrong(), progress=False)  # type: ignore[arg-type]


class TestTrainCommand:
    def tree(self, root: Path) -> list[str]:
        voc_tree(root, "trainval", a=voc_xml(voc_object("cat"), voc_object("emu", ("40", "30", "60", "50"))))
        settings = ["--backbone", "small", "--iterations", "1", "--drawings", "0", "--device", "cpu"]
        return ["train", "--data-root", str(root), "--out", str(root / "run"), *settings]

    def test_without_a_test_split(self, tmp_path, capsys):
        arguments = self.tree(tmp_path)
        assert cli.main(arguments) == 0
        assert "no evaluation: " in capsys.readouterr().err
        with pytest.raises(SystemExit):
            cli.main([*arguments, "--test-split", "val", "--overwrite"])
        assert cli.main([*arguments, "--test-split", "none", "--overwrite"]) == 0
        said = capsys.readouterr()
        assert "no evaluation" not in said.err
        assert "VOC07" not in said.out
        assert not (tmp_path / "run/evaluation.json").exists()

    def test_some_classes_only_and_nothing_broken(self, tmp_path, capsys):
        arguments = [*self.tree(tmp_path), "--class-names", "cat", "--ignore-other-classes", "--skip-broken"]
        voc_tree(tmp_path, "test", b=voc_xml(voc_object("emu"), voc_object("cat")), c="<annotation")
        with pytest.warns(UserWarning, match="left out 1 broken"):
            assert cli.main(arguments) == 0
        assert "train trainval (1 images), test test (1 images), 1 classes: cat" in capsys.readouterr().err
        assert list(json.loads((tmp_path / "run/evaluation.json").read_text())["classes"]) == ["cat"]
        with pytest.warns(UserWarning, match="left out 1 broken"):  # the settings are those of the run
            assert cli.main(["evaluate", "--checkpoint", str(tmp_path / "run")]) == 0

    def test_the_first_batches_are_drawn(self, tmp_path):
        assert cli.main(self.tree(tmp_path)) == 0
        with Image.open(tmp_path / "run/train_batch.jpg") as sheet:
            pixels = np.array(sheet).astype(int)
        assert (abs(pixels[:, :, 0] - pixels[:, :, 2]) > 100).any()  # boxes in colour


def test_the_sheet_shows_what_the_network_gets():
    from frcnn_fast.data import Collate, Preprocess

    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    for name in Preprocess.names:
        batch = Collate(name)([(image, {"boxes": [], "labels": []}) for image in images])
        assert (Preprocess(name).undo(batch.images).int() - images.int()).abs().max() <= 1


def test_a_sheet_that_cannot_be_drawn_costs_nothing(tmp_path):
    from frcnn_fast.data import Collate
    from frcnn_fast.data.sheet import with_sheet

    batch = Collate()([(torch.zeros(3, 8, 8, dtype=torch.uint8), {"boxes": [[1, 1, 2, 2]], "labels": [1]})])
    (tmp_path / "a.jpg").mkdir()
    with pytest.warns(UserWarning, match="could not be drawn"):
        assert len(list(with_sheet([batch] * 3, tmp_path / "a.jpg", ["cat"], "torch"))) == 3
