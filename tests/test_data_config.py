"""DataConfig: what the data of a run is called, checked, kept and found."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from frcnn_fast import _command
from frcnn_fast.data import DataConfig, DigitsDetection
from tests.test_data import voc_object, voc_tree, voc_xml


def tree(root: Path, *splits: str) -> DataConfig:
    for split in splits:
        voc_tree(root, split, **{f"{split}1": voc_xml(voc_object("cat"))})
    return DataConfig(data_root=str(root))


def told(*arguments: str, notes: object = None) -> DataConfig:
    parser = argparse.ArgumentParser()
    _command.add_dataset_arguments(parser)
    return _command.data_config(parser.parse_args(arguments), notes)


class TestSettings:
    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"dataset": "imagenet"}, "dataset: got 'imagenet', expected 'auto' or 'digits'"),
            ({"dataset": "voc"}, "data_root: got nothing"),
            ({"dataset": "digits", "data_root": "x"}, "data_root: got 'x', expected nothing"),
            ({"skip_broken": "yes"}, "skip_broken: got 'yes', expected true or false"),
            ({"class_names": ["a", "a"]}, "class_names: got a more than once"),
            ({"class_names": []}, "class_names: got"),
            ({"test_split": None}, "test_split: got None, expected a name"),
            ({"colour": 1}, "data: got unknown settings colour"),
            (3, "data: got 3, expected settings by name"),
        ],
    )
    def test_wrong_ones_are_named(self, values, message):
        with pytest.raises(ValueError, match=message):
            DataConfig.from_dict(values)

    def test_there_and_back(self):
        config = DataConfig(data_root="x", class_names=("b", "a"), zero_based=True, test_split="none")
        assert DataConfig.from_dict(config.to_dict()) == config
        assert DataConfig.from_dict({**config.to_dict(), "class_names": ["b", "a"]}) == config

    def test_from_the_command_line(self):
        assert told() == DataConfig()
        config = told("--data-root", "x", "--class-names", "a", "b", "--skip-broken", "--test-split", "val")
        assert config == DataConfig(data_root="x", class_names=("a", "b"), skip_broken=True, test_split="val")

    def test_a_run_fills_in(self):
        notes = DataConfig(dataset="voc", data_root="x", train_split="a", test_split="none").to_dict()
        assert told(notes=notes) == DataConfig(dataset="voc", data_root="x", train_split="a")
        assert told("--test-split", "c", "--zero-based", notes=notes) == DataConfig(
            dataset="voc", data_root="x", train_split="a", test_split="c", zero_based=True
        )
        assert told("--data-root", "y", notes=notes) == DataConfig(data_root="y")
        assert told(notes={"dataset": 3}) == told(notes=[1]) == DataConfig()


class TestSplits:
    @pytest.mark.parametrize(
        ("splits", "expected"),
        [
            (["train"], ("train", "none")),
            (["train", "val"], ("train", "val")),
            (["train", "val", "test"], ("train", "test")),
            (["train", "val", "trainval"], ("trainval", "none")),
            (["test", "train", "trainval"], ("trainval", "test")),
            (["test"], ("auto", "test")),
        ],
    )
    def test_found_by_looking(self, tmp_path, splits, expected):
        found = tree(tmp_path, *splits).resolved()
        assert (found.train_split, found.test_split) == expected
        assert (found.dataset, found.data_root) == ("voc", str(tmp_path))
        assert found.resolved() == found

    def test_paths_become_absolute(self, tmp_path, monkeypatch):
        tree(tmp_path / "data", "train")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("HOME", str(tmp_path))
        found = DataConfig(data_root="~/data", cache="disk", cache_dir="kept").resolved()
        assert (found.data_root, found.cache_dir) == (str(tmp_path / "data"), str(tmp_path / "kept"))

    def test_opened(self, tmp_path):
        config = tree(tmp_path, "train", "val")
        training, test = config.open_train(), config.open_test()
        assert (training[0][1]["image_id"], test[0][1]["image_id"]) == ("train1", "val1")
        with pytest.raises(ValueError, match="class 'cat' is not in the label list"):
            config.open_test(["dog"])

    def test_none_that_fits(self, tmp_path):
        config = tree(tmp_path, "a", "b")
        with pytest.raises(ValueError, match=r"train_split: .* has the splits a, b, expected one of trainval, train"):
            config.open_train()
        assert config.open_test() is None
        assert "has the splits a, b, none of them test" in config.without_test()

    def test_the_digits(self):
        training, test = DataConfig().open_train(), DataConfig().open_test()
        assert [(type(part), part.split) for part in (training, test)] == [
            (DigitsDetection, "train"),
            (DigitsDetection, "test"),
        ]
        assert DataConfig(test_split="none").open_test() is None
