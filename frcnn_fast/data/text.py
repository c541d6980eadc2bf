"""Text files of other people's tools: any encoding that says what it is, and some that do not."""

from __future__ import annotations

import codecs
import re

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_DECLARED = re.compile(rb"""<\?xml[^>]{0,200}?encoding\s*=\s*["']([^"']{0,64})["']""")
# What files that declare the old standard hold in practice: its superset (browsers do the same).
_SUPERSETS = {
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "shift_jis": "cp932",
    "big5": "cp950",
    "euc_kr": "cp949",
    "iso8859-1": "cp1252",
    "ascii": "utf-8",
}
_NOT_REGISTERED = {"unicode": "utf-8", "x-sjis": "shift_jis", "x-gbk": "gbk", "x-euc-jp": "euc_jp", "x-big5": "big5"}
_NO_TEXT = {"idna", "punycode", "unicode_escape", "raw_unicode_escape", "undefined", "utf_7"}


def decode_xml(data: bytes) -> str:
    """The text of an XML file.

    Raises:
        ValueError: its encoding is unknown, or its bytes are not of that encoding; says which.
    """
    marked = _by_mark(data)
    if marked is not None:
        return marked
    for unmarked in ("utf-16-le", "utf-16-be"):
        if data.startswith("<?".encode(unmarked)) and (wide := _decoded(data, unmarked)) is not None:
            return wide
    declared = _DECLARED.match(data.lstrip()[:300])
    name = declared.group(1).decode("ascii", "replace") if declared else "utf-8"
    codec = _codec(name)
    if codec is None:
        raise ValueError(f"the XML declares the unknown encoding {name!r}; save the file as UTF-8")
    # Some tools write "utf-16" into a file of single bytes.
    if codec.startswith(("utf-16", "utf-32")) and declared:
        codec = "utf-8"
    text = _decoded(data, codec)
    if text is not None:
        return text
    said = f"declares the encoding {name}" if declared else "declares no encoding"
    raise ValueError(f"the XML {said}, but its bytes are not {codec}; save the file as UTF-8")


def decode_list(data: bytes) -> list[str]:
    """What the text of a list may be, the likeliest first: UTF-8, or what a byte-order mark says; else its bytes as
    they are (as in the names of files), then some encodings of old systems.

    Raises:
        ValueError: its bytes are not of the encoding that its mark names.
    """
    marked = _by_mark(data)
    if marked is not None:
        return [marked]
    if b"\x00" in data:
        candidates = ["utf-16-le", "utf-16-be"] if data[1:2] == b"\x00" else ["utf-16-be", "utf-16-le"]
        texts = [text for codec in candidates if (text := _decoded(data, codec)) is not None]
        if not texts:
            raise ValueError("it is no text; put one image's name on each line, in UTF-8")
        return texts
    text = _decoded(data, "utf-8")
    if text is not None:
        return [text]
    others = (_decoded(data, codec) for codec in ("gb18030", "cp932", "cp950", "cp949", "cp1252"))
    return [data.decode("utf-8", "surrogateescape"), *(other for other in others if other is not None)]


def _by_mark(data: bytes) -> str | None:
    for mark, codec in _MARKS:
        if data.startswith(mark):
            text = _decoded(data[len(mark) :], codec)
            if text is None:
                raise ValueError(f"its byte-order mark says {codec}, but its bytes are not; save the file as UTF-8")
            return text
    return None


def _codec(name: str) -> str | None:
    """The name of the codec that reads what files of the encoding `name` hold; None where there is none."""
    name = name.strip().lower()
    try:
        found = codecs.lookup(_NOT_REGISTERED.get(name, name))
    except Exception:  # the name reaches Python's import system
        return None
    if found.name.replace("-", "_") in _NO_TEXT or not getattr(found, "_is_text_encoding", True):
        return None
    return _SUPERSETS.get(found.name, found.name)


def _decoded(data: bytes, codec: str) -> str | None:
    try:
        text = data.decode(codec)
    except (UnicodeError, LookupError):
        # cp1252 and cp950 have holes that the standards they extend have not.
        plain = {"cp1252": "iso8859-1", "cp950": "big5hkscs"}.get(codec)
        return _decoded(data, plain) if plain else None
    return text
