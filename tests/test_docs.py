"""The documents hold: links lead somewhere, examples run, commands parse, figures are those of the files."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bench import plots, report, schema
from docs import hooks, pictures
from frcnn_fast import cli, detect, ops
from frcnn_fast.model import build_detector, preset, save_detector
from tests.small_data import OneClass, digits, write_voc_tree
from tests.test_inference import picture, untrained

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
GUIDE = (ROOT / "docs/inference.md").read_text()


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


# Links.


def prose(page: Path) -> str:
    """The text without its code."""
    return re.sub(r"^ *```.*?^ *```$|`[^`\n]*`", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Of its headings, as the usual viewers of Markdown make them."""
    text = re.sub(r"^ *```.*?^ *```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ +(.*?) *#*$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def dead_links(page: Path) -> Iterator[str]:
    targets = re.findall(r"\]\(\s*<?([^)>\s]+)[^)]*\)", prose(page))
    for target in targets + re.findall(r'(?:src|href)="([^"]+)"', prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path) if path else page
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
            yield target


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    assert not list(dead_links(page)), name_of(page)


def test_a_dead_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "a.md"
    page.write_text(
        "# One two\n[a](#one-two) [b](a.md) [c](c.md) [d](#three) `[e](e.md)` ![f](f.png)\n```\n[g](g)\n```\n"
    )
    assert list(dead_links(page)) == ["c.md", "#three", "f.png"]


# Figures.


def test_figures_are_those_of_the_files() -> None:
    """`python -m bench.report` would change nothing."""
    assert report.main(["--check"]) == 0


def test_the_plot_on_top_shows_the_newest_file() -> None:
    newest = report.newest_of([(path, schema.load(path)) for path in report.RESULTS.glob("*.json")], "cpu")
    assert newest
    with Image.open(report.PICTURE) as image:
        assert json.loads(image.text["rows"]) == json.loads(plots.summary_of(newest[1]))  # type: ignore[attr-defined]


def test_figures_in_the_story() -> None:
    """docs/how_it_works.md names the file and the row that its figures come from."""
    story = (ROOT / "docs/how_it_works.md").read_text()
    (file,) = set(re.findall(r"`(bench/results/[^`]+json)`", story))
    rows = {(row["op"], row["workload"]): row for row in schema.load(ROOT / file)["rows"]}
    depth = rows["rpn_proposals", "vgg test 6000->300 b1 trained"]["facts"]["depth"]
    assert f"looks at {depth:,} ranks of" in story


def test_the_readme_is_short() -> None:
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) <= 150
    pictures = [ROOT / path for path in re.findall(r"!\[[^]]*\]\(([^)]+)\)", readme)]
    assert len(pictures) == 2
    assert all(picture.stat().st_size < 200_000 for picture in pictures)


# Examples. A Python block runs where <!-- run --> stands above it; <!-- run, needs LIBRARY --> where that is installed.


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """(what stands above it, code) of every Python block."""
    pattern = r"(?:^<!-- (run.*?) -->\n+)?^```python\n(.*?)^```$"
    yield from re.findall(pattern, page.read_text(), re.MULTILINE | re.DOTALL)


EXAMPLES = [
    pytest.param(page, needs.removeprefix("run, needs ") if "," in needs else "", code, id=f"{name_of(page)}-{number}")
    for page in PAGES
    for number, (needs, code) in enumerate(blocks(page))
    if needs
]


def some_boxes(count: int, width: float = 640, height: float = 480) -> torch.Tensor:
    corners = torch.rand(count, 2, 2, generator=torch.Generator().manual_seed(count)) * torch.tensor([width, height])
    return torch.cat([corners.amin(1), corners.amax(1)], 1)


def inputs_of_the_ops() -> dict[str, Any]:
    """What the examples of the ops take as given: two images of 480 x 640 pixels, maps of strides 8 and 16."""
    anchors = (60 * 80 + 30 * 40) * 3
    return {
        "torch": torch,
        "ops": ops,
        "boxes": some_boxes(50),
        "boxes_of_image_0": some_boxes(5),
        "boxes_of_image_1": some_boxes(7),
        "scores": torch.rand(50),
        "class_ids": torch.arange(50) % 3,
        "features": torch.rand(2, 4, 30, 40),
        "logits": torch.randn(2, anchors),
        "deltas": torch.randn(2, anchors, 4) / 10,
        "image_sizes": torch.tensor([[480.0, 640.0], [400.0, 600.0]]),
        "gt_boxes": torch.stack([some_boxes(6), some_boxes(6)]),
        "gt_labels": torch.ones(2, 6, dtype=torch.int64),
        "gt_counts": torch.tensor([6, 2]),
        "seed": 0,
        "step": 0,
    }


def given_to_evaluation() -> dict[str, Any]:
    detector = build_detector(["digit"], preset("small")).eval()
    return {"dataset": OneClass(digits("test", 2)), "names": detector.class_names, "detector": detector}


# By page: names that its examples take as given.
GIVEN = {"docs/evaluation.md": given_to_evaluation}


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A folder with what examples read: a run, a photo, photos, a VOC tree, COCO's annotations."""
    save_detector(tmp_path / "runs/digits/model.safetensors", untrained())
    for name in ("photo.jpg", "photos/7.jpg", "photos/other.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(picture(60, 100).permute(1, 2, 0).numpy()).save(tmp_path / name)
    write_voc_tree(tmp_path / "mine")
    for folder in ("annotations", "val2017"):
        (tmp_path / "coco" / folder).mkdir(parents=True)
    Image.new("RGB", (100, 60)).save(tmp_path / "coco/val2017/1.jpg")
    annotation = {"id": 1, "image_id": 1, "category_id": 18, "bbox": [5, 5, 20, 30], "area": 600, "iscrowd": 0}
    coco = {
        "images": [{"id": 1, "file_name": "1.jpg", "width": 100, "height": 60}],
        "annotations": [annotation],
        "categories": [{"id": 18, "name": "dog"}],
    }
    (tmp_path / "coco/annotations/instances_val2017.json").write_text(json.dumps(coco))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_pasted(code: str, given: dict[str, Any], monkeypatch) -> None:
    """OpenCV, which the tests do without, is one function here."""
    opencv: Any = types.ModuleType("cv2")
    opencv.imread = lambda name: np.ascontiguousarray(np.array(Image.open(name))[:, :, ::-1])
    monkeypatch.setitem(sys.modules, "cv2", opencv)
    # The run is untrained: it is not that sure of anything.
    exec(compile(code.replace("score_threshold=0.5", "score_threshold=0.1"), "pasted", "exec"), given)


@pytest.mark.parametrize(("page", "needs", "code"), EXAMPLES)
def test_examples_run(place: Path, monkeypatch, page: Path, needs: str, code: str) -> None:
    if needs:
        pytest.importorskip(needs)
    run_pasted(code, GIVEN.get(name_of(page), inputs_of_the_ops)(), monkeypatch)


def test_there_are_examples() -> None:
    of_pages = {name_of(example.values[0]) for example in EXAMPLES}  # type: ignore[attr-defined]
    assert of_pages >= {"README.md", "docs/ops.md", "docs/inference.md", "docs/data.md", "docs/evaluation.md"}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_is_python(page: Path) -> None:
    """Also what cannot run here. (The guide to contributing shows parts of files.)"""
    if page.name != "CONTRIBUTING.md":
        for _, code in blocks(page):
            compile(code, name_of(page), "exec")


def test_the_readmes_example(place: Path, monkeypatch, capsys) -> None:
    """Six lines, and they print and draw what they find."""
    (example,) = [code for _, code in blocks(ROOT / "README.md")]
    assert len(example.splitlines()) <= 6
    run_pasted(example, {}, monkeypatch)
    assert capsys.readouterr().out.startswith("['dog'")
    with Image.open(place / "found.png") as drawing:
        assert min(drawing.size) > 400


# Pictures and the site.


def test_every_picture_is_drawn_and_shown(tmp_path: Path) -> None:
    """docs/pictures.py draws them all, docs/images has them all, and a page shows each."""
    pictures.draw(pictures.PICTURES, tmp_path)
    drawn = {path.name for path in tmp_path.iterdir()}
    assert drawn | {"speed.png", "detections.jpg"} == {path.name for path in (ROOT / "docs/images").iterdir()}
    every = "".join(page.read_text() for page in PAGES)
    assert not [name for name in drawn if f"images/{name})" not in every]
    for path in tmp_path.iterdir():
        with Image.open(path) as image:
            assert min(image.size) > 150
            assert len(image.convert("RGB").getcolors(1 << 24) or ()) > 20


def test_the_api_has_every_op() -> None:
    page = (ROOT / "docs/api.md").read_text()
    shown = set(re.findall(r"^::: frcnn_fast\.ops\..*?(\w+)$", page, re.MULTILINE))
    results = {name for name in ops.__all__ if hasattr(getattr(ops, name), "_fields")}  # shown by their module
    assert set(ops.__all__) - results <= shown
    assert "results" in shown


def test_includes_are_there() -> None:
    """What docs/hooks.py copies into pages; measurements may be missing, files of ours may not."""
    found = [(page, *match) for page in PAGES for match in hooks.INCLUDE.findall(page.read_text())]
    assert found
    for page, path, heading in found:
        missing = re.search(r"Not measured yet", hooks.included(path, heading))
        assert not missing or path.startswith("bench/results/"), f"{name_of(page)}: {path}#{heading}"


def test_links_from_page_to_page() -> None:
    """Links of the repository become links of the site."""
    text = "[a](docs/ops/nms.md#x) ![b](docs/images/nms.png) [c](ARCHITECTURE.md) [d](https://a.b)"
    code = "\n```\n[e](docs/a.md)\n```\n"
    expected = "[a](ops/nms.md#x) ![b](images/nms.png) [c](architecture.md) [d](https://a.b)"
    assert hooks.with_links_moved(text + code, "index.md") == expected + code
    text = "[a](../api.md) [b](../../ARCHITECTURE.md#y) ![c](../../bench/results/a.png) [d](#z)"
    sources = " [`e`](../../bench/run.py) [f](../../docs)"  # not in the site: no links
    expected = "[a](../api.md) [b](../architecture.md#y) ![c](../bench/results/a.png) [d](#z)"
    assert hooks.with_links_moved(text + sources, "ops/nms.md") == expected + " `e` f"


# Commands.


class Parsed(BaseException):
    """The arguments were right."""


def commands() -> Iterator[tuple[str, list[str]]]:
    """(command, arguments) of every `frcnn-fast ...` and `-m frcnn_fast.…` in the pages' blocks."""
    for page in PAGES:
        for block in re.findall(r"^```(?:bash|sh)?\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                found = re.match(r"(?:frcnn-fast|.*-m frcnn_fast\.)\s*([\w-]+)(.*)", line)
                if found and found[1] in cli.COMMANDS:
                    yield found[1], shlex.split(found[2], comments=True)


@pytest.mark.parametrize(("command", "arguments"), list(commands()), ids=lambda value: " ".join(value)[:60] or "none")
def test_commands_parse(command: str, arguments: list[str], monkeypatch) -> None:
    """Every option exists, and every argument is of its kind."""
    original = argparse.ArgumentParser.parse_args

    def parse(self, *args, **kwargs):
        original(self, *args, **kwargs)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)
    try:
        cli.main([command, *arguments])
    except Parsed:
        return
    except SystemExit as ended:
        if ended.code:  # 0 with --help
            pytest.fail(f"frcnn-fast {command} refuses {' '.join(arguments)}")


def test_there_are_commands() -> None:
    assert {command for command, _ in commands()} >= {"train", "evaluate", "detect", "propose", "recall", "doctor"}


# Tables.


def test_the_table_of_a_result() -> None:
    """Every name in it is one of a Result."""
    result = detect.Result(
        torch.zeros(0, 4), torch.zeros(0), torch.zeros(0).long(), class_names=["a"], image_size=(1, 1)
    )
    table = GUIDE.split("### Results", 1)[1].split("\n\n")[1]
    names = re.findall(r"^\| `(\w+)(?:`|\()", table, re.MULTILINE)
    assert len(names) >= 10
    for name in names:
        assert name == "len" or hasattr(result, name), name
