"""Our steps under torchvision's two-stage detectors, without a change of their code."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from frcnn_fast import ops
from frcnn_fast.ops._checks import HALVES, INTEGERS
from frcnn_fast.ops._torch_private import graphs_hold_dynamic_outputs, plain_or_compiled
from frcnn_fast.ops.anchors import MOST_LEVELS, AnchorGrids
from frcnn_fast.patch.core import Library, Patch, are_served


def patch_torchvision() -> Patch:
    """Puts the fast steps under torchvision's detectors, until it is undone.

        with frcnn_fast.patch_torchvision():
            detections = model(images)

        patch = frcnn_fast.patch_torchvision()
        ...
        patch.undo()

    It changes torchvision's modules and classes, so it holds for the whole process: every thread, and detectors built
    before as after. Patches count: torchvision is itself again when all of them are undone, in whatever order; leaving
    the block undoes its patch, by an exception too. Names that other modules imported from torchvision before
    (`from torchvision.ops import nms`: transformers, detectron2, your own) are reached too, and listed in `replaced`;
    what is held otherwise (a default argument, an attribute of an object) stays what it was.

    Replaced are, in training and in evaluation, forward and backward:

    - `nms`, `batched_nms`, `box_iou`, `roi_pool`, `roi_align` of torchvision.ops, by whatever name modules know
      them: so also in `RoIAlign`, Mask R-CNN, Keypoint R-CNN, RetinaNet, SSD, FCOS;
    - `generalized_box_iou`, `distance_box_iou`, `complete_box_iou`, and each one's `_loss`, by whatever name: so also
      the regression loss of FCOS;
    - `sigmoid_focal_loss`, by whatever name: so also the classification loss of RetinaNet and FCOS;
    - making anchors, decoding and `filter_proposals` of RegionProposalNetwork: `ops.rpn_proposals`;
    - `RegionProposalNetwork.assign_targets_to_anchors`: `ops.assign_anchors`, without a matrix of anchors x boxes;
    - `RoIHeads.postprocess_detections`: `ops.detections`;
    - the pooling of MultiScaleRoIAlign: `ops.multiscale_roi_align`.

    Under autocast halves are served as torchvision's operators take them: nms and roi_align (so the pooling, too) in
    float32, the result in the features' type; on a GPU roi_pool as well. The focal loss is computed in float32 from the
    logits on (torchvision rounds their sigmoid to a half). Decoding in halves, step by step, is torchvision's own code
    there. Under torch.compile the ops above are in its graph, whole detectors too. A graph takes nms and batched_nms
    only with torch._dynamo.config.capture_dynamic_output_shape_ops; without it they are torchvision's, and break the
    graph as those do.

    A call that these do not serve runs torchvision's own code: inputs other than plain tensors of one dtype, float32 or
    float64, on a CPU or a GPU (but for autocast, and IoUs and focal losses of float32 with halves); integer boxes and
    other box formats; a method, anchor generator, box coder, matcher or level mapper that is not torchvision's own; a
    proposal network with a score threshold; thresholds and numbers of boxes that are negative; scales that are not
    successive halves; detections that a gradient is to flow through (evaluate under torch.no_grad()), and IoUs of every
    pair that one is to flow through; losses of single boxes or of halves, the complete one with another eps than its
    own, and focal losses of no elements or with a gradient to the targets; everything under torch.export, tracing and
    functorch. A served loss has no second derivative: asked for one, it raises NotImplementedError.
    torch.jit.script compiles torchvision's own code, patched or not. Pickle whole detectors while nothing is patched.

    Indices and labels are torchvision's; floats are within rounding (exp, softmax and sums are rounded otherwise), and
    the same to the bit run after run. By design it differs where torchvision's answer is arbitrary:

    - a box with a NaN score or a non-finite corner is never selected and never matched (torchvision ranks NaN first); a
      RoIPool bin of NaNs gives NaN;
    - a ground-truth box that no anchor overlaps makes no anchor an object (torchvision: every anchor that overlaps no
      box at all);
    - equal scores go by the lower index, where torchvision takes any; proposals of one level by the logit, also where
      sigmoids are equal;
    - the fused steps compare boxes of several levels or classes where they lie; of up to 1,000 boxes (on a GPU 25,000)
      torchvision moves them apart first, which rounds them. An IoU, a score or a region's size within rounding of a
      threshold, or two scores within rounding of each other, can so be decided otherwise.

    Returns:
        The patch, with `undo()` (once is enough; more do nothing) and `replaced`, a list of names; also a context
        manager.

    Raises:
        ImportError: torchvision is not installed, or is of a version that lacks what would be replaced.
        A replaced function raises ValueError for a region of an image that is not there, which torchvision reads, and
        RuntimeError on a GPU that no backend serves.
    """
    return _TORCHVISION.patch()


# What calls have in common

_served = functools.partial(are_served, plain=plain_or_compiled)


def _as_autocast(*tensors: Any) -> tuple[Any, ...]:
    """As torchvision's nms and roi_align take them: under autocast halves become float32."""
    device = tensors[0].device.type if isinstance(tensors[0], Tensor) else ""
    if device not in ("cpu", "cuda") or not torch.is_autocast_enabled(device):
        return tensors
    return tuple(_widened(t) for t in tensors)


def _widened(t: Any) -> Any:
    return t.float() if isinstance(t, Tensor) and t.dtype in HALVES else t


def _fits_a_graph() -> bool:
    """Whether a result of so many rows as the data decides is possible here, as it is everywhere but in most graphs."""
    return not torch.compiler.is_compiling() or graphs_hold_dynamic_outputs()


def _are_boxes(*tensors: Tensor) -> bool:
    return all(t.dim() == 2 and t.shape[1] == 4 for t in tensors)


def _unchanged(value: object, owner: type, *names: str) -> bool:
    """Whether the object has these methods from that class."""
    return all(getattr(type(value), n, None) is getattr(owner, n, None) and n not in vars(value) for n in names)


def _iou_threshold(boxes: Tensor, threshold: float) -> float:
    """The threshold against which our comparison, in the type of the boxes, decides as torchvision's.

    On a CPU it compares an IoU with a float64, so with float32 boxes as with the next float32 below; on a GPU with a
    float32.
    """
    threshold = float(threshold)
    nearest = np.float32(threshold)
    if boxes.is_cuda:
        return float(nearest)
    if boxes.dtype == torch.float64:
        return threshold
    return float(nearest if float(nearest) <= threshold else np.nextafter(nearest, np.float32(-1)))


# Functions


def _nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Any:
    boxes, scores = _as_autocast(boxes, scores)
    if not (
        _served(boxes, scores)
        and _fits_a_graph()
        and _are_boxes(boxes)
        and scores.shape == boxes.shape[:1]
        and iou_threshold >= 0
    ):
        return NotImplemented
    return ops.nms(boxes, scores, _iou_threshold(boxes, iou_threshold))


# Up to so many boxes, batched_nms moves the boxes of each class away from the others', which rounds them, and calls nms
# once: that call is ours. Beyond, it goes class by class.
_MOVED = {"cpu": 1000, "cuda": 25_000}


def _batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Any:
    given = scores
    boxes, scores = _as_autocast(boxes, scores)
    if not (
        _served(boxes, scores)
        and plain_or_compiled((idxs,))
        and _fits_a_graph()
        and _are_boxes(boxes)
        and len(boxes) > _MOVED[boxes.device.type]
        and scores.shape == idxs.shape == boxes.shape[:1]
        and idxs.device == boxes.device
        and idxs.dtype in INTEGERS
        and iou_threshold >= 0
    ):
        return NotImplemented
    keep = ops.batched_nms(boxes, scores, idxs, _iou_threshold(boxes, iou_threshold))
    if given.dtype in HALVES:
        # Most of such scores are equal to others. torchvision sorts what is kept, in the order of the boxes, and its
        # sort is not stable: the same sort gives the same order.
        keep = keep.sort()[0]
        keep = keep[given[keep].sort(descending=True)[1]]
    return keep


def _box_iou(boxes1: Tensor, boxes2: Tensor, fmt: str = "xyxy") -> Any:
    boxes1, boxes2 = _as_float32_pair(boxes1, boxes2)
    if not (fmt == "xyxy" and _served(boxes1, boxes2) and _are_boxes(boxes1, boxes2)):
        return NotImplemented
    if torch.is_grad_enabled() and (boxes1.requires_grad or boxes2.requires_grad):
        return NotImplemented  # torchvision's has second derivatives
    return ops.box_iou(boxes1, boxes2)


def _box_iou_of(kind: str, boxes1: Tensor, boxes2: Tensor, **eps: float) -> Any:
    if not (_served(boxes1, boxes2) and _are_boxes(boxes1, boxes2) and all(e >= 0 for e in eps.values())):
        return NotImplemented
    if torch.is_grad_enabled() and (boxes1.requires_grad or boxes2.requires_grad):
        return NotImplemented  # as of _box_iou
    return getattr(ops, f"{kind}_box_iou")(boxes1, boxes2, **eps)


def _generalized_box_iou(boxes1: Tensor, boxes2: Tensor) -> Any:
    return _box_iou_of("generalized", boxes1, boxes2)


def _distance_box_iou(boxes1: Tensor, boxes2: Tensor, eps: float = 1e-7) -> Any:
    return _box_iou_of("distance", boxes1, boxes2, eps=eps)


def _complete_box_iou(boxes1: Tensor, boxes2: Tensor, eps: float = 1e-7) -> Any:
    return _box_iou_of("complete", boxes1, boxes2, eps=eps)


def _loss_of(kind: str, boxes1: Tensor, boxes2: Tensor, reduction: str, eps: float) -> Any:
    boxes1, boxes2 = _as_float32_pair(boxes1, boxes2)
    if not (
        _served(boxes1, boxes2)
        and _are_boxes(boxes1, boxes2)
        and boxes1.shape == boxes2.shape
        and reduction in ("none", "sum", "mean")
        and eps >= 0
    ):
        return NotImplemented
    return getattr(ops, f"{kind}_box_iou_loss")(boxes1, boxes2, reduction, eps)


def _generalized_loss(boxes1: Tensor, boxes2: Tensor, reduction: str = "none", eps: float = 1e-7) -> Any:
    return _loss_of("generalized", boxes1, boxes2, reduction, eps)


def _distance_loss(boxes1: Tensor, boxes2: Tensor, reduction: str = "none", eps: float = 1e-7) -> Any:
    return _loss_of("distance", boxes1, boxes2, reduction, eps)


def _complete_loss(boxes1: Tensor, boxes2: Tensor, reduction: str = "none", eps: float = 1e-7) -> Any:
    if eps != 1e-7:  # torchvision's takes its own for the distance
        return NotImplemented
    return _loss_of("complete", boxes1, boxes2, reduction, eps)


def _sigmoid_focal_loss(
    inputs: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2, reduction: str = "none"
) -> Any:
    inputs, targets = _as_float32_pair(*_as_autocast(inputs, targets))
    if not (
        _served(inputs, targets)
        and inputs.shape == targets.shape
        and inputs.numel() > 0
        and not (torch.is_grad_enabled() and targets.requires_grad)
        and all(isinstance(number, (int, float)) for number in (alpha, gamma))
        and (0 <= alpha <= 1 or alpha == -1)
        and 0 <= gamma < float("inf")
        and reduction in ("none", "sum", "mean")
    ):
        return NotImplemented
    return ops.sigmoid_focal_loss(inputs, targets, alpha, gamma, reduction)


def _as_float32_pair(a: Any, b: Any) -> tuple[Any, Any]:
    """Halves beside float32, as of a training under autocast, are float32 to torchvision's box_iou."""
    if all(isinstance(t, Tensor) for t in (a, b)) and torch.float32 in (a.dtype, b.dtype):
        return _widened(a), _widened(b)
    return a, b


def _served_rois(input: Tensor, boxes: Tensor | Sequence[Tensor]) -> bool:
    if isinstance(boxes, Tensor):
        return _served(input, boxes) and input.dim() == 4 and boxes.dim() == 2 and boxes.shape[1] == 5
    return (
        isinstance(boxes, (list, tuple))
        and _served(input, *boxes)
        and input.dim() == 4
        and len(boxes) == input.shape[0]
        and _are_boxes(*boxes)
    )


def _as_autocast_pooling(input: Any, boxes: Any) -> tuple[Any, Any]:
    """`_as_autocast` of the arguments. What is pooled goes back to the features' type."""
    if not isinstance(boxes, (list, tuple)):
        maps, boxes = _as_autocast(input, boxes)
        return maps, boxes
    maps, *boxes = _as_autocast(input, *boxes)
    return maps, boxes


# torchvision's results are contiguous, ours are stored as the features are unless asked otherwise.


def _roi_pool(input: Tensor, boxes: Any, output_size: Any, spatial_scale: float = 1.0) -> Any:
    maps, rois = input, boxes
    if isinstance(input, Tensor) and input.is_cuda:  # on a CPU torchvision's roi_pool knows nothing of autocast
        maps, rois = _as_autocast_pooling(input, boxes)
    if not _served_rois(maps, rois):
        return NotImplemented
    return ops.roi_pool(maps, rois, output_size, spatial_scale).contiguous().to(input.dtype)


def _roi_align(
    input: Tensor,
    boxes: Any,
    output_size: Any,
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
) -> Any:
    maps, rois = _as_autocast_pooling(input, boxes)
    if not _served_rois(maps, rois):
        return NotImplemented
    pooled = ops.roi_align(
        maps, rois, output_size, spatial_scale, sampling_ratio, aligned, memory_format=torch.contiguous_format
    )
    return pooled.to(input.dtype)


def _multiscale_roi_align(
    x_filtered: list[Tensor], boxes: list[Tensor], output_size: Any, sampling_ratio: int, scales: Any, mapper: Any
) -> Any:
    from torchvision.ops.poolers import LevelMapper

    if not (isinstance(boxes, (list, tuple)) and 1 < len(x_filtered) <= MOST_LEVELS):  # one level: roi_align
        return NotImplemented
    dtypes = {x.dtype for x in x_filtered}
    dtype = x_filtered[0].dtype
    x_filtered, boxes = list(_as_autocast(*x_filtered)), list(_as_autocast(*boxes))
    if not (
        type(mapper) is LevelMapper
        and len(dtypes) == 1
        and _served(*x_filtered)
        and _served_rois(x_filtered[0], boxes)
        and all(x.dim() == 4 and x.shape[:2] == x_filtered[0].shape[:2] for x in x_filtered)
        and len(scales) == len(x_filtered)
        and list(scales) == [2.0**-k for k in range(mapper.k_min, mapper.k_max + 1)]
        and mapper.eps == 1e-6
        and mapper.s0 > 0
    ):
        return NotImplemented
    pooled = ops.multiscale_roi_align(
        x_filtered,
        boxes,
        output_size,
        scales,
        sampling_ratio,
        canonical_scale=mapper.s0,
        canonical_level=mapper.lvl0,
        memory_format=torch.contiguous_format,
    )
    return pooled.to(dtype)


# RegionProposalNetwork


def _rpn_forward(self: Any, images: Any, features: dict[str, Tensor], targets: Any = None) -> Any:
    from torchvision.models.detection._utils import BoxCoder
    from torchvision.models.detection.rpn import RegionProposalNetwork, concat_box_prediction_layers

    maps = list(features.values())
    if not (
        _served(*maps)
        and _unchanged(self, RegionProposalNetwork, "filter_proposals", "_get_top_n_idx")
        and type(self.box_coder) is BoxCoder
        and getattr(self, "score_thresh", 0.0) <= 0.0
        and min(self.nms_thresh, self.min_size) >= 0
        and min(self.pre_nms_top_n(), self.post_nms_top_n()) > 0
        and not (self.training and targets is None)
    ):
        return NotImplemented
    grids = _anchor_grids(self.anchor_generator, images.tensors, maps)
    if grids is None:
        return NotImplemented
    logits, deltas = self.head(maps)
    if not (
        _served(*logits, *deltas, grids.cells)
        and all(x.dim() == 4 and len(x) == len(images.image_sizes) for x in (*logits, *deltas))
        and [level[0].numel() for level in logits] == grids.level_sizes
        and all(d.shape == (x.shape[0], 4 * x.shape[1], *x.shape[2:]) for x, d in zip(logits, deltas, strict=True))
    ):
        return _from_tables(self, images, maps, logits, deltas, targets)
    boxes = _proposals(self, logits, deltas, grids, images.image_sizes)
    if not self.training:
        return boxes, {}
    losses = _rpn_losses(self, logits, deltas, grids, targets)
    if losses is NotImplemented:
        tables = concat_box_prediction_layers(logits, deltas)
        losses = _losses_from_tables(self, images, maps, tables[0], tables[1], targets)
    return boxes, dict(zip(("loss_objectness", "loss_rpn_box_reg"), losses))


def _from_tables(self: Any, images: Any, maps: list[Tensor], logits: Any, deltas: Any, targets: Any) -> Any:
    """What torchvision does from its head's outputs on."""
    from torchvision.models.detection.rpn import concat_box_prediction_layers

    level_sizes = [level[0].numel() for level in logits]
    logits, deltas = concat_box_prediction_layers(logits, deltas)
    anchors = self.anchor_generator(images, maps)
    decoded = self.box_coder.decode(deltas.detach(), anchors).view(len(anchors), -1, 4)
    boxes = self.filter_proposals(decoded, logits, images.image_sizes, level_sizes)[0]
    if not self.training:
        return boxes, {}
    losses = _losses_from_tables(self, images, maps, logits, deltas, targets)
    return boxes, dict(zip(("loss_objectness", "loss_rpn_box_reg"), losses))


def _losses_from_tables(self: Any, images: Any, maps: Any, logits: Tensor, deltas: Tensor, targets: Any) -> Any:
    anchors = self.anchor_generator(images, maps)
    labels, matched = self.assign_targets_to_anchors(anchors, targets)
    return self.compute_loss(logits, deltas, labels, self.box_coder.encode(matched, anchors))


def _rpn_losses(self: Any, logits: list[Tensor], deltas: list[Tensor], grids: AnchorGrids, targets: Any) -> Any:
    """compute_loss of the anchors that torchvision's sampler draws, and of no others: no table is made."""
    from torchvision.models.detection.rpn import RegionProposalNetwork

    gt_boxes = [target["boxes"] for target in targets]
    if not (
        not torch.compiler.is_compiling()
        and _unchanged(self, RegionProposalNetwork, "assign_targets_to_anchors", "compute_loss")
        and len(gt_boxes) == len(logits[0])
        and all(_served(grids.cells, gt) and _are_boxes(gt) and len(gt) for gt in gt_boxes)
        and _matches_as_torchvision(self)
    ):
        return NotImplemented
    found = [_assigned(self, grids, gt) for gt in gt_boxes]
    drawn = self.fg_bg_sampler([labels for labels, _ in found])
    objects, others = ([torch.where(mask)[0] for mask in masks] for masks in drawn)
    rows = torch.nn.utils.rnn.pad_sequence(
        [torch.cat(pair) for pair in zip(objects, others, strict=True)], batch_first=True, padding_value=-1
    )
    # torchvision's order: the objects of all images, then what is background.
    first = [len(o) for o in objects]
    whole = [len(o) + len(n) for o, n in zip(objects, others, strict=True)]
    scores = ops.gather_anchors(logits, rows)[..., 0]
    scores = torch.cat([*(s[:k] for s, k in zip(scores, first)), *(s[k:n] for s, k, n in zip(scores, first, whole))])
    wanted = torch.zeros_like(scores)
    wanted[: sum(first)] = 1.0
    shifts = ops.gather_anchors(deltas, rows[:, : max(first)], 4)
    shifts = torch.cat([d[:k] for d, k in zip(shifts, first)])
    matched = torch.cat([gt[index[o]] for gt, (_, index), o in zip(gt_boxes, found, objects)])
    aims = self.box_coder.encode_single(matched, grids.at(torch.cat(objects)))
    boxes = torch.nn.functional.smooth_l1_loss(shifts, aims, beta=1 / 9, reduction="sum") / scores.numel()
    return torch.nn.functional.binary_cross_entropy_with_logits(scores, wanted), boxes


def _anchor_grids(generator: Any, images: Tensor, maps: list[Tensor]) -> AnchorGrids | None:
    """The anchors of torchvision's own generator; None for another one."""
    from torchvision.models.detection.anchor_utils import AnchorGenerator

    sizes = [tuple(m.shape[-2:]) for m in maps]
    if not (
        _unchanged(generator, AnchorGenerator, "forward", "grid_anchors", "set_cell_anchors")
        and not (generator._forward_hooks or generator._forward_pre_hooks)
        and len(generator.cell_anchors) == len(maps) <= MOST_LEVELS
        and all(0 < h <= images.shape[-2] and 0 < w <= images.shape[-1] for h, w in sizes)
    ):
        return None
    strides = [(images.shape[-2] // h, images.shape[-1] // w) for h, w in sizes]
    return AnchorGrids([(cells.to(maps[0]), *level) for cells, *level in zip(generator.cell_anchors, sizes, strides)])


def _proposals(
    rpn: Any, logits: list[Tensor], deltas: list[Tensor], grids: AnchorGrids, image_sizes: Any
) -> list[Tensor]:
    """The boxes of each image."""
    before, after = rpn.pre_nms_top_n(), rpn.post_nms_top_n()
    levels = len(grids.level_sizes)

    def proposed(most: int) -> ops.Proposals:
        return ops.rpn_proposals(
            logits,
            deltas,
            grids,
            image_sizes,
            pre_nms_top_n=before,
            post_nms_top_n=most,
            iou_threshold=_iou_threshold(deltas[0], rpn.nms_thresh),
            min_size=rpn.min_size,
            filter_order="after_top_n",
            weights=rpn.box_coder.weights,
            clamp=rpn.box_coder.bbox_xform_clip,
        )

    if levels == 1:
        boxes, _, _, counts = proposed(after)
        return [rows[:count] for rows, count in zip(boxes, counts.tolist())]
    # torchvision takes the best of a level by the logit, but ranks those of several levels by its sigmoid, where other
    # logits tie; it sorts the ties as below, and a sampler draws by position. Where the last that is wanted ties with
    # the next, all are needed.
    everything = sum(min(before, size) for size in grids.level_sizes)
    compiling = torch.compiler.is_compiling()  # then nothing may depend on the data
    boxes, kept, indices, counts = proposed(everything if compiling else min(after + 1, everything))
    scores = kept.sigmoid()
    if not compiling and after < everything and bool((scores[:, after - 1] == scores[:, after])[counts > after].any()):
        boxes, kept, indices, counts = proposed(everything)
        scores = kept.sigmoid()
    found = []
    stable = everything <= _MOVED[boxes.device.type]
    for rows, own, anchors, count in zip(boxes, scores, indices, counts.tolist()):
        own, rows = own[:count], rows[:count]
        if compiling or not bool((own[1:] < own[:-1]).all()):
            ends = torch.tensor(grids.level_sizes, device=indices.device).cumsum(0)
            order = torch.bucketize(anchors[:count], ends, right=True).argsort(stable=True)
            order = order[own[order].argsort(stable=stable, descending=True)]
            rows = rows[order]
        found.append(rows[:after])
    return found


def _matches_as_torchvision(rpn: Any) -> bool:
    from torchvision.models.detection._utils import Matcher
    from torchvision.ops.boxes import box_iou

    matcher = rpn.proposal_matcher
    return (
        type(matcher) is Matcher
        and inspect.unwrap(rpn.box_similarity) is inspect.unwrap(box_iou)
        and 0 <= matcher.low_threshold <= matcher.high_threshold > 0
    )


def _assigned(rpn: Any, anchors: Tensor | AnchorGrids, gt_boxes: Tensor) -> tuple[Tensor, Tensor]:
    """An image's labels [A], int8, and for each anchor the row of its object, the first where there is none."""
    matcher = rpn.proposal_matcher
    labels, index = ops.assign_anchors(
        anchors,
        gt_boxes[None],
        torch.full((1,), len(gt_boxes), device=gt_boxes.device),
        positive_iou=matcher.high_threshold,
        negative_iou=matcher.low_threshold,
        low_quality=matcher.allow_low_quality_matches,
    )
    return labels[0], index[0].clamp(min=0)


def _assign_targets_to_anchors(self: Any, anchors: list[Tensor], targets: list[dict[str, Tensor]]) -> Any:
    gt_boxes = [target["boxes"] for target in targets]
    if len(anchors) == len(gt_boxes):
        anchors = [_as_float32_pair(a, gt)[0] for a, gt in zip(anchors, gt_boxes)]
    if not (
        _matches_as_torchvision(self)
        and len(anchors) == len(gt_boxes)
        and all(_served(a, gt) and _are_boxes(a) and len(a) for a, gt in zip(anchors, gt_boxes))
        and all(_are_boxes(gt) for gt in gt_boxes if gt.numel())
    ):
        return NotImplemented
    labels, matched = [], []
    for a, gt in zip(anchors, gt_boxes):
        if not gt.numel():
            labels.append(a.new_zeros(len(a), dtype=torch.float32))
            matched.append(a.new_zeros(a.shape, dtype=torch.float32))
            continue
        label, index = _assigned(self, a, gt)
        labels.append(label.float())
        matched.append(gt[index])
    return labels, matched


# RoIHeads


def _postprocess_detections(
    self: Any, class_logits: Tensor, box_regression: Tensor, proposals: list[Tensor], image_shapes: Any
) -> Any:
    from torchvision.models.detection._utils import BoxCoder

    lengths = [len(p) for p in proposals]
    if not (
        type(self.box_coder) is BoxCoder
        and _served(class_logits, box_regression, *proposals)
        and not (torch.is_grad_enabled() and (class_logits.requires_grad or box_regression.requires_grad))
        and _are_boxes(*proposals)
        and class_logits.dim() == 2
        and class_logits.shape[0] == sum(lengths)
        and class_logits.shape[1] > 0
        and box_regression.shape == (sum(lengths), 4 * class_logits.shape[1])
        and len(image_shapes) == len(proposals) > 0
        and min(self.score_thresh, self.nms_thresh, self.detections_per_img) >= 0
    ):
        return NotImplemented

    def padded(rows: Sequence[Tensor]) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)

    boxes, scores, labels, _, counts = ops.detections(
        padded(class_logits.split(lengths)),
        padded(box_regression.split(lengths)),
        padded(proposals),
        torch.tensor(lengths, device=class_logits.device),
        image_shapes,
        score_threshold=self.score_thresh,
        iou_threshold=_iou_threshold(class_logits, self.nms_thresh),
        max_detections=self.detections_per_img,
        min_size=1e-2,  # torchvision's, a constant
        weights=self.box_coder.weights,
        clamp=self.box_coder.bbox_xform_clip,
    )
    return tuple([rows[:count] for rows, count in zip(of, counts.tolist())] for of in (boxes, scores, labels))


_INSTEAD_OF: dict[str, Callable[..., Any]] = {
    "ops:nms": _nms,
    "ops:batched_nms": _batched_nms,
    "ops:box_iou": _box_iou,
    "ops:generalized_box_iou": _generalized_box_iou,
    "ops:distance_box_iou": _distance_box_iou,
    "ops:complete_box_iou": _complete_box_iou,
    "ops:generalized_box_iou_loss": _generalized_loss,
    "ops:distance_box_iou_loss": _distance_loss,
    "ops:complete_box_iou_loss": _complete_loss,
    "ops:sigmoid_focal_loss": _sigmoid_focal_loss,
    "ops:roi_pool": _roi_pool,
    "ops:roi_align": _roi_align,
    "ops.poolers:_multiscale_roi_align": _multiscale_roi_align,
    "models.detection.rpn:RegionProposalNetwork:forward": _rpn_forward,
    "models.detection.rpn:RegionProposalNetwork:assign_targets_to_anchors": _assign_targets_to_anchors,
    "models.detection.roi_heads:RoIHeads:postprocess_detections": _postprocess_detections,
}

_TORCHVISION = Library("torchvision", _INSTEAD_OF)
