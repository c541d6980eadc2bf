"""Progress on the console: a bar that counts images."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from frcnn_fast._extras import require

_SHORT_NAMES = {
    "loss": "loss",
    "loss_objectness": "objectness",
    "loss_rpn_box_reg": "proposals",
    "loss_classifier": "classes",
    "loss_box_reg": "boxes",
}


def progress_bar(total: int | None, **settings: Any) -> Any:
    """A tqdm bar that counts images: live on a terminal, a line every ten seconds in a log."""
    interval = 0.1 if sys.stderr.isatty() else 10.0
    tqdm = require("tqdm", "train").tqdm
    return tqdm(total=total, unit="img", dynamic_ncols=True, mininterval=interval, maxinterval=interval, **settings)


def losses_in_short(record: Mapping[str, Any]) -> str:
    """The losses of a record of metrics.jsonl, short enough to stand behind the bar."""
    return " ".join(f"{_SHORT_NAMES[name]} {value:.3f}" for name, value in record.items() if name in _SHORT_NAMES)
