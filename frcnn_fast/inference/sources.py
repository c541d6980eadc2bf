"""What may be given as an image, as pixels: a path, a PIL image, an array or a tensor."""

from __future__ import annotations

import os
import sys
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from frcnn_fast.data.images import eight_bit_rgb, read_image


class Loaded(NamedTuple):
    """An image in memory."""

    image: Tensor  # uint8 [3, H, W], RGB
    path: str | None  # the file that it comes from


def is_image(source: Any) -> bool:
    """Whether `source` is of a kind that is one image, rather than several."""
    return isinstance(source, (str, os.PathLike, np.ndarray, Tensor)) or _is_pil(source)


def load(source: Any, name: str = "image", *, bgr: bool = False) -> Loaded:
    """One image as `Detector` takes it.

    Args:
        source: a path, PIL image, uint8 array [H, W, 3] or [H, W] or uint8 tensor [3, H, W].
        name: how an error calls it; a file's errors name the file.
        bgr: arrays of three channels hold blue, green, red.

    Raises:
        ValueError: the file cannot be read, or the array or tensor is of another shape or type.
        TypeError: it is of none of these kinds.
    """
    if isinstance(source, (str, os.PathLike)):
        path = os.fspath(source)
        if os.path.isdir(path):
            raise ValueError(
                f"{name}: {path} is a folder; give its files, for example sorted(Path(folder).glob('*.jpg'))"
            )
        return Loaded(read_image(path, upright=True), path)
    if _is_pil(source):
        if min(source.size) < 1:
            raise ValueError(f"{name}: got a PIL image of {source.size[0]}x{source.size[1]}, expected pixels")
        return Loaded(torch.from_numpy(np.array(eight_bit_rgb(source))).permute(2, 0, 1), None)
    if isinstance(source, np.ndarray):
        return Loaded(_of_array(source, name, bgr), None)
    if isinstance(source, Tensor):
        if source.dim() != 3 or source.shape[0] != 3 or source.dtype != torch.uint8 or source.numel() == 0:
            hint = "; give a batch as a list of its images" if source.dim() == 4 else ""
            raise ValueError(
                f"{name}: got a tensor of {source.dtype} with shape {tuple(source.shape)}, expected uint8 [3, H, W] "
                f"(RGB, 0 to 255) with pixels{hint}"
            )
        return Loaded(source.detach().cpu(), None)
    raise TypeError(
        f"{name}: got {type(source).__name__}, expected a path, a PIL image, a uint8 array [H, W, 3] or a uint8 tensor "
        "[3, H, W]"
    )


def try_load(source: Any, name: str = "image", *, bgr: bool = False) -> Loaded | Exception:
    """As `load`; what is wrong with this image, or that the memory does not do for it, is returned, not raised."""
    try:
        return load(source, name, bgr=bgr)
    except (ValueError, TypeError, RuntimeError, MemoryError) as error:
        return error


def _of_array(array: np.ndarray, name: str, bgr: bool) -> Tensor:
    if array.dtype != np.uint8 or array.size == 0 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)):
        hint = ""
        if array.ndim == 3 and array.shape[0] == 3:
            hint = "; move the channels last: array.transpose(1, 2, 0)"
        elif array.ndim == 3 and array.shape[2] == 4:
            hint = "; drop the fourth channel: array[:, :, :3]"
        elif array.ndim == 4:
            hint = "; give a batch as a list of its images"
        elif array.dtype != np.uint8:
            hint = "; floats from 0 to 1 become (array * 255).round().astype(numpy.uint8)"
        raise ValueError(
            f"{name}: got an array of {array.dtype} with shape {array.shape}, expected uint8 [H, W, 3] or [H, W] with "
            f"pixels{hint}"
        )
    if array.ndim == 2:
        array = np.broadcast_to(array[:, :, None], (*array.shape, 3))
    elif bgr:
        array = array[:, :, ::-1]
    # Torch takes neither negative strides nor memory that cannot be written to.
    usable = array.flags.writeable and all(stride >= 0 for stride in array.strides)
    return torch.from_numpy(array if usable else array.copy()).permute(2, 0, 1)


def _is_pil(source: Any) -> bool:
    # Whoever holds such an image has imported its module.
    module = sys.modules.get("PIL.Image")
    return module is not None and isinstance(source, module.Image)
