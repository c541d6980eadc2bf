"""frcnn-fast check-data: everything that is wrong or odd, at once, with image, line and value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Subset

from frcnn_fast import cli
from frcnn_fast.check_data import Report, check_any, check_files
from frcnn_fast.model import preset
from tests.test_data import image_file, voc_object, voc_tree, voc_xml
from tests.test_files import oriented
from tests.test_targets import Own, target

FINE = voc_xml(*(voc_object("cat", (str(10 + k), "21", str(60 + k), "50")) for k in range(10)))


def errors(report: Report) -> list[str]:
    return [finding.text for finding in report.findings if finding.is_error]


def odd(report: Report) -> list[str]:
    return [finding.text for finding in report.findings if not finding.is_error]


def one(texts: list[str], *parts: str) -> None:
    """Exactly one of the texts has all the parts."""
    assert sum(all(part in text for part in parts) for text in texts) == 1, (parts, texts)


def small(root: Path) -> Report:
    return check_files(root, config=preset("small"))


class TestErrors:
    def test_all_of_them_at_once(self, tmp_path, capsys):
        bad = voc_xml(
            voc_object("cat", ("50", "40", "20", "10")),
            voc_object("cat", ("1", "x", "3", "4")),
            voc_object("cat", difficult="maybe"),
            *(voc_object("cat", (str(10 + k), "21", str(60 + k), "50")) for k in range(10)),
        )
        root = voc_tree(tmp_path, bad=bad, xml="<annotation>", size=voc_xml(size=(90, 90)), torn=FINE, none=FINE)
        (root / "JPEGImages/none.jpg").unlink()
        torn = root / "JPEGImages/torn.jpg"
        torn.write_bytes(torn.read_bytes()[:-100])
        voc_tree(root, "val", good=FINE)
        (root / "ImageSets/Main/test.txt").write_text("")
        assert cli.main(["check-data", "--data-root", str(root), "--backbone", "small"]) == 1
        lines = capsys.readouterr().out.splitlines()
        found = [line for line in lines if line.startswith("error: ")]
        assert len(found) == 8
        one(found, "bad.xml:7: ", "(50, 40, 20, 10)", "x, y, width, height")
        one(found, "bad.xml:19: ", "<ymin> is 'x'")
        one(found, "bad.xml:26: ", "<difficult> is 'maybe'")
        one(found, "xml.xml:1: ", "not well-formed")
        one(found, "size.xml:3: ", "90 x 90", "100 x 60")
        one(found, "torn.jpg: not a readable image")
        one(found, "none.jpg: no such image file")
        one(found, "test.txt: the list is empty")
        assert lines[-1].startswith("6 images, 30 objects of 1 classes: 8 errors, ")

    def test_classes_of_a_list(self, tmp_path, capsys):
        root = voc_tree(tmp_path, a=voc_xml(voc_object("cat"), voc_object("emu", ("40", "30", "60", "50"))))
        arguments = ["check-data", "--data-root", str(root), "--class-names", "cat", "dog"]
        assert cli.main(arguments) == 1
        text = capsys.readouterr().out
        assert "a.xml:14: class 'emu' is not in the label list (cat, dog)" in text
        assert "odd: class 'dog': has 0 objects" in text
        assert cli.main([*arguments, "--ignore-other-classes"]) == 0

    def test_nothing_there(self, tmp_path, capsys):
        assert cli.main(["check-data", "--data-root", str(tmp_path / "nowhere")]) == 1
        assert "nowhere: no data set: there is no such folder" in capsys.readouterr().out

    def test_nothing_wrong(self, tmp_path):
        assert small(voc_tree(tmp_path, a=FINE)).findings == []


class TestOdd:
    def check(self, root: Path, *boxes: tuple[float, ...], names: Any = None, size: tuple[int, int] = (60, 100)) -> Any:
        names = names or ["cat"] * len(boxes)
        rows = zip(names, boxes, strict=True)
        texts = [voc_object(name, tuple(map(str, box))) for name, box in rows]
        report = small(voc_tree(root, a=FINE, b=voc_xml(*texts, size=size)))
        assert errors(report) == []
        return odd(report)

    def test_duplicates(self, tmp_path):
        box, other = (11, 21, 30, 40), (50, 21, 90, 40)
        found = self.check(tmp_path, box, box, other, other, names=["cat", "cat", "cat", "emu"])
        one(found, "b.xml:14: ", "(11, 21, 30, 40)", "again", "b.xml:4")
        one(found, "b.xml:34: ", "(50, 21, 90, 40)", "also as 'cat'")

    def test_beyond_the_edge_and_without_extent(self, tmp_path):
        found = self.check(tmp_path, (90, 21, 130, 40), (5, 5, 5, 9), (120, 5, 130, 9))
        one(found, "b.xml:4: ", "(90, 21, 130, 40)", "sticks out over its image of 100 x 60")
        one(found, "b.xml:14: ", "(5, 5, 5, 9)", "no extent")
        one(found, "b.xml:24: ", "(120, 5, 130, 9)", "outside")

    def test_fractions(self, tmp_path):
        one(self.check(tmp_path, (0.1, 0.2, 0.6, 0.7), (0.2, 0.1, 0.9, 0.8)), "b.xml:4: ", "looks like fractions")

    def test_x_y_width_height(self, tmp_path):
        boxes = [(10, 5, 40, 30), (2, 3, 20, 25), (30, 8, 60, 40), (5, 5, 50, 50)]
        root = voc_tree(tmp_path, a=voc_xml(*(voc_object("cat", tuple(map(str, box))) for box in boxes)))
        one(odd(small(root)), "a.xml:4: ", "(10, 5, 40, 30)", "as all 4", "x, y, width, height")
        assert not any("width, height" in text for text in odd(small(voc_tree(tmp_path / "fine", a=FINE))))

    def test_tiny_objects_against_the_anchors(self, tmp_path):
        found = self.check(tmp_path, (50, 50, 53, 54))
        one(
            found, "b.xml:4: tiny against the anchors: 1 of 11 objects, the smallest 4.0 x 5.0 pixels", "--anchor-sizes"
        )
        report = check_files(tmp_path, config=preset("small", anchor_sizes=((4.0, 5.0), (48.0, 76.0))))
        assert not any("tiny" in text for text in odd(report))

    def test_classes(self, tmp_path):
        boxes = [(10 + 5 * k, 5, 60 + 5 * k, 40) for k in range(4)]
        found = self.check(tmp_path, *boxes, names=["emu", "Cat", "c at", "background"])
        one(found, "class 'emu': has 1 objects")
        one(found, "'cat'", "'Cat'", "'c at'", "differ in case or spaces only")
        one(found, "class 'background': the background is no class")
        assert not any("class 'cat': has" in text for text in found)

    def test_counted_from_zero(self, tmp_path):
        one(self.check(tmp_path, (0, 21, 60, 40)), "b.xml:4: ", "begins at 0", "--zero-based")

    def test_images_in_two_splits(self, tmp_path):
        root = voc_tree(voc_tree(tmp_path, "train", a=FINE, b=FINE), "test", b=FINE)
        voc_tree(root, "trainval", a=FINE, b=FINE)
        found = odd(small(root))
        one(found, "test and train have 1 images in common", "b.xml")
        one(found, "test and trainval have 1 images in common")
        assert not any("train and trainval" in text for text in found)

    def test_lists_sizes_and_orientations(self, tmp_path):
        root = voc_tree(tmp_path, a=FINE, b=voc_xml(voc_object(box=("11", "21", "90", "40")), size=(100, 60)), c=FINE)
        oriented(root / "JPEGImages/c.jpg", 3)
        (root / "ImageSets/Main/train.txt").write_text("a\nb\nc\na\n")
        found = odd(small(root))
        one(found, "the list has a again")
        one(found, "b.xml:3: width and height are exchanged")
        one(found, "c.xml:3: ", "orientation tag")

    def test_other_layouts(self, tmp_path):
        for split in ("train", "valid"):
            image_file(tmp_path / split / f"{split}.jpg")
            (tmp_path / split / f"{split}.xml").write_text(FINE)
        report = small(tmp_path)
        assert (report.findings, set(report.images)) == ([], {"train", "valid"})


class TestAnyDataSet:
    def test_lists_all_faults(self):
        class Mixed(Own):
            def __getitem__(self, index):
                if index == 2:
                    raise OSError("cannot read it")
                wrong = target(boxes=[[9, 9, 1, 1], [0, 0, 5, 99]], labels=[0, 1], image_id=f"i{index}")
                return self.image, wrong if index == 1 else target(image_id=f"i{index}")

        report = check_any(Mixed(target(), length=4))
        one(errors(report), "image i1: target['labels'][0] is 0")
        one(errors(report), "image i1: target['boxes'][0] is [9, 9, 1, 1]")
        one(errors(report), "2: cannot read it")
        one(odd(report), "image i1: target['boxes'][1] sticks out")
        assert len(errors(report)) == 3

    def test_wrappers_names_and_identities(self):
        dataset: Any = Own(target(), length=3)
        report = check_any(Subset(dataset, [0, 1]))
        one(odd(report), "image a7: another one has this image_id")
        one(errors(check_any(Own(target(), names="cat"))), "class_names")
        one(errors(check_any(Own(target(), image=torch.zeros(3, 4, 4)))), "its pixels are")

    @pytest.mark.parametrize("item", [None, (1, 2, 3), {"image": 1}])
    def test_items_of_another_form(self, item):
        class Strange(Own):
            def __getitem__(self, index):
                return item

        one(errors(check_any(Strange(target()))), "expected (image, target)")
