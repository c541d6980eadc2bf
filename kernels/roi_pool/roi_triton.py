"""roi.h in Triton, and what the RoI kernels share: tiles of outputs, and levels as arguments."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from ..common.box_triton import area, plain
from ..common.launch_triton import blocks_for, odd
from ..common.mutant_triton import mutant
from ..common.numeric_triton import scalar

ROI_FIELDS = tl.constexpr(5)  # image, x1, y1, x2, y2
BINS = 64  # in a tile of one RoI or several
MAX_BINS = 1024  # along one axis, in one block


@triton.jit
def load_roi(rois, k, mask):
    """(image, x1, y1, x2, y2) of those rows; where masked, those of a padded row."""
    at = rois + k.to(tl.int64) * ROI_FIELDS
    image = tl.load(at, mask=mask, other=-1.0)
    x1, y1 = tl.load(at + 1, mask=mask, other=0.0), tl.load(at + 2, mask=mask, other=0.0)
    x2, y2 = tl.load(at + 3, mask=mask, other=0.0), tl.load(at + 4, mask=mask, other=0.0)
    return image, x1, y1, x2, y2


@triton.jit
def roi_image(image, B):
    """The index, int64, of the image that a RoI's first field names; -1 where it names none."""
    real = image >= 0.0 if not mutant("roi_padded_row") else image >= -1.0
    named = tl.where(real & (image < B if not mutant("roi_image_end") else image <= B), image, -1.0)  # NaN: -1
    index = named.to(tl.int64)
    return tl.where(index.to(image.dtype) == named, index, -1) if not mutant("roi_image_fraction") else index


@triton.jit
def roi_level(x1, y1, x2, y2, thresholds):
    """The number of thresholds (double_bits; ascending, in squared pixels) that the RoI's area reaches."""
    size = area(x1, y1, x2, y2, False)
    level = (size < size).to(tl.int32)  # 0
    for i in tl.static_range(len(thresholds)):
        least = scalar(thresholds[i], size.dtype)
        level += (size >= least if not mutant("roi_level_edge") else size > least).to(tl.int32)
    return level


@triton.jit
def of_level(values, level):
    """That level's member of a tuple of numbers (or pointers); level: a scalar."""
    found = values[0]
    for i in tl.static_range(1, len(values)):
        found = tl.where(level == i, values[i], found)
    return found


@triton.jit
def sides(levels, level):
    """(H, W) of that level's map; levels: see level_sides."""
    return plain(of_level(levels[0], level)).to(tl.int32), plain(of_level(levels[1], level)).to(tl.int32)


@triton.constexpr_function
def uniform(flags):
    return all(flags) or not any(flags)


@triton.jit
def map_strides(level, H, W, C: tl.constexpr, LAST: tl.constexpr):
    """Elements from one channel, and from one cell, to the next in that level's map. LAST: a flag a level."""
    if uniform(LAST) and LAST[0]:
        return 1, C
    elif uniform(LAST):
        return H.to(tl.int64) * W, 1
    else:
        last = level < 0  # False
        for i in tl.static_range(len(LAST)):
            last = tl.where(level == i, LAST[i], last)
        return tl.where(last, 1, H.to(tl.int64) * W), tl.where(last, C, 1)


@triton.jit
def crossed(items, channels, LAST: tl.constexpr):
    """Bins (or cells) and channels as the sides of a tile: neighbours in memory are neighbours in a row."""
    if LAST:
        return tl.expand_dims(items, 1), tl.expand_dims(channels, 0)
    else:
        return tl.expand_dims(items, 0), tl.expand_dims(channels, 1)


@triton.jit
def bin_tile(
    bins: tl.constexpr, C: tl.constexpr, LAST: tl.constexpr, ROIS: tl.constexpr, BINS: tl.constexpr,
    CHANNELS: tl.constexpr,
):  # fmt: skip
    """(RoIs, bins, channels) of this program, crossed: CHANNELS channels of BINS bins of ROIS RoIs. See BinTile."""
    groups: tl.constexpr = tl.cdiv(C, CHANNELS)
    tiles: tl.constexpr = groups * tl.cdiv(bins, BINS)
    program = tl.program_id(0).to(tl.int64)
    tile = (program % tiles).to(tl.int32)
    item, channel = crossed(tl.arange(0, ROIS * BINS), tile % groups * CHANNELS + tl.arange(0, CHANNELS), LAST)
    if ROIS == 1:
        return program // tiles, tile // groups * BINS + item, channel
    else:
        return program // tiles * ROIS + item // BINS, tile // groups * BINS + item % BINS, channel


@triton.jit
def axis_tile(program, ROIS: tl.constexpr, BINS: tl.constexpr):
    """(RoIs [ROIS, 1, 1], bins [1, BINS, 1], whether rows) of a program. See AxisTile."""
    k = (program // 2).to(tl.int64) * ROIS + tl.arange(0, ROIS)[:, None, None]
    return k, tl.arange(0, BINS)[None, :, None], program % 2 == 0


class AxisTile(NamedTuple):
    """The bins along one axis as work: a program owns all of ROIS RoIs, and takes CELLS cells of each bin at a time."""

    ROIS: int
    BINS: int
    CELLS: int
    registers: int  # see launch

    @classmethod
    def of(cls, rois: Tensor, PH: int, PW: int) -> "AxisTile":
        bins = triton.next_power_of_2(max(PH, PW))
        double = rois.element_size() == 8  # divisions are calls with much to save
        return cls(max(1, 128 // bins), bins, 4 if double else 8, 128 if double else 0)

    def programs(self, R: int) -> int:
        return 2 * blocks_for(R, self.ROIS)


class BinTile(NamedTuple):
    """Output numbers as work: with several RoIs in a program only where their bins are few. There are up to 16
    numbers per thread (of several RoIs 8), whose loads are in flight together."""

    ROIS: int
    BINS: int
    CHANNELS: int
    registers: int  # see launch

    @classmethod
    def of(cls, output: Tensor) -> "BinTile":
        _, C, PH, PW = output.shape
        few = 32 * 4 // max(output.element_size(), 4)
        bins, channels = min(BINS, triton.next_power_of_2(PH * PW)), min(few, triton.next_power_of_2(C))
        rois = max(1, min(BINS, 1024 // channels) // bins)  # more numbers have no room beside each RoI's edges
        # With few channels it would take so few registers that it spills.
        return cls(rois, bins, channels, 255 if rois > 1 else 0 if channels == few else 128)

    def programs(self, output: Tensor) -> int:
        R, C, PH, PW = output.shape
        return blocks_for(R, self.ROIS) * blocks_for(C, self.CHANNELS) * blocks_for(PH * PW, self.BINS)


def level_sides(maps: Sequence[Tensor]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The heights and the widths, as odd() gives them."""
    return tuple(odd(m.shape[2]) for m in maps), tuple(odd(m.shape[3]) for m in maps)


def check_size(maps: Mapping[str, Tensor], PH: int, PW: int) -> None:
    """ValueError for what no block and no 32-bit offset holds. maps: by the names that the user knows."""
    C = next(iter(maps.values())).shape[1]
    if max(PH, PW) > MAX_BINS:
        raise ValueError(f"output_size: expected at most {MAX_BINS} bins a side, got {PH} x {PW}")
    if C * PH * PW >= 2**31:
        raise ValueError(f"output_size: expected fewer than 2^31 numbers a RoI, got {PH} x {PW} bins of {C} channels")
    for name, m in maps.items():
        H, W = m.shape[2:]
        if H * W >= 2**31:
            raise ValueError(f"{name}: expected fewer than 2^31 cells, got a map of {H} x {W}")


def levels_by_name(maps: Sequence[Tensor]) -> dict[str, Tensor]:
    return {f"features[{level}]": m for level, m in enumerate(maps)}


def largest(maps: Sequence[Tensor]) -> tuple[int, int]:
    """The largest height and width."""
    return max(m.shape[2] for m in maps), max(m.shape[3] for m in maps)


def is_channels_last(maps: Tensor) -> bool:
    """Which of the two layouts a dense tensor has; contiguous where it is both."""
    return not maps.is_contiguous()
