"""The ONNX nodes of the leaves, written once for both of torch's exporters.

`op(name, *inputs, **attributes)` adds a node of ONNX's standard domain (opset 18) and `op.constant(...)` a tensor;
which exporter stands behind `op` is of no matter here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.onnx import symbolic_helper

from frcnn_fast._extras import require
from frcnn_fast.export.lowering import LOWERED, NAMESPACE
from frcnn_fast.kernels.roi_pool.roi_levels import level_thresholds
from frcnn_fast.ops._operator import stand_ins

OPSET = 18
_LARGEST = torch.finfo(torch.float32).max
_MANY = 2**31 - 1
_OFF_THE_MAP = -1e5  # in pixels: a box there pools zeros
_INT32, _INT64, _FLOAT, _BOOL = 6, 7, 1, 9  # onnx.TensorProto's numbers


class _Script:
    """The nodes of torch.export's programs, by ONNX Script."""

    def __init__(self) -> None:
        self._opset = getattr(require("onnxscript", "onnx"), f"opset{OPSET}")
        self._from_array = require("onnx.numpy_helper", "onnx").from_array

    def __call__(self, name: str, *inputs: Any, outputs: int = 1, **attributes: Any) -> Any:
        return getattr(self._opset, name)(*inputs, **attributes)

    def constant(self, value: Any, dtype: torch.dtype = torch.int64) -> Any:
        return self._opset.Constant(value=self._from_array(torch.tensor(value, dtype=dtype).numpy()))


class _Graph:
    """The nodes of TorchScript's graphs."""

    def __init__(self, graph: Any) -> None:
        self._graph = graph

    def __call__(self, name: str, *inputs: Any, outputs: int = 1, **attributes: Any) -> Any:
        kinds = {int: "i", float: "f", str: "s"}
        typed = {
            f"{key}_{kinds[type(value[0] if isinstance(value, list) else value)]}": value
            for key, value in attributes.items()
        }
        return self._graph.op(name, *inputs, outputs=outputs, **typed)

    def constant(self, value: Any, dtype: torch.dtype = torch.int64) -> Any:
        return self._graph.op("Constant", value_t=torch.tensor(value, dtype=dtype))


def _keep_mask(op: Any, boxes: Any, scores: Any, class_ids: Any, iou_threshold: float, max_output: int) -> Any:
    by_class = op("Unsqueeze", scores, op.constant([1]))  # [B, C, N]; C = 1
    if class_ids is not None:
        _, _, number, _ = op("Unique", op("Reshape", class_ids, op.constant([-1])), outputs=4, sorted=1)
        number = op("Reshape", number, op("Shape", scores))
        count = op("Add", op("ReduceMax", number, keepdims=0), op.constant(1))
        classes = op("Range", op.constant(0), count, op.constant(1))
        same = op("Equal", op("Unsqueeze", number, op.constant([1])), op("Unsqueeze", classes, op.constant([0, 2])))
        by_class = op("Where", same, by_class, op.constant(float("-inf"), torch.float32))
    chosen = op(
        "NonMaxSuppression",
        boxes,
        by_class,
        op.constant([max_output]),
        op.constant([iou_threshold], torch.float32),
        op.constant([-_LARGEST], torch.float32),
    )  # rows (image, class, row of the boxes), in no order that ONNX promises
    image_and_row = op("Gather", chosen, op.constant([0, 2]), axis=1)
    ones = op("Expand", op.constant([1], torch.int32), op("Gather", op("Shape", chosen), op.constant([0]), axis=0))
    nothing = op("Expand", op.constant([0], torch.int32), op("Shape", scores))
    return op("Cast", op("ScatterND", nothing, image_and_row, ones), to=_BOOL)


def _ranked_rows(op: Any, boxes: Any, scores: Any, class_ids: Any, iou_threshold: float) -> Any:
    first = op.constant([0])
    ids = None if class_ids is None else op("Unsqueeze", class_ids, first)
    keep = _keep_mask(op, op("Unsqueeze", boxes, first), op("Unsqueeze", scores, first), ids, iou_threshold, _MANY)
    rows = op("Gather", op("NonZero", keep), op.constant(1), axis=0)
    kept_scores = op("Gather", scores, rows, axis=0)
    _, order = op("TopK", kept_scores, op("Shape", rows), outputs=2, axis=0)
    return op("Gather", rows, order, axis=0)


def _image_and_boxes(op: Any, rois: Any) -> tuple[Any, Any]:
    """Of rows (image, x1, y1, x2, y2): the images int64 [R] and the boxes [R, 4]. Padding and boxes that are not finite
    become boxes off the map of the first image."""
    image = op("Gather", rois, op.constant(0), axis=1)
    boxes = op("Gather", rois, op.constant([1, 2, 3, 4]), axis=1)
    small = op("LessOrEqual", op("Abs", boxes), op.constant(_LARGEST, torch.float32))
    finite = op("ReduceMin", op("Cast", small, to=_INT32), op.constant([1]), keepdims=0)
    exists = op("GreaterOrEqual", image, op.constant(0.0, torch.float32))
    real = op("And", exists, op("Cast", finite, to=_BOOL))
    image = op("Where", real, image, op.constant(0.0, torch.float32))
    real = op("Unsqueeze", real, op.constant([1]))
    boxes = op("Where", real, boxes, op.constant(_OFF_THE_MAP, torch.float32))
    return op("Cast", image, to=_INT64), boxes


def _aligned_pool(op: Any, input: Any, boxes: Any, image: Any, size: tuple[int, int], *scalars: Any) -> Any:
    spatial_scale, sampling_ratio, aligned = scalars
    return op(
        "RoiAlign",
        input,
        boxes,
        image,
        coordinate_transformation_mode="half_pixel" if aligned else "output_half_pixel",
        mode="avg",
        output_height=size[0],
        output_width=size[1],
        sampling_ratio=max(sampling_ratio, 0),
        spatial_scale=float(spatial_scale),
    )


def _roi_align(op: Any, input: Any, rois: Any, height: int, width: int, *scalars: Any) -> Any:
    image, boxes = _image_and_boxes(op, rois)
    return _aligned_pool(op, input, boxes, image, (height, width), *scalars[:-1])  # ONNX knows no layouts


def _roi_pool(
    op: Any, input: Any, rois: Any, height: int, width: int, spatial_scale: float, rounded: bool, with_argmax: bool
) -> Any:
    if not rounded:
        raise NotImplementedError("roi_pool: rounded=False is no ONNX operator")
    if with_argmax:
        raise NotImplementedError("roi_pool: argmax, which training needs, is no ONNX operator; use torch.no_grad()")
    image, boxes = _image_and_boxes(op, rois)
    image = op("Unsqueeze", op("Cast", image, to=_FLOAT), op.constant([1]))
    rows = op("Concat", image, boxes, axis=1)
    pooled = op("MaxRoiPool", input, rows, pooled_shape=[height, width], spatial_scale=float(spatial_scale))
    return pooled, op.constant([], torch.int32)


def _multiscale_roi_align(
    op: Any,
    features: Sequence[Any],
    rois: Any,
    height: int,
    width: int,
    spatial_scales: Sequence[float],
    sampling_ratio: int,
    aligned: bool,
    canonical_scale: float,
    canonical_level: int,
    channels_last: bool,
) -> Any:
    """Every box is pooled from its level alone, then rows are put back in their order."""
    image, boxes = _image_and_boxes(op, rois)
    low, high = (op("Gather", boxes, op.constant(columns), axis=1) for columns in ([0, 1], [2, 3]))
    area = op("ReduceProd", op("Sub", high, low), op.constant([1]), keepdims=0)
    level = op("Cast", op("Mul", area, op.constant(0.0, torch.float32)), to=_INT64)
    for least in level_thresholds(tuple(spatial_scales), canonical_scale, canonical_level):
        above = op("GreaterOrEqual", area, op.constant(least, torch.float32))
        level = op("Add", level, op("Cast", above, to=_INT64))
    pooled, places = [], []
    for number, (feature, scale) in enumerate(zip(features, spatial_scales, strict=True)):
        rows = op("Reshape", op("NonZero", op("Equal", level, op.constant(number))), op.constant([-1]))
        own = [op("Gather", part, rows, axis=0) for part in (boxes, image)]
        pooled.append(_aligned_pool(op, feature, *own, (height, width), scale, sampling_ratio, aligned))
        places.append(rows)
    order = op("Concat", *places, axis=0)
    count = op("Gather", op("Shape", order), op.constant(0), axis=0)
    numbers = op("Range", op.constant(0), count, op.constant(1))
    back = op("ScatterElements", order, order, numbers, axis=0)
    return op("Gather", op("Concat", *pooled, axis=0), back, axis=0)


@dataclass(frozen=True)
class _Leaf:
    """kinds: of the arguments, as torch.onnx.symbolic_helper.parse_args has them; L: a list of tensors. The registered
    ops of this library have a backend besides."""

    name: str
    kinds: str
    nodes: Callable[..., Any]

    @property
    def target(self) -> Any:
        namespace, name = self.name.split("::")
        return getattr(getattr(torch.ops, namespace), name).default

    def for_programs(self) -> Callable[..., Any]:
        def translation(*args: Any) -> Any:
            return self.nodes(_Script(), *args[: len(self.kinds.split())])

        return translation

    def for_graphs(self) -> Callable[..., Any]:
        kinds = self.kinds.split()

        def symbolic(graph: Any, *args: Any) -> Any:
            return self.nodes(_Graph(graph), *map(_parsed, args[: len(kinds)], kinds))

        return symbolic


def _parsed(value: Any, kind: Any) -> Any:
    """What a value of TorchScript's graph stands for."""
    if kind == "L":
        return symbolic_helper._unpack_list(value)
    if kind == "v":
        return None if symbolic_helper._is_none(value) else value
    return symbolic_helper._parse_arg(value, kind)


_LEAVES = (
    _Leaf(f"{NAMESPACE}::keep_mask", "v v v f i", _keep_mask),
    _Leaf(f"{NAMESPACE}::ranked_rows", "v v v f", _ranked_rows),
    _Leaf("frcnn_fast::roi_pool", "v v i i f b b", _roi_pool),
    _Leaf("frcnn_fast::roi_align", "v v i i f i b b", _roi_align),
    _Leaf("frcnn_fast::multiscale_roi_align", "L v i i fs i b f i b", _multiscale_roi_align),
)


@contextlib.contextmanager
def onnx_ops() -> Iterator[dict[Callable[..., Any], Callable[..., Any]]]:
    """Inside the block torch.onnx.export, of either kind, finds ONNX's standard operators for the ops of this library.

        with onnx_ops() as table:
            torch.onnx.export(model, args, "model.onnx", dynamo=True, custom_translation_table=table)
            torch.onnx.export(model, args, "older.onnx", dynamo=False, opset_version=18)  # by TorchScript

    The ops of inference are served: anchors, decoding, encode, box_iou, top_n, the NMS family without soft_nms,
    rpn_proposals, RoIPool, RoIAlign over one or several levels, and detections, in float32. Any other raises
    NotImplementedError when it is traced. Opset 18 or later.
    """
    for leaf in _LEAVES:
        torch.onnx.register_custom_op_symbolic(leaf.name, leaf.for_graphs(), OPSET)
    try:
        with stand_ins(LOWERED):
            yield {leaf.target: leaf.for_programs() for leaf in _LEAVES}
    finally:
        for leaf in _LEAVES:
            torch.onnx.unregister_custom_op_symbolic(leaf.name, OPSET)
