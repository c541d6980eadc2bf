"""Files of other people's tools and cameras: encodings, names, layouts, sizes, orientations, depths."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from frcnn_fast.data import VocDetection, read_image
from frcnn_fast.data.layout import voc_splits
from frcnn_fast.data.voc_xml import read_annotation
from tests.test_data import image_file, voc_object, voc_tree, voc_xml

BOX = [10.0, 20.0, 30.0, 40.0]  # of voc_object, half-open


def split_list(root: Path, text: str | bytes, split: str = "train") -> None:
    path = root / "ImageSets" / "Main" / f"{split}.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())


def ids(dataset: VocDetection) -> list[str]:
    return [dataset.target(k)["image_id"] for k in range(len(dataset))]


def oriented(path: Path, tag: int, size: tuple[int, int] = (60, 100)) -> np.ndarray:
    """An image file whose pixels tell its orientation; returns them as stored."""
    pixels = np.zeros((*size, 3), np.uint8)
    pixels[: size[0] // 2, : size[1] // 2] = 250
    exif = Image.Exif()
    exif[0x0112] = tag
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, exif=exif)
    return pixels


class TestLists:
    def test_names_with_spaces(self, tmp_path):
        root = voc_tree(tmp_path, **{"my photo (1)": voc_xml(voc_object()), "a": voc_xml(voc_object())})
        for text in ("my photo (1)\na\n", "my photo (1)  1\r\na -1\r\n", " my photo (1) \n\na\t0\n"):
            split_list(root, text)
            assert ids(VocDetection(root, "train")) == ["my photo (1)", "a"]

    def test_the_whole_line_comes_before_its_first_word(self, tmp_path):
        xml = voc_xml(voc_object())
        root = voc_tree(tmp_path, **{"a": xml, "a 1": xml})
        split_list(root, "a 1\na -1\n")
        assert ids(VocDetection(root, "train")) == ["a 1", "a"]

    @pytest.mark.parametrize(
        "line", ["a.jpg", "a.xml", "JPEGImages/a.jpg", "C:\\data\\JPEGImages\\a.JPG", "./a", '"a"', "A"]
    )
    def test_names_as_files_and_paths(self, tmp_path, line):
        root = voc_tree(tmp_path, a=voc_xml(voc_object()))
        split_list(root, line + "\n")
        assert ids(VocDetection(root, "train")) == ["a"]

    def test_names_with_dots(self, tmp_path):
        root = voc_tree(tmp_path, **{"v1.2": voc_xml(voc_object()), "b.png.rf.0a": voc_xml(voc_object())})
        assert ids(VocDetection(root, "train")) == ["v1.2", "b.png.rf.0a"]

    @pytest.mark.parametrize(
        "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "gb18030"]
    )
    @pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
    def test_encodings(self, tmp_path, encoding, end):
        root = voc_tree(tmp_path, **{"图像 1": voc_xml(voc_object()), "b": voc_xml(voc_object())})
        split_list(root, f"图像 1{end}b{end}".encode(encoding))
        assert ids(VocDetection(root, "train")) == ["图像 1", "b"]

    def test_bytes_that_are_the_names_themselves(self, tmp_path):
        root = voc_tree(tmp_path, a=voc_xml(voc_object()))
        name = os.fsdecode(b"caf\xe9")
        (root / "Annotations/a.xml").rename(root / "Annotations" / f"{name}.xml")
        (root / "JPEGImages/a.jpg").rename(root / "JPEGImages" / f"{name}.jpg")
        split_list(root, b"caf\xe9\n")
        dataset = VocDetection(root, "train")
        assert ids(dataset) == [name]
        assert dataset[0][0].shape == (3, 60, 100)
        (root / "JPEGImages" / f"{name}.jpg").unlink()
        with pytest.raises(ValueError, match=r"caf\\xe9\.jpg: no such image file"):
            VocDetection(root, "train")

    def test_unicodes_two_forms(self, tmp_path):
        root = voc_tree(tmp_path, **{"cafe\u0301": voc_xml(voc_object("rato\u0301n"), voc_object("rat\u00f3n"))})
        split_list(root, "caf\u00e9\n")
        assert VocDetection(root, "train").class_names == ["rat\u00f3n"]
        assert VocDetection(root, "train", class_names=["rato\u0301n"]).target(0)["labels"].tolist() == [1, 1]

    @pytest.mark.parametrize("data", [b"\xff\xfea", b"\x00\xff\xfe\x00\x01", b"\xef\xbb\xbf\xff\xff"])
    def test_no_text_at_all(self, tmp_path, data):
        root = voc_tree(tmp_path, a=voc_xml(voc_object()))
        split_list(root, data)
        with pytest.raises(ValueError, match=r"train\.txt: |Annotations/"):
            VocDetection(root, "train")

    def test_a_name_twice_is_one_image(self, tmp_path):
        root = voc_tree(tmp_path, a=voc_xml(voc_object()), b=voc_xml(voc_object()))
        split_list(root, "a\nb\na\n")
        with pytest.warns(UserWarning, match=r"1 name\(s\) are in the list again and are used once, the first at a"):
            assert ids(VocDetection(root, "train")) == ["a", "b"]


class TestXmlEncodings:
    @pytest.mark.parametrize(
        ("encoding", "name"),
        [
            ("utf-8", "ratón"), ("utf-8-sig", "ratón"), ("utf-16", "ratón"), ("iso-8859-1", "ratón"),
            ("windows-1252", "ratón"), ("gb2312", "鼠标"), ("gbk", "鼠標"), ("gb18030", "鼠標"), ("shift_jis", "車両"),
            ("big5", "車輛"), ("euc-jp", "車両"), ("euc-kr", "자동차"), ("koi8-r", "мышь"), ("us-ascii", "rat"),
        ],
    )  # fmt: skip
    def test_declared(self, tmp_path, encoding, name):
        path = tmp_path / "a.xml"
        declared = encoding.removesuffix("-sig")
        path.write_bytes(f'<?xml version="1.0" encoding="{declared}"?>{voc_xml(voc_object(name))}'.encode(encoding))
        (item,) = read_annotation(path).objects
        assert (item.name, item.corners, item.line) == (name, (11, 21, 30, 40), 4)

    def test_more_than_the_old_standard_has(self, tmp_path):
        path = tmp_path / "a.xml"
        for declared, codec, name in (
            ("gb2312", "gbk", "镕"),
            ("shift_jis", "cp932", "①"),
            ("iso-8859-1", "cp1252", "€"),
        ):
            path.write_bytes(f'<?xml version="1.0" encoding="{declared}"?>{voc_xml(voc_object(name))}'.encode(codec))
            assert read_annotation(path).objects[0].name == name

    def test_utf_16_in_name_only(self, tmp_path):
        path = tmp_path / "a.xml"
        for declared in ("utf-16", "unicode"):
            path.write_text(f'<?xml version="1.0" encoding="{declared}"?>{voc_xml(voc_object("ratón"))}')
            assert read_annotation(path).objects[0].name == "ratón"
        path.write_bytes(f'<?xml version="1.0" encoding="utf-16"?>{voc_xml(voc_object("ratón"))}'.encode("utf-16-le"))
        assert read_annotation(path).objects[0].name == "ratón"

    @pytest.mark.parametrize("encoding", ["klingon", "", "hex", "rot13", "idna", "unicode_escape", "../x", "undefined"])
    def test_unknown(self, tmp_path, encoding):
        path = tmp_path / "a.xml"
        path.write_text(f'<?xml version="1.0" encoding="{encoding}"?>{voc_xml(voc_object())}')
        with pytest.raises(ValueError, match=r"a\.xml:1: the XML declares the unknown encoding .*save the file as"):
            read_annotation(path)

    def test_another_one_than_declared(self, tmp_path):
        path = tmp_path / "a.xml"
        for head in ("", '<?xml version="1.0"?>', '<?xml version="1.0" encoding="utf-8"?>'):
            path.write_bytes((head + voc_xml(voc_object("ratón"))).encode("latin-1"))
            with pytest.raises(ValueError, match=r"a\.xml:1: .*its bytes are not utf-8; save the file as UTF-8"):
                read_annotation(path)


class TestXmlValues:
    @pytest.mark.parametrize(
        ("text", "value"),
        [("0", False), ("1", True), ("", False), (" 0 ", False), ("0.0", False), ("1.0", True), ("Unspecified", False),
         ("False", False), ("false", False), ("no", False), ("No", False), ("True", True), ("yes", True), ("2", True)],
    )  # fmt: skip
    def test_difficult(self, tmp_path, text, value):
        root = voc_tree(tmp_path, a=voc_xml(voc_object(difficult=text)))
        assert VocDetection(root, "train").target(0)["difficult"].tolist() == [value]

    @pytest.mark.parametrize("text", ["maybe", "-1", "nan", "1_0", "0x1"])
    def test_difficult_that_says_nothing(self, tmp_path, text):
        root = voc_tree(tmp_path, a=voc_xml(voc_object(difficult=text)))
        with pytest.raises(ValueError, match=rf"a\.xml:6: <difficult> is '{text}', expected 0 or 1"):
            VocDetection(root, "train")

    @pytest.mark.parametrize("text", ["1_1", "inf", "1e999", "11,5", "0x1", "", "1" * 400])
    def test_numbers_that_are_none(self, tmp_path, text):
        root = voc_tree(tmp_path, a=voc_xml(voc_object(box=(text, "21", "30", "40"))))
        with pytest.raises(ValueError, match=r"a\.xml:8: <xmin> is '.*', expected a number"):
            VocDetection(root, "train")

    def test_tags_in_any_case_and_numbers_with_fractions(self, tmp_path):
        xml = voc_xml(voc_object(box=("11.0", "2.1e1", "+30", "40."))).replace("object>", "Object>")
        root = voc_tree(tmp_path, a=xml.replace("bndbox>", "bndBox>"))
        assert VocDetection(root, "train").target(0)["boxes"].tolist() == [BOX]

    @pytest.mark.parametrize(
        ("xml", "message"),
        [
            (voc_xml(voc_object().replace("</object>", "<bndbox/></object>")), "has 2 <bndbox>"),
            (voc_xml(voc_object().replace("</object>", "<name>dog</name></object>")), "has 2 <name>"),
            (voc_xml(f"<objects>{voc_object()}</objects>"), "<objects> holds objects"),
            (voc_xml(voc_object(box=("50", "40", "20", "10"))), "is it x, y, width, height"),
        ],
    )
    def test_what_would_be_passed_over(self, tmp_path, xml, message):
        root = voc_tree(tmp_path, good=voc_xml(voc_object()), a=xml)
        with pytest.raises(ValueError, match=message):
            VocDetection(root, "train")


class TestImageFiles:
    @pytest.mark.parametrize("suffix", [".jpg", ".JPEG", ".Png", ".bmp", ".BMP", ".tif", ".tiff", ".webp", ".gif"])
    def test_endings(self, tmp_path, suffix):
        root = voc_tree(tmp_path, a=voc_xml(voc_object()))
        (root / "JPEGImages/a.jpg").unlink()
        image_file(root / "JPEGImages" / f"a{suffix}")
        (root / "Annotations/a.xml").rename(root / "Annotations/a.XML")
        dataset = VocDetection(root, "train")
        assert dataset.image_path(0).name == f"a{suffix}"
        assert dataset[0][0].shape == (3, 60, 100)

    @pytest.mark.parametrize("said", ["C:\\Users\\me\\b.jpg", "/home/me/b.jpg", "b", "b.png", "..\\b.jpg", "B.JPG"])
    def test_paths_in_filename(self, tmp_path, said):
        root = voc_tree(tmp_path, a=voc_xml(voc_object()).replace("other.jpg", said))
        (root / "JPEGImages/a.jpg").rename(root / "JPEGImages/b.jpg")
        assert VocDetection(root, "train").image_path(0).name == "b.jpg"

    def test_of_two_the_one_that_the_annotation_names(self, tmp_path):
        root = voc_tree(tmp_path, a=voc_xml(voc_object()).replace("other.jpg", "a.png"))
        image_file(root / "JPEGImages/a.png")
        assert VocDetection(root, "train").image_path(0).name == "a.png"
        (root / "Annotations/a.xml").write_text(voc_xml(voc_object()))
        assert VocDetection(root, "train").image_path(0).name == "a.jpg"

    def test_what_systems_leave_behind_is_no_data(self, tmp_path):
        image_file(tmp_path / "train/a.jpg")
        (tmp_path / "train/a.xml").write_text(voc_xml(voc_object()))
        for name in ("._a.xml", "._a.jpg", ".DS_Store"):
            (tmp_path / "train" / name).write_bytes(b"\x00\x05\x16\x07")
        assert ids(VocDetection(tmp_path, "train")) == ["a"]


class TestDepth:
    """Grey images of more than 8 bits show what their 8-bit version shows."""

    grey = np.random.default_rng(3).integers(0, 256, (6, 10)).astype(np.uint8)

    def check(self, path: Path, values: np.ndarray, off: int = 0) -> None:
        grey = self.grey if values.shape == self.grey.shape else values
        Image.fromarray(values).save(path)
        image = read_image(path)
        assert image.shape == (3, *grey.shape)
        assert (image.int() - torch.from_numpy(grey.astype(np.int32))).abs().max() <= off

    def test_16_bits(self, tmp_path):
        for suffix in (".png", ".tif"):
            self.check(tmp_path / f"a{suffix}", self.grey.astype(np.uint16) * 257)
            self.check(tmp_path / f"b{suffix}", self.grey.astype(np.uint16) * 256)

    def test_16_bits_of_the_other_byte_order(self, tmp_path):
        data = (self.grey.astype(">u2") * 257).tobytes()
        image = Image.frombytes("I;16B", (10, 6), data)
        image.save(tmp_path / "a.tif")
        assert torch.equal(read_image(tmp_path / "a.tif")[0], torch.from_numpy(self.grey))

    @pytest.mark.parametrize("factor", [1, 256, 257, 1 << 16, 1 << 23])
    def test_32_bits(self, tmp_path, factor):
        self.check(tmp_path / "a.tif", self.grey.astype(np.int32) * factor)

    @pytest.mark.parametrize("factor", [1 / 255, 1, 257])
    def test_floats(self, tmp_path, factor):
        self.check(tmp_path / "a.tif", self.grey.astype(np.float32) * np.float32(factor), off=1)

    def test_ranges_of_their_own(self, tmp_path):
        full = self.grey.copy()
        full.flat[:2] = 0, 255
        for values in (full.astype(np.int32) * 9 - 1000, (full * 0.01 - 1).astype(np.float32)):
            Image.fromarray(values).save(tmp_path / "a.tif")
            assert (read_image(tmp_path / "a.tif")[0].int() - torch.from_numpy(full.astype(int))).abs().max() <= 1

    def test_not_a_number(self, tmp_path):
        values = (self.grey / 255).astype(np.float32)
        values[0, 0], values[0, 1] = np.nan, np.inf
        Image.fromarray(values).save(tmp_path / "a.tif")
        assert len(read_image(tmp_path / "a.tif").unique()) > 20
        Image.fromarray(np.full((2, 2), np.nan, np.float32)).save(tmp_path / "a.tif")
        assert not read_image(tmp_path / "a.tif").any()

    def test_a_pipe_is_not_waited_for(self, tmp_path):
        os.mkfifo(tmp_path / "a.jpg")
        os.mkfifo(tmp_path / "a.xml")
        with pytest.raises(ValueError, match=r"a\.jpg: not a readable image \(not a regular file"):
            read_image(tmp_path / "a.jpg")
        with pytest.raises(ValueError, match=r"a\.xml: cannot be read"):
            read_annotation(tmp_path / "a.xml")


class TestOrientation:
    @pytest.mark.parametrize("tag", range(1, 9))
    @pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
    def test_as_viewers_show_it(self, tmp_path, tag, suffix):
        from PIL import ImageOps

        path = tmp_path / f"a{suffix}"
        oriented(path, tag)
        with Image.open(path) as image:
            stored, shown = np.array(image.convert("RGB")), np.array(ImageOps.exif_transpose(image).convert("RGB"))
        assert np.array_equal(read_image(path).permute(1, 2, 0), stored)
        assert np.array_equal(read_image(path, upright=True).permute(1, 2, 0), shown)

    def voc(self, root: Path, tag: int, size: Any, *boxes: Any, stored: tuple[int, int] = (60, 100)) -> Path:
        xml = voc_xml(*(voc_object(box=box) for box in boxes), size=size or (0, 0))
        voc_tree(root, a=xml)
        oriented(root / "JPEGImages/a.jpg", tag, stored)
        return root

    def test_the_size_of_the_turned_image_turns_it(self, tmp_path):
        dataset = VocDetection(self.voc(tmp_path, 6, (100, 60), ("11", "61", "30", "90")), "train")
        image, target = dataset[0]
        assert image.shape == (3, 100, 60)
        assert dataset.image_size(0) == (100, 60)
        assert target["boxes"].tolist() == [[10, 60, 30, 90]]

    def test_the_size_of_the_stored_image_does_not(self, tmp_path):
        dataset = VocDetection(self.voc(tmp_path, 6, (60, 100), ("61", "11", "90", "30")), "train")
        assert dataset[0][0].shape == (3, 60, 100)
        assert dataset.target(0)["boxes"].tolist() == [[60, 10, 90, 30]]

    @pytest.mark.parametrize("size", [(60, 100), (100, 60), None])
    def test_boxes_that_fit_one_only_decide(self, tmp_path, size):
        turned = VocDetection(self.voc(tmp_path / "a", 8, size, ("11", "61", "30", "90")), "train")
        assert turned[0][0].shape == (3, 100, 60)
        stored = VocDetection(self.voc(tmp_path / "b", 8, size, ("61", "11", "90", "30")), "train")
        assert stored[0][0].shape == (3, 60, 100)

    @pytest.mark.parametrize(("tag", "stored"), [(3, (60, 100)), (2, (60, 100)), (6, (60, 60))])
    def test_what_nothing_tells_is_said(self, tmp_path, tag, stored):
        root = self.voc(tmp_path, tag, stored, ("11", "21", "30", "40"), stored=stored)
        with pytest.warns(UserWarning, match=r"turned 1 image\(s\) by an orientation tag that keeps the size"):
            dataset = VocDetection(root, "train")
        assert torch.equal(dataset[0][0], read_image(root / "JPEGImages/a.jpg", upright=True))


class TestSizes:
    def tree(self, root: Path, size: tuple[int, int], *boxes: Any, names: str = "a") -> Path:
        return voc_tree(root, **{name: voc_xml(*(voc_object(box=box) for box in boxes), size=size) for name in names})

    def test_another_size_is_an_error(self, tmp_path):
        root = self.tree(tmp_path, (120, 200), ("11", "21", "30", "40"))
        with pytest.raises(ValueError, match=r"a\.xml:3: <size> is 200 x 120, but the image .*jpg has 100 x 60 pixels"):
            VocDetection(root, "train")

    def test_exchanged_sides_that_the_boxes_refute(self, tmp_path):
        root = self.tree(tmp_path, (100, 60), ("11", "21", "90", "40"))
        with pytest.warns(UserWarning, match=r"1 annotation\(s\) have width and height exchanged"):
            dataset = VocDetection(root, "train")
        assert dataset.target(0)["boxes"].tolist() == [[10, 20, 90, 40]]

    def test_exchanged_sides_that_the_boxes_confirm(self, tmp_path):
        with pytest.raises(ValueError, match="was it resized or turned"):
            VocDetection(self.tree(tmp_path, (100, 60), ("11", "21", "30", "90")), "train")

    def test_exchanged_sides_that_may_be_either(self, tmp_path):
        with pytest.raises(ValueError, match="width and height exchanged"):
            VocDetection(self.tree(tmp_path / "one", (100, 60), ("11", "21", "30", "40")), "train")
        every = self.tree(tmp_path / "all", (100, 60), ("11", "21", "30", "40"), names="abc")
        with pytest.warns(UserWarning, match="3 annotation"):
            assert len(VocDetection(every, "train")) == 3

    def test_a_pixel_more_or_less(self, tmp_path):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            dataset = VocDetection(self.tree(tmp_path, (61, 99), ("90", "50", "101", "61")), "train")
        assert dataset.target(0)["boxes"].tolist() == [[89, 49, 100, 60]]

    def test_without_a_size_the_image_tells(self, tmp_path):
        root = self.tree(tmp_path, (0, 0), ("90", "50", "130", "90"))
        with pytest.warns(UserWarning, match=r"cut 1 box\(es\) that stick out"):
            assert VocDetection(root, "train").target(0)["boxes"].tolist() == [[89, 49, 100, 60]]


class TestLayouts:
    def test_side_by_side_with_lists(self, tmp_path):
        for name in "ab":
            image_file(tmp_path / "images" / f"{name}.png")
        (tmp_path / "annotations").mkdir()
        for name, kind in (("a", "cat"), ("b", "dog")):
            (tmp_path / "annotations" / f"{name}.xml").write_text(voc_xml(voc_object(kind)))
        for split in ("train", "val", "all"):
            if split != "val":
                assert len(VocDetection(tmp_path, split)) == 2  # no list yet: all of it
            else:
                with pytest.raises(ValueError, match=r"no split 'val': the 2 annotations .*'all'.*val\.txt"):
                    VocDetection(tmp_path, split)
        (tmp_path / "README.txt").write_text("Cats and dogs.\n")
        for folder in (tmp_path, tmp_path / "annotations", tmp_path / "ImageSets", tmp_path / "imagesets/main"):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "train.txt").write_text("b.png\n")
            dataset = VocDetection(tmp_path, "train")
            assert (ids(dataset), dataset.class_names) == (["b"], ["cat", "dog"])
            assert voc_splits(tmp_path) == ["train"]
            with pytest.raises(ValueError, match=r"test\.txt: no such file; .* has train$"):
                VocDetection(tmp_path, "test")
            (folder / "train.txt").unlink()
            if folder.name.lower() == "imagesets":
                folder.rmdir()

    def test_side_by_side_with_folders(self, tmp_path):
        for split, kind in (("train", "cat"), ("val", "dog")):
            image_file(tmp_path / "images" / split / "a.jpg")
            (tmp_path / "annotations" / split).mkdir(parents=True)
            (tmp_path / "annotations" / split / "a.xml").write_text(voc_xml(voc_object(kind)))
        dataset = VocDetection(tmp_path, "val")
        assert dataset.image_path(0) == tmp_path / "images/val/a.jpg"
        assert dataset.class_names == ["cat", "dog"]
        with pytest.raises(ValueError, match="has train, val"):
            VocDetection(tmp_path, "test")

    def test_a_folder_a_split_with_both_inside(self, tmp_path):
        image_file(tmp_path / "train/images/a.jpg")
        (tmp_path / "train/annotations").mkdir()
        (tmp_path / "train/annotations/a.xml").write_text(voc_xml(voc_object()))
        assert VocDetection(tmp_path, "train")[0][0].shape == (3, 60, 100)

    def test_a_flat_folder_says_which_splits_are_there(self, tmp_path):
        for split in ("train", "valid"):
            image_file(tmp_path / split / "a.jpg")
            (tmp_path / split / "a.xml").write_text(voc_xml(voc_object()))
        (tmp_path / "docs").mkdir()
        assert voc_splits(tmp_path) == ["train", "valid"]
        with pytest.raises(ValueError, match="no PASCAL VOC data for the split 'test'; XML files are in train, val"):
            VocDetection(tmp_path, "test")

    def test_one_folder_for_all(self, tmp_path):
        image_file(tmp_path / "a.jpg")
        (tmp_path / "a.xml").write_text(voc_xml(voc_object()))
        assert len(VocDetection(tmp_path, "train")) == 1
        assert voc_splits(tmp_path) == ["all"]
        with pytest.raises(ValueError, match="no split 'test'"):
            VocDetection(tmp_path, "test")

    def test_other_formats_are_named(self, tmp_path):
        (tmp_path / "annotations.json").write_text("{}")
        with pytest.raises(ValueError, match="is it COCO's format"):
            VocDetection(tmp_path, "train")
        with pytest.raises(ValueError, match="nowhere: no PASCAL VOC data: there is no such folder"):
            VocDetection(tmp_path / "nowhere", "train")


class TestBroken:
    def tree(self, root: Path) -> Path:
        xml = voc_xml(voc_object())
        voc_tree(
            root, good=xml, xml="<annotation", gone=xml, torn=xml, text=xml, size=voc_xml(voc_object(), size=(9, 9))
        )
        (root / "JPEGImages/gone.jpg").unlink()
        torn = root / "JPEGImages/torn.jpg"
        torn.write_bytes(torn.read_bytes()[:-100])
        (root / "JPEGImages/text.jpg").write_text("no image")
        return root

    def test_skipped_and_counted(self, tmp_path):
        root = self.tree(tmp_path)
        with pytest.warns(UserWarning, match=r"left out 5 broken annotation\(s\) or image\(s\)") as told:
            dataset = VocDetection(root, "train", skip_broken=True)
        assert len(told) == 1
        assert ids(dataset) == ["good"]
        assert [Path(text.split(":")[0]).stem for text in dataset.skipped] == ["xml", "gone", "size", "text", "torn"]
        with pytest.raises(ValueError, match=r"xml\.xml:1: not well-formed"):
            VocDetection(root, "train")

    def test_when_nothing_is_left(self, tmp_path):
        root = voc_tree(tmp_path, good=voc_xml(voc_object()))
        voc_tree(tmp_path, "val", bad=voc_xml(voc_object()))
        (root / "JPEGImages/bad.jpg").write_text("no image")
        with pytest.raises(ValueError, match="nothing is left"), pytest.warns(UserWarning, match="left out 1"):
            VocDetection(root, "val", skip_broken=True)


class TestClassFilter:
    def test_other_classes_are_ignored(self, tmp_path):
        root = voc_tree(tmp_path, a=voc_xml(voc_object("cat"), voc_object("emu"), voc_object("dog")))
        dataset = VocDetection(root, "train", class_names=["dog"], ignore_other_classes=True)
        assert dataset.class_names == ["dog"]
        assert dataset.target(0)["labels"].tolist() == [1]
        assert dataset.ignored == 2

    def test_a_name_that_nothing_has(self, tmp_path):
        root = voc_tree(tmp_path, a=voc_xml(voc_object("cat"), voc_object("dog")))
        with pytest.warns(UserWarning, match="no annotation has Cat; there are cat, dog"):
            VocDetection(root, "train", class_names=["Cat", "dog"], ignore_other_classes=True)
        with pytest.raises(ValueError, match="no annotation has Cat; there are cat, dog"):
            VocDetection(root, "train", class_names=["Cat"], ignore_other_classes=True)
        with pytest.raises(ValueError, match="needs class_names"):
            VocDetection(root, "train", ignore_other_classes=True)
