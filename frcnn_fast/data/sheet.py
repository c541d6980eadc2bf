"""A sheet of the first training batches: a mistake in boxes, labels or colours is seen before it costs hours."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from frcnn_fast.data.batch import Batch
from frcnn_fast.data.transforms import Preprocess
from frcnn_fast.io import PathLike
from frcnn_fast.visualize import contact_sheet, draw_boxes, save_image

_IMAGES = 9


def batch_sheet(batches: Sequence[Batch], class_names: Sequence[str], preprocess: Preprocess | str) -> Any:
    """The images of some batches as the network gets them, with their boxes, as one PIL image."""
    undo = Preprocess(preprocess).undo if isinstance(preprocess, str) else preprocess.undo
    drawings = []
    for batch in batches:
        images = undo(batch.images.cpu())
        for b, (height, width) in enumerate(batch.image_sizes.tolist()):
            count = int(batch.gt_counts[b])
            drawing = draw_boxes(
                images[b, :, :height, :width],
                batch.gt_boxes[b, :count],
                batch.gt_labels[b, :count],
                class_names=class_names,
                difficult=batch.crowd[b, :count],
                caption=batch.image_ids[b],
            )
            drawing.thumbnail((800, 800))
            drawings.append(drawing)
    return contact_sheet(drawings[:_IMAGES])


def with_sheet(
    batches: Iterable[Batch], path: PathLike, class_names: Sequence[str], preprocess: Preprocess | str
) -> Iterator[Batch]:
    """The same batches; once the first few have been asked for, `path` is a drawing of them.

    A drawing that fails (a full disk, a font) is warned about and costs nothing else.
    """
    first: list[Batch] | None = []
    for batch in batches:
        if first is not None:
            first.append(batch)
            if len(first) == 1 or sum(map(len, first)) <= _IMAGES:
                _save(path, first, class_names, preprocess)
            if sum(map(len, first)) >= _IMAGES or len(first) >= 4:
                first = None
        yield batch


def _save(path: PathLike, batches: Sequence[Batch], class_names: Sequence[str], preprocess: Preprocess | str) -> None:
    try:
        save_image(path, batch_sheet(batches, class_names, preprocess))
    except Exception as error:
        warnings.warn(f"{path}: the sheet of the first batches could not be drawn ({error})", stacklevel=2)
