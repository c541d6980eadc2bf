"""Video files: frames in, frames out."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from frcnn_fast._extras import require
from frcnn_fast._names import printable
from frcnn_fast.io import PathLike, atomic_path

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".mts", ".m2ts")


_TICK = Fraction(1, 60000)  # seconds; what times are rounded to in a file


class Frame(NamedTuple):
    number: int  # 0 is the first
    time: float  # seconds since the first
    image: Tensor  # uint8 [3, H, W], RGB, upright


class Video:
    """A video file that is being read.

    Attributes:
        rate: frames a second, on average.
        total: how many frames it says it has; None where it does not.
    """

    def __init__(self, path: str, container: Any) -> None:
        self.path = path
        self._container, self._stream = container, container.streams.video[0]
        self._stream.thread_type = "AUTO"
        self.rate = float(self._stream.average_rate or self._stream.guessed_rate or 25)
        self.total: int | None = self._stream.frames or None

    def __iter__(self) -> Iterator[Frame]:
        """Every frame in the order of their times, which need not be evenly spaced; without a time, at the rate.

        Raises:
            ValueError: a frame cannot be decoded; names the file and the frame.
        """
        start, number, before = None, -1, -1.0
        for number, frame in enumerate(self._decoded()):
            time = number / self.rate if frame.time is None else frame.time
            start = time if start is None else start
            before = max(time - start, before + 1e-6)  # broken files have times that go back
            pixels = frame.to_ndarray(format="rgb24")
            if frame.rotation % 360:
                pixels = np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)))
            yield Frame(number, before, torch.from_numpy(pixels).permute(2, 0, 1))
        if number < 0:
            raise ValueError(f"{printable(self.path)}: this video has no frames")

    def _decoded(self) -> Iterator[Any]:
        count = 0
        try:
            for frame in self._container.decode(self._stream):
                yield frame
                count += 1
        except require("av", "video").FFmpegError as error:
            raise ValueError(
                f"{printable(self.path)}: the video breaks off after {count} frames ({printable(str(error))})"
            ) from error


@contextlib.contextmanager
def open_video(path: str) -> Iterator[Video]:
    """Open a video file for the block.

    Raises:
        ValueError: the file is missing, or no video; names it.
        ImportError: the extra `video` is not installed.
    """
    av = require("av", "video")
    shown = printable(path)
    if not os.path.isfile(path):
        raise ValueError(f"{shown}: no such video file")
    try:
        container = av.open(path)
    except (av.FFmpegError, OSError, ValueError) as error:
        raise ValueError(f"{shown}: not a readable video ({printable(str(error))})") from error
    with container:
        if not container.streams.video:
            raise ValueError(
                f"{shown}: not a readable video (it has no pictures, only {len(container.streams)} others)"
            )
        yield Video(path, container)


class VideoWriter:
    """Writes an .mp4 file (H.264), each frame at its own time. Made by `new_video`."""

    def __init__(self, path: Path, rate: float) -> None:
        self._av = require("av", "video")
        self._container = self._av.open(os.fspath(path), "w", format="mp4")
        self._rate = max(1, round(rate))
        self._stream: Any = None

    def add(self, image: Any, time: float) -> None:
        """Append a PIL image, shown from `time` (seconds) on. All are of the first one's size."""
        pixels = np.asarray(image)
        # H.264 has colours at half the resolution: an odd side gets its last row once more.
        pixels = np.pad(pixels, ((0, pixels.shape[0] % 2), (0, pixels.shape[1] % 2), (0, 0)), mode="edge")
        if self._stream is None:
            self._stream = self._new_stream(pixels.shape[1], pixels.shape[0])
        frame = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        frame.time_base, frame.pts = _TICK, round(time / _TICK)
        self._container.mux(self._stream.encode(frame))

    def _new_stream(self, width: int, height: int) -> Any:
        has_h264 = "libx264" in self._av.codecs_available
        codec, options = ("libx264", {"crf": "20", "preset": "veryfast"}) if has_h264 else ("mpeg4", {"qscale": "3"})
        stream = self._container.add_stream(codec, rate=self._rate, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.time_base = _TICK
        return stream

    def close(self) -> None:
        if self._stream is not None:
            self._container.mux(self._stream.encode(None))
        self._container.close()


@contextlib.contextmanager
def new_video(path: PathLike, rate: float) -> Iterator[VideoWriter]:
    """Write a video whole or not at all, at about `rate` frames a second.

    Raises:
        OSError: the file cannot be written; names it.
        ImportError: the extra `video` is not installed.
    """
    with atomic_path(path) as beside:
        writer = VideoWriter(beside, rate)
        try:
            yield writer
            writer.close()
        except require("av", "video").FFmpegError as error:
            raise OSError(f"{os.fspath(path)}: the video cannot be written ({error})") from error
