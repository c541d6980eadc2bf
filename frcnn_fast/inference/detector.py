"""Detection in images of any kind, one or many, in batches that change no result."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from frcnn_fast._device import choose_device
from frcnn_fast.data import Batch, Collate, boxes_to_original, resize
from frcnn_fast.inference.result import Result
from frcnn_fast.inference.sources import Loaded, is_image, try_load
from frcnn_fast.io import PathLike
from frcnn_fast.model import FasterRCNN, load_detector

_WINDOW = 4  # batches of images that wait for others of their shape; so many images are in memory


class Detector:
    """A trained detector, ready for images.

        detector = frcnn_fast.Detector("runs/digits")
        result = detector("photo.jpg", score_threshold=0.5)
        result.boxes, result.scores, result.names
        result.save("found.png")

    Args:
        model: a run's folder, a checkpoint file, or a `FasterRCNN`.
        device: "cpu", "cuda", ...; default: a GPU where there is one, or where a given `FasterRCNN` is.
        backbone, head: needed where the run was trained with modules of your own.

    Raises:
        ValueError: the checkpoint is missing, broken or needs a backbone; or only a part of the detector was trained.
    """

    def __init__(
        self,
        model: PathLike | FasterRCNN,
        *,
        device: str | torch.device | None = None,
        backbone: nn.Module | None = None,
        head: nn.Module | None = None,
    ) -> None:
        if isinstance(model, FasterRCNN):
            if backbone is not None or head is not None:
                raise ValueError("backbone, head: are for a checkpoint; the given model has its own")
            self.model = model if device is None else model.to(choose_device(str(device)))
        else:
            chosen = choose_device(None if device is None else str(device))
            self.model = load_detector(model, backbone=backbone, head=head, device=chosen)
        if self.model.config.parts != "both":
            trained = "proposal network" if self.model.config.parts == "rpn" else "head"
            raise ValueError(
                f"model: got a detector of which only the {trained} was trained, expected a whole one "
                "(frcnn-fast evaluate --proposals runs a head on given proposals)"
            )

    @property
    def class_names(self) -> list[str]:
        """Label k is class_names[k - 1]."""
        return list(self.model.class_names)

    @property
    def device(self) -> torch.device:
        return self.model.rng.device

    def __repr__(self) -> str:
        names = self.class_names
        shown = ", ".join(names[:5]) + (f", ... ({len(names)} classes)" if len(names) > 5 else "")
        return f"Detector({self.model.config.backbone}, {self.device}: {shown})"

    @overload
    def __call__(
        self,
        images: Any,
        *,
        batch: int | None = None,
        score_threshold: float | None = None,
        bgr: bool = False,
        stream: Literal[True],
    ) -> Iterator[Result]: ...

    @overload
    def __call__(
        self,
        images: Any,
        *,
        batch: int | None = None,
        score_threshold: float | None = None,
        bgr: bool = False,
        stream: Literal[False] = False,
    ) -> Any: ...

    def __call__(
        self,
        images: Any,
        *,
        batch: int | None = None,
        score_threshold: float | None = None,
        bgr: bool = False,
        stream: bool = False,
    ) -> Any:
        """Find objects.

        Args:
            images: one image, or a list, generator or other iterable of them, of any sizes and kinds:

                - a path: a file of any common format, turned upright as its EXIF orientation says;
                - a PIL image, of any mode, as its pixels lie (`PIL.ImageOps.exif_transpose` turns it);
                - a NumPy array, uint8 [H, W, 3] in RGB, or grey [H, W];
                - a tensor, uint8 [3, H, W] in RGB, on any device.

            batch: images a forward pass; default: 8 on a GPU, 1 on the processor, where more bring nothing.
            score_threshold: the least score, from 0 to 1, also below the detector's own (config.score_threshold);
                None keeps that one. A result has at most config.max_detections.
            bgr: arrays hold blue, green, red, as OpenCV reads them. Nothing can tell that from the pixels: without it
                such an array gives poor detections and no error. Of other kinds the order is known.
            stream: return a generator of results as they are found, in the order of the images, instead of a list. At
                most 4 * batch images are in memory (one, for batch=1).

        Returns:
            A `Result` for one image, a list of them for several. Those from paths read their file anew when drawn; the
            others, and those of a stream, hold the pixels, which are not copied.

        Images that share a forward pass are padded to one shape, and convolutions see the padding: it changes scores
        near the right and lower edge. So only images share one that are of the same shape by themselves (resized, then
        rounded up to multiples of 32 pixels), and the network sees of every image the same numbers as if it came alone.
        Detections are then equal to the bit wherever torch's convolutions and matrix products give the same bits for
        one image and for several. They need not: for a few rows, or over several threads, they may add in another
        order, and scores then differ in the last digits. With batch=1 nothing depends on the other images.

        Raises:
            ValueError: an image cannot be read or is of another shape or type; names the file, or images[i].
            TypeError: `images` holds something else.
        """
        if batch is not None and (not isinstance(batch, int) or isinstance(batch, bool) or batch < 1):
            raise ValueError(f"batch: got {batch!r}, expected a whole number of images, at least 1")
        if score_threshold is not None and not 0 <= score_threshold <= 1:
            raise ValueError(f"score_threshold: got {score_threshold}, expected a score from 0 to 1")
        one = is_image(images)
        if not one and not isinstance(images, Iterable):
            raise TypeError(
                f"images: got {type(images).__name__}, expected an image (path, PIL image, array, tensor) or several"
            )
        sources = [(images, "image")] if one else ((image, f"images[{i}]") for i, image in enumerate(images))
        loaded = (try_load(source, name, bgr=bgr) for source, name in sources)
        results = map(_raised, self.outcomes(loaded, batch=batch, score_threshold=score_threshold))
        if stream:
            return results
        if one:
            return next(results)
        return [result.without_pixels() for result in results]

    def outcomes(
        self, images: Iterable[Loaded | Exception], *, batch: int | None = None, score_threshold: float | None = None
    ) -> Iterator[Result | Exception]:
        """What `stream=True` does, where an image that fails costs nobody else: its error stands in its place.

        An error among `images` is passed on. An image fails where the memory does not do for it alone.
        """
        batch = batch or (8 if self.device.type == "cuda" else 1)
        window = _WINDOW * batch if batch > 1 else 1
        collate = Collate(self.model.config.preprocess)
        waiting: deque[Slot] = deque()
        for item in images:
            waiting.append(self.slot(item, collate))
            yield from _finished(waiting)
            while len(waiting) >= window:
                self._detect_next(waiting, batch, collate, score_threshold)
                yield from _finished(waiting)
        while waiting:
            self._detect_next(waiting, batch, collate, score_threshold)
            yield from _finished(waiting)

    def slot(self, item: Loaded | Exception, collate: Collate) -> Slot:
        """An image, resized; its error where that fails."""
        if isinstance(item, Exception):
            return Slot(outcome=item)
        try:
            config = self.model.config
            resized, scale = resize(item.image, config.shorter, config.longer, config.resize)
        except (RuntimeError, MemoryError) as error:
            return Slot(outcome=error)
        return Slot(item, resized, scale, collate.padded(*resized.shape[-2:]))

    def _detect_next(self, waiting: deque[Slot], batch: int, collate: Collate, score_threshold: float | None) -> None:
        """The longest waiting image, and with it the next ones of its shape."""
        alike = [slot for slot in waiting if slot.outcome is None and slot.shape == waiting[0].shape]
        self._detect(alike[:batch], collate, score_threshold)

    def _detect(self, slots: list[Slot], collate: Collate, score_threshold: float | None) -> None:
        try:
            found = self._forward(slots, collate, score_threshold)
        except (ValueError, RuntimeError, MemoryError) as error:
            if len(slots) == 1:
                slots[0].outcome = error
            else:  # too much together
                for slot in slots:
                    self._detect([slot], collate, score_threshold)
            return
        for slot, detections in zip(slots, found, strict=True):
            slot.outcome = self.result(slot, detections, score_threshold)

    def batch(self, slots: Sequence[Slot], collate: Collate) -> Batch:
        """Slots of one shape as the network takes them, on its device."""
        nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
        return collate([(slot.resized, {**nothing, "scale": slot.scale}) for slot in slots]).to(self.device)

    @torch.inference_mode()
    def _forward(self, slots: list[Slot], collate: Collate, score_threshold: float | None) -> list[dict[str, Tensor]]:
        batch = self.batch(slots, collate)
        self.model.eval()
        with lowered_threshold(self.model, score_threshold):
            found = self.model(batch.images, batch.image_sizes, image_scales=batch.image_scales)
        return [{name: tensor.cpu() for name, tensor in detections.items()} for detections in found.to_list()]

    def result(self, slot: Slot, found: dict[str, Tensor], score_threshold: float | None) -> Result:
        """What was `found` in a slot's image, on the CPU and in pixels of the network's input, as its `Result`."""
        assert slot.item is not None
        height, width = slot.item.image.shape[-2:]
        kept = found["scores"] >= (score_threshold or 0.0)
        boxes = boxes_to_original(found["boxes"], slot.resized.shape[-2:], (height, width))[kept]
        # The factor's rounding may carry an edge over the image's.
        edges = boxes.new_tensor([width, height, width, height])
        return Result(
            torch.minimum(boxes, edges),
            found["scores"][kept],
            found["labels"][kept],
            class_names=self.class_names,
            image_size=(height, width),
            path=slot.item.path,
            image=slot.item.image,
        )


@dataclasses.dataclass
class Slot:
    """An image on its way; `shape` is the padded one."""

    item: Loaded | None = None
    resized: Tensor = dataclasses.field(default_factory=lambda: torch.empty(0))
    scale: float = 1.0
    shape: tuple[int, int] = (0, 0)
    outcome: Result | Exception | None = None


def _finished(waiting: deque[Slot]) -> Iterator[Result | Exception]:
    """The outcomes at the head of the queue, taken off it."""
    while waiting and waiting[0].outcome is not None:
        outcome = waiting.popleft().outcome
        assert outcome is not None
        yield outcome


def _raised(outcome: Result | Exception) -> Result:
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


@contextmanager
def lowered_threshold(model: FasterRCNN, value: float | None) -> Iterator[None]:
    """The model's threshold lowered to just below `value`: it keeps what scores more than its own."""
    config = model.config
    if value is not None and value <= config.score_threshold:
        model.config = dataclasses.replace(config, score_threshold=value * (1 - 1e-6))
    try:
        yield
    finally:
        model.config = config
