"""Readers of files on damaged and made-up input: documented errors only, no hang. A hundred thousand inputs with
FRCNN_LONG=1."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import time
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from frcnn_fast.check_data import check_files
from frcnn_fast.data import CocoDetection, CsvDetection, VocDetection, YoloDetection, read_image
from frcnn_fast.data.images import read_header
from frcnn_fast.data.layout import Folder, _listed
from frcnn_fast.data.voc_xml import read_annotation
from frcnn_fast.io import load_checkpoint, load_weights, read_jsonl, save_checkpoint
from frcnn_fast.model import build_detector, load_detector, preset, save_detector
from tests.test_data import voc_object, voc_tree, voc_xml
from tests.test_formats import coco_document, coco_tree, csv_tree, yolo_tree

LONG = bool(os.environ.get("FRCNN_LONG"))
SLOWEST = 10.0  # seconds of the processor for one input of a few kilobytes


def damaged(rng: np.random.Generator, data: bytes, words: list[bytes]) -> bytes:
    """`data` after a few of the things that happen to files, and some that only an attacker does."""
    out = bytearray(data)
    for _ in range(int(rng.choice([0, 1, 1, 2, 4]))):
        at = int(rng.integers(len(out) + 1))
        length = int(rng.choice([1, 2, 4, 16, 200]))
        match int(rng.integers(8)):
            case 0:
                out[at : at + length] = rng.bytes(length)
            case 1:
                del out[at : at + length]
            case 2:
                del out[at:]
            case 3:
                out[at:at] = bytes(out[at : at + length]) * int(rng.choice([1, 3, 50]))
            case 4 | 5:
                out[at:at] = words[int(rng.integers(len(words)))]
            case 6:
                word = words[int(rng.integers(len(words)))]
                out[at : at + len(word)] = word
            case 7 if out:
                out[min(at, len(out) - 1)] ^= 1 << int(rng.integers(8))
    return bytes(out)


def fuzz(name: str, path: Path, seeds: list[bytes], words: list[bytes], count: int, read: Callable[[Path], object]):
    """Read `count` damaged files; only ValueError may come out. A failure names the file that is kept for it."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    read_well = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in range(count):
            path.write_bytes(damaged(rng, seeds[int(rng.integers(len(seeds)))], words))
            begin = time.process_time()
            try:
                read(path)
                read_well += 1
            except ValueError as documented:
                message = str(documented)
                if not message:
                    raise AssertionError(f"input {number} of {name} has no message") from documented
            except BaseException as error:
                raise AssertionError(f"input {number} of {name}, kept in {path}: {error!r}") from error
            assert time.process_time() - begin < SLOWEST, (name, number, path)
    return read_well


def images() -> list[bytes]:
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 255, (9, 14)).astype(np.uint8)
    colour = rng.integers(0, 255, (9, 14, 3)).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    found = []
    for image, formats in (
        (Image.fromarray(colour), ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM")),
        (Image.fromarray(colour).convert("CMYK"), ("JPEG", "TIFF")),
        (Image.fromarray(colour).convert("P"), ("PNG", "GIF")),
        (Image.fromarray(grey.astype(np.uint16) * 257), ("PNG", "TIFF")),
        (Image.fromarray(grey.astype(np.int32) * 999), ("TIFF",)),
        (Image.fromarray(grey.astype(np.float32)), ("TIFF",)),
    ):
        for kind in formats:
            file = io.BytesIO()
            image.save(file, kind, **({"exif": exif} if kind in ("JPEG", "PNG", "WEBP") else {}))
            found.append(file.getvalue())
    return found


XML_WORDS = [
    *(b"<object>", b"</object>", b"<name>", b"<bndbox/>", b"<difficult>Unspecified</difficult>", b"nan", b"1e999"),
    *(b"<!DOCTYPE a [<!ENTITY b 'c'>]>", b"&b;", b"&#0;", b"&#xD800;", b"<![CDATA[", b"<!--", b"<?xml version='1.0'?>"),
    *(b'<?xml version="1.0" encoding="gb2312"?>', b'encoding="utf-7"', b'encoding="hex"', b"\xef\xbb\xbf", b"\xff\xfe"),
    *(b"\xfe\xff", b"\x00", b"\xe9", b"9" * 300, b"<a>" * 300, b"-", b"\r", b"\xe2\x80\xa8", b"_", b"."),
]


LIST_WORDS = [
    *(b"\n", b"\r", b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"/", b"\\", b"..", b" ", b"\t", b"\xe9", b'"', b"a" * 300),
]
JSON_WORDS = [
    *(b"[" * 3000, b'{"a":' * 3000, b"9" * 5000, b"NaN", b"\\ud800", b"\xff", b"\n", b'"', b"\x00", b"}", b"1e999"),
]
COCO_WORDS = [
    *(
        b'"bbox"',
        b'"id"',
        b'"image_id"',
        b'"file_name"',
        b'"../a.jpg"',
        b"[1,2,3,4]",
        b"-1",
        b"3",
        b"1e400",
        b"[]",
        b"{}",
    ),
]
TABLE_WORDS = [
    *(b" ", b",", b'"', b"\n", b"nan", b"-", b"1e999", b"9" * 400, b"\x00", b"a.jpg", b"0", b"1", b"dog", b"_")
]
IMAGE_WORDS = [
    *(b"\xff\xd8", b"\xff\xd9", b"II*\x00", b"MM\x00*", b"\x89PNG", b"IHDR", b"\x00" * 8, b"\xff" * 8, b"Exif\0\0"),
]
TENSOR_WORDS = [
    *(b"null", b"[" * 500, b'{"a":1}', b'\\"', b"\xff" * 8, b"\x00" * 8, b"F64", b"-1", b"9" * 30, b"config", b"extra"),
]
PICKLE_WORDS = [
    *(b"PK\x03\x04", b"\x80\x02", b"c", b"}", b"(", b".", b"\xff" * 8, b"os\nsystem\n", b"float64", b"\x00" * 8),
]


class TestReaders:
    def count(self, long: int) -> int:
        return long if LONG else max(100, long // 200)

    def test_annotations(self, tmp_path):
        xml = voc_xml(voc_object("ratón"), voc_object(difficult="1"))
        seeds = [
            xml.encode(),
            f'<?xml version="1.0" encoding="utf-8"?>{xml}'.encode(),
            f'<?xml version="1.0" encoding="utf-16"?>{xml}'.encode("utf-16"),
            f'<?xml version="1.0" encoding="shift_jis"?>{xml.replace("ratón", "車")}'.encode("cp932"),
        ]
        assert fuzz("annotations", tmp_path / "a.xml", seeds, XML_WORDS, self.count(40_000), read_annotation) > 20

    def test_lists(self, tmp_path):
        root = voc_tree(tmp_path, a=voc_xml(), b=voc_xml(), **{"c d": voc_xml()})
        folder, path = Folder(root / "Annotations"), root / "ImageSets/Main/train.txt"
        texts = ("a\nb\nc d 1\n", "a.jpg -1\r\nb 1\r\n")
        seeds = [text.encode(codec) for text in texts for codec in ("utf-8", "utf-16")]
        assert fuzz("lists", path, seeds, LIST_WORDS, self.count(20_000), lambda p: _listed(p, folder)) > 20

        def whole(_: Path) -> object:
            return VocDetection(root, "train", class_names=["x"])

        assert fuzz("data sets", path, seeds, LIST_WORDS, self.count(2_000), whole) > 5

    def test_coco(self, tmp_path):
        path = coco_tree(tmp_path)
        seeds = [path.read_bytes(), json.dumps(coco_document(), indent=1).encode("utf-16")]
        read = self.both(CocoDetection, tmp_path)
        assert fuzz("coco", path, seeds, JSON_WORDS + COCO_WORDS, self.count(20_000), read) > 5

    def test_yolo_labels(self, tmp_path):
        path = yolo_tree(tmp_path)
        seeds = [
            b"1 0.2 0.5 0.2 0.3\n0 .5 .5 1 1\n",
            b"0 0.1 0.1 0.3 0.1 0.3 0.5\r\n",
            "1 0.2 0.5 0.2 0.3".encode("utf-16"),
        ]
        read = self.both(YoloDetection, tmp_path)
        assert fuzz("yolo", path, seeds, TABLE_WORDS, self.count(20_000), read) > 5

    def test_data_yaml(self, tmp_path):
        pytest.importorskip("yaml", reason="pyyaml reads data.yaml")
        yolo_tree(tmp_path, yaml=True)
        path = tmp_path / "data.yaml"
        seeds = [path.read_bytes(), b"train: [images/train, images/train]\nnames:\n- cat\n- dog\n"]
        words = [
            b"*a",
            b"&a",
            b"[" * 500,
            b"{",
            b"\t",
            b": ",
            b"!!python/object:os.system",
            b"names:",
            b"\x00",
            b"- ",
            b"%",
        ]
        assert fuzz("data.yaml", path, seeds, words, self.count(10_000), self.both(YoloDetection, tmp_path)) > 5

    def test_tables(self, tmp_path):
        path = csv_tree(tmp_path, "b.jpg,100,60,dog,11,21,30,40", "a.jpg,100,60,cat,1,1,100,60", "a.jpg,,,,,,,")
        seeds = [path.read_bytes(), path.read_bytes().replace(b",", b";"), path.read_text().encode("utf-16")]
        read = self.both(CsvDetection, tmp_path)
        assert fuzz("tables", path, seeds, TABLE_WORDS, self.count(20_000), read) > 5

    def both(self, kind, root: Path) -> Callable[[Path], object]:
        """Read as a training does, without and with its broken parts left out, and as check-data does."""

        def read(_: Path) -> object:
            report = check_files(root)
            splits = report.images or {"train": set()}
            with contextlib.suppress(ValueError):
                kind(root, next(iter(splits)), skip_broken=True)
            return kind(root, next(iter(splits)))

        return read

    def test_json_lines(self, tmp_path):
        seeds = [b'{"a": 1, "b": [1.5, null]}\n{"a": "\xc3\xb3"}\n', b"", b'{"a": {}}']
        assert fuzz("json lines", tmp_path / "a.jsonl", seeds, JSON_WORDS, self.count(20_000), read_jsonl) > 20

    @pytest.mark.parametrize("upright", [False, True])
    def test_images(self, tmp_path, upright):
        def read(path: Path) -> object:
            return read_header(path), read_image(path, upright=upright)

        assert fuzz(f"images {upright}", tmp_path / "a", images(), IMAGE_WORDS, self.count(7_500), read) > 5

    def test_checkpoints(self, tmp_path):
        path = tmp_path / "model.safetensors"
        save_checkpoint(path, {"a": torch.ones(3, 2)}, class_names=["cat"], config={"width": 3}, extra={"iteration": 1})
        assert fuzz("checkpoints", path, [path.read_bytes()], TENSOR_WORDS, self.count(10_000), load_checkpoint) > 5

    @pytest.mark.parametrize("suffix", [".pth", ".npz", ".safetensors"])
    def test_weights(self, tmp_path, suffix):
        from safetensors.torch import save_file

        path, tensors = tmp_path / f"a{suffix}", {"a.weight": torch.arange(4.0), "b": torch.ones(2, 2)}
        older: list[bytes] = []
        if suffix == ".pth":
            torch.save(tensors, path, _use_new_zipfile_serialization=False)
            older.append(path.read_bytes())
            torch.save(tensors, path)
        elif suffix == ".npz":
            np.savez(path, a=np.arange(4.0), b=np.ones((2, 2)))
        else:
            save_file(tensors, path)
        seeds = [path.read_bytes(), *older]
        assert fuzz(f"weights {suffix}", path, seeds, PICKLE_WORDS, self.count(3_000), load_weights) > 5


# What stands in the place of a checkpoint's config (an object: of single settings), class names and extras.
ABSURD = {
    "config": """
        null  []  "small"  3  {"what": 1}
        {"backbone": null}  {"backbone": ["small"]}  {"backbone": "resnet9000"}  {"preprocess": 7}  {"preprocess": "tf"}
        {"shorter": "abc"}  {"shorter": -5}  {"shorter": 0}  {"shorter": 1e400}  {"longer": true}
        {"anchor_sizes": 5}  {"anchor_sizes": []}  {"anchor_sizes": [[]]}  {"anchor_sizes": [[null]]}
        {"anchor_sizes": [[-1.0]]}  {"anchor_ratios": []}  {"anchor_ratios": [NaN]}
        {"rpn_channels": 1000000000000}  {"rpn_channels": -3}  {"head_channels": 1000000000000}
        {"head_channels": 100000}  {"pool_size": 1000000000}  {"pool_size": 0}  {"dropout": 7}
        {"proposals_test": 5}  {"proposals_test": [1]}  {"score_threshold": "x"}  {"score_threshold": 7}
        {"max_detections": -1}  {"pooling": null}  {"detection_iou": -1}  {"feature_scale": 0}
        {"class_agnostic": "yes"}  {"class_agnostic": true}
        """,
    "class_names": """ null  []  "cat"  {}  [null]  [1]  ["a", "a"]  ["a", "b", "c"]  [["a"]] """,
    "extra": """ null  []  3  "x" """,
}


class TestCheckpointsOfOthers:
    @pytest.fixture(scope="class")
    @classmethod
    def good(cls, tmp_path_factory):
        path = tmp_path_factory.mktemp("good") / "model.safetensors"
        save_detector(path, build_detector(["cat", "dog"], preset("small")))
        return path

    @pytest.mark.parametrize(
        ("key", "value"),
        [(key, value) for key, values in ABSURD.items() for value in re.split(r"\s{2,}", values.strip())],
    )
    def test_the_documented_error(self, good, tmp_path, key, value):
        """Absurd sizes are refused before they are allocated."""
        from safetensors.torch import load_file, save_file

        checkpoint = load_checkpoint(good)
        if key == "config" and value.startswith("{"):
            value = json.dumps({**checkpoint.config, **json.loads(value)})
        metadata = {
            "format": "frcnn_fast checkpoint 1",
            "class_names": json.dumps(checkpoint.class_names),
            "config": json.dumps(checkpoint.config),
            "extra": "{}",
            key: value,
        }
        path = tmp_path / "model.safetensors"
        save_file(load_file(good), path, metadata=metadata)
        with pytest.raises(ValueError, match=r"model\.safetensors: "):
            load_detector(path)

    def test_a_good_one(self, good):
        assert load_detector(good).class_names == ["cat", "dog"]
