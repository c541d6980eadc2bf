"""Names of classes and files: what is refused, and how they are shown."""

from __future__ import annotations

import contextlib
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

_BACKGROUND = {"__background__", "_background_"}


def checked_class_names(class_names: Any, name: str = "class_names") -> list[str]:
    """The names of the classes 1..K as a list of strings, in Unicode's composed form.

    Raises:
        ValueError: not a sequence of names, empty, a name twice or empty, or the background among them.
    """
    if isinstance(class_names, (str, bytes, Mapping)) or not isinstance(class_names, Iterable):
        raise ValueError(f"{name}: got {class_names!r}, expected a list of different names, one a class")
    given = list(class_names)
    if any(isinstance(item, bool) or not isinstance(item, (str, int, np.integer)) for item in given):
        raise ValueError(f"{name}: got {given!r}, expected a list of different names (strings)")
    names = [unicodedata.normalize("NFC", str(item)) for item in given]
    if not names or not all(item.strip() for item in names):
        raise ValueError(f"{name}: got {given!r}, expected a list of different names, at least one and none empty")
    twice = sorted({item for item in names if names.count(item) > 1}) if len(set(names)) != len(names) else []
    if twice:
        raise ValueError(f"{name}: got {', '.join(twice)} more than once, expected a list of different names")
    background = sorted(_BACKGROUND.intersection(names))
    if background:
        raise ValueError(
            f"{name}: got {background[0]!r} among the classes; leave it out: label 0 is the background, label k is "
            f"{name}[k - 1]"
        )
    return names


def printable(text: str) -> str:
    """`text` on one line, with what a console cannot print (control characters, bytes that are not UTF-8) escaped."""
    if text.isprintable():
        return text
    with contextlib.suppress(UnicodeEncodeError):
        text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
