"""Small data sets on which a detector trains in seconds."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from frcnn_fast.data import DigitsDetection

SIZE = (128, 160)


def digits(split: str, length: int) -> DigitsDetection:
    return DigitsDetection(split, length=length, size=SIZE)


class OneClass:
    """A data set whose objects are all the same to it: a detector learns that in a few seconds."""

    def __init__(self, dataset):
        self.class_names = ["digit"]
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        image, target = self.dataset[index]
        return image, {**target, "labels": torch.ones_like(target["labels"])}


def write_voc_tree(root: Path) -> Path:
    """Six images of digits written as a PASCAL VOC tree: four to train on, two to test on."""
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / folder).mkdir(parents=True)
    data = digits("train", 6)
    for index in range(len(data)):
        image, target = data[index]
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(root / f"JPEGImages/{index}.jpg")
        objects = "".join(
            f"<object><name>digit</name><difficult>0</difficult><bndbox><xmin>{x1 + 1:.0f}</xmin>"
            f"<ymin>{y1 + 1:.0f}</ymin><xmax>{x2:.0f}</xmax><ymax>{y2:.0f}</ymax></bndbox></object>"
            for x1, y1, x2, y2 in target["boxes"].tolist()
        )
        size = f"<size><width>{SIZE[1]}</width><height>{SIZE[0]}</height><depth>3</depth></size>"
        annotation = f"<annotation><filename>{index}.jpg</filename>{size}{objects}</annotation>"
        (root / f"Annotations/{index}.xml").write_text(annotation)
    (root / "ImageSets/Main/trainval.txt").write_text("0\n1\n2\n3\n")
    (root / "ImageSets/Main/test.txt").write_text("4\n5\n")
    return root
