"""Proposals that somebody made before: of Selective Search, of another detector, of an earlier run."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from frcnn_fast._extras import require
from frcnn_fast._names import printable
from frcnn_fast.data.datasets import quick_target
from frcnn_fast.data.targets import as_numbers, image_id
from frcnn_fast.io import PathLike, atomic_path, write_json

SUFFIXES = (".npz", ".json", ".mat")


class _Rows(NamedTuple):
    boxes: Tensor  # float32 [N, 4]
    scores: Tensor | None  # float32 [N]


class ProposalSet(Mapping[str, Tensor]):
    """Boxes by image id: float32 [N, 4], x1, y1, x2, y2 in pixels of the image, half-open, in the order given.

    Args:
        boxes: of each image, [N, 4]; [N, 5] has a score in its last column. Tensors, arrays or lists.

    Raises:
        ValueError: names the image and the row that is no box (not finite, or its corners exchanged).
    """

    def __init__(self, boxes: Mapping[str, Any]) -> None:
        self._rows = {str(image): _rows_of(rows, str(image)) for image, rows in boxes.items()}

    def __getitem__(self, image_id: str) -> Tensor:
        return self._rows[image_id].boxes

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __or__(self, other: ProposalSet) -> ProposalSet:
        """Both together; an image of both has the boxes of `other`."""
        joined = ProposalSet({})
        joined._rows = self._rows | other._rows
        return joined

    def scores(self, image_id: str) -> Tensor | None:
        """The scores [N] of an image's boxes, where they have some."""
        return self._rows[image_id].scores

    def require(self, dataset: Any, name: str = "dataset") -> None:
        """ValueError where an image of a data set has no entry; an entry without boxes is one.

        Of a data set that has no `target(index)` images are read for it, for five seconds at most.
        """
        missing = [image for image in _image_ids(dataset) if image not in self._rows]
        if missing:
            known = f"; those of {len(self)} images are there, such as {printable(next(iter(self)))}" if self else ""
            raise ValueError(
                f"proposals: got none for {len(missing)} images of the {name}, the first {printable(missing[0])}, "
                f"expected an entry for every image id{known}"
            )


def _image_ids(dataset: Any) -> Iterator[str]:
    end = time.monotonic() + 5.0
    for index in range(len(dataset)):
        found = quick_target(dataset, index)
        if found is None and time.monotonic() > end:
            return
        try:
            yield image_id(dataset[index][1] if found is None else found[0], index)
        except (OSError, ValueError, RuntimeError):  # an unreadable image is left to whoever needs it
            continue


def _rows_of(values: Any, image: str) -> _Rows:
    try:
        rows = as_numbers(values).to(torch.float32)
    except (ValueError, TypeError) as error:
        raise ValueError(f"proposals of image {printable(image)}: {error}, expected numbers [N, 4]") from None
    if rows.numel() == 0:
        return _Rows(torch.zeros(0, 4), torch.zeros(0) if rows.dim() == 2 and rows.shape[1] == 5 else None)
    if rows.dim() != 2 or rows.shape[1] not in (4, 5):
        raise ValueError(
            f"proposals of image {printable(image)}: shape {list(rows.shape)}, expected [N, 4], or [N, 5] with scores"
        )
    boxes = rows[:, :4].contiguous()
    wrong = (~(boxes.isfinite().all(1) & (boxes[:, :2] <= boxes[:, 2:]).all(1))).nonzero().flatten().tolist()
    if wrong:
        raise ValueError(
            f"proposals of image {printable(image)}: row {wrong[0]} is {boxes[wrong[0]].tolist()}, expected finite "
            "x1 <= x2 and y1 <= y2"
        )
    return _Rows(boxes, rows[:, 4].contiguous() if rows.shape[1] == 5 else None)


def read_proposals(*paths: PathLike) -> ProposalSet:
    """The proposals in these files, or in the files of a folder (of a run: those that it kept), together.

    - `.npz`: what `write_proposals` writes, or an array [N, 4] (or [N, 5], with a score) by the name of each image id;
    - `.json`: an object {image id: [[x1, y1, x2, y2], ...]}, perhaps with a fifth number, the score; or COCO's list of
      results, {"image_id", "bbox": [x, y, width, height], "score"};
    - `.mat` with `boxes` alone: one image's Selective Search, (x1, y1, x2, y2) counted from 0, the last pixel
      included; its id is the file's name without "_boxes". With `images` too, as the published files of whole data
      sets: boxes (y1, x1, y2, x2) counted from 1, the last pixel included, one cell an image.

    Raises:
        ValueError: a file is missing, of another kind or broken, or an image stands in two of them; names the file.
    """
    boxes: dict[str, Any] = {}
    for file in _files(paths):
        try:
            found = _READERS[file.suffix.lower()](file)
            ProposalSet(found)  # says which file is at fault
        except ValueError as error:
            raise ValueError(f"{printable(os.fspath(file))}: {error}") from error
        twice = next((image for image in found if image in boxes), None)
        if twice is not None:
            raise ValueError(
                f"{printable(os.fspath(file))}: has proposals of image {printable(twice)}, but so has an earlier file; "
                "leave one out"
            )
        boxes.update(found)
    return ProposalSet(boxes)


def write_proposals(path: PathLike, proposals: ProposalSet) -> None:
    """Write a file that `read_proposals` reads, atomically: .npz (small, quick) or .json, by its ending."""
    file = Path(path)
    if file.suffix.lower() not in (".npz", ".json"):
        raise ValueError(f"{printable(os.fspath(file))}: proposals are written as .npz or .json, choose such a name")
    scores = [proposals.scores(image) for image in proposals]
    scored = bool(scores) and all(s is not None for s in scores)
    if file.suffix.lower() == ".json":
        rows = {
            image: torch.cat([boxes, s[:, None]], 1).tolist() if scored and s is not None else boxes.tolist()
            for (image, boxes), s in zip(proposals.items(), scores, strict=True)
        }
        write_json(file, rows)
        return
    arrays = {
        "image_ids": np.array(list(proposals), dtype=np.str_),
        "counts": np.array([len(boxes) for boxes in proposals.values()], dtype=np.int64),
        "boxes": torch.cat([torch.zeros(0, 4), *proposals.values()]).numpy(),
    }
    if scored:
        arrays["scores"] = torch.cat([s for s in scores if s is not None]).numpy()
    with atomic_path(file) as beside:
        np.savez_compressed(beside, **arrays)  # type: ignore[arg-type]


def _files(paths: Iterable[PathLike]) -> list[Path]:
    files: list[Path] = []
    for path in map(Path, paths):
        kept = [path / name for name in ("proposals.npz", "test_proposals.npz") if (path / name).is_file()]
        if kept:
            files += kept
        elif path.is_dir():
            inside = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
            if not inside:
                raise ValueError(f"{printable(os.fspath(path))}: no files of proposals in it ({', '.join(SUFFIXES)})")
            files += inside
        elif path.suffix.lower() not in SUFFIXES:
            raise ValueError(f"{printable(os.fspath(path))}: proposals are read from {', '.join(SUFFIXES)} or a folder")
        elif not path.is_file():
            raise ValueError(f"{printable(os.fspath(path))}: no such file")
        else:
            files.append(path)
    return files


def _read_npz(file: Path) -> dict[str, Any]:
    try:
        with np.load(file, allow_pickle=False) as opened:
            arrays = {name: opened[name] for name in opened.files}
    except Exception as error:  # a broken archive raises whatever the step that met it raises
        raise ValueError(f"not a readable .npz file of plain arrays ({error})") from error
    if not {"image_ids", "counts", "boxes"} <= set(arrays):
        return arrays
    ids, counts, boxes = arrays["image_ids"], arrays["counts"], arrays["boxes"]
    fit = ids.ndim == counts.ndim == 1 and len(ids) == len(counts) == len(set(ids.tolist())) and boxes.ndim == 2
    if not fit or counts.dtype.kind not in "iu" or (counts < 0).any() or counts.sum() != len(boxes):
        raise ValueError("its image_ids, counts and boxes do not fit each other")
    if "scores" in arrays:
        if arrays["scores"].shape != (len(boxes),):
            raise ValueError(f"has {arrays['scores'].shape} scores for {len(boxes)} boxes")
        boxes = np.concatenate([boxes, arrays["scores"][:, None]], 1)
    return dict(zip(ids.tolist(), np.split(boxes, np.cumsum(counts)[:-1]), strict=True)) if len(ids) else {}


def _read_json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_bytes())
    except (ValueError, RecursionError, OSError) as error:
        raise ValueError(f"not readable as JSON ({error})") from error
    if isinstance(value, dict):
        return value
    if not isinstance(value, list):
        raise ValueError(f"is a JSON {type(value).__name__}, expected an object of boxes by image id, or a list")
    boxes: dict[str, list[list[float]]] = {}
    for place, record in enumerate(value):
        try:
            x, y, width, height = map(float, record["bbox"])
            row = [x, y, x + width, y + height, float(record.get("score", 0.0))]
            boxes.setdefault(str(record["image_id"]), []).append(row)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"entry {place}: {error!r}, expected image_id, bbox [x, y, width, height] and score"
            ) from error
    return boxes


def _read_mat(file: Path) -> dict[str, Any]:
    try:
        found = require("scipy.io", "train").loadmat(os.fspath(file))
    except ImportError:
        raise
    except Exception as error:  # a broken file raises whatever the step that met it raises
        raise ValueError(f"not a readable MATLAB file of version 7 or earlier ({error})") from error
    boxes = found.get("boxes")
    if not isinstance(boxes, np.ndarray):
        raise ValueError("has no `boxes`")
    if "images" not in found:
        return {file.stem.removesuffix("_boxes"): _half_open(boxes, first=0)}
    images = [str(np.ravel(name)[0]) for name in np.ravel(found["images"])]
    cells = np.ravel(boxes)
    if boxes.dtype != object or len(cells) != len(images) or len(set(images)) < len(images):
        raise ValueError(f"has {len(images)} images and {len(cells)} cells of boxes, expected one of each an image")
    return {name: _half_open(rows, first=1)[:, [1, 0, 3, 2]] for name, rows in zip(images, cells, strict=True)}


def _half_open(boxes: Any, first: int) -> np.ndarray:
    """Inclusive pixels counted from `first`, in either order of x and y, as half-open float boxes [N, 4]."""
    if getattr(boxes, "dtype", np.dtype(object)).kind not in "iuf" or (boxes.size and boxes.shape[1:] != (4,)):
        raise ValueError(f"its boxes are {getattr(boxes, 'shape', boxes)}, expected numbers [N, 4]")
    return boxes.reshape(-1, 4).astype(np.float64) + np.array([-first, -first, 1 - first, 1 - first])


_READERS = {".npz": _read_npz, ".json": _read_json, ".mat": _read_mat}
