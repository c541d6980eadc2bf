"""The contract at the door: every check names the argument, what came, what was expected and what to do."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor

HALVES = (torch.float16, torch.bfloat16)
FLOATS = (torch.float32, *HALVES, torch.float64)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)

# Data that only the device knows (counts, image indices) is checked there for free on the CPU; on a GPU it would cost a
# synchronisation, so it is opt-in.
CHECK_DEVICE_DATA = os.environ.get("FRCNN_FAST_CHECK", "") not in ("", "0")


def describe(value: object) -> str:
    """A value as an error shows it: "float32[3, 4] on cpu", or its type."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)} on {value.device}"
    return f"{type(value).__name__} {value!r}"


def compute_dtype(t: Tensor) -> torch.dtype:
    """The type the op computes in: float64 for float64, else float32."""
    return torch.float64 if t.dtype == torch.float64 else torch.float32


def contiguous_in(t: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor, contiguous and of that type; a call that changes nothing is left out, as it costs a microsecond."""
    return (t if t.dtype is dtype else t.to(dtype)).contiguous()


def check_float(name: str, t: Tensor, shape: str, ndim: int | None = None, last: int | None = None) -> None:
    """A floating tensor of that rank and last dimension (None: any); `shape`: how the error says what was expected."""
    if not isinstance(t, Tensor):
        raise TypeError(f"{name}: expected a tensor {shape}, got {describe(t)}")
    if t.dtype not in FLOATS:
        raise TypeError(
            f"{name}: expected float16, bfloat16, float32 or float64 elements, got {describe(t)}; convert with .float()"
        )
    if (ndim is not None and t.dim() != ndim) or (last is not None and t.shape[-1] != last):
        raise ValueError(f"{name}: expected shape {shape}, got {describe(t)}")


def check_int(name: str, t: Tensor, shape: str, size: Sequence[int], dtype: torch.dtype = torch.int64) -> None:
    """An integer (or bool) tensor of exactly that type and size."""
    if not isinstance(t, Tensor):
        raise TypeError(f"{name}: expected a tensor {shape}, got {describe(t)}")
    if t.dtype != dtype:
        wanted = str(dtype).removeprefix("torch.")
        raise TypeError(f"{name}: expected {wanted} elements, got {describe(t)}; convert with .to(torch.{wanted})")
    check_size(name, t, shape, size)


def check_size(name: str, t: Tensor, shape: str, size: Sequence[int]) -> None:
    """That exact size."""
    if t.shape != size and tuple(t.shape) != tuple(size):  # the first settles nearly every call, for a quarter
        raise ValueError(f"{name}: expected shape {shape} = {list(size)}, got {describe(t)}")


def check_same(name: str, t: Tensor, other_name: str, other: Tensor, *, dtype: bool = True) -> None:
    """The same device, and the same dtype unless told otherwise."""
    if t.device != other.device:
        raise ValueError(
            f"{name}: expected the device of {other_name} ({other.device}), got {describe(t)}; move one of them"
        )
    if dtype and t.dtype != other.dtype:
        raise TypeError(
            f"{name}: expected the dtype of {other_name} ({str(other.dtype).removeprefix('torch.')}), got {describe(t)}"
        )


def alike(t: Tensor, size: torch.Size, other: Tensor) -> bool:
    """Whether it is a tensor of that size, with the dtype and the device of `other`, which has been checked. What a
    small call asks first: the single checks take three times as long, and say what is wrong."""
    return isinstance(t, Tensor) and t.dtype is other.dtype and t.shape == size and t.device == other.device


def check_threshold(name: str, value: float, *, high: float = float("inf")) -> float:
    """A number in [0, high]."""
    value = float(value)
    if not 0.0 <= value <= high:
        upper = "" if high == float("inf") else f" and at most {high:g}"
        raise ValueError(f"{name}: expected a number of at least 0{upper}, got {value!r}")
    return value


def check_positive(name: str, value: int, *, zero: bool = False) -> int:
    """A whole number above 0 (or of at least 0)."""
    if type(value) is int and value > 0:
        return value
    if isinstance(value, bool) or int(value) != value:
        raise TypeError(f"{name}: expected a whole number, got {describe(value)}")
    if value < 0 or (value == 0 and not zero):
        raise ValueError(f"{name}: expected a number of at least {0 if zero else 1}, got {value!r}")
    return int(value)


def check_weights(weights: Sequence[float]) -> tuple[float, float, float, float]:
    """Four positive numbers (wx, wy, ww, wh)."""
    values = tuple(float(w) for w in weights)
    if len(values) != 4 or not all(w > 0 for w in values):
        raise ValueError(f"weights: expected four positive numbers (wx, wy, ww, wh), got {weights!r}")
    return values


def check_counts(name: str, counts: Tensor, B: int, limit: int) -> None:
    """int64 [B]. The values: CPU kernels refuse those outside [0, limit]; on a GPU such an image counts as empty, and
    FRCNN_FAST_CHECK=1 looks at them here, at the price of a synchronisation."""
    check_int(name, counts, "[B]", (B,))
    if CHECK_DEVICE_DATA and B and counts.device.type != "cpu" and not torch.compiler.is_compiling():
        low, high = int(counts.min()), int(counts.max())
        if low < 0 or high > limit:
            raise ValueError(f"{name}: expected values from 0 to the padded size {limit}, got {low} to {high}")


def check_ground_truth(gt_boxes: Tensor, gt_counts: Tensor, crowd: Tensor | None) -> None:
    """gt_boxes [B, G, 4], floating; gt_counts int64 [B]; crowd bool [B, G] or None."""
    check_float("gt_boxes", gt_boxes, "[B, G, 4]", 3, 4)
    B, G = gt_boxes.shape[:2]
    check_counts("gt_counts", gt_counts, B, G)
    check_same("gt_counts", gt_counts, "gt_boxes", gt_boxes, dtype=False)
    if crowd is not None:
        check_int("crowd", crowd, "[B, G]", (B, G), torch.bool)
        check_same("crowd", crowd, "gt_boxes", gt_boxes, dtype=False)


def check_rng(rng: Tensor, like_name: str, like: Tensor) -> None:
    """int64 [2] on the device of `like`."""
    check_int("rng", rng, "[2] (seed, step)", (2,))
    check_same("rng", rng, like_name, like, dtype=False)


def contiguous(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.contiguous()


def image_scales_tensor(image_scales: Tensor | None, B: int, like: Tensor) -> Tensor | None:
    """image_scales [B] in the compute dtype on the device of `like`, or None."""
    if image_scales is None:
        return None
    check_float("image_scales", image_scales, "[B]", 1)
    check_size("image_scales", image_scales, "[B]", (B,))
    check_same("image_scales", image_scales, "the other inputs", like, dtype=False)
    return contiguous_in(image_scales, compute_dtype(like))


def image_sizes_tensor(image_sizes: Tensor | Sequence[Sequence[float]], B: int, like: Tensor) -> Tensor:
    """image_sizes as a [B, 2] tensor (height, width) in the compute dtype on the device of `like`."""
    dtype = compute_dtype(like)
    if not isinstance(image_sizes, Tensor):
        image_sizes = torch.tensor([tuple(size) for size in image_sizes], dtype=dtype).to(like.device).reshape(-1, 2)
    if image_sizes.shape != (B, 2):
        raise ValueError(f"image_sizes: expected shape [B, 2] = [{B}, 2] (height, width), got {describe(image_sizes)}")
    check_same("image_sizes", image_sizes, "the other inputs", like, dtype=False)
    return contiguous_in(image_sizes, dtype)
