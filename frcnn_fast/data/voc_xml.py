"""PASCAL VOC annotation files, read with the line numbers that an error message needs."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import unicodedata
from xml.parsers import expat

from frcnn_fast._names import printable
from frcnn_fast.data.text import decode_xml

_YES = {"1", "true", "yes", "y", "t"}
_NO = {"", "0", "false", "no", "n", "f", "unspecified", "none", "null", "unknown"}
_NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?")


@dataclasses.dataclass
class VocObject:
    """One <object>: its class name, corners as written (pixels, both ends inside the box) and where it
    stands."""

    name: str
    corners: tuple[float, float, float, float]  # xmin, ymin, xmax, ymax
    difficult: bool
    line: int


@dataclasses.dataclass
class VocAnnotation:
    """One annotation file. `filename` is "" and `size` (height, width) is None where the file does not
    say; `size_line` is where it does."""

    path: str
    filename: str
    size: tuple[int, int] | None
    objects: list[VocObject]
    size_line: int = 1


@dataclasses.dataclass
class _Element:
    tag: str
    line: int
    text: str = ""
    children: list[_Element] = dataclasses.field(default_factory=list, repr=False)

    def find(self, tag: str) -> _Element | None:
        return next((child for child in self.children if child.tag == tag), None)


def read_annotation(path: str | os.PathLike[str], faults: list[str] | None = None) -> VocAnnotation:
    """Read one annotation file, in the encoding that it declares.

    <difficult> may be 1, true, yes (also a number other than 0), or 0, false, no, Unspecified or nothing.

    Args:
        faults: receives what is wrong with single objects, which are then left out; None raises at the first.

    Raises:
        ValueError: the file is missing, its encoding is unknown, it is not XML or is no VOC annotation, or a box is
            inverted or not a number; the message names the file, the line and what to do.
    """
    name = os.fspath(path)
    root = _parse(name)
    if root.tag != "annotation":
        raise _error(name, root, f"the outermost element is <{root.tag}>, expected <annotation>")
    filename = root.find("filename")
    objects = []
    for element in root.children:
        if element.tag != "object":
            if element.find("object"):
                raise _error(name, element, f"<{element.tag}> holds objects, expected them directly in <annotation>")
            continue
        try:
            objects.append(_object(name, element))
        except ValueError as error:
            if faults is None:
                raise
            faults.append(str(error))
    size = root.find("size")
    return VocAnnotation(
        path=name,
        filename=filename.text if filename is not None else "",
        size=_size(name, size) if size is not None else None,
        objects=objects,
        size_line=1 if size is None else size.line,
    )


def _error(path: str, element: _Element, text: str) -> ValueError:
    return ValueError(
        f"{printable(path)}:{element.line}: {printable(text)}; mend the annotation or take its name out of the list"
    )


def _parse(path: str) -> _Element:
    # What decode_xml gives is UTF-8 whatever the declaration says.
    parser = expat.ParserCreate("utf-8")
    top = _Element("", 0)
    open_elements = [top]
    texts: list[list[str]] = [[]]

    def start(tag: str, _attributes: dict[str, str]) -> None:
        element = _Element(tag.lower(), parser.CurrentLineNumber)
        open_elements[-1].children.append(element)
        open_elements.append(element)
        texts.append([])

    def end(_tag: str) -> None:
        open_elements.pop().text = unicodedata.normalize("NFC", "".join(texts.pop()).strip())

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = lambda data: texts[-1].append(data)
    parser.buffer_text = True
    shown = printable(path)
    try:
        if not os.path.isfile(path) and os.path.exists(path):
            raise OSError(0, "not a regular file")
        with open(path, "rb") as file:
            text = decode_xml(file.read())
        parser.Parse(text.encode(), True)
    except (OSError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or "it is too large"
        raise ValueError(
            f"{shown}: cannot be read ({reason}); restore the annotation or take its name out of the list"
        ) from error
    except expat.ExpatError as error:
        raise ValueError(
            f"{shown}:{error.lineno}: not well-formed XML ({expat.ErrorString(error.code)});"
            " mend the annotation or take its name out of the list"
        ) from error
    except ValueError as error:  # of decode_xml, or a null byte in the name
        raise ValueError(f"{shown}:1: {error}, or take its name out of the list") from error
    return top.children[0]


def _child(path: str, element: _Element, tag: str) -> _Element:
    found = [child for child in element.children if child.tag == tag]
    if not found:
        raise _error(path, element, f"<{element.tag}> has no <{tag}>")
    if len(found) > 1:
        raise _error(path, found[1], f"<{element.tag}> has {len(found)} <{tag}>, expected one")
    return found[0]


def _number(path: str, element: _Element, tag: str) -> float:
    child = _child(path, element, tag)
    value = float(child.text) if _NUMBER.fullmatch(child.text) else math.nan
    if not math.isfinite(value):
        raise _error(path, child, f"<{tag}> is {child.text[:40]!r}, expected a number")
    return value


def _size(path: str, element: _Element) -> tuple[int, int] | None:
    height, width = int(_number(path, element, "height")), int(_number(path, element, "width"))
    # Some tools write 0 × 0 where they did not open the image.
    return (height, width) if height > 0 and width > 0 else None


def _object(path: str, element: _Element) -> VocObject:
    name = _child(path, element, "name")
    if not name.text:
        raise _error(path, name, "<name> is empty, expected a class name")
    box = _child(path, element, "bndbox")
    xmin, ymin, xmax, ymax = (_number(path, box, tag) for tag in ("xmin", "ymin", "xmax", "ymax"))
    if xmax < xmin or ymax < ymin:
        hint = " (is it x, y, width, height, or are its corners exchanged?)"
        raise _error(path, box, f"the box ({xmin:g}, {ymin:g}, {xmax:g}, {ymax:g}) ends before it begins{hint}")
    return VocObject(name.text, (xmin, ymin, xmax, ymax), _difficult(path, element), element.line)


def _difficult(path: str, element: _Element) -> bool:
    flag = element.find("difficult")
    text = "" if flag is None else flag.text.lower()
    if text in _NO or text in _YES:
        return text in _YES
    value = float(text) if _NUMBER.fullmatch(text) else math.nan
    if flag is not None and not (math.isfinite(value) and value >= 0):
        raise _error(path, flag, f"<difficult> is {flag.text[:40]!r}, expected 0 or 1")
    return value != 0
