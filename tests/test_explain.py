"""The command explain: its stages are those of the detector, and its page shows all of its pictures."""

from __future__ import annotations

import base64
import io
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from frcnn_fast import explain, ops
from frcnn_fast.data.digits import DigitsDetection
from frcnn_fast.inference import Detector
from frcnn_fast.inference.story import Story, tell
from frcnn_fast.inference.story_page import write_page
from frcnn_fast.model import DetectorConfig, FasterRCNN, build_detector, preset, save_detector

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def digit_detector(**settings) -> FasterRCNN:
    """For the embedded digits, untrained, with biases that move its boxes."""
    torch.manual_seed(0)
    model = build_detector([str(digit) for digit in range(10)], preset("small", max_detections=4, **settings))
    for parameter in model.parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter, 0.0, 0.15)
    return model.eval()


class OneMap(nn.Module):
    """A backbone of one level."""

    out_channels, strides = 8, [16]

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 16, stride=16)

    def forward(self, images: Tensor) -> tuple[Tensor]:
        return (self.conv(images),)


def one_level() -> FasterRCNN:
    torch.manual_seed(1)
    config = DetectorConfig(
        backbone="own", anchor_sizes=((32.0, 64.0),), shorter=300, longer=500, rpn_channels=8, head="fc",
        head_channels=16, proposals_test=(100, 20), max_detections=5, score_threshold=0.0, min_size=0.0,
    )  # fmt: skip
    return FasterRCNN(OneMap(), 3, config)


def small() -> Tensor:
    """60 x 100 pixels."""
    return torch.randint(0, 256, (3, 60, 100), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def image() -> Tensor:
    return DigitsDetection("test")[3][0]


class Pictures(HTMLParser):
    """The sources of all images, and everything that a page would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.images: list[str] = []
        self.others: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "href", "srcset"):
                (self.images if tag == "img" else self.others).append(value or "")


def sizes(page: Path) -> list[tuple[int, int]]:
    """Of every picture, decoded."""
    found = Pictures(page.read_text(encoding="utf-8"))
    assert found.others == []
    drawn = []
    for source in found.images:
        kind, data = re.fullmatch(r"data:image/(png|jpeg);base64,(.*)", source).groups()
        with Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as picture:
            picture.load()
            assert picture.format == kind.upper()
            assert len(picture.convert("RGB").getcolors(picture.width * picture.height)) > 5
            drawn.append(picture.size)
    return drawn


class TestStory:
    @pytest.mark.parametrize("threshold", [None, 0.0, 0.12])
    @pytest.mark.parametrize("order", ["before_top_n", "after_top_n"])
    def test_its_end_is_what_the_detector_finds(self, image, threshold, order):
        detector = Detector(digit_detector(filter_order=order))
        story, found = (
            tell(detector, image, score_threshold=threshold, repeats=1),
            detector(image, batch=1, score_threshold=threshold),
        )
        assert len(found) == len(story.sources)
        for name in ("boxes", "scores", "labels"):
            assert torch.equal(getattr(story.result, name), getattr(found, name))
        # Each detection's score is the one that the head gave to its proposal.
        assert torch.allclose(story.probabilities[story.sources, story.result.labels], story.result.scores, atol=1e-6)
        assert detector.model.config.score_threshold == digit_detector().config.score_threshold

    @pytest.mark.parametrize("order", ["before_top_n", "after_top_n"])
    def test_nms_of_its_candidates_gives_its_proposals(self, image, order):
        model = digit_detector(filter_order=order, min_size=12.0)
        config, story = model.config, tell(Detector(model), image, repeats=1)
        levels = torch.tensor([story.level_of(int(anchor)) for anchor in story.candidates.anchors])
        assert [int((levels == i).sum()) for i in range(len(story.levels))] == [
            level.num_candidates for level in story.levels
        ]
        # The image is not resized: the boxes are those that NMS saw. Ranks stand for the scores: a sigmoid ties.
        assert story.resized == story.result.image_size
        ranks = -torch.arange(len(levels), dtype=torch.float32)
        keep = ops.batched_nms(story.candidates.boxes, ranks, levels, config.proposal_iou)[: config.proposals_test[1]]
        assert 10 < len(keep) < len(levels)
        assert story.candidates.anchors[keep].tolist() == story.proposals.anchors.tolist()
        assert torch.equal(story.candidates.boxes[keep], story.proposals.boxes)

    def test_stages_and_levels(self, image):
        story = tell(Detector(digit_detector()), image, repeats=3)
        assert len(story.milliseconds) == 8
        assert all(value > 0 for value in story.milliseconds.values())
        height, width = story.result.image_size
        for level in story.levels:
            assert level.objectness.shape == level.anchors.shape[:3]
            assert level.objectness.shape[:2] == (height // level.stride[0], width // level.stride[1])
            assert 0 <= level.objectness.min() <= level.objectness.max() <= 1
        assert len(story.anchors) == sum(level.objectness.numel() for level in story.levels)
        assert story.level_of(0) == 0
        assert story.level_of(len(story.anchors) - 1) == len(story.levels) - 1
        with pytest.raises(IndexError, match="beyond"):
            story.level_of(len(story.anchors))
        with pytest.raises(ValueError, match="repeats: got 0"):
            tell(Detector(digit_detector()), image, repeats=0)

    def test_boxes_are_in_pixels_of_the_image(self):
        """Which the network sees enlarged."""
        story = tell(Detector(one_level()), small(), repeats=1)
        assert story.resized == (300, 500)
        assert story.padded == (320, 512)
        assert story.proposals.boxes[:, 2].max() <= 100
        sides = story.anchors[:, 2:] - story.anchors[:, :2]
        assert sides.max() < 64 * 2 / 5
        (level,) = story.levels
        steps = level.anchors[1, 1, 0] - level.anchors[0, 0, 0]
        assert torch.allclose(steps, torch.full((4,), 16 / 5), atol=1e-4)


class TestPage:
    def test_the_command(self, image, tmp_path, capsys):
        save_detector(tmp_path / "run/model.safetensors", digit_detector())
        picture = tmp_path / "<b>&'\u00e9.png"
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(picture)
        out = tmp_path / "deep/out"
        call = [str(picture), "--checkpoint", str(tmp_path / "run"), "-o", str(out), "--score-threshold", "0.1"]
        assert explain.main([*call, "--repeats", "1"]) == 0
        assert "15360 anchors" in capsys.readouterr().out
        assert [path.name for path in out.iterdir()] == ["index.html"]
        text = (out / "index.html").read_text(encoding="utf-8")
        assert "&lt;b&gt;&amp;&#x27;\u00e9.png</h1>" in text
        found = sizes(out / "index.html")
        assert len(found) == 5 + 4
        assert min(min(size) for size in found) > 100
        with pytest.raises(SystemExit):
            explain.main(call)
        assert "is an earlier page" in capsys.readouterr().err
        assert explain.main([*call, "--overwrite", "--repeats", "1"]) == 0

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--score-threshold", "2"], "--score-threshold: got 2.0"),
            (["--repeats", "0"], "--repeats: got 0"),
            (["--device", "nowhere"], "device: got 'nowhere'"),
            ([], "gone.png"),
        ],
    )
    def test_what_is_wrong_is_said(self, tmp_path, capsys, arguments, message):
        save_detector(tmp_path / "model.safetensors", digit_detector())
        call = ["gone.png", "--checkpoint", str(tmp_path), "-o", str(tmp_path / "out"), *arguments]
        with pytest.raises(SystemExit) as stopped:
            explain.main(call)
        assert stopped.value.code == 1
        assert message in capsys.readouterr().err
        assert not (tmp_path / "out").exists()

    def test_one_level_and_nothing_found(self, tmp_path):
        story = tell(Detector(one_level()), small(), score_threshold=1, repeats=1)
        assert len(story.result) == 0
        write_page(story, tmp_path / "page.html")
        text = (tmp_path / "page.html").read_text(encoding="utf-8")
        assert "No proposal became a detection" in text
        assert len(sizes(tmp_path / "page.html")) == 5

    @pytest.mark.skipif(BROWSER is None, reason="needs a browser: chromium or google-chrome")
    def test_a_browser_shows_every_picture(self, image, tmp_path):
        story: Story = tell(Detector(digit_detector()), image, score_threshold=0.1, repeats=1)
        write_page(story, tmp_path / "page.html")
        text = (tmp_path / "page.html").read_text(encoding="utf-8")
        # What the browser knows once everything is loaded goes into the page that it prints.
        count = (
            "<script>addEventListener('load', () => { const all = [...document.images];"
            " document.title = `${all.filter(one => one.naturalWidth > 100).length} of ${all.length},"
            " ${document.documentElement.scrollWidth <= innerWidth}` })</script></body>"
        )
        (tmp_path / "counted.html").write_text(text.replace("</body>", count), encoding="utf-8")
        done = subprocess.run(
            [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
             "--window-size=1200,900", "--dump-dom", (tmp_path / "counted.html").as_uri()],
            text=True, capture_output=True, timeout=600, check=True,
        )  # fmt: skip
        images = len(Pictures(text).images)
        assert f"<title>{images} of {images}, true</title>" in done.stdout
