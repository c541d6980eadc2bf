"""Cached images, random changes, mini-batches by shape and at several sizes: the same whoever loads them, and when."""

from __future__ import annotations

import os
import pickle
import random
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from frcnn_fast.data import (
    AugmentedDetection,
    CachedDetection,
    DataConfig,
    DetectionView,
    DigitsDetection,
    VocDetection,
    check_dataset,
)
from frcnn_fast.data.augment import imported_transforms
from frcnn_fast.model import preset
from frcnn_fast.training import recipe
from frcnn_fast.training.batches import ShuffledForever, TrainingBatches
from frcnn_fast.training.order import Scales, ShapeGroups, wide_images
from tests.test_data import check_sample, image_file, voc_object, voc_tree, voc_xml

IMAGES = 6


@pytest.fixture
def tree(tmp_path) -> Path:
    root = voc_tree(
        tmp_path, **{f"i{k}": voc_xml(voc_object(), voc_object("dog", difficult="1")) for k in range(IMAGES)}
    )
    rng = np.random.default_rng(0)
    for k in range(IMAGES):  # every image is another one
        Image.fromarray(rng.integers(0, 255, (60, 100, 3)).astype(np.uint8)).save(root / f"JPEGImages/i{k}.jpg")
    return root


class Counting(VocDetection):
    decoded = 0

    def read(self, index):
        self.decoded += 1
        return super().read(index)


def same(one: Any, other: Any) -> bool:
    images = torch.equal(one[0], other[0])
    return images and all(torch.equal(one[1][key], other[1][key]) for key in ("boxes", "labels", "difficult"))


class TestCache:
    @pytest.mark.parametrize("disk", [False, True])
    def test_decoded_once(self, tree, tmp_path, disk):
        dataset = Counting(tree, "train")
        cache = CachedDetection(dataset, 1, tmp_path / "cache" if disk else None)
        plain = VocDetection(tree, "train")
        for _ in range(3):
            for k in range(IMAGES):
                assert same(cache[k], plain[k])
        assert (cache.kept, dataset.decoded) == (IMAGES, IMAGES)
        image, target = cache[0]
        check_sample(image, target, 2)
        assert image.stride() == plain[0][0].stride()  # the layout that resizing is fastest on
        image.zero_()
        target["boxes"].zero_()
        assert same(cache[0], plain[0])
        assert same(cache[-1], plain[IMAGES - 1])
        with pytest.raises(IndexError):
            cache.read(IMAGES)
        check_dataset(cache, images=True)
        assert (cache.image_size(0), cache.image_path(0).name) == ((60, 100), "i0.jpg")

    def test_no_more_than_was_given(self, tree):
        rng = np.random.default_rng(0)
        for k in range(4):
            Image.fromarray(rng.integers(0, 255, (300, 500, 3)).astype(np.uint8)).save(tree / f"JPEGImages/i{k}.jpg")
            (tree / f"Annotations/i{k}.xml").write_text(voc_xml(voc_object(), voc_object("dog"), size=(300, 500)))
        dataset = Counting(tree, "train")
        cache = CachedDetection(dataset, 1)  # 450,000 bytes an image: two fit
        assert (cache.kept, cache._length <= 1 << 20) == (2, True)
        for _ in range(2):
            for k in range(IMAGES):
                cache.read(k)
        assert dataset.decoded == IMAGES + 4
        with pytest.raises(ValueError, match="megabytes: got 0"):
            CachedDetection(dataset, 0)
        with pytest.raises(ValueError, match="dataset: got DigitsDetection"):
            CachedDetection(DigitsDetection("test", length=2))

    @pytest.mark.parametrize("disk", [False, True])
    def test_workers_share_it(self, tree, tmp_path, disk):
        """What two workers have decoded nobody decodes again, and all of it is right."""
        dataset = Counting(tree, "train")
        cache = CachedDetection(dataset, 1, tmp_path / "cache" if disk else None)
        loader = DataLoader(cache, batch_size=None, num_workers=2, multiprocessing_context="fork")
        plain = VocDetection(tree, "train")
        for _ in range(2):
            assert all(same(item, plain[k]) for k, item in enumerate(loader))
        assert all(same(cache[k], plain[k]) for k in range(IMAGES))
        assert dataset.decoded == 0

    def test_on_disk_it_outlives_the_process(self, tree, tmp_path):
        first = CachedDetection(VocDetection(tree, "train"), 1, tmp_path / "cache")
        pixels = [first.read(k) for k in range(IMAGES)]
        dataset = Counting(tree, "train")
        again = CachedDetection(dataset, 1, tmp_path / "cache")
        assert all(torch.equal(again.read(k), pixels[k]) for k in range(IMAGES))
        sent = pickle.loads(pickle.dumps(again))  # as to a worker that is spawned
        assert torch.equal(sent.read(3), pixels[3])
        assert dataset.decoded == sent.dataset.decoded == 0
        assert len(list((tmp_path / "cache").iterdir())) == 1

    def test_a_changed_image_is_read_anew(self, tree, tmp_path):
        cache = CachedDetection(VocDetection(tree, "train"), 1, tmp_path / "cache")
        before = cache.read(0)
        Image.fromarray(np.zeros((60, 100, 3), np.uint8)).save(tree / "JPEGImages/i0.jpg")
        os.utime(tree / "JPEGImages/i0.jpg", ns=(1, 1))
        after = CachedDetection(VocDetection(tree, "train"), 1, tmp_path / "cache").read(0)
        assert int(before.max()) > 0
        assert int(after.max()) == 0

    def test_what_a_crash_left_incomplete_is_decoded_anew(self, tree, tmp_path):
        dataset = Counting(tree, "train")
        cache = CachedDetection(dataset, 1, tmp_path / "cache")
        good = cache.read(2)
        (file,) = (tmp_path / "cache").iterdir()
        with open(file, "r+b") as opened:
            opened.seek(cache._places[2] + 77)
            opened.write(b"\x00\x01\x02")
        assert torch.equal(CachedDetection(dataset, 1, tmp_path / "cache").read(2), good)
        assert dataset.decoded == 2

    def test_spawned_workers_are_told(self, tree):
        cache = CachedDetection(VocDetection(tree, "train"), 1)
        with pytest.warns(UserWarning, match="not forked have no share"):
            sent = pickle.loads(pickle.dumps(cache))
        assert torch.equal(sent.read(1), cache.read(1))

    def test_an_unreadable_image_stays_an_error(self, tree):
        (tree / "JPEGImages/i1.jpg").write_bytes(b"torn")
        cache = CachedDetection(VocDetection(tree, "train"), 1)
        for _ in range(2):
            with pytest.raises(ValueError, match="not a readable image"):
                cache.read(1)

    def test_by_configuration(self, tree, tmp_path):
        config = DataConfig(data_root=str(tree), cache="disk", cache_mb=1, cache_dir=str(tmp_path / "kept"))
        training = config.open_train()
        assert isinstance(training, CachedDetection)
        assert same(training[0], VocDetection(tree, "train")[0])
        assert isinstance(DataConfig(data_root=str(tree), cache="memory").open_train(), CachedDetection)
        with pytest.raises(ValueError, match="cache: got 'memory', expected 'none': the digits"):
            DataConfig(cache="memory")
        with pytest.raises(ValueError, match="cache_mb: got 0, expected from 1"):
            DataConfig(cache_mb=0)


def shifted(image: torch.Tensor, target: dict[str, Any]) -> Any:
    """Random everything: a shift to the right by each of three generators, and a change of brightness."""
    shift = random.randrange(20) + int(np.random.randint(20)) + int(torch.randint(20, ()))
    boxes = target["boxes"] + torch.tensor([shift, 0, shift, 0])
    return (image.roll(shift, -1) // 2), {**target, "boxes": boxes}


class TestAugmentation:
    def test_boxes_are_cut_and_dropped_with_their_rows(self, tree):
        dataset = VocDetection(tree, "train")  # cat and dog, which is difficult, at (10, 20, 30, 40)
        target = dataset.target(0)
        boxes = torch.tensor([[90.0, 20.0, 130.0, 40.0], [99.0, 20.0, 130.0, 40.0]])
        assert target["labels"].tolist() == [1, 2]
        moved = AugmentedDetection(dataset, lambda image, target: (image, {**target, "boxes": boxes}))
        _, found = moved[0]
        assert (found["boxes"].tolist(), found["labels"].tolist()) == ([[90, 20, 100, 40]], [1])
        assert found["difficult"].tolist() == [False]
        whole = AugmentedDetection(dataset, moved.transforms, min_visible=0.9)
        assert whole[0][1]["boxes"].shape == (0, 4)
        every = AugmentedDetection(dataset, moved.transforms, min_visible=0)
        assert every[0][1]["difficult"].tolist() == [False, True]
        check_dataset(moved)
        assert (moved.image_size(0), moved.target(0)["boxes"].tolist()) == ((60, 100), target["boxes"].tolist())

    @pytest.mark.parametrize(
        ("transforms", "message"),
        [
            (lambda image, target: (image.float(), target), "image i0: its pixels are torch.float32"),
            (lambda image, target: (image, {"boxes": [[0, 0, 1, 1]], "labels": [9]}), "target['labels'][0] is 9"),
            (lambda image, target: 1 / 0, "image i0: transforms failed (ZeroDivisionError: division by zero)"),
            (lambda image: image, "image i0: transforms failed (TypeError"),
            (3, "transforms: got 3, expected a function"),
        ],
    )
    def test_mistakes_are_named(self, tree, transforms, message):
        with pytest.raises(ValueError, match=re.escape(message)):
            DetectionView(AugmentedDetection(VocDetection(tree, "train"), transforms))[0]

    def test_the_same_whoever_loads_them_and_when(self, tree):
        dataset = AugmentedDetection(VocDetection(tree, "train"), shifted)
        options = recipe("small", batch_size=2, iterations=8, seed=3, workers=0)

        def batches(workers: int = 0, start: int = 0, seed: int = 3) -> list[Any]:
            changed = recipe("small", batch_size=2, iterations=8, seed=seed, workers=workers)
            return list(TrainingBatches(dataset, preset("small"), changed, total=8 - start, start=start))

        whole = batches()
        assert options.iterations == len(whole) == 8
        for other, part in ((batches(workers=2), whole), (batches(start=3), whole[3:]), (batches(2, 5), whole[5:])):
            assert all(torch.equal(a.images, b.images) for a, b in zip(other, part, strict=True))
            assert all(torch.equal(a.gt_boxes, b.gt_boxes) for a, b in zip(other, part, strict=True))
        assert not all(torch.equal(a.images, b.images) for a, b in zip(batches(seed=4), whole, strict=True))
        by_name: dict[str, set[float]] = {}
        for batch in whole:
            for name, boxes in zip(batch.image_ids, batch.gt_boxes, strict=True):
                by_name.setdefault(name, set()).add(float(boxes[0, 0]))
        assert any(len(places) > 1 for places in by_name.values())  # another change in another round

    def test_by_import_path(self, tree, tmp_path, monkeypatch):
        (tmp_path / "my_changes.py").write_text(
            "def build():\n    return lambda image, target: (image * 0, target)\n"
            "def broken():\n    raise KeyError('x')\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        config = DataConfig(data_root=str(tree), transforms="my_changes:build", test_split="train")
        training = config.open_train()
        assert isinstance(training, AugmentedDetection)
        assert int(training[0][0].max()) == 0
        test = config.open_test()
        assert test is not None
        assert int(test[0][0].max()) > 0  # never what is evaluated on
        for path, message in (
            ("my_changes", "expected module:function"),
            ("my_changes:nothing", "my_changes:nothing: AttributeError"),
            ("my_changes:broken", "my_changes:broken: KeyError: 'x'"),
            ("no_such_module:f", "no_such_module:f: ModuleNotFoundError"),
        ):
            with pytest.raises(ValueError, match=message):
                imported_transforms(path)
        del sys.modules["my_changes"]

    def test_torchvision(self, tree):
        v2 = pytest.importorskip("torchvision.transforms.v2", reason="torchvision brings transforms.v2")
        dataset = VocDetection(tree, "train")
        flipped = AugmentedDetection(dataset, v2.RandomHorizontalFlip(p=1.0))
        (image, target), (plain, truth) = flipped[0], dataset[0]
        assert torch.equal(image, plain.flip(-1))
        assert type(image) is torch.Tensor
        assert type(target["boxes"]) is torch.Tensor
        assert target["boxes"].tolist() == [[100 - x2, y1, 100 - x1, y2] for x1, y1, x2, y2 in truth["boxes"].tolist()]
        assert target["labels"].tolist() == truth["labels"].tolist()
        steps = [v2.RandomIoUCrop(), v2.SanitizeBoundingBoxes(), v2.RandomPhotometricDistort()]
        random_ones = AugmentedDetection(dataset, v2.Compose(steps))
        for _ in range(20):
            image, target = DetectionView(random_ones)[1]
            check_sample(image, target, 2)
            assert all(bool(flag) == (label == 2) for flag, label in zip(target["difficult"], target["labels"]))

    def test_albumentations(self, tree):
        albumentations = pytest.importorskip("albumentations", reason="albumentations")
        dataset = VocDetection(tree, "train")
        for fields in ([], ["rows"]):
            form = albumentations.BboxParams(format="pascal_voc", label_fields=fields)
            flipped = AugmentedDetection(dataset, albumentations.Compose([albumentations.HorizontalFlip(p=1)], form))
            (image, target), (plain, truth) = flipped[0], dataset[0]
            assert torch.equal(image, plain.flip(-1))
            flip = [[100 - x2, y1, 100 - x1, y2] for x1, y1, x2, y2 in truth["boxes"].tolist()]
            assert (target["boxes"] - torch.tensor(flip)).abs().max() < 1e-3
            assert target["difficult"].tolist() == truth["difficult"].tolist()
        steps = [albumentations.RandomCrop(40, 60), albumentations.RandomBrightnessContrast(p=1)]
        cropped = AugmentedDetection(dataset, albumentations.Compose(steps, form))
        options = recipe("small", batch_size=2, iterations=4)
        one, other = (list(TrainingBatches(cropped, preset("small"), options)) for _ in range(2))
        assert all(torch.equal(a.images, b.images) for a, b in zip(one, other, strict=True))
        assert not torch.equal(one[0].images[0], one[0].images[1])
        with pytest.raises(ValueError, match="have the format None"):
            AugmentedDetection(dataset, albumentations.Compose(steps))


class TestShapes:
    def order(self, wide: list[bool], batch_size: int, rounds: int, start: int = 0) -> list[int]:
        groups = ShapeGroups(torch.tensor(wide), batch_size)
        total = rounds * len(wide) - start
        return [item.image for item in ShuffledForever(len(wide), total, 5, start, arranged=groups)]

    def test_mini_batches_of_one_shape(self):
        wide = [k % 3 > 0 for k in range(50)]
        order = self.order(wide, 4, 6)
        mixed = 0
        for first in range(0, len(order) - 3, 4):
            mixed += len({wide[image] for image in order[first : first + 4]}) > 1
        # A round of 50 ends inside a mini-batch, and one may be filled up with what is left.
        assert mixed <= 2 * 6
        for epoch in range(6):
            assert sorted(order[50 * epoch : 50 * (epoch + 1)]) == list(range(50))
        assert order[:50] != order[50:100]
        plain = [item.image for item in ShuffledForever(50, 300, 5)]
        assert sum(len({wide[i] for i in plain[k : k + 4]}) > 1 for k in range(0, 300, 4)) > 40

    def test_entered_anywhere(self):
        wide = [k % 2 > 0 for k in range(13)]
        whole = self.order(wide, 4, 5)
        for start in (1, 4, 12, 13, 14, 40):
            assert self.order(wide, 4, 5, start) == whole[start:]

    def test_one_shape_changes_nothing(self):
        assert self.order([True] * 9, 4, 3) == [item.image for item in ShuffledForever(9, 27, 5)]

    def test_less_padding(self, tmp_path):
        """The batches of a training are smaller, and hold the same images."""
        for k in range(8):
            size = (60, 100) if k % 2 else (100, 60)
            image_file(tmp_path / f"JPEGImages/i{k}.jpg", size)
        tree = voc_tree(tmp_path, **{f"i{k}": voc_xml(voc_object(), size=(60, 100)) for k in range(8)})
        for k in range(0, 8, 2):
            image_file(tree / f"JPEGImages/i{k}.jpg", (100, 60))
            (tree / f"Annotations/i{k}.xml").write_text(voc_xml(voc_object(), size=(100, 60)))
        dataset = VocDetection(tree, "train")
        assert wide_images(dataset, True).tolist() == [False, True] * 8

        def pixels(**changes: Any) -> tuple[int, Counter]:
            options = recipe("small", batch_size=2, iterations=16, flips=True, **changes)
            batches = list(TrainingBatches(dataset, preset("small"), options))
            names = Counter(name for batch in batches for name in batch.image_ids)
            return sum(batch.images.numel() for batch in batches), names

        (grouped, names), (plain, others) = pixels(group_shapes=True), pixels()
        assert names == others
        assert grouped < 0.85 * plain
        options = recipe("small", group_shapes=True)
        with pytest.raises(ValueError, match="group_shapes: the data set does not tell"):
            TrainingBatches(DigitsDetection("test", length=4), preset("small"), options)


class TestScales:
    def test_one_for_each_mini_batch(self, tree):
        dataset = VocDetection(tree, "train")
        config = preset("small", shorter=60, longer=None)

        def sizes(workers: int = 0, start: int = 0) -> list[int]:
            options = recipe("small", batch_size=2, iterations=12, multi_scale=(30, 48, 90), workers=workers)
            batches = TrainingBatches(dataset, config, options, total=12 - start, start=start)
            found = [batch.image_sizes[:, 0].tolist() for batch in batches]
            assert all(len(set(sides)) == 1 for sides in found)
            return [sides[0] for sides in found]

        whole = sizes()
        assert set(whole) == {30, 48, 90}
        assert sizes(workers=2) == whole
        assert sizes(start=5) == whole[5:]

    def test_settings(self):
        assert Scales(None, 60, 0, 2).at(7) == 60
        drawn = [Scales((1, 2), 60, seed, 4).at(place) for seed in range(3) for place in range(0, 400, 4)]
        assert 100 < drawn.count(1) < 200
        assert recipe("small", multi_scale=[100, 200]).multi_scale == (100, 200)
        for wrong in ((), (0,), (1.5,), 100):
            with pytest.raises(ValueError, match="multi_scale: got"):
                recipe("small", multi_scale=wrong)
