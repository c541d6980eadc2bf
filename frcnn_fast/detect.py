"""Find objects in picture files: draws them and writes JSON."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from frcnn_fast import _command
from frcnn_fast._device import choose_device
from frcnn_fast.data import Collate, boxes_to_original, read_image, resize
from frcnn_fast.io import write_json
from frcnn_fast.model import FasterRCNN, load_detector
from frcnn_fast.visualize import draw_boxes, save_image

_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".tif", ".tiff", ".webp"}


@torch.inference_mode()
def detect(detector: FasterRCNN, image: Tensor) -> dict[str, Tensor]:
    """Detections in one picture, best first.

    Args:
        detector: ready to detect (`load_detector`); it is put into eval mode.
        image: uint8 [3, H, W], RGB, any size of at least one pixel.

    Returns:
        boxes [D, 4] in pixels of `image`, scores [D], labels [D] (k means detector.class_names[k - 1]), on the CPU.
    """
    if image.dim() != 3 or image.shape[0] != 3 or image.dtype != torch.uint8 or image.numel() == 0:
        raise ValueError(
            f"image: got {image.dtype} with shape {tuple(image.shape)}, expected uint8 [3, H, W] with pixels"
        )
    detector.eval()
    config, device = detector.config, detector.rng.device
    resized, scale = resize(image, config.shorter, config.longer)
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "scale": scale}
    batch = Collate(config.preprocess)([(resized, nothing)]).to(device)
    found = detector(batch.images, batch.image_sizes, image_scales=batch.image_scales).to_list()[0]
    boxes = boxes_to_original(found["boxes"], resized.shape[-2:], image.shape[-2:])
    return {"boxes": boxes.cpu(), "scores": found["scores"].cpu(), "labels": found["labels"].cpu()}


def image_files(names: Sequence[str]) -> list[Path]:
    """The files named, and the picture files in the folders named, sorted."""
    files: list[Path] = []
    for name in map(Path, names):
        if name.is_dir():
            inside = sorted(path for path in name.iterdir() if path.suffix.lower() in _SUFFIXES)
            if not inside:
                raise ValueError(f"{name}: no picture files in this folder ({', '.join(sorted(_SUFFIXES))})")
            files += inside
        else:
            files.append(name)
    return files


def _free_name(stem: str, taken: set[str]) -> str:
    """`stem`, or `stem-2`, `stem-3` ... where pictures of several folders share a name."""
    name, number = stem, 1
    while name in taken:
        number += 1
        name = f"{stem}-{number}"
    taken.add(name)
    return name


def _record(path: Path, image: Tensor, found: dict[str, Tensor], shown: Tensor, names: Sequence[str]) -> dict[str, Any]:
    return {
        "image": os.fspath(path),
        "width": image.shape[-1],
        "height": image.shape[-2],
        "detections": [
            {"class": names[label - 1], "score": score, "box": box}
            for label, score, box in zip(
                found["labels"][shown].tolist(),
                found["scores"][shown].tolist(),
                found["boxes"][shown].tolist(),
                strict=True,
            )
        ],
    }


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    parser = argparse.ArgumentParser(prog=prog or "python -m frcnn_fast.detect", description=__doc__)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="picture files, or folders of them")
    parser.add_argument("--checkpoint", required=True, metavar="RUN", help="a run's folder or model.safetensors")
    parser.add_argument("-o", "--out", required=True, metavar="DIR", help="folder for pictures and detections.json")
    parser.add_argument("--score-threshold", type=float, default=0.5, help="least score (default: %(default)s)")
    parser.add_argument("--device", help="cpu, cuda, ... (default: a GPU where there is one)")
    args = parser.parse_args(argv)
    with _command.errors(parser):
        detector = load_detector(args.checkpoint, device=choose_device(args.device))
        out, records, taken, broken = Path(args.out), [], set[str](), 0
        for path in image_files(args.images):
            try:
                image = read_image(path)
            except ValueError as error:  # one bad file does not cost the others their detections
                print(f"{parser.prog}: error: {error}", file=sys.stderr)
                broken += 1
                continue
            found = detect(detector, image)
            shown = found["scores"] >= args.score_threshold
            record = _record(path, image, found, shown, detector.class_names)
            picture = draw_boxes(
                image,
                found["boxes"][shown],
                found["labels"][shown],
                found["scores"][shown],
                class_names=detector.class_names,
            )
            record["picture"] = _free_name(path.stem, taken) + ".png"
            save_image(out / record["picture"], picture)
            records.append(record)
            print(f"{path}: {len(record['detections'])} objects, {out / record['picture']}")
        write_json(out / "detections.json", records)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
