"""The command detect on many files: patterns, batches, runs that go on, several processes, videos."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from frcnn_fast import detect
from frcnn_fast.inference import Detector
from frcnn_fast.inference.inputs import input_files
from frcnn_fast.inference.video import VideoWriter
from frcnn_fast.io import read_jsonl
from frcnn_fast.model import FasterRCNN, save_detector
from tests.test_inference import picture, untrained

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    save_detector(folder / "model.safetensors", untrained(shorter=None, longer=None))
    return folder


def call(run: Path, out: Path, *arguments: str | Path) -> int:
    return detect.main([*map(str, arguments), "--checkpoint", str(run), "-o", str(out), "--score-threshold", "0.1"])


def found(out: Path) -> list[dict[str, Any]]:
    """Checks that both files hold the same, and that nothing is left of the work."""
    records = read_jsonl(out / "detections.jsonl")
    assert json.loads((out / "detections.json").read_text(encoding="utf-8")) == records
    drawings = {record["drawing"] for record in records} - {None}
    assert {path.name for path in out.iterdir()} == {"detections.json", "detections.jsonl", "plan.json"} | drawings
    return records


@pytest.fixture
def images(tmp_path) -> Path:
    """Seven images of three shapes, in two folders."""
    folder = tmp_path / "in"
    for number, size in enumerate([(60, 100), (100, 60), (60, 100), (30, 30), (60, 90), (100, 60), (60, 100)]):
        path = folder / ("deep/er" if number % 2 else "") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(*size, number).permute(1, 2, 0).numpy()).save(path)
    return folder


class TestInputs:
    def test_patterns(self, images, monkeypatch):
        monkeypatch.chdir(images)
        for name in ("notes.txt", ".hidden.png", "x[1].png", "a.jfif", "b.MP4"):
            Path(name).write_bytes(b"")
        assert input_files(["."]) == [f"./{name}" for name in ("0.png", "2.png", "4.png", "6.png", "b.MP4", "x[1].png")]
        assert input_files(["*"]) == ["0.png", "2.png", "4.png", "6.png", "b.MP4", "x[1].png"]
        assert input_files(["**/[1-4].png"]) == ["2.png", "4.png", "deep/er/1.png", "deep/er/3.png"]
        assert input_files(["x[1].png"]) == ["x[1].png"]  # a file of that name goes before a pattern
        assert input_files(["*.jfif"]) == ["a.jfif"]
        assert input_files(["2.png", "?.png", "gone.png"]) == ["2.png", "0.png", "4.png", "6.png", "gone.png"]
        with pytest.raises(ValueError, match=r"\*\.bmp: no images or videos match this pattern"):
            input_files(["*.bmp"])


class TestBatches:
    def test_they_and_threads_change_nothing(self, run, images, tmp_path):
        pattern = images / "**/*.png"
        assert call(run, tmp_path / "a", pattern) == 0
        with torch.backends.mkldnn.flags(enabled=False):  # it chooses its convolutions by the number of images
            assert call(run, tmp_path / "b", pattern) == 0
            assert call(run, tmp_path / "c", pattern, "--batch-size", "3", "--workers", "2") == 0
        assert found(tmp_path / "b") == found(tmp_path / "c")
        assert [r["image"] for r in found(tmp_path / "a")] == input_files([str(pattern)])
        for name in ("0.png", "1.png"):
            assert (tmp_path / "b" / name).read_bytes() == (tmp_path / "c" / name).read_bytes()

    def test_without_drawings(self, run, images, tmp_path):
        assert call(run, tmp_path / "out", images, "--no-drawings") == 0
        assert {record["drawing"] for record in found(tmp_path / "out")} == {None}

    @pytest.mark.parametrize(("option", "value"), [("--batch-size", "0"), ("--workers", "-1")])
    def test_wrong_numbers(self, run, images, tmp_path, option, value, capsys):
        with pytest.raises(SystemExit):
            call(run, tmp_path / "out", images, option, value)
        assert f"error: {option}: got {value}, expected" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


class TestResume:
    def test_wherever_it_stopped(self, run, images, tmp_path, monkeypatch):
        """Records cut at any byte: what is whole is not looked at again, and the result is the uninterrupted one."""
        whole = tmp_path / "whole"
        assert call(run, whole, images / "**/*.png") == 0
        wanted, lines = found(whole), (whole / "detections.jsonl").read_bytes()
        right, asked = FasterRCNN.forward, []

        def counted(*args, **rest):
            asked.append(1)
            return right(*args, **rest)

        monkeypatch.setattr(FasterRCNN, "forward", counted)
        second = lines.index(b"\n") + 1
        for cut in (0, second - 1, second + 40, len(lines)):
            (whole / "detections.json").unlink()
            (whole / "detections.jsonl").write_bytes(lines[:cut])
            asked.clear()
            assert call(run, whole, images / "**/*.png", "--resume") == 0
            assert found(whole) == wanted, cut
            assert len(asked) == 7 - lines[: cut + 1].count(b"\n")

    def test_after_a_kill(self, run, images, tmp_path):
        out = tmp_path / "out"
        arguments = [str(images / "**/*.png"), "--checkpoint", str(run), "-o", str(out), "--score-threshold", "0.1"]
        code = (
            "import sys, time, torch; from frcnn_fast import detect; from frcnn_fast.model import FasterRCNN\n"
            "torch.set_num_threads(1); torch.backends.mkldnn.set_flags(False)\n"
            "right = FasterRCNN.forward\n"
            "FasterRCNN.forward = lambda *a, **k: (time.sleep(0.3), right(*a, **k))[1]\n"
            "detect.main(sys.argv[1:])"
        )
        stopped = subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.DEVNULL, cwd=ROOT)
        until = time.monotonic() + 600
        while not (out / "detections.jsonl").is_file() or (out / "detections.jsonl").read_bytes().count(b"\n") < 2:
            assert time.monotonic() < until
            time.sleep(0.02)
        stopped.send_signal(signal.SIGKILL)
        stopped.wait()
        assert not (out / "detections.json").exists()
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as the process that was killed: its records are here
        try:
            with torch.backends.mkldnn.flags(enabled=False):
                assert detect.main([*arguments, "--resume"]) == 0
                assert call(run, tmp_path / "whole", images / "**/*.png") == 0
        finally:
            torch.set_num_threads(threads)
        assert len(found(out)) == 7
        assert found(out) == found(tmp_path / "whole")

    def test_more_files_and_none(self, run, images, tmp_path):
        """What was found before stays, also where it is not named again; and where there is nothing, it begins."""
        out = tmp_path / "out"
        assert call(run, out, images / "4.png", images / "6.png", "--resume") == 0
        assert call(run, out, images / "0.png", images / "6.png", "--resume") == 0
        assert [Path(record["image"]).name for record in found(out)] == ["4.png", "0.png", "6.png"]

    def test_what_failed_is_tried_again(self, run, images, tmp_path):
        out, torn = tmp_path / "out", images / "2.png"
        right = torn.read_bytes()
        torn.write_bytes(right[:60])
        assert call(run, out, images) == 1
        torn.write_bytes(right)
        assert call(run, out, images, "--resume") == 0
        assert [Path(record["image"]).name for record in found(out)] == ["0.png", "2.png", "4.png", "6.png"]

    def test_other_settings_are_refused(self, run, images, tmp_path, capsys):
        out = tmp_path / "out"
        assert call(run, out, images / "0.png") == 0
        before = found(out)
        other = tmp_path / "other"
        save_detector(other / "model.safetensors", untrained(shorter=None, longer=None, detection_iou=0.4))
        for checkpoint, threshold, message in (
            (run, "0.2", "was made with score_threshold 0.1, now it is 0.2; give the same, or choose another folder"),
            (other, "0.1", "was made with detector '"),
        ):
            arguments = ["--checkpoint", str(checkpoint), "-o", str(out), "--score-threshold", threshold, "--resume"]
            with pytest.raises(SystemExit):
                detect.main([str(images), *arguments])
            assert message in capsys.readouterr().err
        (out / "plan.json").write_text("{")
        with pytest.raises(SystemExit):
            call(run, out, images, "--resume")
        assert "plan.json cannot be read" in capsys.readouterr().err
        (out / "plan.json").unlink()
        with pytest.raises(SystemExit):
            call(run, out, images, "--resume")
        assert read_jsonl(out / "detections.jsonl") == before

    def test_a_run_that_was_moved_is_the_same(self, run, images, tmp_path):
        assert call(run, tmp_path / "out", images / "0.png") == 0
        moved = tmp_path / "moved.safetensors"
        moved.write_bytes((run / "model.safetensors").read_bytes())
        assert call(moved, tmp_path / "out", images, "--resume") == 0


class TestTorchrun:
    def start(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        return subprocess.run(
            [*command, "-m", "frcnn_fast.detect", *map(str, arguments)],
            env={**os.environ, "OMP_NUM_THREADS": "1"}, cwd=ROOT, text=True, capture_output=True, timeout=600,
        )  # fmt: skip

    def test_each_takes_its_share(self, run, images, tmp_path):
        """Two processes go on with what one began, and what a killed rank left; the result is one process'."""
        assert call(run, tmp_path / "one", images / "**/*.png") == 0
        wanted, out = found(tmp_path / "one"), tmp_path / "two"
        assert call(run, out, images / "0.png") == 0
        (out / "6.png").write_bytes((tmp_path / "one/6.png").read_bytes())
        (out / "detections-5.jsonl").write_text(json.dumps(wanted[3]) + "\n" + json.dumps(wanted[4])[:50])
        settings = ["--checkpoint", run, "-o", out, "--score-threshold", "0.1", "--device", "cpu"]
        done = self.start(images / "**/*.png", tmp_path / "gone.png", *settings, "--resume")
        assert done.returncode != 0
        assert done.stderr.count("gone.png: no such image file") == 1
        told = [Path(line.split(": ")[0]).name for line in done.stdout.splitlines() if " objects, " in line]
        assert sorted(told) == sorted(Path(record["image"]).name for record in wanted[1:3] + wanted[4:])
        records = found(out)
        assert [{**record, "drawing": ""} for record in records] == [{**record, "drawing": ""} for record in wanted]
        assert len({record["drawing"] for record in records}) == 7


class TestVideo:
    TIMES = (0.0, 0.1, 0.2, 0.5, 0.54, 0.6, 1.6)

    def video(self, path: Path, size: tuple[int, int] = (48, 64), rotation: int = 0) -> Path:
        """Frames of one grey each, at odd times."""
        av = pytest.importorskip("av")
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=10, options={"crf": "1"})
            stream.height, stream.width = size
            stream.pix_fmt, stream.codec_context.time_base = "yuv420p", Fraction(1, 1000)
            if rotation:
                stream.set_display_rotation(rotation)
            for number, seconds in enumerate(self.TIMES):
                pixels = np.full((*size, 3), 30 * number, np.uint8)
                pixels[: size[0] // 2, : size[1] // 2] = 255  # the upper left quarter is white
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                frame.pts, frame.time_base = round(seconds * 1000) + 5000, Fraction(1, 1000)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        return path

    def frames(self, path: Path) -> list[tuple[float, np.ndarray]]:
        from frcnn_fast.inference.video import open_video

        with open_video(str(path)) as video:
            return [(frame.time, frame.image.numpy()) for frame in video]

    def test_frames_and_times(self, tmp_path):
        frames = self.frames(self.video(tmp_path / "a.mp4"))
        assert [time for time, _ in frames] == pytest.approx(self.TIMES, abs=1e-3)
        for number, (_, pixels) in enumerate(frames):
            assert pixels.shape == (3, 48, 64)
            assert abs(int(pixels[0, 40, 50]) - 30 * number) < 12

    def test_turned_videos_are_upright(self, tmp_path):
        for rotation, corner in ((90, (slice(40, None), slice(0, 10))), (-90, (slice(0, 10), slice(-10, None)))):
            pixels = self.frames(self.video(tmp_path / f"{rotation}.mp4", rotation=rotation))[0][1]
            assert pixels.shape == (3, 64, 48)
            assert pixels[0][corner].min() > 200
            assert pixels[0][32:, 24:].max() < 50 if rotation == 90 else pixels[0][32:].max() < 50

    def test_detections_and_drawings(self, run, images, tmp_path, capsys):
        video = self.video(tmp_path / "clips" / "a.mp4", (50, 66))
        out = tmp_path / "out"
        assert call(run, out, images / "0.png", video, images / "2.png", "--batch-size", "2") == 0
        records = found(out)
        assert [Path(record["image"]).name for record in records] == ["0.png", *["a.mp4"] * 7, "2.png"]
        of_video = records[1:8]
        assert [record["frame"] for record in of_video] == list(range(7))
        assert [record["time"] for record in of_video] == pytest.approx(self.TIMES, abs=1e-3)
        assert [record.get("last", False) for record in of_video] == [False] * 6 + [True]
        assert {(record["width"], record["height"]) for record in of_video} == {(66, 50)}
        detector = Detector(run)
        for (_, pixels), record in zip(self.frames(video), of_video, strict=True):
            wanted = detector(torch.from_numpy(pixels), score_threshold=0.1).to_dict()["detections"]
            assert len(record["detections"]) == len(wanted) > 0
        drawn = self.frames(out / "a.mp4")
        assert [time for time, _ in drawn] == pytest.approx(self.TIMES, abs=1e-3)
        assert drawn[0][1].shape == (3, 400, 528)  # enlarged as images are
        colours = drawn[0][1].astype(int)
        assert (abs(colours[0] - colours[2]) > 40).any()
        assert f"a.mp4: 7 frames, {sum(len(r['detections']) for r in of_video)} objects" in capsys.readouterr().out

    def test_a_stopped_video_goes_on(self, run, tmp_path, monkeypatch):
        """The same pictures at the same times go to the encoder, whose threads may put them into other bytes."""
        video, out = self.video(tmp_path / "a.mp4"), tmp_path / "out"
        add, added = VideoWriter.add, []

        def noted(writer: VideoWriter, image: Image.Image, time: float) -> None:
            added.append((time, image.size, image.tobytes()))
            add(writer, image, time)

        monkeypatch.setattr(VideoWriter, "add", noted)
        right, asked = FasterRCNN.forward, []

        def stopped(*args, **rest):
            asked.append(1)
            if len(asked) == 5:
                raise KeyboardInterrupt
            return right(*args, **rest)

        monkeypatch.setattr(FasterRCNN, "forward", stopped)
        with pytest.raises(SystemExit):
            call(run, out, video)
        assert not (out / "a.mp4").exists()
        assert [record["frame"] for record in read_jsonl(out / "detections.jsonl")] == [0, 1, 2, 3]
        added.clear()
        assert call(run, out, video, "--resume") == 0
        assert len(asked) == 5 + 3
        records, resumed = found(out), list(added)
        assert [time for time, _ in self.frames(out / "a.mp4")] == pytest.approx(self.TIMES, abs=1e-3)
        monkeypatch.setattr(FasterRCNN, "forward", right)
        added.clear()
        assert call(run, tmp_path / "whole", video) == 0
        assert found(tmp_path / "whole") == records
        assert [frame[:2] for frame in added] == [frame[:2] for frame in resumed]
        assert [frame[2] for frame in added] == [frame[2] for frame in resumed]
        assert call(run, out, video, "--resume") == 0
        assert found(out) == records

    def test_broken_ones_cost_only_themselves(self, run, images, tmp_path, capsys):
        torn = self.video(tmp_path / "torn.mkv")
        data = torn.read_bytes()
        torn.write_bytes(data[: len(data) // 2] + bytes(200) + b"\xff" * 400)
        (tmp_path / "text.mp4").write_text("no video")
        files = [tmp_path / "text.mp4", tmp_path / "gone.mov", images / "0.png"]
        assert call(run, tmp_path / "out", *files) == 1
        errors = capsys.readouterr().err.splitlines()
        assert "text.mp4: not a readable video" in errors[0]
        assert "gone.mov: no such video file" in errors[1]
        assert len(errors) == 2
        assert [Path(record["image"]).name for record in found(tmp_path / "out")] == ["0.png"]

    def test_without_the_extra(self, run, tmp_path, monkeypatch, capsys):
        (tmp_path / "a.mp4").write_bytes(b"")
        monkeypatch.setitem(sys.modules, "av", None)
        assert call(run, tmp_path / "out", tmp_path / "a.mp4") == 1
        assert "pip install 'frcnn_fast[video]'" in capsys.readouterr().err

    def test_no_drawings(self, run, tmp_path):
        assert call(run, tmp_path / "out", self.video(tmp_path / "a.mp4"), "--no-drawings") == 0
        assert {record["drawing"] for record in found(tmp_path / "out")} == {None}
        assert len(found(tmp_path / "out")) == 7
