"""Image files: what is in them, read as 8-bit RGB."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from frcnn_fast._extras import require
from frcnn_fast._names import printable

PathLike = str | os.PathLike[str]

# Compared in lower case; the first one found is taken where files differ in their endings only.
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm")

_ORIENTATION = 0x0112
_UPRIGHT = {  # what undoes an EXIF orientation, as names of PIL.Image.Transpose
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}


class ImageHeader(NamedTuple):
    """What an image file says of itself; the pixels are not read."""

    size: tuple[int, int]  # height and width as stored
    orientation: int  # the EXIF tag: 1 is upright, 5 to 8 lie on their sides

    @property
    def upright_size(self) -> tuple[int, int]:
        """Height and width of the image as a viewer shows it."""
        return self.size if self.orientation < 5 else (self.size[1], self.size[0])


def read_image(path: PathLike, *, upright: bool = False) -> Tensor:
    """Read an image file as uint8 [3, H, W], RGB.

    Palette and CMYK images are converted, an alpha channel is dropped, of several frames the first is taken.
    Grey images of more than 8 bits are scaled to 8: 16-bit ones by their upper byte; 32-bit ones likewise, by the
    upper byte of the fewest whole bytes that hold the image's largest value; floats from 0..1, 0..255 or 0..65535,
    whichever is the smallest that holds them; anything else (negative values) from its smallest to its largest value.

    The tensor is a view of H×W×3 memory (channels last), which `resize` is fastest on.

    Args:
        path: the file.
        upright: turn the image as its EXIF orientation says, as viewers do. By default the pixels stay as stored.

    Raises:
        ValueError: the file is missing, is no image or is broken; the message names it.
    """
    with _opened(path) as image:
        turn = _UPRIGHT.get(_orientation(image)) if upright else None
        image.load()
        eight_bit = eight_bit_rgb(image)
        if turn:
            eight_bit = eight_bit.transpose(getattr(require("PIL.Image", "train").Transpose, turn))
        pixels = np.array(eight_bit)
    return torch.from_numpy(pixels).permute(2, 0, 1)


def read_header(path: PathLike) -> ImageHeader:
    """Size and orientation of an image file.

    Raises:
        ValueError: as `read_image`, as far as the header tells.
    """
    with _opened(path) as image:
        return ImageHeader((image.height, image.width), _orientation(image))


@contextlib.contextmanager
def _opened(path: PathLike) -> Iterator[Any]:
    """A PIL image of a file; whatever goes wrong inside the block becomes a ValueError that names the file."""
    image_module = require("PIL.Image", "train")
    name = os.fspath(path)
    try:
        # A pipe or a device would be waited for, perhaps for ever.
        if not stat.S_ISREG(os.stat(name).st_mode):
            raise OSError("not a regular file")
        with image_module.open(name) as image:
            if min(image.size) < 1:
                raise ValueError("it has no pixels")
            yield image
    except FileNotFoundError:
        hint = "download it first" if "://" in name else "restore it or take its name out of the list"
        raise ValueError(f"{printable(name)}: no such image file; {hint}") from None
    except ImportError:
        raise
    except Exception as error:  # Pillow's readers let through whatever the step that met the damage raises
        text = printable(str(error) or type(error).__name__)
        raise ValueError(
            f"{printable(name)}: not a readable image ({text}); replace the file or take its name out of the list"
        ) from error


def _orientation(image: Any) -> int:
    if image.format == "TIFF":
        return 1  # Pillow turns those itself
    try:
        tag = int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # a broken tag is no reason to refuse the pixels
        return 1
    return tag if tag in _UPRIGHT else 1


def eight_bit_rgb(image: Any) -> Any:
    """A PIL image of any mode as 8-bit RGB (see `read_image`)."""
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16"):
        grey = (np.array(image).astype(np.uint16) >> 8).astype(np.uint8)
    elif image.mode == "I":
        grey = _eight_bits_of_integers(_integers(image))
    elif image.mode == "F":
        grey = _eight_bits_of_floats(np.array(image))
    else:
        return image.convert("RGB")
    return require("PIL.Image", "train").fromarray(grey).convert("RGB")


def _integers(image: Any) -> np.ndarray:
    values = np.array(image)
    # Pillow reads unsigned TIFFs into signed numbers.
    if image.format == "TIFF" and values.min() < 0 and image.tag_v2.get(339, 1) in (1, (1,)):
        values = values.view(np.uint32)
    return values.astype(np.int64)


def _eight_bits_of_integers(values: np.ndarray) -> np.ndarray:
    low, high = int(values.min()), int(values.max())
    if low < 0:
        return _stretched(values.astype(np.float64), low, high)
    # 31 bits: the whole range of a signed type.
    bits = next(bits for bits in (8, 16, 24, 31, 32) if high < 1 << bits)
    return (values >> (bits - 8)).astype(np.uint8)


def _eight_bits_of_floats(values: np.ndarray) -> np.ndarray:
    finite = np.isfinite(values)
    if not finite.any():
        return np.zeros(values.shape, dtype=np.uint8)
    low, high = float(values[finite].min()), float(values[finite].max())
    values = np.nan_to_num(values.astype(np.float64), nan=low, posinf=high, neginf=low)
    if low < 0 or high > 65535:
        return _stretched(values, low, high)
    top = next(top for top in (1, 255, 65535) if high <= top)
    return np.rint(values * (255 / top)).astype(np.uint8)


def _stretched(values: np.ndarray, low: float, high: float) -> np.ndarray:
    if low == high:
        return np.zeros(values.shape, dtype=np.uint8)
    return np.rint((values - low) / (high - low) * 255).astype(np.uint8)
