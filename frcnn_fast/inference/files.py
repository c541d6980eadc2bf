"""Looking at files and drawing what is found, into a `ResultFolder`: images, and videos frame by frame."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from frcnn_fast._progress import progress_bar
from frcnn_fast.inference.ahead import ahead
from frcnn_fast.inference.detector import Detector
from frcnn_fast.inference.result import Result
from frcnn_fast.inference.sources import Loaded, try_load
from frcnn_fast.inference.video import Frame, new_video, open_video
from frcnn_fast.io import PathLike
from frcnn_fast.visualize import save_image


class Seen(NamedTuple):
    """An image file that was looked at."""

    name: str
    result: Result | Exception  # what was found, or why not
    drawing: Exception | bool  # whether it was drawn, or why not


def detect_images(
    detector: Detector,
    drawings: Mapping[str, PathLike],
    *,
    batch: int | None = None,
    score_threshold: float | None = None,
    draw: bool = True,
    threads: int = 0,
) -> Iterator[Seen]:
    """Look at image files, in order. One bad file does not cost the others their detections.

    Args:
        drawings: {image file: where its drawing goes}.
        batch, score_threshold: as `Detector` takes them.
        draw: False saves no drawings.
        threads: that read files and draw; 0 does it between the forward passes.
    """

    def drawn(item: tuple[str, Result | Exception]) -> Seen:
        name, result = item
        if isinstance(result, Exception) or not draw:
            return Seen(name, result, False)
        try:
            save_image(drawings[name], result.plot())
            return Seen(name, result, True)
        except (ValueError, RuntimeError, MemoryError, OSError) as error:
            return Seen(name, result, error)

    loaded = ahead(try_load, drawings, threads)
    results = detector.outcomes(loaded, batch=batch, score_threshold=score_threshold)
    yield from ahead(drawn, zip(drawings, results), threads)


def detect_video(
    detector: Detector,
    name: str,
    drawing: PathLike | None,
    *,
    known: Iterable[Mapping[str, Any]] = (),
    batch: int | None = None,
    score_threshold: float | None = None,
    progress: bool = False,
) -> Iterator[tuple[Frame, Result | Exception]]:
    """Look at the frames of a video file, in order; the sound is left out.

    Args:
        drawing: where the video with its drawings goes (.mp4), at the times of the original; None draws nothing. It
            is there when the iteration has ended, whole or not at all; up to where a broken video can be read.
        known: records of the first frames, from an earlier run: these are drawn, and not looked at again.
        batch, score_threshold: as `Detector` takes them.
        progress: whether to show a bar.

    Raises:
        ValueError: the file is no video, or breaks off (after its readable frames); names it.
        OSError: the drawings cannot be written.
        ImportError: the extra `video` is not installed.
    """
    broken: list[ValueError] = []
    waiting: deque[Frame] = deque()
    with contextlib.ExitStack() as stack:
        video = stack.enter_context(open_video(name))
        bar = stack.enter_context(
            progress_bar(video.total, desc=os.path.basename(name), leave=False, disable=not progress)
        )
        writer = stack.enter_context(new_video(drawing, video.rate)) if drawing is not None else None

        def frames() -> Iterator[Frame]:
            try:
                yield from video
            except ValueError as error:
                broken.append(error)

        def loaded(rest: Iterator[Frame]) -> Iterator[Loaded]:
            for frame in rest:
                waiting.append(frame)
                yield Loaded(frame.image, name)

        def draw(result: Result, frame: Frame) -> None:
            if writer is not None:
                writer.add(result.plot(), frame.time)
            bar.update()

        every = frames()
        for record, frame in zip(known, every):
            draw(Result.from_dict(record, detector.class_names, frame.image), frame)
        for result in detector.outcomes(loaded(every), batch=batch, score_threshold=score_threshold):
            frame = waiting.popleft()
            draw(result if isinstance(result, Result) else _nothing(detector, name, frame), frame)
            yield frame, result
    if broken:
        raise broken[0]


def _nothing(detector: Detector, name: str, frame: Frame) -> Result:
    height, width = frame.image.shape[-2:]
    record = {"image": name, "width": width, "height": height, "detections": []}
    return Result.from_dict(record, detector.class_names, frame.image)
