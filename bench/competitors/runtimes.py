"""OpenVINO, ONNX Runtime and OpenCV on single ops: their own operator, a model of one node, compiled for the processor.

Each gets contiguous arrays, all threads, and what it must be told; what it returns is left where it lies. Suppression,
RoIPool and RoIAlign answer as ours do. OpenVINO's Proposal makes Caffe's anchors, half a stride further, and counts a
box's last pixel.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.case import Call, Competitor
from bench.workloads import RATIOS, Shape, head_maps

try:
    import openvino
    from openvino import opset13

    openvino_missing = ""
except ImportError as error:
    openvino_missing = f"OpenVINO: {error}"
try:
    import onnx
    import onnxruntime

    onnxruntime_missing = ""
except ImportError as error:
    onnxruntime_missing = f"ONNX Runtime: {error}"
try:
    import cv2

    opencv_missing = "" if hasattr(cv2, "dnn") else "OpenCV: this one lacks its module dnn"
except ImportError as error:
    opencv_missing = f"OpenCV: {error}"

OPENVINO, ONNXRUNTIME, OPENCV = "OpenVINO", "ONNX Runtime", "OpenCV"


def nms(boxes: Tensor, scores: Tensor, threshold: float) -> dict[str, Competitor]:
    """The kept boxes by descending score: rows (image, class, index), of OpenCV the indices alone."""
    N = len(boxes)
    corners, ranked = boxes.numpy()[None], scores.numpy()[None, None]
    found = {}
    if not openvino_missing:

        def node(corners: Any, ranked: Any) -> Any:
            settings = {"box_encoding": "corner", "sort_result_descending": True, "output_type": "i64"}
            # The third output is the number of rows that are filled.
            most, least = (opset13.constant(np.array(value)) for value in (N, -np.float32(np.inf)))
            limit = opset13.constant(np.float32(threshold))
            return opset13.non_max_suppression(corners, ranked, most, limit, least, **settings).outputs()

        found[OPENVINO] = _openvino(node, corners, ranked)
    if not onnxruntime_missing:
        constants = {"most": np.array([N]), "threshold": np.array([threshold], np.float32)}
        found[ONNXRUNTIME] = _onnxruntime(
            "NonMaxSuppression", {"boxes": corners, "scores": ranked}, constants, np.int64
        )
    if not opencv_missing:
        sides = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1).double().numpy()
        positive = np.empty(N, np.float32)  # it takes no others: the same order in numbers from 1
        positive[scores.argsort(descending=True, stable=True).numpy()] = np.arange(N, 0, -1)
        found[OPENCV] = _competitor(lambda: cv2.dnn.NMSBoxes(sides, positive, 0.0, threshold))
    return found


def proposals(
    shape: Shape, logits: Tensor, deltas: Tensor, before: int, after: int, threshold: float
) -> dict[str, Competitor]:
    """Of one map: anchors, decoding, ranking, suppression."""
    if openvino_missing or len(shape.strides) != 1:
        return {}
    (objectness,), (maps,) = head_maps(shape, logits.sigmoid()), head_maps(shape, deltas)
    probabilities = torch.cat([1 - objectness, objectness], 1)
    stride = shape.strides[0]
    counts = {"base_size": stride, "pre_nms_topn": before, "post_nms_topn": after, "feat_stride": stride, "min_size": 1}
    settings = {
        **{name: np.uint32(count) for name, count in counts.items()},
        "nms_thresh": np.float32(threshold),
        "ratio": np.array(RATIOS, np.float32),
        "scale": np.array([size / stride for size in shape.sizes[0]], np.float32),
    }

    def node(probabilities: Any, maps: Any) -> Any:
        image = opset13.constant(np.array([shape.height, shape.width, 1.0], np.float32))
        return opset13.proposal(probabilities, maps, image, settings).outputs()

    return {OPENVINO: _openvino(node, probabilities.numpy(), maps.numpy())}


def pooled(op: str, features: Tensor, rois: Tensor, bins: int, scale: float) -> dict[str, Competitor]:
    """roi_pool, or roi_align with two samples a side of a bin."""
    maps, rows = features.contiguous().numpy(), rois.numpy()
    image, boxes = rois[:, 0].long(), rois[:, 1:].contiguous().numpy()
    found = {}
    if not openvino_missing:

        def pool(maps: Any, rows: Any) -> Any:
            return opset13.roi_pooling(maps, rows, [bins, bins], scale, "max").outputs()

        def align(maps: Any, boxes: Any, image: Any) -> Any:
            return opset13.roi_align(maps, boxes, image, bins, bins, 2, scale, "avg", "asymmetric").outputs()

        inputs = (maps, rows) if op == "roi_pool" else (maps, boxes, image.int().numpy())
        found[OPENVINO] = _openvino(pool if op == "roi_pool" else align, *inputs)
    if not onnxruntime_missing:
        if op == "roi_pool":
            named = {"x": maps, "rois": rows}
            size = {"pooled_shape": [bins, bins]}
            found[ONNXRUNTIME] = _onnxruntime("MaxRoiPool", named, {}, np.float32, spatial_scale=scale, **size)
        else:
            named = {"x": maps, "rois": boxes, "image": image.numpy()}
            settings: dict[str, Any] = {"output_height": bins, "output_width": bins, "sampling_ratio": 2, "mode": "avg"}
            settings["coordinate_transformation_mode"] = "output_half_pixel"  # the name of what is not shifted
            found[ONNXRUNTIME] = _onnxruntime("RoiAlign", named, {}, np.float32, spatial_scale=scale, **settings)
    return found


def missing() -> list[str]:
    """Which of them are not installed, each with the reason."""
    return [reason for reason in (openvino_missing, onnxruntime_missing, opencv_missing) if reason]


def versions() -> dict[str, str | None]:
    """Of those that have no other use in the benchmark."""
    return {
        "openvino": None if openvino_missing else openvino.__version__,
        "onnxruntime": None if onnxruntime_missing else onnxruntime.__version__,
    }


def _competitor(call: Call) -> Competitor:
    # Their threads are their own, and as many as there are cores.
    return Competitor(call, one_setting=True)


def _openvino(node: Callable[..., Sequence[Any]], *arrays: np.ndarray) -> Competitor:
    parameters = [opset13.parameter(array.shape, array.dtype) for array in arrays]
    model = openvino.Model(list(node(*parameters)), parameters)
    # On some processors its own choice is bfloat16.
    settings = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()
    kept = [np.ascontiguousarray(array) for array in arrays]  # the request does not hold them
    for place, array in enumerate(kept):
        request.set_input_tensor(place, openvino.Tensor(array, shared_memory=True))

    def call() -> list[np.ndarray]:
        assert kept
        request.infer()
        return [output.data for output in request.output_tensors]

    return _competitor(call)


@functools.cache
def _session_options() -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = os.cpu_count() or 1
    # Threads that spin between calls take the cores of whoever is measured next.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _onnxruntime(
    kind: str, inputs: dict[str, np.ndarray], constants: dict[str, np.ndarray], output: type, **settings: Any
) -> Competitor:
    def described(name: str, array: np.ndarray) -> Any:
        return onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)

    node = onnx.helper.make_node(kind, [*inputs, *constants], ["out"], **settings)
    out = onnx.helper.make_tensor_value_info("out", onnx.helper.np_dtype_to_tensor_dtype(np.dtype(output)), None)
    initial = [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = onnx.helper.make_graph([node], kind, [described(*pair) for pair in inputs.items()], [out], initial)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    providers = ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(model.SerializeToString(), _session_options(), providers=providers)
    return _competitor(lambda: session.run(None, inputs))
