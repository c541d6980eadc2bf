"""Text for consoles and error messages."""

from __future__ import annotations

import contextlib


def printable(text: str) -> str:
    """`text` on one line, with what a console cannot print (control characters, bytes that are not UTF-8) escaped."""
    if text.isprintable():
        return text
    with contextlib.suppress(UnicodeEncodeError):
        text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
