"""Selective Search from OpenCV's contrib modules: what proposals cost before there were region proposal networks."""

from __future__ import annotations

from pathlib import Path

from bench.case import Call, Competitor


def competitors(photograph: Path) -> dict[str, Competitor]:
    """Both of its modes on one photograph, at the photograph's own size."""
    return {
        "Selective Search, fast": Competitor(_search(photograph, "switchToSelectiveSearchFast")),
        "Selective Search, quality": Competitor(_search(photograph, "switchToSelectiveSearchQuality")),
    }


def _search(photograph: Path, mode: str) -> Call:
    import cv2
    import torch

    image = cv2.imread(str(photograph))

    def call() -> object:
        cv2.setNumThreads(torch.get_num_threads())
        search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
        search.setBaseImage(image)
        getattr(search, mode)()
        return search.process()

    return call
