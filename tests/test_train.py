"""Training and its commands, end to end on small images."""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from frcnn_fast import _command, cli, detect, doctor, evaluate, train
from frcnn_fast.io import read_jsonl
from frcnn_fast.model import build_detector, load_detector, preset, save_detector
from frcnn_fast.model.losses import ROI_LOSSES, RPN_LOSSES
from frcnn_fast.training import Training, TrainOptions, fit, recipe
from frcnn_fast.training.batches import ShuffledForever, TrainingBatches
from frcnn_fast.training.folder import free_folder, new_run
from frcnn_fast.training.interrupt import StopOnSignal
from frcnn_fast.training.schemes import SCHEMES, Stage
from frcnn_fast.training.start import resumed
from tests.small_data import SIZE, OneClass, digits, write_voc_tree


def quick(**changes):
    return recipe("small", **{"iterations": 4, "log_every": 2, "warmup": 2, **changes})


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """On a busy machine threads that wait for each other take many times as long as one that does all the work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short training run on half-size digits, evaluated."""
    out = tmp_path_factory.mktemp("run")
    options = recipe("small", iterations=100, log_every=10, warmup=10, lr=2e-3)
    training, test = OneClass(digits("train", 100_000)), OneClass(digits("test", 40))
    return train.train(training, out=out, config=preset("small"), options=options, test=test, drawings=2)


@pytest.fixture(scope="module")
def voc_tree(tmp_path_factory):
    return write_voc_tree(tmp_path_factory.mktemp("voc"))


class TestSchedule:
    def test_warm_up_then_steps(self):
        options = TrainOptions(iterations=100, lr=1.0, warmup=4, milestones=(50, 80), lr_factor=0.1)
        rates = [options.lr_at(i) for i in (0, 3, 4, 49, 50, 79, 80, 99)]
        assert rates == pytest.approx([0.25, 1, 1, 1, 0.1, 0.1, 0.01, 0.01])

    def test_warm_up_then_cosine(self):
        options = TrainOptions(iterations=110, lr=1.0, warmup=10, schedule="cosine")
        rates = [options.lr_at(i) for i in (0, 9, 10, 60, 110)]
        assert rates == pytest.approx([0.1, 1, 1, 0.5, 0])

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"lr": 0.0}, "lr: got 0.0, expected a positive"),
            ({"iterations": 0}, "iterations: got 0, expected at least 1"),
            ({"clip": -1.0}, "clip: got -1.0, expected at least 0"),
            ({"optimizer": "adam"}, "optimizer: got 'adam', expected 'sgd' or 'adamw'"),
            ({"schedule": "linear"}, "schedule: got 'linear'"),
        ],
    )
    def test_options_out_of_range(self, changes, message):
        with pytest.raises(ValueError, match=message):
            TrainOptions(**changes)

    def test_every_epoch_shows_every_image_once(self):
        indices = [item.image for item in ShuffledForever(5, 12, seed=1)]
        assert sorted(indices[:5]) == sorted(indices[5:10]) == [0, 1, 2, 3, 4]
        assert len(indices) == 12
        assert indices == [item.image for item in ShuffledForever(5, 12, seed=1)]
        assert indices != [item.image for item in ShuffledForever(5, 12, seed=2)]


class TestTraining:
    def test_it_learns(self, run):
        records = [record for record in read_jsonl(run.out / "metrics.jsonl") if "loss" in record]
        assert [record["iteration"] for record in records] == list(range(10, 110, 10))
        # Seen: 0.68 falls to 0.23, AP 0.52; an untrained detector has an AP of about 0.
        assert records[-1]["loss_objectness"] < 0.6 * records[0]["loss_objectness"]
        assert run.evaluation.map07 > 0.2

    def test_it_leaves_its_results(self, run):
        names = {str(path.relative_to(run.out)) for path in run.out.rglob("*") if path.is_file()}
        drawings = {"drawings/digits-test-0-0.png", "drawings/digits-test-0-1.png"}
        files = {
            "config.toml",
            "metrics.jsonl",
            "train.log",
            "model.safetensors",
            "loss.png",
            "evaluation.json",
            "train_batch.jpg",
        }
        files.add("checkpoints/000000100.safetensors")
        assert names == files | drawings
        written = json.loads((run.out / "evaluation.json").read_text())
        assert written["map07"] == pytest.approx(run.evaluation.map07)

    def test_the_checkpoint_evaluates_to_the_same(self, run):
        again = evaluate.evaluate(load_detector(run.out), OneClass(digits("test", 40)), progress=False)
        assert again.map07 == run.evaluation.map07
        assert again.ap_area == run.evaluation.ap_area

    def test_any_data_set_backbone_and_callback(self, tmp_path):
        class Squares:
            def __init__(self):
                self.class_names = ["square"]

            def __len__(self):
                return 3

            def __getitem__(self, index):
                image = torch.zeros(3, 70, 90, dtype=torch.uint8)
                image[:, 10:40, 10 + index : 40 + index] = 255
                box = torch.tensor([[10.0 + index, 10, 40 + index, 40]])
                return image, {"boxes": box, "labels": torch.tensor([1])}

        class Backbone(nn.Module):
            out_channels, strides = 8, (8,)

            def __init__(self):
                super().__init__()
                self.conv = nn.Conv2d(3, 8, 9, stride=8, padding=4)

            def forward(self, images):
                return (self.conv(images).relu(),)

        config = preset(
            "small", shorter=64, longer=80, anchor_sizes=((32.0,),), rpn_channels=8, head_channels=8, pool_size=3
        )
        seen = []

        def stop_at_four(record):
            seen.append(record["iteration"])
            return record["iteration"] == 4

        result = train.train(
            Squares(), out=tmp_path, backbone=Backbone(), config=config, options=quick(iterations=50, flips=True),
            test=Squares(), drawings=1, callback=stop_at_four,
        )  # fmt: skip
        assert seen == [2, 4]
        assert (result.iterations, result.stopped_by) == (4, None)
        assert result.evaluation is not None
        assert list(result.evaluation.ap07) == ["square"]
        assert (tmp_path / "drawings/0.png").is_file()

    def test_images_without_objects_train_and_nothing_is_printed(self, tmp_path, capsys):
        class Empty:
            def __init__(self):
                self.class_names = ["nothing"]

            def __len__(self):
                return 2

            def __getitem__(self, index):
                return torch.full((3, 64, 64), 90, dtype=torch.uint8), {
                    "boxes": torch.zeros(0, 4),
                    "labels": torch.zeros(0, dtype=torch.int64),
                }

        result = train.train(Empty(), out=tmp_path, config=preset("small"), options=quick(), progress=False)
        assert result.iterations == 4
        assert capsys.readouterr() == ("", "")

    def test_divergence_is_reported_and_the_checkpoint_kept(self, tmp_path):
        options = quick(optimizer="sgd", iterations=60, lr=1e6, clip=0.0, warmup=0, log_every=1, checkpoint_every=1)
        with pytest.raises(
            FloatingPointError,
            match=r"at iteration \d+ on the images digits-\S+, .*: training diverged; .* rate \(now 1000000.0\)",
        ):
            train.train(digits("train", 100), out=tmp_path, config=preset("small"), options=options)
        assert (tmp_path / "model.safetensors").is_file()

    def test_an_empty_data_set_is_refused(self, tmp_path):
        with pytest.raises(ValueError, match="dataset: got an empty data set"):
            train.train(digits("train", 0), out=tmp_path, config=preset("small"), options=quick())

    def test_freezing_follows_the_weights(self, tmp_path):
        torch.manual_seed(3)
        config = preset("squeezenet1_0", rpn_channels=8, head_channels=8, shorter=64, longer=80)
        backbone = build_detector(["a"], config).backbone.state_dict()
        np.savez(tmp_path / "w.npz", **{name: tensor.numpy() for name, tensor in backbone.items()})
        options = recipe("squeezenet1_0", iterations=2, batch_size=1, freeze=1, log_every=1, warmup=1)
        result = train.train(
            digits("train", 10), out=tmp_path / "run", config=config, options=options, weights=tmp_path / "w.npz"
        )
        trained = result.detector.backbone.state_dict()
        same = {name.split(".")[1] for name in backbone if torch.equal(backbone[name], trained[name])}
        assert same == {"0"}


class TestCommands:
    def test_train_evaluate_detect(self, voc_tree, tmp_path, capsys):
        out = tmp_path / "run"
        data = ["--dataset", "voc", "--data-root", str(voc_tree)]
        settings = ["--backbone", "small", "--preprocess", "caffe", "--shorter", "96", "--iterations", "3"]
        assert train.main([*data, *settings, "--out", str(out), "--batch-size", "2", "--drawings", "1"]) == 0
        last = capsys.readouterr().out.splitlines()[-1]
        assert last.startswith("VOC07 mAP 0.")
        assert len(last) == len("VOC07 mAP 0.9123")
        config = load_detector(out).config
        assert (config.preprocess, config.shorter, config.backbone) == ("caffe", 96, "small")

        result = tmp_path / "result.json"
        assert cli.main(["evaluate", "--checkpoint", str(out), "-o", str(result)]) == 0  # on the data of the run
        assert capsys.readouterr().out.splitlines()[-1] == last
        assert list(json.loads(result.read_text())["classes"]) == ["digit"]

        images = [str(voc_tree / "JPEGImages/4.jpg"), str(voc_tree / "JPEGImages")]
        arguments = [*images, "--checkpoint", str(out), "-o", str(tmp_path / "found"), "--score-threshold", "0.01"]
        assert detect.main(arguments) == 0
        records = json.loads((tmp_path / "found/detections.json").read_text())
        assert [record["drawing"] for record in records] == [
            "4.png", "0.png", "1.png", "2.png", "3.png", "5.png",
        ]  # fmt: skip
        assert all((tmp_path / "found" / record["drawing"]).is_file() for record in records)
        assert (records[0]["width"], records[0]["height"]) == (SIZE[1], SIZE[0])
        assert all(0 <= x <= 160 for record in records for found in record["detections"] for x in found["box"])

    def test_weights_that_do_not_fit_are_named(self, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        weights: Any = {"features.0.weight": np.zeros((2, 3), np.float32)}
        np.savez("w.npz", **weights)
        with pytest.raises(SystemExit):
            train.main(["--backbone", "squeezenet1_0", "--weights", "w.npz", "--iterations", "1"])
        assert "error: w.npz: lacks features.0.bias, features.3.squeeze.weight" in capsys.readouterr().err
        assert list(tmp_path.iterdir()) == [tmp_path / "w.npz"]

    def test_a_broken_image_does_not_cost_the_others(self, voc_tree, tmp_path, capsys):
        save_detector(tmp_path / "model.safetensors", build_detector(["digit"], preset("small")))
        (tmp_path / "torn.jpg").write_bytes((voc_tree / "JPEGImages/0.jpg").read_bytes()[:100])
        images = [tmp_path / "torn.jpg", tmp_path / "gone.jpg", voc_tree / "JPEGImages/1.jpg"]
        arguments = [*map(str, images), "--checkpoint", str(tmp_path), "-o", str(tmp_path / "found")]
        assert detect.main(arguments) == 1
        errors = capsys.readouterr().err
        assert "torn.jpg: not a readable image" in errors
        assert "gone.jpg: no such image file" in errors
        assert [r["drawing"] for r in json.loads((tmp_path / "found/detections.json").read_text())] == ["1.png"]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["train", "--dataset", "voc"], "data_root: got nothing"),
            (["train", "--dataset", "digits", "--data-root", "x"], "data_root: got 'x', expected nothing"),
            (["train", "--data-root", "nowhere"], "nowhere: no data set"),
            (["train", "--lr", "-1"], "lr: got -1.0"),
            (["train", "--backbone", "resnet"], "backbone: got 'resnet'"),
            (["train", "--weights", "nowhere.npz"], "nowhere.npz: no such file"),
            (["train", "--device", "warp"], "device: got 'warp'"),
            (["evaluate", "--checkpoint", "nowhere"], "nowhere: no such file"),
            (["detect", "a.jpg", "--checkpoint", "nowhere", "-o", "out"], "nowhere: no such file"),
        ],
    )
    def test_bad_input_is_one_line_and_status_1(self, arguments, message, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(SystemExit) as stop:
            cli.main(arguments)
        assert stop.value.code == 1
        errors = capsys.readouterr().err
        assert errors.splitlines()[-1].startswith(f"frcnn-fast {arguments[0]}: error: ")
        assert message in errors.splitlines()[-1]
        assert "Traceback" not in errors

    def test_classes_of_another_data_set_are_refused(self, run):
        with pytest.raises(ValueError, match=r"dataset: its classes are \['square'\], expected the detector's"):
            evaluate.evaluate(run.detector, type("Squares", (), {"class_names": ["square"]})())

    def test_the_list_of_commands(self, capsys):
        assert cli.main([]) == cli.main(["--help"]) == 0
        assert cli.main(["fly"]) == 2
        assert "no command 'fly'" in capsys.readouterr().err


class TestStages:
    def test_approximate_joint_training_is_one_stage(self):
        (stage,) = TrainOptions(iterations=7).stages()
        assert stage == Stage(RPN_LOSSES + ROI_LOSSES, ("backbone", "rpn", "roi_head"), 7)

    def test_a_stage_moves_its_parts_by_its_losses(self, monkeypatch):
        """Two stages, the proposal network and then the head, each with its own warm-up."""
        stages = [Stage(RPN_LOSSES, ("backbone", "rpn"), 2), Stage(ROI_LOSSES, ("roi_head",), 3)]
        monkeypatch.setitem(SCHEMES, "approximate-joint", lambda iterations: stages)
        options = quick(log_every=1, checkpoint_every=2, batch_size=1, optimizer="sgd", lr=0.01, weight_decay=0.0)
        torch.manual_seed(0)
        detector = build_detector(digits("train", 9).class_names, preset("small"))
        detector.roi_head.cls_score.bias.requires_grad_(False)  # frozen by the caller
        records: list[dict[str, Any]] = []
        moved: dict[int, set[str]] = {}

        def weights():
            return {name: parameter.detach().clone() for name, parameter in detector.named_parameters()}

        before = weights()

        def save(done):
            nonlocal before
            now = weights()
            moved[done] = {name for name in now if not torch.equal(now[name], before[name])}
            before = now

        def batches(done, left):
            return TrainingBatches(digits("train", 9), detector.config, options, total=left, start=done)

        training = Training(detector, options, torch.device("cpu"))
        fitted = fit(training, batches, log=records.append, save=lambda: save(training.done))
        assert fitted == (5, None)
        assert {name.split(".")[0] for name in moved[2]} == {"backbone", "rpn"}
        assert {name.split(".")[0] for name in moved[4]} == {"roi_head"}
        assert "roi_head.cls_score.weight" in moved[4]
        assert "roi_head.cls_score.bias" not in moved[4]
        assert [{name for name in record if name.startswith("loss_")} for record in records] == [
            set(RPN_LOSSES)
        ] * 2 + [set(ROI_LOSSES)] * 3
        assert [record["lr"] for record in records] == pytest.approx([0.005, 0.01, 0.005, 0.01, 0.01])


class TestFolders:
    def test_a_second_run_does_not_touch_the_first(self, tmp_path):
        def run(**changes):
            return train.train(
                digits("train", 9), out=tmp_path / "run", config=preset("small"), options=quick(), **changes
            )

        first = run()
        assert first.out == tmp_path / "run"

        def contents():
            return {path.name: path.read_bytes() for path in first.out.rglob("*") if path.is_file()}

        before = contents()
        assert [run().out.name, run().out.name] == ["run-2", "run-3"]
        assert contents() == before

    def test_overwrite_leaves_nothing_of_the_older_run(self, tmp_path):
        def run(**changes):
            return train.train(
                digits("train", 9), out=tmp_path, config=preset("small"), options=quick(**changes), overwrite=True
            )

        assert run().out == tmp_path
        (tmp_path / "drawings").mkdir()
        (tmp_path / "drawings/0.png").touch()
        (tmp_path / "notes.txt").write_text("mine")
        with pytest.raises(FloatingPointError):
            run(optimizer="sgd", iterations=60, lr=1e6, clip=0.0, warmup=0, log_every=1, checkpoint_every=100)
        # Its weights were never worth keeping; the older run's must not pass for them.
        assert {path.name for path in tmp_path.iterdir()} <= {
            "notes.txt",
            "config.toml",
            "metrics.jsonl",
            "train.log",
            "train_batch.jpg",
        }
        assert (tmp_path / "notes.txt").read_text() == "mine"

    def test_a_folder_without_a_run_is_used(self, tmp_path):
        (tmp_path / "run").mkdir()
        (tmp_path / "run/notes.txt").touch()
        assert free_folder(tmp_path / "run").path == tmp_path / "run"
        assert new_run(f"{tmp_path}/run/", "a = 1").path == tmp_path / "run"
        assert (tmp_path / "run/config.toml").read_text() == "a = 1"
        assert free_folder(f"{tmp_path}/run/").path == tmp_path / "run-2"

    def test_the_settings_are_kept(self, run):
        config = resumed(run.out).config
        assert config.detector == run.detector.config
        expected = recipe("small", iterations=100, log_every=10, warmup=10, lr=2e-3, freeze=0)
        assert config.training == expected
        assert (config.data, config.run.weights, config.run.drawings) == (None, None, 2)
        assert f"torch {torch.__version__})" in (run.out / "config.toml").read_text().splitlines()[0]

    def test_the_command_finds_a_folder_of_its_own(self, voc_tree, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        arguments = ["--data-root", str(voc_tree), "--backbone", "small", "--iterations", "1", "--drawings", "0"]
        assert train.main(arguments) == train.main(arguments) == 0
        assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["voc", "voc-2"]
        assert "results in runs/voc-2" in capsys.readouterr().err
        data = resumed(tmp_path / "runs/voc-2").config.data
        assert (data.data_root, data.train_split, data.class_names) == (str(voc_tree), "trainval", ("digit",))
        assert train.main([*arguments, "--overwrite"]) == 0
        assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["voc", "voc-2"]


class Torn:
    """Some items raise as a truncated file does."""

    def __init__(self, torn, length=8):
        self.class_names = ["digit"]
        self.dataset, self.torn = OneClass(digits("train", length)), torn

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        if index in self.torn:
            raise ValueError(f"{index}.jpg: not a readable image")
        return self.dataset[index]


class TestUnreadableImages:
    @pytest.mark.parametrize("workers", [0, 1])
    def test_another_image_takes_the_place(self, workers):
        options = quick(iterations=8, batch_size=2, workers=workers)
        batches = TrainingBatches(Torn({3, 5}), preset("small"), options)
        with pytest.warns(
            UserWarning, match=r"left out \d unreadable images? so far, the last: [35]\.jpg: not a"
        ) as told:
            found = list(batches)
        assert [len(batch) for batch in found] == [2] * 8
        assert sorted(batches.unreadable) == ["3.jpg: not a readable image", "5.jpg: not a readable image"]
        assert len(told) == 2
        ids = {image_id for batch in found for image_id in batch.image_ids}
        assert ids == {f"digits-train-0-{i}" for i in (0, 1, 2, 4, 6, 7)}

    def test_replacements_do_not_depend_on_workers(self):
        def ids(workers):
            batches = TrainingBatches(Torn({3, 5}), preset("small"), quick(iterations=8, workers=workers))
            return [batch.image_ids for batch in batches]

        with pytest.warns(UserWarning, match="left out"):
            assert ids(0) == ids(1)

    @pytest.mark.parametrize("workers", [0, 1])
    def test_nothing_readable_is_an_error_in_one_line(self, workers, tmp_path):
        with (
            pytest.warns(UserWarning, match="left out"),
            pytest.raises(ValueError, match=r"^dataset: 10 images in a row could not be read, the last: .*image$"),
        ):
            train.train(Torn(set(range(8))), out=tmp_path, config=preset("small"), options=quick(workers=workers))

    def test_the_warnings_grow_rare(self, recwarn):
        batches = TrainingBatches(Torn(set(range(60)), 64), preset("small"), quick(iterations=4, batch_size=1))
        for number in range(60):
            batches._note(f"{number}.jpg")
            batches._note(f"{number}.jpg")
        assert [str(told.message).split()[2] for told in recwarn] == ["1", "2", "4", "8", "16", "32"]

    def test_a_truncated_file_does_not_end_the_command(self, voc_tree, tmp_path, capsys):
        root = tmp_path / "voc"
        shutil.copytree(voc_tree, root)
        torn = root / "JPEGImages/2.jpg"
        torn.write_bytes(torn.read_bytes()[:-1000])
        arguments = ["--data-root", str(root), "--backbone", "small", "--iterations", "3", "--workers", "1"]
        with pytest.warns(UserWarning, match=r"2\.jpg: not a readable image"):
            assert train.main([*arguments, "--out", str(tmp_path / "run"), "--drawings", "0"]) == 0
        assert "unreadable images that were left out: 1, the first: " in capsys.readouterr().err
        load_detector(tmp_path / "run")

    def test_a_workers_error_is_one_line(self, capsys):
        parser = argparse.ArgumentParser("prog")
        loader: Any = torch.utils.data.DataLoader(Torn({0}), num_workers=1)  # type: ignore[arg-type]
        with pytest.raises(SystemExit), _command.errors(parser):
            next(iter(loader))
        assert capsys.readouterr().err == "prog: error: 0.jpg: not a readable image\n"


class TestTestSet:
    @pytest.mark.parametrize(
        ("test", "message"),
        [
            (
                lambda: digits("test", 2),
                r"test: its classes are \['0', .*\], expected those of the training set, \['digit'\]",
            ),
            (lambda: OneClass(digits("test", 0)), "test: got an empty data set"),
            (lambda: Torn({0}), "0.jpg: not a readable image"),
        ],
    )
    def test_it_is_checked_before_the_training(self, test, message, tmp_path):
        with pytest.raises(ValueError, match=message):
            train.train(
                OneClass(digits("train", 9)), out=tmp_path / "run", config=preset("small"), options=quick(), test=test()
            )
        assert not (tmp_path / "run").exists()


class TestSignals:
    @pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    @pytest.mark.parametrize("workers", [0, 1])
    def test_a_signal_keeps_the_checkpoint(self, number, status, workers, tmp_path):
        arguments = ["--iterations", "100000", "--log-every", "1", "--batch-size", "1", "--out", str(tmp_path)]
        process = subprocess.Popen(
            [sys.executable, "-m", "frcnn_fast.train", *arguments, "--workers", str(workers)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        deadline = time.monotonic() + 600
        while not (tmp_path / "metrics.jsonl").exists() and process.poll() is None:
            assert time.monotonic() < deadline, "training did not start"
            time.sleep(0.1)
        os.killpg(process.pid, number)  # as a terminal and a batch system do: workers get it, too
        output, errors = process.communicate(timeout=600)
        assert process.returncode == status, errors.decode()
        assert b"Traceback" not in errors
        assert b"the detector so far is in" in errors
        assert b"VOC07" not in output
        assert load_detector(tmp_path).class_names == [str(digit) for digit in range(10)]
        assert {path.name for path in tmp_path.iterdir()} == {
            "config.toml", "metrics.jsonl", "model.safetensors", "loss.png", "train_batch.jpg", "checkpoints",
            "train.log",
        }  # fmt: skip

    @pytest.mark.parametrize(("number", "ends"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
    def test_the_second_signal_ends_at_once(self, number, ends):
        before = signal.getsignal(number)
        with StopOnSignal() as signals:
            signal.raise_signal(number)
            assert signals.received == number
            with pytest.raises(ends):
                signal.raise_signal(number)
        assert signal.getsignal(number) is before


class TestDoctor:
    def test_it_speaks_of_every_backend(self, capsys):
        assert doctor.main([]) == 0
        lines = capsys.readouterr().out.splitlines()
        for name in ("frcnn_fast", "torch", "binary", *(f"backend {name}" for name in doctor.backends())):
            assert any(line.startswith(name) for line in lines), name

    @pytest.mark.parametrize(
        ("capability", "code"),
        [
            ((8, 0), "machine code (sm_80)"),
            ((8, 9), "machine code (sm_80)"),
            ((9, 0), "machine code (sm_90)"),
            ((10, 3), "machine code (sm_100)"),
            ((12, 0), "PTX (compute_100), compiled by the driver at first use"),
            ((7, 5), ""),
        ],
    )
    def test_which_code_serves_a_gpu(self, capability, code):
        assert doctor.carries_code_for("80-real 90-real 100", capability) == code

    def test_an_empty_list_serves_none(self):
        assert doctor.carries_code_for("", (9, 0)) == ""

    def test_it_reads_what_the_binary_says_of_itself(self):
        info = doctor.build_info()
        if info is None or not info["cuda"]:
            pytest.skip("this binary has no CUDA half")
        for name in info["cuda_architectures"].split():
            number = name.removesuffix("-real")
            capability = int(number[:-1]), int(number[-1])
            assert doctor.carries_code_for(info["cuda_architectures"], capability) == f"machine code (sm_{number})"
