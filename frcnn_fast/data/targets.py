"""The rules of a target: the one place that says what boxes, labels and class names may be.

`DetectionView` and `Collate` apply them to every item of every data set, `check_dataset` before a training's first
update, `frcnn-fast check-data` to list all that breaks them at once, and the evaluators to what they are given.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from frcnn_fast._names import printable

Target = dict[str, Any]

# Beyond the image's edge by no more than this is the rounding of whoever made the box: cut without a word.
_ROUNDING = 0.01


class TargetError(ValueError):
    """A sample that breaks the rules: a mistake in the data set, not a file that cannot be read."""


class Fault(NamedTuple):
    """One breach of the rules: the target's key, the object's row (None: the whole entry), what is wrong."""

    key: str
    row: int | None
    text: str

    def __str__(self) -> str:
        place = "target" if not self.key else f"target[{self.key!r}]"
        return f"{place}{'' if self.row is None else f'[{self.row}]'} {self.text}"


class Checked(NamedTuple):
    """A target by the rules (as far as `faults` is empty), and what was found on the way."""

    target: Target
    faults: list[Fault]
    cut: list[int]  # rows of boxes that were cut at the image's edge


def checked_target(
    target: Any,
    image_size: Sequence[int] | None = None,
    num_classes: int | None = None,
    *,
    name: Any = None,
    cut: list[str] | None = None,
) -> Target:
    """A target whose boxes, labels and flags are sound, in the library's own types; else a ValueError.

    Tensors of any kind, arrays and lists are taken where the meaning is plain: whole numbers as floats, a missing
    `difficult` (or, in its place, `crowd` or `iscrowd`) as no difficult object, `torch.tensor([])` as no boxes.
    A box that sticks out over the image's edge is cut there.

    Args:
        target: boxes [G, 4], labels [G], perhaps difficult [G] and image_id; other entries stay as they are.
        image_size: (height, width); None leaves out whatever needs it.
        num_classes: K, without the background; None leaves the labels without an upper bound.
        name: what an error calls the image where the target has no image_id, for example its index.
        cut: receives the names of the images with cut boxes, one entry a box; None warns instead.

    Returns:
        A new dict: boxes float32 [G, 4], labels int64 [G], difficult bool [G] on the CPU, image_id a string.

    Raises:
        ValueError: names the image, the key, the row and its value, what was expected and what to do.
    """
    found = check_target(target, image_size, num_classes, name=name)
    image = image_name(target, name)
    if found.faults:
        first, others = found.faults[0], len(found.faults) - 1
        more = f" (and {others} more in this image; frcnn_fast.data.check_target lists them)" if others else ""
        raise TargetError(f"image {image}: {first}{more}")
    if found.cut:
        if cut is not None:
            cut += [image] * len(found.cut)
        else:
            warnings.warn(f"image {image}: {_cut_text(len(found.cut))}", stacklevel=2)
    return found.target


def check_target(
    target: Any,
    image_size: Sequence[int] | None = None,
    num_classes: int | None = None,
    *,
    name: Any = None,
    inclusive: bool = False,
) -> Checked:
    """`checked_target` that lists all faults instead of raising the first. `inclusive`: x2 and y2 are the last pixel
    of the box, not the first one behind it."""
    if not isinstance(target, Mapping):
        return Checked({}, [Fault("", None, f"is {_kind(target)}, expected a dict with boxes and labels")], [])
    faults: list[Fault] = []
    boxes = _boxes(target, faults)
    labels = _labels(target, num_classes, faults)
    difficult = _flags(target, len(labels) if labels is not None else None, faults)
    if boxes is not None and labels is not None and len(boxes) != len(labels):
        text = f"has {len(labels)} labels for {len(boxes)} boxes, expected one label a box"
        faults.append(Fault("labels", None, text))
    cut: list[int] = []
    if boxes is not None:
        boxes, cut = _placed(boxes, image_size, inclusive, faults)
    clean = {**target, "boxes": boxes, "labels": labels, "difficult": difficult}
    if "image_id" in target or name is not None:
        clean["image_id"] = image_id(target, name)
    return Checked(clean, faults, cut)


def checked_image(image: Any, name: Any) -> Tensor:
    """uint8 [3, H, W] of a tensor or array of that shape, or of a PIL image of any mode.

    Raises:
        ValueError: anything else; names the image and says what to do.
    """
    if hasattr(image, "shape") and 0 not in image.shape and len(image.shape) == 3 and image.shape[0] == 3:
        if isinstance(image, Tensor) and image.dtype == torch.uint8:
            return image
        if isinstance(image, np.ndarray) and image.dtype == np.uint8:
            return torch.from_numpy(np.array(image))
    elif hasattr(image, "convert") and hasattr(image, "mode"):
        from frcnn_fast.data.images import eight_bit_rgb

        return torch.from_numpy(np.array(eight_bit_rgb(image))).permute(2, 0, 1)
    what = f"{image.dtype} {list(image.shape)}" if hasattr(image, "shape") and hasattr(image, "dtype") else _kind(image)
    raise TargetError(
        f"image {name}: its pixels are {what}, expected a uint8 tensor [3, H, W], RGB, with pixels{_image_hint(image)}"
    )


def checked_sample(
    sample: Any, num_classes: int | None = None, *, name: Any = None, cut: list[str] | None = None
) -> tuple[Tensor, Target]:
    """An item of a data set, (image, target), by the rules of `checked_image` and `checked_target`."""
    if not isinstance(sample, (tuple, list)) or len(sample) != 2:
        what = _kind(sample) + (f" of {len(sample)}" if isinstance(sample, (tuple, list)) else "")
        raise TargetError(f"item {name}: got {what}, expected (image, target)")
    image = checked_image(sample[0], image_name(sample[1], name))
    size = (int(image.shape[1]), int(image.shape[2]))
    return image, checked_target(sample[1], size, num_classes, name=name, cut=cut)


def image_id(target: Any, default: Any = None) -> str:
    """The target's image_id as a string (a tensor's number as that number), or else `default`."""
    value = target.get("image_id", default) if isinstance(target, Mapping) else default
    if isinstance(value, (Tensor, np.ndarray)):
        value = value.item() if (value.numel() if isinstance(value, Tensor) else value.size) == 1 else value.tolist()
    return str(value)


def image_name(target: Any, default: Any = None) -> str:
    """`image_id` for a message: on one line."""
    return printable(image_id(target, "without an image_id" if default is None else default))


def cut_warning(cut: Sequence[str], where: str = "") -> None:
    """One warning for all boxes that were cut, where there are any."""
    if cut:
        count = len(set(cut))
        images = f"in image {cut[0]}" if count == 1 else f"in {count} images, the first {cut[0]}"
        warnings.warn(f"{where}{_cut_text(len(cut))} {images}", stacklevel=3)


def _cut_text(count: int) -> str:
    verbs = ("box sticks", "was") if count == 1 else ("boxes stick", "were")
    return f"{count} {verbs[0]} out over the image's edge and {verbs[1]} cut there"


def as_numbers(values: Any) -> Tensor:
    """A tensor on the CPU of a tensor, an array, a number, or lists of them.

    Raises:
        ValueError: text, objects, rows of different lengths, complex numbers.
    """
    if not isinstance(values, Tensor):
        if hasattr(values, "__dlpack__") and not isinstance(values, np.ndarray):
            values = torch.from_dlpack(values)
        else:
            try:
                array = np.asarray(_listed(values))
            except ValueError:
                raise ValueError("has rows of different lengths") from None
            if array.dtype.kind not in "biuf":
                what = "nothing" if values is None else "text" if array.dtype.kind in "US" else _kind(values)
                raise ValueError(f"is {what}")
            if array.dtype.kind == "u":
                array = array.astype(np.int64)
            elif array.dtype.kind == "f" and array.dtype.itemsize > 8:
                array = array.astype(np.float64)
            return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("=")))
    tensor = values.detach()
    if type(tensor) is not Tensor:
        tensor = tensor.as_subclass(Tensor)
    if tensor.is_complex() or tensor.is_sparse or tensor.is_quantized or tensor.layout != torch.strided:
        raise ValueError(f"is {tensor.dtype} {tensor.layout}")
    if tensor.dtype in (torch.uint16, torch.uint32, torch.uint64):
        tensor = tensor.to(torch.int64)
    return tensor.cpu()


def _listed(values: Any) -> Any:
    """Tensors inside lists as numbers: NumPy takes only some of them."""
    if isinstance(values, (list, tuple)):
        return [_listed(value) for value in values]
    return values.detach().cpu().tolist() if isinstance(values, Tensor) else values


def _entry(target: Mapping[str, Any], key: str, expected: str, faults: list[Fault]) -> Tensor | None:
    """target[key] as numbers, or None and a fault."""
    if key not in target:
        there = ", ".join(map(str, target)) or "nothing"
        faults.append(Fault(key, None, f"is missing, expected {expected}; the target has {there}"))
        return None
    try:
        return as_numbers(target[key])
    except (ValueError, TypeError, RuntimeError) as error:
        hint = f"; an image without objects has {key} of shape {'[0, 4]' if key == 'boxes' else '[0]'}"
        text = f"{error}, expected {expected}{hint if target[key] is None else ''}"
        faults.append(Fault(key, None, text))
        return None


def _boxes(target: Mapping[str, Any], faults: list[Fault]) -> Tensor | None:
    expected = "numbers [G, 4]: x1, y1, x2, y2 in pixels"
    boxes = _entry(target, "boxes", expected, faults)
    if boxes is None:
        return None
    form = getattr(getattr(target["boxes"], "format", None), "name", None)  # torchvision's BoundingBoxes
    if form not in (None, "XYXY"):
        faults.append(Fault("boxes", None, f"has the format {form}, expected {expected}; convert the boxes to XYXY"))
        return None
    if boxes.dtype == torch.bool:
        faults.append(Fault("boxes", None, f"is {boxes.dtype}, expected {expected}"))
        return None
    if boxes.numel() == 0 and (boxes.dim() < 2 or boxes.shape[-1] in (0, 4)):
        return boxes.new_zeros(0, 4, dtype=torch.float32)
    if boxes.dim() != 2 or boxes.shape[1] != 4:
        one = "; a single box is [[x1, y1, x2, y2]]" if boxes.dim() == 1 and len(boxes) == 4 else ""
        faults.append(Fault("boxes", None, f"has shape {list(boxes.shape)}, expected {expected}{one}"))
        return None
    return boxes.to(torch.float32)


def _labels(target: Mapping[str, Any], num_classes: int | None, faults: list[Fault]) -> Tensor | None:
    bound = "1..K" if num_classes is None else f"1..{num_classes}"
    expected = f"whole numbers [G] in {bound}"
    labels = _entry(target, "labels", expected, faults)
    if labels is None:
        return None
    if labels.numel() == 0 and labels.dim() < 2:
        return labels.new_zeros(0, dtype=torch.int64)
    if labels.dtype == torch.bool:
        faults.append(Fault("labels", None, f"is {labels.dtype}, expected {expected}"))
        return None
    if labels.dim() != 1:
        hint = ""
        if labels.dim() == 2 and labels.shape[1] == 1:
            hint = "; drop the last dimension"
        elif labels.dim() == 2:
            hint = "; of one-hot rows take argmax(1) + 1"
        faults.append(Fault("labels", None, f"has shape {list(labels.shape)}, expected {expected}{hint}"))
        return None
    rows = labels.to(torch.int64) if not labels.is_floating_point() else labels.nan_to_num(0, 0, 0).to(torch.int64)
    wrong = rows < 1
    if num_classes is not None:
        wrong |= rows > num_classes
    if labels.is_floating_point():
        wrong |= rows != labels
    for row in wrong.nonzero().flatten().tolist():
        value = labels[row].item()
        faults.append(Fault("labels", row, f"is {value}, expected {bound}{_label_hint(value, num_classes)}"))
    return rows


def _label_hint(value: float, num_classes: int | None) -> str:
    if value == 0:
        return "; 0 is the background: number the classes from 1, label k is class_names[k - 1]"
    if value < 0:
        return "; mark an object to be ignored in target['difficult'] and give it its class"
    if value != int(value) if np.isfinite(value) else True:
        return ", a whole number"
    return f"; class_names has {num_classes} names: add one or mend the label"


def _flags(target: Mapping[str, Any], count: int | None, faults: list[Fault]) -> Tensor | None:
    key = next((key for key in ("difficult", "crowd", "iscrowd") if target.get(key) is not None), None)
    if key is None:
        return torch.zeros(count or 0, dtype=torch.bool)
    expected = "bools [G], one a box"
    flags = _entry(target, key, expected, faults)
    if flags is None:
        return None
    if flags.numel() == 0 and flags.dim() < 2:
        flags = flags.new_zeros(0)
    if flags.dim() != 1 or (count is not None and len(flags) != count):
        text = f"has shape {list(flags.shape)}, expected {expected}: {'G' if count is None else count}"
        faults.append(Fault(key, None, text))
        return None
    if flags.dtype != torch.bool:
        for row in ((flags != 0) & (flags != 1)).nonzero().flatten().tolist():
            faults.append(Fault(key, row, f"is {flags[row].item():g}, expected 0 or 1"))
    return flags.to(torch.bool)


def _placed(
    boxes: Tensor, image_size: Sequence[int] | None, inclusive: bool, faults: list[Fault]
) -> tuple[Tensor, list[int]]:
    """The boxes cut at the image's edge, and the rows that were; faults for those without a place or an extent."""
    if not len(boxes):
        return boxes, []
    low, high = boxes[:, :2], boxes[:, 2:]
    if image_size is not None and not inclusive:
        # The usual case in few operations: this looks at every image of a training.
        limit = boxes.new_tensor([image_size[1], image_size[0]])
        if bool(((low >= 0) & (low < high) & (high <= limit)).all()) and bool((boxes[:, 2:] > 1.5).any()):
            return boxes, []
    finite = boxes.isfinite().all(1)
    extent = ((low <= high) if inclusive else (low < high)).all(1)
    sound = finite & extent
    for row in (~sound).nonzero().flatten().tolist():
        faults.append(Fault("boxes", row, _shape_fault(boxes[row].tolist(), image_size)))
    if image_size is None:
        return boxes, []
    height, width = int(image_size[0]), int(image_size[1])
    limit = boxes.new_tensor([width, height])
    within = ((high > 0) & (low < limit)).all(1)
    for row in (sound & ~within).nonzero().flatten().tolist():
        faults.append(
            Fault(
                "boxes",
                row,
                f"is {_shown(boxes[row])}, wholly outside its image of {width} x {height}, expected x1, y1, x2, y2 in "
                "the image's own pixels; was the image resized or turned after it was annotated?",
            )
        )
    if _look_like_fractions(boxes[sound], width, height):
        faults.append(
            Fault(
                "boxes",
                int(sound.nonzero()[0]),
                f"is {_shown(boxes[sound][0])}, expected pixels: all boxes of this image look like fractions of it "
                f"(0..1); multiply x by {width} and y by {height}",
            )
        )
    beyond = torch.maximum((-low).amax(1), (high - limit).amax(1))
    cut = boxes.clamp(min=0)
    cut = torch.minimum(cut, torch.cat([limit, limit]))
    return cut, (sound & within & (beyond > _ROUNDING)).nonzero().flatten().tolist()


def _look_like_fractions(boxes: Tensor, width: int, height: int) -> bool:
    """All inside the first pixel or so, not on whole pixels, of an image that has many."""
    return bool(len(boxes)) and min(width, height) > 8 and bool((boxes <= 1.5).all()) and bool((boxes % 1 != 0).any())


def _shape_fault(box: Sequence[float], image_size: Sequence[int] | None) -> str:
    x1, y1, x2, y2 = box
    text = f"is {_shown(box)}, "
    if not np.isfinite(box).all():
        return text + "expected finite numbers x1, y1, x2, y2; drop the object or mend the box"
    text += "expected x1 < x2 and y1 < y2 (x1, y1, x2, y2 in pixels)"
    if x1 == x2 or y1 == y2:
        return text + "; it has no extent: drop the object or mend the box"
    if looks_like_xywh(box, image_size):
        return text + f"; it looks like x, y, width, height: give {_shown([x1, y1, x1 + x2, y1 + y2])}"
    return text + "; are its corners exchanged?"


def looks_like_xywh(box: Sequence[float], image_size: Sequence[int] | None) -> bool:
    """Whether a box read as x, y, width, height lies inside its image."""
    x, y, width, height = box
    inside = image_size is None or (x + width <= image_size[1] + 1 and y + height <= image_size[0] + 1)
    return min(x, y) >= 0 and min(width, height) > 0 and inside


def _shown(box: Any) -> str:
    values = box.tolist() if isinstance(box, Tensor) else box
    return f"[{', '.join(f'{value:.6g}' for value in values)}]"


def _kind(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__name__}".removeprefix("builtins.")


def _image_hint(image: Any) -> str:
    if not hasattr(image, "shape") or not hasattr(image, "dtype"):
        return ""
    shape = list(image.shape)
    if len(shape) == 3 and shape[-1] in (1, 3, 4) and shape[0] not in (1, 3):
        return "; bring the channels to the front: image.permute(2, 0, 1)"
    if len(shape) == 2 or (len(shape) == 3 and shape[0] == 1):
        return "; a grey image must be repeated three times"
    if len(shape) == 3 and shape[0] == 4:
        return "; drop the alpha channel: image[:3]"
    if "float" in str(image.dtype):
        return "; of floats 0..1 take (image * 255).round().to(torch.uint8), before any normalisation"
    return ""
