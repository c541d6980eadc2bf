"""Find objects in image files: draws them and writes JSON."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from frcnn_fast import _command
from frcnn_fast._device import choose_device
from frcnn_fast._names import printable
from frcnn_fast.data import Collate, boxes_to_original, read_image, resize
from frcnn_fast.data.images import IMAGE_SUFFIXES
from frcnn_fast.io import append_jsonl, read_jsonl, write_json
from frcnn_fast.model import FasterRCNN, load_detector
from frcnn_fast.visualize import draw_boxes, save_image


@torch.inference_mode()
def detect(detector: FasterRCNN, image: Tensor, *, score_threshold: float | None = None) -> dict[str, Tensor]:
    """Detections in one image, best first.

    Args:
        detector: ready to detect (`load_detector`); it is put into eval mode.
        image: uint8 [3, H, W], RGB, any size of at least one pixel.
        score_threshold: the least score, in [0, 1], also below the detector's own; None keeps that one.

    Returns:
        boxes [D, 4] in pixels of `image`, scores [D], labels [D] (k means detector.class_names[k - 1]), on the CPU;
        at most config.max_detections.
    """
    if image.dim() != 3 or image.shape[0] != 3 or image.dtype != torch.uint8 or image.numel() == 0:
        raise ValueError(
            f"image: got {image.dtype} with shape {tuple(image.shape)}, expected uint8 [3, H, W] with pixels"
        )
    detector.eval()
    config, device = detector.config, detector.rng.device
    resized, scale = resize(image, config.shorter, config.longer, config.resize)
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "scale": scale}
    batch = Collate(config.preprocess)([(resized, nothing)]).to(device)
    with _threshold(detector, score_threshold):
        found = detector(batch.images, batch.image_sizes, image_scales=batch.image_scales).to_list()[0]
    boxes = boxes_to_original(found["boxes"], resized.shape[-2:], image.shape[-2:])
    kept = slice(None) if score_threshold is None else found["scores"] >= score_threshold
    return {"boxes": boxes[kept].cpu(), "scores": found["scores"][kept].cpu(), "labels": found["labels"][kept].cpu()}


@contextmanager
def _threshold(detector: FasterRCNN, value: float | None) -> Iterator[None]:
    """The detector's threshold lowered to just below `value`: it keeps what scores more than its own."""
    config = detector.config
    if value is not None and not 0 <= value <= 1:
        raise ValueError(f"score_threshold: got {value}, expected a score from 0 to 1")
    if value is not None and value <= config.score_threshold:
        detector.config = dataclasses.replace(config, score_threshold=value * (1 - 1e-6))
    try:
        yield
    finally:
        detector.config = config


def image_files(names: Sequence[str]) -> list[str]:
    """The files named, as they are spelt, and the image files in the folders named, sorted."""
    files: list[str] = []
    for name in names:
        if os.path.isdir(name):
            # Names that begin with a dot are what systems leave behind ("._a.jpg"), no images.
            inside = sorted(
                entry.name
                for entry in os.scandir(name)
                if entry.name.lower().endswith(IMAGE_SUFFIXES) and not entry.name.startswith(".") and entry.is_file()
            )
            if not inside:
                raise ValueError(f"{printable(name)}: no image files in this folder ({', '.join(IMAGE_SUFFIXES)})")
            files += [os.path.join(name, file) for file in inside]
        else:
            files.append(name)
    return files


class ResultFolder:
    """Where detections go: detections.jsonl, one line an image as it is done; the drawings; and at the end
    detections.json, the same records as one list.

    Args:
        path: the folder.
        overwrite: delete the result that is there; without it, one is refused.
    """

    def __init__(self, path: str | os.PathLike[str], overwrite: bool = False) -> None:
        self.path = Path(path)
        self.lines, self.whole = self.path / "detections.jsonl", self.path / "detections.json"
        earlier = [file for file in (self.lines, self.whole) if os.path.lexists(file)]
        if earlier and not overwrite:
            raise ValueError(
                f"--out: {printable(os.fspath(earlier[0]))} is an earlier result; choose another folder, or replace it "
                "with --overwrite"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        for file in [*self._earlier_drawings(), *earlier]:
            file.unlink(missing_ok=True)
        self.lines.touch()  # a folder that cannot be written to is found out now
        self._taken = {entry.name for entry in os.scandir(self.path)}

    def _earlier_drawings(self) -> list[Path]:
        """The drawings that the earlier result lists, and no other file."""
        try:
            names = [record.get("drawing") for record in read_jsonl(self.lines)] if self.lines.is_file() else []
        except ValueError:
            return []
        return [self.path / name for name in names if isinstance(name, str) and name == os.path.basename(name)]

    def free_name(self, image: str) -> str:
        """A file name for an image's drawing that nothing in the folder has, so not the image itself either."""
        stem = Path(image).stem
        name, number = f"{stem}.png", 1
        while name in self._taken:
            number += 1
            name = f"{stem}-{number}.png"
        self._taken.add(name)
        return name

    def add(self, record: dict[str, Any]) -> None:
        append_jsonl(self.lines, record)

    def finish(self) -> None:
        write_json(self.whole, read_jsonl(self.lines))


def _record(name: str, image: Tensor, found: dict[str, Tensor], class_names: Sequence[str]) -> dict[str, Any]:
    return {
        "image": name,
        "width": image.shape[-1],
        "height": image.shape[-2],
        "detections": [
            {"class": class_names[label - 1], "score": score, "box": box}
            for label, score, box in zip(
                found["labels"].tolist(), found["scores"].tolist(), found["boxes"].tolist(), strict=True
            )
        ],
    }


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    parser = argparse.ArgumentParser(prog=prog or "python -m frcnn_fast.detect", description=__doc__)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files, or folders of them")
    parser.add_argument("--checkpoint", required=True, metavar="RUN", help="a run's folder or model.safetensors")
    parser.add_argument("-o", "--out", required=True, metavar="DIR", help="folder for drawings and detections.jsonl")
    parser.add_argument("--overwrite", action="store_true", help="replace the result that DIR has")
    parser.add_argument("--score-threshold", type=float, default=0.5, help="least score (default: %(default)s)")
    parser.add_argument("--device", help="cpu, cuda, ... (default: a GPU where there is one)")
    args = parser.parse_args(argv)
    with _command.errors(parser):
        if not 0 <= args.score_threshold <= 1:
            raise ValueError(f"--score-threshold: got {args.score_threshold}, expected a score from 0 to 1")
        detector = load_detector(args.checkpoint, device=choose_device(args.device))
        files = image_files(args.images)
        out, broken = ResultFolder(args.out, args.overwrite), 0
        for name in files:
            # One bad file does not cost the others their detections.
            try:
                image = read_image(name, upright=True)
                found = detect(detector, image, score_threshold=args.score_threshold)
            except (ValueError, RuntimeError, MemoryError) as error:
                broken += 1
                _complain(parser.prog, name, error)
                continue
            record = {**_record(name, image, found, detector.class_names), "drawing": None}
            try:
                drawing = draw_boxes(
                    image, found["boxes"], found["labels"], found["scores"], class_names=detector.class_names
                )
                file = out.free_name(name)
                save_image(out.path / file, drawing)
                record["drawing"] = file
            except (ValueError, RuntimeError, MemoryError, OSError) as error:
                broken += 1
                _complain(parser.prog, name, error)
            out.add(record)
            place = "not drawn" if record["drawing"] is None else printable(os.fspath(out.path / record["drawing"]))
            print(f"{printable(name)}: {len(record['detections'])} objects, {place}")
        out.finish()
    return 1 if broken else 0


def _complain(prog: str, name: str, error: Exception) -> None:
    text = printable(str(error) or type(error).__name__)
    shown = printable(name)
    print(f"{prog}: error: {text if text.startswith(shown) else f'{shown}: {text}'}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
