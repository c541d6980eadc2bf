"""The study's bookkeeping on a few small images: every kind of line, nothing done twice, its tables."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bench import study, study_table
from frcnn_fast.data import ProposalSet, write_proposals
from tests.test_bccd import files  # noqa: F401  # a fixture

SMALL = {"shorter": 64, "longer": 128, "head_channels": 8, "roi_batch_size": 8, "proposals_train": (200, 40)}


@pytest.fixture(scope="module")
def made(files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> study.Study:  # noqa: F811
    torch.set_num_threads(1)
    runs = tmp_path_factory.mktemp("study")
    one = study.Study(runs, files["data"], files["weights"], SMALL, {"iterations": 1, "warmup": 0})
    boxes = [[10.0, 10, 50, 50], [41, 21, 90, 55], [0, 0, 100, 60]]
    write_proposals(runs / "selective-search.npz", ProposalSet(dict.fromkeys("abcde", boxes)))  # as if it had been run
    return one


def test_lines_are_told_apart() -> None:
    lines = {line.name: line for lines in study.TABLES.values() for line in lines}
    assert all(lines[line.name] == line for lines_ in study.TABLES.values() for line in lines_)
    sources = {line.proposals for line in lines.values()} | {line.trained_as for line in lines.values()}
    assert sources <= {"", study.SEARCH, *lines}
    assert study.TABLES.keys() == study_table.TITLES.keys()


def test_a_table_is_made_once(made: study.Study, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = study.TABLES["proposals"]
    first = [made.result(line, 0) for line in lines]
    for line, result in zip(lines, first, strict=True):
        assert ("test" in result) == (line.name != "rpn-only")
        assert result["minutes"] > 0
        assert result["processor_minutes"] > 0
        assert result["recall"]["objects"]["all"] == 4
    monkeypatch.setattr(study, "train", None)
    assert [made.result(line, 0) for line in lines] == json.loads(json.dumps(first))
    monkeypatch.setattr(made, "config", {**SMALL, "shorter": 65})
    with pytest.raises(ValueError, match="is of another recipe"):
        made.result(lines[0], 0)


def test_a_published_result_is_not_made_again(made: study.Study, monkeypatch: pytest.MonkeyPatch) -> None:
    line = study.TABLES["pyramid"][0]
    recipe = {"config": {**SMALL, "pool_levels": [7]}, "options": {"iterations": 1, "warmup": 0, "seed": 4}}
    recipe = json.loads(json.dumps({**recipe, "proposals": "", "trained_as": ""}))  # as it is read again
    result = {"line": line.name, "seed": 4, "recipe": recipe, "minutes": 1.0}
    monkeypatch.setitem(made.known, (line.name, 4), result)
    assert made.result(line, 4) is result
    recipe["options"]["warmup"] = 5  # by another recipe
    assert made.result(line, 4)["minutes"] != 1.0


def test_an_interrupted_training_begins_again(made: study.Study) -> None:
    line = study.TABLES["lambda"][0]
    folder = made.runs / f"{line.name}-seed3"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text('{"iteration": 1}\n')
    made.result(line, 3)
    assert {path.name for path in made.runs.glob("lambda*")} == {folder.name}


def test_the_document(made: study.Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (0, 1):
        made.result(study.JOINT, seed)
    assert study.main(["--runs", str(made.runs), "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'study.md'}\n"
    text = (tmp_path / "study.md").read_text()
    results = json.loads((tmp_path / "study.json").read_text())
    (a, b) = (r["test"]["map_area"] for r in results if r["line"] == "joint")
    (line,) = {line for line in text.splitlines() if line.startswith("| approximate joint |")}
    assert f"| {(a + b) / 2:.3f} ({a:.3f}, {b:.3f}) |" in line
    assert "## Training schemes" in text
    assert study.main(["colours", "--runs", str(made.runs), "--out", str(tmp_path)]) == 2
    assert "tables: got 'colours', expected some of recipes, schemes" in capsys.readouterr().err
    assert study.main(["--runs", str(tmp_path / "none"), "--out", str(tmp_path)]) == 0  # what was published stays
    assert (tmp_path / "study.md").read_text() == text
    assert study.main(["--runs", str(tmp_path / "none"), "--out", str(tmp_path / "new")]) == 0
    assert (tmp_path / "new" / "study.md").read_text().startswith("Nothing is finished yet")
