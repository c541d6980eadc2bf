"""COCO, YOLO and CSV data sets: layouts, boxes, errors that name the place, and the same pictures in two formats."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from frcnn_fast import cli
from frcnn_fast.check_data import check_files
from frcnn_fast.data import CocoDetection, CsvDetection, DataConfig, VocDetection, YoloDetection, check_dataset
from tests.real_data import real_data
from tests.test_data import check_sample, image_file, voc_object, voc_tree, voc_xml

HEADER = "filename,width,height,class,xmin,ymin,xmax,ymax"


def coco_document(**changes: Any) -> dict[str, Any]:
    return {
        "images": [
            {"id": 7, "file_name": "a.jpg", "width": 100, "height": 60},
            {"id": 3, "file_name": "b.jpg", "width": 100, "height": 60},
        ],
        "annotations": [
            {"id": 1, "image_id": 3, "category_id": 90, "bbox": [10, 20, 20.5, 20], "area": 123.5, "iscrowd": 0},
            {"id": 2, "image_id": 3, "category_id": 18, "bbox": [0, 0, 100, 60], "iscrowd": 1,
             "segmentation": {"counts": [1, 2], "size": [60, 100]}},
        ],
        "categories": [{"id": 90, "name": "dog"}, {"id": 18, "name": "cat"}],
        **changes,
    }  # fmt: skip


def coco_tree(root: Path, split: str = "train", **changes: Any) -> Path:
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    path = root / "annotations" / f"instances_{split}.json"
    path.write_text(json.dumps(coco_document(**changes)))
    for name in "ab":
        image_file(root / split / f"{name}.jpg")
    return path


def yolo_tree(root: Path, split: str = "train", labels: str = "1 0.2 0.5 0.2 0.3333333\n", yaml: bool = False) -> Path:
    image_file(root / "images" / split / "a.jpg")
    image_file(root / "images" / split / "b.jpg")
    (root / "labels" / split).mkdir(parents=True)
    (root / "labels" / split / "a.txt").write_text(labels)
    if yaml:
        (root / "data.yaml").write_text(
            "path: .\ntrain: images/train\nval: images/val\nnames: {0: cat, 1: dog}\nnc: 2\n"
        )
    else:
        (root / "classes.txt").write_text("cat\ndog\n")
    return root / "labels" / split / "a.txt"


def csv_tree(root: Path, *rows: str, name: str = "train_labels.csv", header: str = HEADER) -> Path:
    for image in "ab":
        image_file(root / "images" / f"{image}.jpg")
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def needs_yaml() -> None:
    pytest.importorskip("yaml", reason="pyyaml reads data.yaml")


def refused(call: Callable[[], object], *parts: str) -> None:
    with pytest.raises(ValueError, match=re.escape(parts[0])) as refusal:
        call()
    assert all(part in str(refusal.value) for part in parts), str(refusal.value)


class TestCoco:
    def test_boxes_crowds_areas_and_sparse_ids(self, tmp_path):
        coco_tree(tmp_path)
        dataset = CocoDetection(tmp_path)
        assert (dataset.class_names, dataset.class_numbers) == (["cat", "dog"], [18, 90])
        image, target = dataset[1]
        check_sample(image, target, 2)
        assert image.shape == (3, 60, 100)
        assert target["boxes"].tolist() == [[10, 20, 30.5, 40], [0, 0, 100, 60]]
        assert target["labels"].tolist() == [2, 1]
        assert target["difficult"].tolist() == [False, True]
        assert target["area"].tolist() == [123.5, 6000]
        assert target["image_id"] == "3"
        assert (dataset[0][1]["image_id"], len(dataset[0][1]["boxes"])) == ("7", 0)
        check_dataset(dataset)
        assert len(CocoDetection(tmp_path, "train", difficult=False).target(1)["boxes"]) == 1
        assert dataset.target(-1)["boxes"].tolist() == dataset.target(1)["boxes"].tolist()

    @pytest.mark.parametrize(
        ("json_file", "images", "split"),
        [
            ("annotations/instances_val2017.json", "val2017", "val2017"),
            ("annotations/instances_val2017.json", "images/val2017", "val2017"),
            ("annotations/val.json", "images", "val"),
            ("annotations/instances_default.json", "images", "all"),
            ("valid/_annotations.coco.json", "valid", "valid"),
            ("val/labels.json", "val/data/images", "val"),
            ("result.json", "images/deeper", "result"),
            ("instances.json", ".", "all"),
        ],
    )
    def test_layouts(self, tmp_path, json_file, images, split):
        path = tmp_path / json_file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(coco_document()))
        (path.parent / f"captions_{split}.json").write_text(json.dumps(coco_document()))
        for name in "ab":
            image_file(tmp_path / images / f"{name}.jpg")
        for dataset in (CocoDetection(tmp_path, split), CocoDetection(tmp_path), CocoDetection(path)):
            assert [dataset.image_path(k).name for k in range(2)] == ["a.jpg", "b.jpg"]
        resolved = DataConfig(data_root=str(tmp_path)).resolved()
        assert (resolved.dataset, {split} <= {resolved.train_split, resolved.test_split}) == ("coco", True)

    def test_images_elsewhere(self, tmp_path):
        path = coco_tree(tmp_path / "data")
        shutil.move(tmp_path / "data/train", tmp_path / "pictures")
        refused(lambda: CocoDetection(path), "images[0] (id 7): the image 'a.jpg' is not there", "image_root")
        assert len(CocoDetection(path, images=tmp_path / "pictures")) == 2
        config = DataConfig(data_root=str(tmp_path / "data"), image_root=str(tmp_path / "pictures"))
        assert len(config.open_train()) == 2

    def test_a_name_leads_to_no_other_folder(self, tmp_path):
        image_file(tmp_path / "secret.jpg")
        for name in ("../secret.jpg", str(tmp_path / "secret.jpg"), "x/../../secret.jpg"):
            path = coco_tree(tmp_path / "data", images=[{"id": 3, "file_name": name}])
            refused(lambda path=path: CocoDetection(path), "secret.jpg' is not there")
        path = coco_tree(tmp_path / "data", images=[{"id": 3, "file_name": "elsewhere/train/a.jpg"}])
        assert CocoDetection(path).image_path(0) == tmp_path / "data/train/a.jpg"

    @pytest.mark.parametrize(
        ("key", "place", "changes", "parts"),
        [
            ("annotations", 0, {"bbox": [1, 2, 3]}, ["annotations[0] (id 1): bbox is [1, 2, 3], expected 4 finite"]),
            ("annotations", 0, {"bbox": [1, 2, 3, "x"]}, ['bbox is [1, 2, 3, "x"]']),
            ("annotations", 0, {"bbox": [1, 2, float("nan"), 4]}, ["bbox is [1, 2, NaN, 4]"]),
            ("annotations", 1, {"bbox": [30, 20, -10, 5]}, ["annotations[1] (id 2): bbox", "no negative ones"]),
            ("annotations", 0, {"bbox": None}, ["bbox is null, expected"]),
            ("annotations", 0, {"category_id": 4}, ["category_id is 4, expected the id of one of the categories"]),
            ("annotations", 0, {"category_id": [4]}, ["category_id is [4]"]),
            ("annotations", 0, {"image_id": 8}, ["annotations[0] (id 1): image_id is 8, expected the id of one"]),
            ("annotations", 0, {"area": -1}, ["area is -1, expected a number of at least 0"]),
            ("annotations", 0, {"iscrowd": "no"}, ['iscrowd is "no", expected 0 or 1']),
            ("images", 1, {"id": None}, ["images[1] is", "expected an object with an id and a file_name"]),
            ("images", 1, {"id": 7}, ["images[1] (id 7): another image has this id"]),
            ("images", 1, {"file_name": "c.jpg"}, ["images[1] (id 3): the image 'c.jpg' is not there (looked in"]),
            ("images", 1, {"width": 90}, ["images[1] (id 3): width x height is 90 x 60, but the image", "100 x 60"]),
            ("categories", 0, {"id": 18}, ["categories[1]: the id 18 is there twice ('dog' and 'cat')"]),
            ("categories", 0, {"name": "cat"}, ["class names: got cat more than once"]),
            ("categories", 0, {"name": ""}, ["categories[0] is", "a whole id and a name"]),
        ],
    )
    def test_errors_name_the_place(self, tmp_path, key, place, changes, parts):
        document = coco_document()
        document[key][place].update(changes)
        path = coco_tree(tmp_path, **document)
        refused(lambda: CocoDetection(path), parts[0], *parts, str(path))
        if key != "categories" and "id" not in changes:
            with pytest.warns(UserWarning, match="left out 1 broken"):
                assert len(CocoDetection(path, skip_broken=True)) == (2 if changes == {"image_id": 8} else 1)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ('{"images": [], "annotations": [],\n"categories": [}', "instances_train.json:2: not JSON"),
            ('["images", "annotations", "categories"]', "is a list, expected an object"),
            ('{"images": 3, "annotations": [], "categories": []}', "images is a number, expected a list"),
            ('{"images": [], "annotations": {"categories": 1}}', "annotations is an object, expected a list"),
        ],
    )
    def test_broken_files(self, tmp_path, text, message):
        path = coco_tree(tmp_path)
        path.write_text(text)
        refused(lambda: CocoDetection(path), message)

    def test_which_split(self, tmp_path):
        coco_tree(tmp_path, "train")
        coco_tree(tmp_path, "val")
        refused(lambda: CocoDetection(tmp_path), "has the splits train, val, expected one")
        refused(lambda: CocoDetection(tmp_path, "test"), "no split 'test'; there are train, val")
        refused(lambda: CocoDetection(tmp_path / "val"), "has no COCO annotations")
        shutil.copy(tmp_path / "annotations/instances_val.json", tmp_path / "val.json")
        refused(lambda: CocoDetection(tmp_path), "instances_val.json and ", "both the split 'val'")

    def test_some_classes(self, tmp_path):
        coco_tree(tmp_path)
        refused(lambda: CocoDetection(tmp_path, class_names=["cat"]), "annotations[0] (id 1): class 'dog' is not in")
        dataset = CocoDetection(tmp_path, class_names=["dog"], ignore_other_classes=True)
        assert (dataset.class_numbers, dataset.ignored, dataset.target(1)["labels"].tolist()) == ([90], 1, [1])


class TestYolo:
    def test_boxes_and_images_without_objects(self, tmp_path):
        yolo_tree(tmp_path, labels="1 0.2 0.5 0.2 0.5\n\n0 .5 .5 1 1\n0 0.1 0.1 0.3 0.1 0.3 0.5\n")
        dataset = YoloDetection(tmp_path, "train")
        image, target = dataset[0]
        check_sample(image, target, 2)
        assert (dataset.class_names, dataset.class_numbers) == (["cat", "dog"], [0, 1])
        expected = [[10, 15, 30, 45], [0, 0, 100, 60], [10, 6, 30, 30]]
        assert (target["boxes"] - torch.tensor(expected)).abs().max() < 1e-4
        assert target["labels"].tolist() == [2, 1, 1]
        assert (target["image_id"], len(dataset[1][1]["boxes"]), len(dataset)) == ("a", 0, 2)

    def test_data_yaml(self, tmp_path):
        needs_yaml()
        yolo_tree(tmp_path, yaml=True)
        image_file(tmp_path / "images/val/c.jpg")
        (tmp_path / "labels/val").mkdir()
        (tmp_path / "labels/val/c.txt").write_text("0 0.5 0.5 0.5 0.5\n")
        config = DataConfig(data_root=str(tmp_path))
        resolved = config.resolved()
        assert (resolved.dataset, resolved.train_split, resolved.test_split) == ("yolo", "train", "val")
        training, test = config.open_train(), config.open_test()
        assert (training.class_names, len(training), test[0][1]["image_id"]) == (["cat", "dog"], 2, "c")
        assert len(YoloDetection(tmp_path / "data.yaml", "train")) == 2
        refused(lambda: YoloDetection(tmp_path, "test"), "data.yaml: test is None, expected a path; it has train, val")

    @pytest.mark.parametrize(
        ("text", "count"),
        [
            ("train: ../images/train\nval: x\nnames: [cat, dog]\n", 2),  # as some exports write it
            ("train: [images/train, images/more]\nval: [x]\nnames: [cat, dog]\n", 3),
            ("path: images\ntrain: train\nnames: {1: dog, 7: emu}\n", 2),
            ("train: list.txt\nnames: [cat, dog]\n", 2),
        ],
    )
    def test_what_data_yaml_may_say(self, tmp_path, text, count):
        needs_yaml()
        yolo_tree(tmp_path)
        image_file(tmp_path / "images/more/e.jpg")
        (tmp_path / "list.txt").write_text("./images/train/b.jpg\nimages/train/a.jpg\n")
        (tmp_path / "other.yaml").write_text(text)
        dataset = YoloDetection(tmp_path, "train")
        assert len(dataset) == count
        assert [name for k in range(count) for name in dataset.target(k)["labels"].tolist()] == [
            dataset.class_names.index("dog") + 1
        ]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("train: [images\nnames: [a]\n", "data.yaml:2: not YAML"),
            ("train: images/gone\nnames: [a]\n", "train is 'images/gone', which is not there"),
            ("train: images/train\nnames: 3\n", "names is 3, expected a list"),
            ("train: images/train\nnames: [a]\nnc: 2\n", "nc is 2, but names has 1"),
            ("train: images/train\nnames: [a, a]\n", "names: got a more than once"),
            ("train: 4\nnames: [a]\n", "train is 4, expected a path"),
            ("train: labels\nnames: [a]\n", "train is 'labels', which has no images"),
        ],
    )
    def test_errors_of_data_yaml(self, tmp_path, text, message):
        needs_yaml()
        yolo_tree(tmp_path)
        (tmp_path / "data.yaml").write_text(text)
        refused(lambda: YoloDetection(tmp_path, "train"), message)

    @pytest.mark.parametrize(
        ("line", "parts"),
        [
            ("1 0.2 0.5 0.2", ["a.txt:2: has 4 numbers, expected 5: class, x, y, width, height"]),
            ("1 0.2 0.5 0.2 0.3 0.9", ["has 6 numbers", "is the last one a score?"]),
            ("dog 0.2 0.5 0.2 0.3", ["a.txt:2: got 'dog 0.2 0.5 0.2 0.3', expected numbers"]),
            ("1 0.2 nan 0.2 0.3", ["expected numbers"]),
            ("2 0.2 0.5 0.2 0.3", ["a.txt:2: the class is 2, expected a whole number from 0 to 1"]),
            ("0.5 0.2 0.5 0.2 0.3", ["the class is 0.5"]),
            ("1 20 50 20 30", ["expected fractions of the image, 0..1; are these pixels?"]),
            ("1 0.2 -0.5 0.2 0.3", ["expected fractions of the image, 0..1; mend"]),
        ],
    )
    def test_errors_name_the_line(self, tmp_path, line, parts):
        yolo_tree(tmp_path, labels=f"1 0.2 0.5 0.2 0.3\n{line}\n")
        refused(lambda: YoloDetection(tmp_path, "train"), *parts)
        with pytest.warns(UserWarning, match="left out 1 broken"):
            assert len(YoloDetection(tmp_path, "train", skip_broken=True)) == 1

    @pytest.mark.parametrize("layout", ["{split}/images {split}/labels", "{split} {split}", ". .", "images labels"])
    def test_layouts_without_data_yaml(self, tmp_path, layout):
        images, labels = layout.format(split="train").split()
        image_file(tmp_path / images / "a.jpg")
        (tmp_path / labels).mkdir(exist_ok=True, parents=True)
        (tmp_path / labels / "a.txt").write_text("1 0.2 0.5 0.2 0.3\n")
        (tmp_path / "classes.txt").write_text("cat\ndog\n")
        config = DataConfig(data_root=str(tmp_path))
        assert config.open_train()[0][1]["labels"].tolist() == [2]
        assert config.resolved().train_split == ("train" if "split" in layout else "all")

    def test_without_names(self, tmp_path):
        yolo_tree(tmp_path)
        (tmp_path / "classes.txt").unlink()
        refused(lambda: YoloDetection(tmp_path, "train"), "the classes have no names", "classes.txt")
        assert YoloDetection(tmp_path, "train", class_names=["x", "y"]).target(0)["labels"].tolist() == [2]
        assert len(DataConfig(data_root=str(tmp_path), class_names=("x", "y")).open_train()) == 2

    def test_without_labels(self, tmp_path):
        yolo_tree(tmp_path).unlink()
        (tmp_path / "labels/train/z.txt").write_text("0 0.5 0.5 0.5 0.5\n")
        refused(lambda: YoloDetection(tmp_path, "train"), "no image has a label file", "labels/train/a.txt")


class TestCsv:
    def test_rows_of_an_image_need_not_stand_together(self, tmp_path):
        csv_tree(
            tmp_path, "b.jpg,100,60,dog,11,21,30,40", "a.jpg,100,60,cat,1,1,100,60", "b.jpg,100,60,cat,5,5,5,9",
            "b.jpg,100,60,cat,50,20,60,30",
        )  # fmt: skip
        with pytest.warns(UserWarning, match=r"left out 1 object\(s\) without extent .*train_labels\.csv:4"):
            dataset = CsvDetection(tmp_path)
        image, target = dataset[0]
        check_sample(image, target, 2)
        assert target["boxes"].tolist() == [[10, 20, 30, 40], [49, 19, 60, 30]]
        assert (target["labels"].tolist(), target["image_id"]) == ([2, 1], "b")
        assert dataset[1][1]["boxes"].tolist() == [[0, 0, 100, 60]]

    @pytest.mark.parametrize(
        ("header", "row"),
        [
            ("class,xmin,ymin,xmax,ymax,filename", "dog,11,21,30,40,a.jpg"),
            ("image_path;label;x1;y1;x2;y2", "images/a.jpg;dog;11;21;30;40"),
            ('"file","name","x_min","y_min","x_max","y_max"', '"a.jpg","dog","11","21","30","40"'),
            ("\ufefffilename\tclass\txmin\tymin\txmax\tymax", "a.jpg\tdog\t11\t21\t30\t40"),
        ],
    )
    def test_columns(self, tmp_path, header, row):
        csv_tree(tmp_path, row, header=header)
        assert CsvDetection(tmp_path).target(0)["boxes"].tolist() == [[10, 20, 30, 40]]
        zero = CsvDetection(tmp_path, one_based=False)
        assert (zero.target(0)["boxes"].tolist(), zero.class_names) == ([[11, 21, 31, 41]], ["dog"])

    def test_layouts_and_classes_of_all_splits(self, tmp_path):
        csv_tree(tmp_path, "a.jpg,100,60,cat,1,1,9,9", name="data/train_labels.csv")
        csv_tree(tmp_path, "b.jpg,100,60,dog,1,1,9,9", "a.jpg,,,,,,,", name="data/test_labels.csv")
        config = DataConfig(data_root=str(tmp_path))
        training, test = config.open_train(), config.open_test()
        assert (training.class_names, len(training), len(test)) == (["cat", "dog"], 1, 2)
        assert len(test[1][1]["boxes"]) == 0
        image_file(tmp_path / "flat/valid/c.jpg")
        csv_tree(tmp_path / "flat", "c.jpg,100,60,dog,1,1,9,9", name="valid/_annotations.csv")
        assert CsvDetection(tmp_path / "flat").image_path(0) == tmp_path / "flat/valid/c.jpg"

    @pytest.mark.parametrize(
        ("row", "parts"),
        [
            ("a.jpg,100,60,cat,50,40,20,10", ["csv:3: the box (50, 40, 20, 10) ends before it begins"]),
            ("a.jpg,100,60,cat,x,40,20,10", ["csv:3: xmin is 'x', expected a number"]),
            ("a.jpg,100,60,cat,1,1", ["csv:3: xmax is '', expected a number"]),
            ("a.jpg,100,60,cat,1,1,nan,9", ["xmax is 'nan'"]),
            ("a.jpg,100,60,,1,1,9,9", ["csv:3: no class"]),
            (",100,60,cat,1,1,9,9", ["csv:3: no file name"]),
            ("c.jpg,100,60,cat,1,1,9,9", ["csv:3: the image 'c.jpg' is not there (looked in "]),
            ("a.jpg,90,60,cat,1,1,9,9", ["csv:3: width, height is 90 x 60, but ", "csv:2 says 100 x 60 of the same"]),
            ("b.jpg,90,60,cat,1,1,9,9", ["csv:3: width, height is 90 x 60, but the image ", "has 100 x 60 pixels"]),
        ],
    )
    def test_errors_name_the_line(self, tmp_path, row, parts):
        csv_tree(tmp_path, "a.jpg,100,60,cat,1,1,9,9", row)
        refused(lambda: CsvDetection(tmp_path), *parts)

    def test_a_header_is_needed(self, tmp_path):
        path = csv_tree(tmp_path, "a.jpg,1,1,9,9,cat", header="a.jpg,1,1,9,9,dog")
        refused(lambda: CsvDetection(tmp_path), "has no table with filename, class, xmin, ymin, xmax, ymax")
        refused(lambda: CsvDetection(path, "train"), "no split 'train'; there are no tables with the columns")


class TestFound:
    def test_one_line_says_what_was_found(self, tmp_path):
        coco_tree(tmp_path)
        coco_tree(tmp_path, "val")
        config = DataConfig(data_root=str(tmp_path)).resolved()
        assert config.described(config.open_train(), config.open_test()) == (
            f"{tmp_path} is COCO: train train (2 images), test val (2 images), 2 classes: cat, dog"
        )

    def test_two_formats_are_an_error(self, tmp_path):
        voc_tree(tmp_path, a=voc_xml(voc_object()))
        csv_tree(tmp_path, "a.jpg,100,60,cat,1,1,9,9", name="data/train_labels.csv")
        config = DataConfig(data_root=str(tmp_path))
        refused(config.resolved, "may be read as voc with the splits train; csv with the splits train: name the format")
        assert DataConfig(dataset="csv", data_root=str(tmp_path)).open_train()[0][1]["boxes"].tolist() == [[0, 0, 9, 9]]
        assert len(DataConfig(dataset="voc", data_root=str(tmp_path)).open_train()) == 1
        refused(
            lambda: DataConfig(dataset="coco", data_root=str(tmp_path)).resolved(), "no data set found; expected COCO"
        )

    def test_nothing_that_is_known(self, tmp_path):
        coco_tree(tmp_path / "inner")
        (tmp_path / "readme.txt").touch()
        look = DataConfig(data_root=str(tmp_path)).resolved
        refused(look, "no data set found; did you mean ", f"{tmp_path / 'inner'}?", "the folder has inner, readme.txt")
        refused(DataConfig(data_root=str(tmp_path / "x")).resolved, "no data set: there is no such folder")
        refused(DataConfig(data_root=str(tmp_path / "readme.txt")).resolved, "no data set found; expected one of")


class TestCheckData:
    def test_coco(self, tmp_path, capsys):
        document = coco_document()
        document["annotations"] += [
            {"id": 3, "image_id": 3, "category_id": 90, "bbox": [1, 2, 3]},
            {"id": 4, "image_id": 7, "category_id": 90, "bbox": [90, 10, 40, 10]},
            {"id": 5, "image_id": 99, "category_id": 90, "bbox": [90, 10, 4, 10]},
        ]
        coco_tree(tmp_path, **document)
        assert cli.main(["check-data", "--data-root", str(tmp_path), "--backbone", "small"]) == 1
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == f"{tmp_path} is COCO, splits train"
        errors = [line for line in lines if line.startswith("error: ")]
        assert len(errors) == 2
        assert "annotations[2] (id 3): bbox is [1, 2, 3]" in errors[0]
        assert "annotations[4] (id 5): image_id is 99" in errors[1]
        assert any("annotations[3] (id 4): the box (90, 10, 40, 10) sticks out" in line for line in lines)
        assert not any("looks like" in line for line in lines)

    def test_yolo_and_csv(self, tmp_path):
        yolo_tree(tmp_path / "yolo", labels="1 0.2 0.5 0.2 0.5\n1 2 3\n0 0.5 0.5 0.001 0.001\n")
        found = [str(finding) for finding in check_files(tmp_path / "yolo").findings]
        assert sum("error: " in text and "a.txt:2: has 3 numbers" in text for text in found) == 1
        assert not any("fractions" in text for text in found)
        csv_tree(tmp_path / "csv", "a.jpg,100,60,cat,0,1,9,9", "a.jpg,100,60,cat,9,1,2,9", "b.jpg,100,60,emu,3,3,9,9")
        found = [str(finding) for finding in check_files(tmp_path / "csv").findings]
        assert sum("csv:3: the box (9, 1, 2, 9) ends before" in text for text in found) == 1
        assert sum("csv:2: the box (0, 1, 9, 9) begins at 0" in text for text in found) == 1


class TestRealData:
    def test_voc_and_coco_of_the_same_pictures(self, tmp_path):
        """The JSON was made of the XML by width = xmax - xmin: the same last pixel, the first one counted from 1."""
        root = real_data("voc12_mini") / "data/database"
        os.symlink(root / "gts/pascalvoc_format", tmp_path / "Annotations")
        os.symlink(root / "images", tmp_path / "JPEGImages")
        voc = VocDetection(tmp_path, "all")
        for version in ("coco_format_v1/instances_default.json", "coco_format_v2/instances_v2.json"):
            coco = CocoDetection(root / "gts" / version, images=root / "images")
            assert (len(coco), sorted(coco.class_names)) == (len(voc), voc.class_names) == (100, voc.class_names)
            of_file = {coco.image_path(k).name: coco.target(k) for k in range(100)}
            boxes = 0
            for k in range(100):
                ours, theirs = voc.target(k), of_file[voc.image_path(k).name]
                rows = [
                    sorted((names[label - 1], *(int(x) for x in box)) for label, box in zip(labels, found, strict=True))
                    for names, labels, found in (
                        (voc.class_names, ours["labels"], (ours["boxes"] + ours["boxes"].new_tensor([1, 1, 0, 0]))),
                        (coco.class_names, theirs["labels"], theirs["boxes"]),
                    )
                ]
                assert rows[0] == rows[1]
                boxes += len(rows[0])
            assert boxes == 273

    def test_a_real_set_in_all_formats(self, tmp_path):
        """Blood cells, written as COCO, YOLO and CSV: the same boxes, read back."""
        source = VocDetection(real_data("bccd") / "BCCD", "val")
        images = real_data("bccd") / "BCCD/JPEGImages"
        document: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
        document["categories"] = [{"id": 10 * k, "name": name} for k, name in enumerate(source.class_names, 1)]
        rows = [HEADER]
        labels = tmp_path / "yolo/labels/val"
        labels.mkdir(parents=True)
        (tmp_path / "yolo/images").mkdir()
        (tmp_path / "yolo/images/val").mkdir()
        (tmp_path / "yolo/classes.txt").write_text("\n".join(source.class_names))
        for k in range(len(source)):
            path, (height, width), target = source.image_path(k), source.image_size(k), source.target(k)
            os.symlink(path, tmp_path / "yolo/images/val" / path.name)
            document["images"].append({"id": k, "file_name": path.name, "width": width, "height": height})
            lines = []
            for (x1, y1, x2, y2), label in zip(target["boxes"].tolist(), target["labels"].tolist(), strict=True):
                document["annotations"].append(
                    {"id": len(rows), "image_id": k, "category_id": 10 * label, "bbox": [x1, y1, x2 - x1, y2 - y1]}
                )
                name = source.class_names[label - 1]
                rows.append(f"{path.name},{width},{height},{name},{x1 + 1:g},{y1 + 1:g},{x2:g},{y2:g}")
                centre = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
                lines.append(" ".join([str(label - 1), *(f"{value:.9f}" for value in centre)]))
            (labels / f"{path.stem}.txt").write_text("\n".join(lines))
        (tmp_path / "val.json").write_text(json.dumps(document))
        (tmp_path / "val.csv").write_text("\n".join(rows))
        for other, tolerance in (
            (CocoDetection(tmp_path / "val.json", images=images), 0),
            (CsvDetection(tmp_path / "val.csv", images=images), 0),
            (YoloDetection(tmp_path / "yolo", "val"), 1e-3),
        ):
            assert (len(other), sorted(other.class_names)) == (87, source.class_names)
            found = {other.image_path(k).name: other.target(k) for k in range(87)}
            for k in range(87):
                ours, theirs = source.target(k), found[source.image_path(k).name]
                assert [source.class_names[i - 1] for i in ours["labels"]] == [
                    other.class_names[i - 1] for i in theirs["labels"]
                ]
                assert (ours["boxes"] - theirs["boxes"]).abs().max() <= tolerance
