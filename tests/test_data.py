"""Data sets, transforms and batching."""

from __future__ import annotations

import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from frcnn_fast.data import (
    Collate,
    DetectionView,
    DigitsDetection,
    Preprocess,
    VocDetection,
    boxes_to_original,
    horizontal_flip,
    read_image,
    resize,
)
from tests.real_data import real_data


def check_sample(image: torch.Tensor, target: dict, num_classes: int) -> None:
    """What every sample of every data set promises."""
    count = len(target["boxes"])
    height, width = image.shape[1:]
    assert image.dtype == torch.uint8
    assert image.shape[0] == 3
    assert target["boxes"].dtype == torch.float32
    assert target["boxes"].shape == (count, 4)
    assert target["labels"].dtype == torch.int64
    assert target["labels"].shape == (count,)
    assert target["difficult"].dtype == torch.bool
    assert target["difficult"].shape == (count,)
    assert isinstance(target["image_id"], str)
    x1, y1, x2, y2 = target["boxes"].unbind(1)
    assert ((x1 >= 0) & (y1 >= 0) & (x1 < x2) & (y1 < y2) & (x2 <= width) & (y2 <= height)).all()
    assert ((target["labels"] >= 1) & (target["labels"] <= num_classes)).all()


def same(a: tuple, b: tuple) -> bool:
    return torch.equal(a[0], b[0]) and all(
        torch.equal(a[1][key], b[1][key]) for key in ("boxes", "labels", "difficult")
    )


class TestDigits:
    def test_every_image_keeps_its_promises(self):
        dataset = DigitsDetection("train")
        counts = set()
        for index in range(60):
            image, target = dataset[index]
            assert image.shape == (3, 192, 256)
            check_sample(image, target, 10)
            counts.add(len(target["labels"]))
            boxes = target["boxes"]
            sides = boxes[:, 3] - boxes[:, 1]
            assert (sides <= 98).all()  # the ink of a 96-pixel scan may swell by a pixel on each side
            corners = torch.maximum(boxes[:, None, :2], boxes[None, :, :2])
            ends = torch.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
            common = (ends - corners).clamp(min=0).prod(-1).fill_diagonal_(0)
            areas = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
            assert (common <= 0.1 * torch.minimum(areas[:, None], areas[None, :])).all()
        assert counts == set(range(1, 9))

    def test_an_item_depends_on_split_seed_and_index_only(self):
        first, second = DigitsDetection("train", seed=3), DigitsDetection("train", seed=3)
        sample = first[7]
        assert not same(sample, first[8])
        assert same(sample, second[7])
        assert same(sample, pickle.loads(pickle.dumps(second))[7])
        assert not same(sample, DigitsDetection("train", seed=4)[7])
        assert not same(sample, DigitsDetection("test", seed=3)[7])

    def test_another_process_makes_the_same_image(self):
        code = (
            "from frcnn_fast.data import DigitsDetection; image, target = DigitsDetection('test')[11];"
            "print(image.long().sum().item(), target['boxes'].tolist(), target['labels'].tolist())"
        )
        out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=600)
        image, target = DigitsDetection("test")[11]
        expected = f"{image.long().sum().item()} {target['boxes'].tolist()} {target['labels'].tolist()}"
        assert out.stdout.strip() == expected

    def test_no_scan_is_in_both_splits(self):
        train, test = DigitsDetection("train"), DigitsDetection("test")
        assert len(train._scans) == 1400
        assert len(test._scans) == 397
        seen = {scan.tobytes() for scan in train._scans}
        assert not any(scan.tobytes() in seen for scan in test._scans)

    def test_the_ink_touches_every_side_of_its_box(self):
        dataset = DigitsDetection("train")
        from frcnn_fast.data.digits import _render

        for height in (24, 57, 96):
            for scan in dataset._scans[:50]:
                visible = _render(scan, height) >= 0.5
                assert visible[0].any()
                assert visible[-1].any()
                assert visible[:, 0].any()
                assert visible[:, -1].any()

    def test_length_and_size(self):
        assert len(DigitsDetection("test")) == 200
        assert len(DigitsDetection("train")) == 1_000_000
        dataset = DigitsDetection("test", length=3, size=(480, 640))
        assert len([*iter(dataset)]) == 3
        assert dataset[-1][0].shape == (3, 480, 640)
        assert same(dataset[-1], dataset[2])
        with pytest.raises(IndexError, match="3 items"):
            dataset[3]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"split": "val"}, "split must be 'train' or 'test', got 'val'"),
            ({"split": "train", "seed": -1}, "seed"),
            ({"split": "train", "length": -1}, "length"),
            ({"split": "train", "size": (100, 300)}, "at least 128"),
        ],
    )
    def test_bad_arguments_are_named(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            DigitsDetection(**arguments)


def voc_object(name="cat", box=("11", "21", "30", "40"), difficult="0") -> str:
    corners = "".join(
        f"<{tag}>{value}</{tag}>\n" for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    )
    return (
        f"<object>\n<name>{name}</name>\n<difficult>{difficult}</difficult>\n<bndbox>\n{corners}</bndbox>\n</object>\n"
    )


def voc_xml(*objects: str, size=(60, 100)) -> str:
    return (
        "<annotation>\n<filename>other.jpg</filename>\n"
        f"<size><width>{size[1]}</width><height>{size[0]}</height><depth>3</depth></size>\n"
        + "".join(objects)
        + "</annotation>\n"
    )


def image_file(path: Path, size=(60, 100)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = np.arange(size[0] * size[1] * 3, dtype=np.uint32).reshape(*size, 3)
    Image.fromarray((rows % 251).astype(np.uint8)).save(path)


def voc_tree(root: Path, split: str = "train", **xml_by_id: str) -> Path:
    (root / "Annotations").mkdir(parents=True, exist_ok=True)
    (root / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
    for image_id, xml in xml_by_id.items():
        (root / "Annotations" / f"{image_id}.xml").write_text(xml)
        image_file(root / "JPEGImages" / f"{image_id}.jpg")
    (root / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{name}\n" for name in xml_by_id))
    return root


class TestVoc:
    def test_boxes_become_half_open_and_count_from_zero(self, tmp_path):
        xml = voc_xml(voc_object("dog"), voc_object("cat", ("1", "1", "100", "60"), difficult="1"))
        dataset = VocDetection(voc_tree(tmp_path, b=xml, a=voc_xml()), "train")
        image, target = dataset[0]
        check_sample(image, target, 2)
        assert dataset.class_names == ["cat", "dog"]
        assert image.shape == (3, 60, 100)
        assert target["boxes"].tolist() == [[10, 20, 30, 40], [0, 0, 100, 60]]
        assert target["labels"].tolist() == [2, 1]
        assert target["difficult"].tolist() == [False, True]
        assert target["image_id"] == "b"  # the order of the list, not of the names
        check_sample(*dataset[1], 2)
        assert dataset[1][1]["boxes"].shape == (0, 4)

    def test_options(self, tmp_path):
        root = voc_tree(tmp_path, a=voc_xml(voc_object("dog"), voc_object(difficult="1")))
        names = ["bird", "dog", "cat"]
        dataset = VocDetection(root, "train", class_names=names, difficult=False, one_based=False)
        assert dataset.class_names == names
        assert dataset.target(0)["boxes"].tolist() == [[11, 21, 31, 41]]
        assert dataset.target(0)["labels"].tolist() == [2]

    def test_labels_come_from_all_splits(self, tmp_path):
        voc_tree(tmp_path, "val", v=voc_xml(voc_object("ant")))
        root = voc_tree(tmp_path, "train", t=voc_xml(voc_object("cat")))
        assert VocDetection(root, "train").class_names == ["ant", "cat"]
        assert VocDetection(root, "val").class_names == ["ant", "cat"]

    def test_a_reader_cannot_change_the_data_set(self, tmp_path):
        dataset = VocDetection(voc_tree(tmp_path, a=voc_xml(voc_object())), "train")
        dataset[0][1]["boxes"].zero_()
        assert dataset[0][1]["boxes"].tolist() == [[10, 20, 30, 40]]

    def test_objects_without_extent_or_outside_are_left_out_with_a_warning(self, tmp_path):
        xml = voc_xml(
            voc_object("cat", ("5", "5", "5", "5")),
            voc_object("dog", ("5", "5", "9", "5")),
            voc_object("cat", ("120", "5", "130", "9")),
            voc_object("dog", ("90", "50", "130", "90")),
        )
        root = voc_tree(tmp_path, a=xml)
        with pytest.warns(UserWarning, match=r"left out 3 object.*a\.xml:4"):
            dataset = VocDetection(root, "train")
        assert dataset.left_out == 3
        assert dataset.target(0)["boxes"].tolist() == [[89, 49, 100, 60]]
        assert dataset.target(0)["labels"].tolist() == [2]
        assert dataset.class_names == ["cat", "dog"]

    def test_flat_layout(self, tmp_path):
        for split, name in (("train", "cat"), ("valid", "dog")):
            image_file(tmp_path / split / "one.png")
            (tmp_path / split / "one.xml").write_text(voc_xml(voc_object(name)))
        dataset = VocDetection(tmp_path, "valid")
        assert dataset.class_names == ["cat", "dog"]
        assert dataset.image_path(0) == tmp_path / "valid" / "one.png"
        check_sample(*dataset[0], 2)

    def test_the_annotation_may_name_the_image(self, tmp_path):
        root = voc_tree(tmp_path, a=voc_xml(voc_object()))
        (root / "JPEGImages" / "a.jpg").rename(root / "JPEGImages" / "other.jpg")
        assert VocDetection(root, "train").image_path(0).name == "other.jpg"

    @pytest.mark.parametrize(
        ("xml", "line", "message"),
        [
            ("<annotation>\n<object>\n</annotation>\n", 3, "not well-formed XML"),
            ("", 1, "not well-formed XML"),
            ("<xml>\n</xml>", 1, "expected <annotation>"),
            (voc_xml("<object>\n<name>cat</name>\n</object>\n"), 4, "<object> has no <bndbox>"),
            (voc_xml("<object>\n</object>\n"), 4, "<object> has no <name>"),
            (voc_xml(voc_object("")), 5, "<name> is empty"),
            (voc_xml(voc_object(box=("1", "x", "3", "4"))), 9, "<ymin> is 'x', expected a number"),
            (voc_xml(voc_object(box=("1", "nan", "3", "4"))), 9, "<ymin> is 'nan', expected a number"),
            (voc_xml(voc_object(box=("9", "2", "3", "4"))), 7, "ends before it begins"),
        ],
    )
    def test_broken_annotations_are_named_with_their_line(self, tmp_path, xml, line, message):
        root = voc_tree(tmp_path, good=voc_xml(voc_object()), bad=xml)
        with pytest.raises(ValueError, match=message) as caught:
            VocDetection(root, "train")
        assert f"bad.xml:{line}: " in str(caught.value)
        assert "mend the annotation" in str(caught.value)

    def test_a_class_that_the_list_lacks(self, tmp_path):
        root = voc_tree(tmp_path, a=voc_xml(voc_object("cat"), voc_object("emu")))
        with pytest.raises(ValueError, match=r"a\.xml:14: class 'emu' is not in the label list \(cat, dog\); add it"):
            VocDetection(root, "train", class_names=["cat", "dog"])

    @pytest.mark.parametrize("names", [[], ["cat", "cat"], "cat"])
    def test_a_bad_label_list(self, tmp_path, names):
        with pytest.raises(ValueError, match="list of different names"):
            VocDetection(voc_tree(tmp_path, a=voc_xml(voc_object())), "train", class_names=names)

    def test_missing_files_are_named(self, tmp_path):
        root = voc_tree(tmp_path / "VOC2007", a=voc_xml(voc_object()))
        with pytest.raises(ValueError, match=r"test\.txt: no such file; .* has train"):
            VocDetection(root, "test")
        with pytest.raises(ValueError, match=r"did you mean .*VOC2007\?"):
            VocDetection(tmp_path, "train")
        (root / "JPEGImages" / "a.jpg").unlink()
        with pytest.raises(ValueError, match=r"a\.jpg: no such image file.* describes it; restore it"):
            VocDetection(root, "train")
        (root / "Annotations" / "a.xml").unlink()
        with pytest.raises(ValueError, match=r"a\.xml: cannot be read \(No such file"):
            VocDetection(root, "train")
        (root / "ImageSets" / "Main" / "train.txt").write_text("\n")
        with pytest.raises(ValueError, match=r"train\.txt: the list is empty"):
            VocDetection(root, "train")

    def test_no_object_anywhere(self, tmp_path):
        with pytest.raises(ValueError, match="no annotation holds an object"):
            VocDetection(voc_tree(tmp_path, a=voc_xml()), "train")

    @pytest.mark.parametrize("damage", ["cut", "text", "empty"])
    def test_a_broken_image_is_named(self, tmp_path, damage):
        root = voc_tree(tmp_path, a=voc_xml(voc_object()))
        path = root / "JPEGImages" / "a.jpg"
        path.write_bytes({"cut": path.read_bytes()[:600], "text": b"no image", "empty": b""}[damage])
        dataset = VocDetection(root, "train")
        with pytest.raises(ValueError, match=r"a\.jpg: not a readable image .*; replace the file"):
            dataset[0]

    def test_bccd(self):
        root = real_data("bccd") / "BCCD"
        objects, sizes = torch.zeros(4, dtype=torch.int64), {}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for split in ("train", "val", "test"):
                dataset = VocDetection(root, split)
                sizes[split] = len(dataset)
                for index in range(len(dataset)):
                    objects += torch.bincount(dataset.target(index)["labels"], minlength=4)
        assert dataset.class_names == ["Platelets", "RBC", "WBC"]
        assert sizes == {"train": 205, "val": 87, "test": 72}
        assert objects.tolist() == [0, 361, 4155 - 2, 372]
        assert [str(w.message).count("left out 1 object") for w in caught] == [1, 1]
        assert "BloodImage_00343.xml:" in str(caught[0].message)
        assert "BloodImage_00338.xml:" in str(caught[1].message)
        check_sample(*dataset[0], 3)


class TestTransforms:
    def test_read_image_converts_every_mode(self, tmp_path):
        pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
        for mode in ("RGB", "L", "P", "RGBA", "1"):
            path = tmp_path / f"{mode}.png"
            Image.fromarray(pixels).convert(mode).save(path)
            image = read_image(path)
            assert image.shape == (3, 5, 7)
            assert image.dtype == torch.uint8
        assert torch.equal(read_image(tmp_path / "RGB.png"), torch.from_numpy(pixels).permute(2, 0, 1))
        with pytest.raises(ValueError, match=r"gone\.png: no such image file"):
            read_image(tmp_path / "gone.png")

    @pytest.mark.parametrize(
        ("shape", "shorter", "longer", "expected", "scale"),
        [
            ((375, 500), 600, 1000, (600, 800), 1.6),
            ((500, 375), 600, 1000, (800, 600), 1.6),
            ((200, 1000), 600, 1000, (200, 1000), 1.0),  # the longer side holds it back
            ((100, 1000), 600, 500, (50, 500), 0.5),
            ((480, 640), 320, None, (320, 427), 320 / 480),
            ((480, 640), None, 320, (240, 320), 0.5),
            ((480, 640), None, None, (480, 640), 1.0),
            ((1, 1000), None, 100, (1, 100), 0.1),  # never less than one pixel
        ],
    )
    def test_resize_obeys_both_sides(self, shape, shorter, longer, expected, scale):
        image, got = resize(torch.zeros(3, *shape, dtype=torch.uint8), shorter, longer)
        assert image.shape == (3, *expected)
        assert got == pytest.approx(scale)

    @pytest.mark.parametrize("shorter", [40, 170])
    def test_resize_agrees_with_pillow(self, shorter):
        pixels = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
        image, _ = resize(torch.from_numpy(pixels).permute(2, 0, 1), shorter)
        height, width = image.shape[1:]
        expected = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))
        difference = image.permute(1, 2, 0).int() - torch.from_numpy(expected.astype(np.int32))
        assert difference.abs().max() <= 1

    def test_flip_mirrors_pixels_and_boxes(self):
        image = torch.zeros(3, 4, 10, dtype=torch.uint8)
        image[:, 1:3, 2:5] = 9
        flipped, target = horizontal_flip(image, {"boxes": torch.tensor([[2.0, 1.0, 5.0, 3.0]]), "image_id": "a"})
        assert target == {"boxes": target["boxes"], "image_id": "a"}
        assert target["boxes"].tolist() == [[5, 1, 8, 3]]
        assert (flipped[:, 1:3, 5:8] == 9).all()
        assert flipped.sum() == image.sum()

    @given(st.lists(st.tuples(*[st.integers(0, 64)] * 4), max_size=5))
    @settings(max_examples=30, deadline=None)
    def test_two_flips_are_none(self, corners):
        image = torch.arange(3 * 2 * 64).reshape(3, 2, 64).to(torch.uint8)
        boxes = torch.tensor(corners, dtype=torch.float32).reshape(-1, 4)
        again, target = horizontal_flip(*horizontal_flip(image, {"boxes": boxes}))
        assert torch.equal(again, image)
        assert torch.equal(target["boxes"], boxes)

    def test_view_resizes_boxes_and_appends_mirror_images(self):
        dataset = DigitsDetection("test", length=3)
        view = DetectionView(dataset, shorter=96, flips=True)
        assert len(view) == 6
        assert view.class_names == dataset.class_names
        truth = dataset[1][1]
        image, target = view[1]
        mirror, mirrored = view[4]
        assert image.shape == (3, 96, 128)
        assert torch.equal(target["boxes"], truth["boxes"] / 2)
        assert target["original_size"] == (192, 256)
        assert target["scale"] == 0.5
        assert torch.equal(mirror, image.flip(-1))
        assert torch.equal(mirrored["boxes"][:, 0], 128 - target["boxes"][:, 2])
        assert torch.equal(boxes_to_original(target["boxes"], (96, 128), (192, 256)), truth["boxes"])
        assert torch.equal(truth["boxes"], dataset[1][1]["boxes"])
        with pytest.raises(IndexError, match="6 items"):
            view[6]
        with pytest.raises(ValueError, match="shorter must be"):
            DetectionView(dataset, shorter=0)

    def test_resizing_as_torchvision_does(self):
        """Between the nearest pixels, not rounded; sides rounded down, where the other rule rounds them."""
        pixels = torch.tensor([[0, 100, 200, 40]], dtype=torch.uint8).expand(3, 3, 4)
        image, scale = resize(pixels, 5, 6, "torchvision")
        assert (scale, image.dtype, tuple(image.shape)) == (1.5, torch.float32, (3, 4, 6))
        # Pixel x takes its value from (x + 0.5) / 1.5 - 0.5: -1/6, 0.5, 7/6, 11/6, 2.5 and 19/6.
        expected = torch.tensor([0.0, 50, 350 / 3, 550 / 3, 120, 40])
        torch.testing.assert_close(image, expected.expand(3, 4, 6))
        assert resize(pixels, 5, 6)[0].shape == (3, 4, 6)  # 4.5 to the even one
        assert resize(pixels, 5)[0].shape == (3, 5, 7)
        assert resize(pixels, 5, rule="torchvision")[0].shape == (3, 5, 6)

    def test_unrounded_pixels_pass_from_resize_to_the_network(self):
        image, scale = resize(torch.arange(36, dtype=torch.uint8).reshape(3, 3, 4), 5, 6, "torchvision")
        nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
        batch = Collate("msra", stride=2)([(image, {**nothing, "scale": scale})])
        mean = torch.tensor([103.53, 116.28, 123.675])[:, None, None]
        torch.testing.assert_close(batch.images[0, :, :4, :6], image.flip(0) - mean)
        with pytest.raises(ValueError, match=r"its pixels are torch\.float32"):
            Collate("msra")([(image / 255, nothing)])

    def test_preprocess(self):
        image = torch.tensor([10, 20, 30], dtype=torch.uint8).reshape(3, 1, 1).expand(3, 2, 2)
        caffe, torch_like = Preprocess("caffe")(image), Preprocess("torch")(image)
        assert caffe[:, 0, 0].tolist() == [30 - 104, 20 - 117, 10 - 123]
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        expected = (torch.tensor([10, 20, 30]) / 255 - mean) / std
        torch.testing.assert_close(torch_like[:, 1, 1], expected)
        assert Preprocess("caffe")(image[None]).shape == (1, 3, 2, 2)
        assert pickle.loads(pickle.dumps(Preprocess("caffe"))).name == "caffe"
        with pytest.raises(ValueError, match="one of caffe, msra, torch, got 'tf'"):
            Preprocess("tf")
        with pytest.raises(ValueError, match="uint8"):
            Preprocess()(image.float())


class TestCollate:
    def sample(self, height, width, count, **more):
        image = torch.full((3, height, width), 200, dtype=torch.uint8)
        boxes = torch.arange(4.0 * count).reshape(count, 4)
        target = {
            "boxes": boxes,
            "labels": torch.arange(1, count + 1),
            "difficult": torch.ones(count, dtype=torch.bool),
            "image_id": f"{height}x{width}",
            **more,
        }
        return image, target

    def test_pads_images_and_objects(self):
        batch = Collate("caffe", stride=16)(
            [self.sample(20, 50, 2, scale=0.5, original_size=(40, 100)), self.sample(33, 10, 0)]
        )
        assert len(batch) == 2
        assert batch.images.shape == (2, 3, 48, 64)
        assert batch.image_sizes.tolist() == [[20, 50], [33, 10]]
        assert batch.original_sizes.tolist() == [[40, 100], [33, 10]]
        assert batch.image_scales.tolist() == [0.5, 1.0]
        assert batch.gt_counts.tolist() == [2, 0]
        assert batch.gt_labels.tolist() == [[1, 2], [-1, -1]]
        assert batch.crowd.tolist() == [[True, True], [False, False]]
        assert batch.gt_boxes[0].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
        assert not batch.gt_boxes[1].any()
        assert batch.image_ids == ["20x50", "33x10"]
        assert (batch.images[0, 0, :20, :50] == 200 - 104).all()
        assert not batch.images[0, :, 20:].any()
        assert not batch.images[0, :, :, 50:].any()
        assert not batch.images[1, :, :, 10:].any()
        moved = batch.to("cpu")
        assert moved.image_ids == batch.image_ids

    def test_no_objects_at_all(self):
        batch = Collate()([self.sample(8, 8, 0)])
        assert batch.gt_boxes.shape == (1, 0, 4)
        assert batch.gt_labels.shape == (1, 0)

    def test_fixed_number_of_objects(self):
        collate = Collate(max_boxes=3)
        assert collate([self.sample(8, 8, 1)]).gt_boxes.shape == (1, 3, 4)
        with pytest.raises(ValueError, match="image 8x8 has 4 boxes, max_boxes is 3"):
            collate([self.sample(8, 8, 4)])

    def test_bad_arguments(self):
        with pytest.raises(ValueError, match="samples is empty"):
            Collate()([])
        with pytest.raises(ValueError, match="stride"):
            Collate(stride=0)

    def test_in_a_data_loader_with_workers(self):
        view = DetectionView(DigitsDetection("train", length=4))
        loader: Any = torch.utils.data.DataLoader(view, batch_size=2, num_workers=1, collate_fn=Collate("torch"))  # type: ignore[arg-type]
        batches = list(loader)
        alone = Collate("torch")([view[2], view[3]])
        assert torch.equal(batches[1].images, alone.images)
        assert torch.equal(batches[1].gt_boxes, alone.gt_boxes)


def test_optional_packages_are_needed_only_where_used():
    """All of this imports without them, and their first use names the extra."""
    code = """
import sys
for name in ("PIL", "sklearn", "matplotlib", "safetensors", "tqdm", "pycocotools"):
    sys.modules[name] = None
import frcnn_fast, frcnn_fast.data, frcnn_fast.evaluation, frcnn_fast.io, frcnn_fast.visualize
import torch
uses = [
    lambda: frcnn_fast.data.DigitsDetection("train"),
    lambda: frcnn_fast.data.read_image("a.jpg"),
    lambda: frcnn_fast.visualize.contact_sheet([torch.zeros(3, 4, 4, dtype=torch.uint8)]),
    lambda: frcnn_fast.visualize.plot_losses("a", "b"),
    lambda: frcnn_fast.io.save_checkpoint("a", {}, class_names=[], config={}),
    lambda: frcnn_fast.evaluation.CocoEvaluator(["cat"]),
]
for use, package, extra in zip(
    uses,
    ("scikit-learn", "pillow", "pillow", "matplotlib", "safetensors", "pycocotools"),
    ("train", "train", "train", "train", "train", "coco"),
):
    try:
        use()
    except ImportError as error:
        assert str(error).startswith(package + " is needed here"), error
        assert f"pip install 'frcnn_fast[{extra}]'" in str(error), error
    else:
        raise AssertionError(package)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=600)
