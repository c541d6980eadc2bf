"""What a detector found in one image, and the forms that other tools want it in."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from frcnn_fast._extras import require
from frcnn_fast._names import printable
from frcnn_fast.data.images import read_image
from frcnn_fast.io import PathLike, write_json
from frcnn_fast.visualize import draw_boxes, save_image


class Result:
    """The D detections of one image, best first.

    `len(result)` is D. `result[selection]` is the `Result` of some of them: a mask (bool [D]), indices, a slice, or one
    index; `for one in result` goes through them one by one. D may be 0.

    Attributes:
        boxes: float32 [D, 4], x1, y1, x2, y2 in pixels of the image as it was given, half-open (the whole image is
            0, 0, W, H), never outside of it: 0 <= x1 <= x2 <= W and 0 <= y1 <= y2 <= H.
        scores: float32 [D], from 0 to 1, descending.
        labels: int64 [D], 1..K; label k is class_names[k - 1].
        class_names: the K classes of the detector.
        image_size: (height, width) of the image in pixels.
        path: the file that it came from, as it was spelt; None for pixels from memory.

    The tensors are on the CPU.
    """

    def __init__(
        self,
        boxes: Tensor,
        scores: Tensor,
        labels: Tensor,
        *,
        class_names: Sequence[str],
        image_size: tuple[int, int],
        path: str | None = None,
        image: Tensor | None = None,
    ) -> None:
        self.boxes, self.scores, self.labels = boxes, scores, labels
        self.class_names = list(class_names)
        self.image_size = image_size
        self.path = path
        self._image = image

    @property
    def names(self) -> list[str]:
        """The class name of each detection."""
        return [self.class_names[label - 1] for label in self.labels.tolist()]

    @property
    def image(self) -> Tensor:
        """The image, uint8 [3, H, W], RGB; read from its file anew where the pixels were not kept.

        Raises:
            ValueError: the file is gone, or has another size by now.
        """
        if self._image is not None:
            return self._image
        if self.path is None:
            raise ValueError("image: this result has neither pixels nor a path; draw on the image with draw_boxes")
        image = read_image(self.path, upright=True)
        if tuple(image.shape[-2:]) != self.image_size:
            raise ValueError(
                f"{printable(self.path)}: has {image.shape[-1]}x{image.shape[-2]} pixels now and had "
                f"{self.image_size[1]}x{self.image_size[0]} when objects were looked for; do that again"
            )
        return image

    def without_pixels(self) -> Result:
        """The same, but one that comes from a file reads it anew when its image is wanted."""
        if self.path is not None:
            self._image = None
        return self

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, selection: Any) -> Result:
        if isinstance(selection, (int, np.integer)) and not isinstance(selection, bool):
            if not -len(self) <= selection < len(self):
                raise IndexError(f"index {selection} is outside a result of {len(self)} detections")
            selection = [int(selection) % len(self)]
        if isinstance(selection, (list, tuple, np.ndarray)):
            selection = torch.as_tensor(selection)
            if selection.numel() == 0:
                selection = selection.long()
        return Result(
            self.boxes[selection],
            self.scores[selection],
            self.labels[selection],
            class_names=self.class_names,
            image_size=self.image_size,
            path=self.path,
            image=self._image,
        )

    def __repr__(self) -> str:
        source = f"{self.path!r}, " if self.path is not None else ""
        height, width = self.image_size
        counts = ", ".join(f"{name} ({count})" if count > 1 else name for name, count in Counter(self.names).items())
        found = f"{len(self)} detection{'s' if len(self) != 1 else ''}"
        return f"Result({source}{width}x{height} pixels, {found}{': ' if counts else ''}{counts})"

    def plot(self, caption: str = "") -> Any:
        """The image with its boxes, classes and scores drawn on it, as a PIL image (see `visualize.draw_boxes`).

        Small images are enlarged for it by a whole factor. `caption` is written above; errors as `image` has them.
        """
        return draw_boxes(
            self.image, self.boxes, self.labels, self.scores, class_names=self.class_names, caption=caption
        )

    def to_dict(self) -> dict[str, Any]:
        """A record of detections.jsonl, in JSON's types: image (the path or null), width, height, detections."""
        height, width = self.image_size
        return {
            "image": self.path,
            "width": width,
            "height": height,
            "detections": [
                {"class": name, "score": score, "box": box}
                for name, score, box in zip(self.names, self.scores.tolist(), self.boxes.tolist(), strict=True)
            ],
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any], class_names: Sequence[str], image: Tensor | None = None) -> Result:
        """The result whose `to_dict` is `record`, to the bit.

        Raises:
            ValueError: the record lacks something, or a class is not among `class_names`.
        """
        try:
            found = record["detections"]
            labels = [class_names.index(item["class"]) + 1 for item in found]
            return cls(
                torch.tensor([item["box"] for item in found], dtype=torch.float32).reshape(-1, 4),
                torch.tensor([item["score"] for item in found], dtype=torch.float32),
                torch.tensor(labels, dtype=torch.int64),
                class_names=class_names,
                image_size=(record["height"], record["width"]),
                path=record["image"],
                image=image,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"record: not one of to_dict with classes of {list(class_names)} ({error})") from error

    def to_coco(
        self, image_id: int | str | None = None, category_ids: Mapping[str, int] | None = None
    ) -> list[dict[str, Any]]:
        """COCO's result format, an entry a detection: image_id, category_id, bbox (x, y, width, height), score.

        Args:
            image_id: default: the file's name without its ending, as a number where it is one (COCO's own images).
            category_ids: {class name: COCO's id}; default: the label, 1..K.

        Raises:
            ValueError: an image from memory has no name, so that image_id is needed; or a class is missing in
                category_ids.
        """
        if image_id is None:
            if self.path is None:
                raise ValueError("image_id: got None, expected the image's id, since this image came from memory")
            stem = Path(self.path).stem
            image_id = int(stem) if stem.isascii() and stem.isdigit() else stem
        missing = [name for name in self.names if category_ids is not None and name not in category_ids]
        if missing:
            raise ValueError(f"category_ids: lacks {missing[0]!r}, expected an id for each of {self.class_names}")
        return [
            {
                "image_id": image_id,
                "category_id": label if category_ids is None else category_ids[self.class_names[label - 1]],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": score,
            }
            for label, score, (x1, y1, x2, y2) in zip(
                self.labels.tolist(), self.scores.tolist(), self.boxes.tolist(), strict=True
            )
        ]

    def to_supervision(self) -> Any:
        """The same as `supervision.Detections`; class_id counts from 0 (label - 1), data["class_name"] has the names.

        Raises:
            ImportError: the extra `supervision` is not installed; names the command.
        """
        detections = require("supervision", "supervision").Detections
        return detections(
            xyxy=self.boxes.numpy().copy(),
            confidence=self.scores.numpy().copy(),
            class_id=self.labels.numpy() - 1,
            data={"class_name": np.array(self.names, dtype=str)},
        )

    def save(self, path: PathLike) -> None:
        """Write the drawing (.png, .jpg, ...) or, to a .json file, the record of `to_dict`; whole or not at all.

        Raises:
            ValueError: the ending is of no image format, or as `image`.
            OSError: the file cannot be written.
        """
        suffix = Path(path).suffix.lower()
        if suffix == ".json":
            write_json(path, self.to_dict())
            return
        if suffix not in require("PIL.Image", "train").registered_extensions():
            raise ValueError(f"{os.fspath(path)}: expected a file that ends with .json, .png, .jpg or the like")
        save_image(path, self.plot())
