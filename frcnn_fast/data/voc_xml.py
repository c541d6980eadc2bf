"""PASCAL VOC annotation files, read with the line numbers that an error message needs."""

from __future__ import annotations

import dataclasses
import math
import os
from xml.parsers import expat


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
    say."""

    path: str
    filename: str
    size: tuple[int, int] | None
    objects: list[VocObject]


@dataclasses.dataclass
class _Element:
    tag: str
    line: int
    text: str = ""
    children: list[_Element] = dataclasses.field(default_factory=list)

    def find(self, tag: str) -> _Element | None:
        return next((child for child in self.children if child.tag == tag), None)


def read_annotation(path: str | os.PathLike[str]) -> VocAnnotation:
    """Read one annotation file.

    Raises:
        ValueError: the file is missing, is not XML or is no VOC annotation, or a box is inverted or not a
            number; the message names the file, the line and what to do.
    """
    name = os.fspath(path)
    root = _parse(name)
    if root.tag != "annotation":
        raise _error(name, root, f"the outermost element is <{root.tag}>, expected <annotation>")
    filename = root.find("filename")
    size = root.find("size")
    return VocAnnotation(
        path=name,
        filename=filename.text if filename is not None else "",
        size=_size(name, size) if size is not None else None,
        objects=[_object(name, element) for element in root.children if element.tag == "object"],
    )


def _error(path: str, element: _Element, text: str) -> ValueError:
    return ValueError(f"{path}:{element.line}: {text}; mend the annotation or take its name out of the list")


def _parse(path: str) -> _Element:
    parser = expat.ParserCreate()
    top = _Element("", 0)
    open_elements = [top]

    def start(tag: str, _attributes: dict[str, str]) -> None:
        element = _Element(tag, parser.CurrentLineNumber)
        open_elements[-1].children.append(element)
        open_elements.append(element)

    def end(_tag: str) -> None:
        element = open_elements.pop()
        element.text = element.text.strip()

    def text(data: str) -> None:
        open_elements[-1].text += data

    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, end, text
    parser.buffer_text = True
    try:
        with open(path, "rb") as file:
            parser.ParseFile(file)
    except OSError as error:
        raise ValueError(
            f"{path}: cannot be read ({error.strerror}); restore the annotation or take its name out of the list"
        ) from error
    except expat.ExpatError as error:
        raise ValueError(
            f"{path}:{error.lineno}: not well-formed XML ({expat.ErrorString(error.code)});"
            " mend the annotation or take its name out of the list"
        ) from error
    return top.children[0]


def _child(path: str, element: _Element, tag: str) -> _Element:
    child = element.find(tag)
    if child is None:
        raise _error(path, element, f"<{element.tag}> has no <{tag}>")
    return child


def _number(path: str, element: _Element, tag: str) -> float:
    child = _child(path, element, tag)
    try:
        value = float(child.text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise _error(path, child, f"<{tag}> is {child.text!r}, expected a number")
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
        raise _error(path, box, f"the box ({xmin:g}, {ymin:g}, {xmax:g}, {ymax:g}) ends before it begins")
    difficult = element.find("difficult")
    return VocObject(
        name.text,
        (xmin, ymin, xmax, ymax),
        difficult is not None and difficult.text not in ("", "0"),
        element.line,
    )
