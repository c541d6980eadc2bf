"""Faster R-CNN: backbone, region proposal network and detection head, composed of `frcnn_fast.ops`.

Every tensor has a fixed shape with counts beside it, in training and at test, and nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from frcnn_fast import ops
from frcnn_fast._names import checked_class_names
from frcnn_fast.model.config import DetectorConfig
from frcnn_fast.model.head import RoIHead, build_head
from frcnn_fast.model.losses import ROI_LOSSES, RPN_LOSSES, head_losses, rpn_losses
from frcnn_fast.model.protocol import backbone_shape, feature_maps
from frcnn_fast.model.rpn import RegionProposalNetwork, RpnOutput
from frcnn_fast.model.through_boxes import ThroughBoxes
from frcnn_fast.ops._torch_private import register_results


class Detections(NamedTuple):
    """Padded detections of B images, best first; D = config.max_detections."""

    boxes: Tensor  # [B, D, 4] x1, y1, x2, y2 in pixels of the network's input, 0 in padded rows
    scores: Tensor  # [B, D]
    labels: Tensor  # int64 [B, D], 1..K, -1 in padded rows
    counts: Tensor  # int64 [B]

    def to_list(self) -> list[dict[str, Tensor]]:
        """One dict of boxes, scores and labels per image without the padding. Waits for the device."""
        return [
            {"boxes": boxes[:count], "scores": scores[:count], "labels": labels[:count]}
            for boxes, scores, labels, count in zip(
                self.boxes, self.scores, self.labels, self.counts.tolist(), strict=True
            )
        ]


register_results(Detections)


class FasterRCNN(nn.Module):
    """A two-stage detector (Ren, He, Girshick, Sun), in three parts:

    - `backbone`: images to feature maps (`feature_maps`);
    - `rpn`: maps to an objectness and a box at every anchor, of which `propose` keeps the best;
    - `roi_head`: the maps inside each proposal to a class and a box, of which `detect` keeps the best.

    Args:
        backbone: any module with `out_channels` and `strides` (see `frcnn_fast.model.Backbone`).
        num_classes: classes including the background, K + 1.
        config: settings; the defaults are the paper's.
        head: module from pooled features [R, C, pool, pool] to [R, head.out_features]; default: what config.head
            names. `flattens = True` on it says that it begins by flattening them.
        class_names: label k is class_names[k - 1]; default: the label itself.

    In training mode `forward` returns the four losses, at test `Detections`. `rng` (int64 [2]: seed, step) drives the
    random samples; its step advances with every training forward. `forward` takes proposals of any source in the place
    of the RPN's: so the head alone is a Fast R-CNN.
    """

    rng: Tensor
    mean_over_ranks: Callable[[Tensor], Tensor] | None = None  # see `head_losses`

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        config: DetectorConfig | None = None,
        head: nn.Module | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes: got {num_classes}, expected at least 2 (the background counts)")
        if class_names is not None:
            class_names = checked_class_names(class_names)
        if class_names is not None and len(class_names) != num_classes - 1:
            raise ValueError(
                f"class_names: got {len(class_names)} names, expected {num_classes - 1}, all classes but the background"
            )
        self.class_names = [str(name) for name in class_names or range(1, num_classes)]
        self.config = config = config or DetectorConfig()
        self.num_classes = num_classes
        self.backbone = backbone
        self.shape = shape = backbone_shape(backbone)
        if head is None:
            head = build_head(backbone, shape.channels, config)
        self.rpn = RegionProposalNetwork(shape.channels, shape.rpn_strides, config)
        self.roi_head = RoIHead(head, shape, num_classes, config)
        self.register_buffer("rng", torch.zeros(2, dtype=torch.int64), persistent=False)
        # Convolutions are faster on the processor with the channels last, and no slower on a GPU.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def seed(self, seed: int) -> None:
        """Start the random samples anew from `seed`."""
        self.rng.copy_(torch.tensor([seed, 0]))

    def forward(
        self,
        images: Tensor,
        image_sizes: Tensor,
        gt_boxes: Tensor | None = None,
        gt_labels: Tensor | None = None,
        gt_counts: Tensor | None = None,
        crowd: Tensor | None = None,
        image_scales: Tensor | None = None,
        *,
        proposals: Tensor | None = None,
        proposal_counts: Tensor | None = None,
        losses: Collection[str] = RPN_LOSSES + ROI_LOSSES,
        through_boxes: bool = False,
    ) -> dict[str, Tensor] | Detections:
        """Losses (training mode, ground truth needed) or detections.

        Args:
            images: float [B, 3, H, W], preprocessed, zero outside each image.
            image_sizes: [B, 2], height and width of each image inside `images`.
            gt_boxes: [B, G, 4] in pixels of `images`; gt_labels: int64 [B, G], 1..K; gt_counts: int64 [B].
            crowd: bool [B, G], objects that are no positives and whose surroundings are ignored.
            image_scales: [B], size in `images` per size in the original image (for config.min_size).
            proposals: [B, N, 4] in pixels of `images`; proposal_counts: int64 [B]. Default: what the RPN proposes.
            losses: those wanted, by name; a part of the detector that none of them needs does not run.
            through_boxes: the head's losses have gradients in the RPN's deltas too, through the corners of its
                proposals; config.pooling must be "prroi_pool". By default proposals are constants.
        """
        if images.dim() != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise ValueError(
                f"images: got {images.dtype} with shape {tuple(images.shape)}, expected floats [B, 3, H, W] as "
                "frcnn_fast.data.Collate makes them"
            )
        if min(images.shape) == 0:
            raise ValueError(f"images: got shape {tuple(images.shape)}, expected at least one pixel")
        if (proposals is None) != (proposal_counts is None):
            raise ValueError("proposals, proposal_counts: got one without the other, expected both or neither")
        if not self.training:
            self._check_whole(proposals)
        features, size = self.features(images), (images.shape[2], images.shape[3])
        if not self.training:
            if proposals is None or proposal_counts is None:
                proposals, _, _, proposal_counts = self.propose(self.rpn(features, size), image_sizes, image_scales)
            return self.detect(features, proposals, proposal_counts, image_sizes)
        if gt_boxes is None or gt_labels is None or gt_counts is None:
            raise ValueError("gt_boxes, gt_labels, gt_counts: got None, expected the ground truth (training mode)")
        found: dict[str, Tensor] = {}
        for_rpn, for_head = (not set(names).isdisjoint(losses) for names in (RPN_LOSSES, ROI_LOSSES))
        rpn = self.rpn(features, size) if for_rpn or proposals is None else None
        if for_rpn and rpn is not None:
            found |= self.rpn_loss(rpn, gt_boxes, gt_counts, crowd, image_sizes)
        if for_head:
            through = None
            if proposals is None or proposal_counts is None:
                assert rpn is not None
                proposed = self.propose(rpn, image_sizes, image_scales)
                proposals, proposal_counts = proposed.boxes, proposed.counts
                if through_boxes:
                    through = self._through(rpn, proposed, image_sizes, gt_boxes)
            truth = gt_boxes, gt_labels, gt_counts, crowd
            found |= self.head_loss(features, proposals, proposal_counts, *truth, through)
        self.rng[1] += 1
        return {name: found[name] for name in losses}

    def _through(self, rpn: RpnOutput, proposed: ops.Proposals, image_sizes: Tensor, gt_boxes: Tensor) -> ThroughBoxes:
        if self.config.pooling != "prroi_pool":
            raise ValueError(
                f"through_boxes: pooling {self.config.pooling!r} has no gradient in the boxes, expected 'prroi_pool'"
            )
        return ThroughBoxes(rpn, proposed, image_sizes, gt_boxes, self.config.box_weights)

    def _check_whole(self, proposals: Tensor | None) -> None:
        """Half a detector detects nothing: its other half was never trained."""
        if self.config.parts == "rpn":
            raise ValueError("this detector has no trained head (scheme rpn-only): it proposes, but does not detect")
        if self.config.parts == "roi_head" and proposals is None:
            raise ValueError(
                "proposals: got None, but this detector was trained on given proposals (scheme fast-rcnn) and has no "
                "trained RPN: pass them, as `--proposals` does"
            )

    def features(self, images: Tensor) -> tuple[Tensor, ...]:
        """The maps of images [B, 3, H, W], as both networks read them."""
        maps = feature_maps(self.backbone, images.contiguous(memory_format=torch.channels_last), self.shape)
        if self.config.feature_scale != 1.0:
            maps = tuple(feature * self.config.feature_scale for feature in maps)
        return maps

    def propose(
        self,
        rpn: RpnOutput,
        image_sizes: Tensor,
        image_scales: Tensor | None = None,
        most: tuple[int, int] | None = None,
    ) -> ops.Proposals:
        """Proposals as constants: boxes [B, P, 4], logits [B, P], anchor indices [B, P], counts [B].

        most: candidates before NMS and proposals after it; default: the config's, of training or test.
        """
        config = self.config
        before, after = most or (config.proposals_train if self.training else config.proposals_test)
        found = ops.rpn_proposals(
            rpn.logits,
            rpn.deltas,
            rpn.anchors,
            image_sizes,
            pre_nms_top_n=before,
            post_nms_top_n=after,
            iou_threshold=config.proposal_iou,
            min_size=config.min_size,
            image_scales=image_scales,
            filter_order=config.filter_order,
        )
        if config.proposal_score_threshold > 0:
            # A box of a lower score never drops one of a higher: what is left out may have taken part.
            enough = found.scores.sigmoid() >= config.proposal_score_threshold
            counts = torch.minimum(found.counts, enough.sum(1))
            rows = torch.arange(after, device=counts.device) < counts[:, None]
            return ops.Proposals(
                found.boxes.where(rows[..., None], 0.0),
                found.scores.where(rows, 0.0),
                found.indices.where(rows, -1),
                counts,
            )
        return found

    def rpn_loss(
        self, rpn: RpnOutput, gt_boxes: Tensor, gt_counts: Tensor, crowd: Tensor | None, image_sizes: Tensor
    ) -> dict[str, Tensor]:
        config = self.config
        indices, labels, targets, _, _ = ops.rpn_targets(
            rpn.anchors,
            gt_boxes,
            gt_counts,
            self.rng,
            image_sizes=image_sizes if config.ignore_straddling else None,
            crowd=crowd,
            positive_iou=config.rpn_positive_iou,
            negative_iou=config.rpn_negative_iou,
            batch_size=config.rpn_batch_size,
            positive_fraction=config.rpn_positive_fraction,
        )
        objectness, boxes = rpn_losses(
            rpn.logits,
            rpn.deltas,
            indices,
            labels,
            targets,
            n_cls=config.n_cls or config.rpn_batch_size,
            n_reg=config.n_reg or rpn.locations,
            weight=config.rpn_lambda,
            beta=config.rpn_beta,
        )
        return dict(zip(RPN_LOSSES, (objectness, boxes), strict=True))

    def head_loss(
        self,
        features: tuple[Tensor, ...],
        proposals: Tensor,
        counts: Tensor,
        gt_boxes: Tensor,
        gt_labels: Tensor,
        gt_counts: Tensor,
        crowd: Tensor | None,
        through: ThroughBoxes | None = None,
    ) -> dict[str, Tensor]:
        """through: what makes the sampled regions functions of the RPN's deltas; None leaves them constants."""
        config = self.config
        sampled = ops.sample_rois(
            proposals,
            counts,
            gt_boxes,
            gt_labels,
            gt_counts,
            self.rng,
            batch_size=config.roi_batch_size,
            positive_fraction=config.roi_positive_fraction,
            positive_iou=config.roi_positive_iou,
            negative_iou_high=config.roi_negative_iou_high,
            negative_iou_low=config.roi_negative_iou_low,
            crowd=crowd,
            weights=config.box_weights,
        )
        rois, targets = through(sampled) if through else (sampled.rois, sampled.targets)
        logits, deltas = self.roi_head(features, rois, sampled.counts.sum(1))
        classes, boxes = head_losses(
            logits, deltas, sampled.labels, targets, beta=config.roi_beta, mean_over_ranks=self.mean_over_ranks
        )
        return dict(zip(ROI_LOSSES, (classes, boxes), strict=True))

    def detect(
        self, features: tuple[Tensor, ...], proposals: Tensor, counts: Tensor, image_sizes: Tensor
    ) -> Detections:
        """Final detections of given proposals (any source): boxes [B, N, 4], counts [B]."""
        logits, deltas = self.roi_head(features, proposals, counts)
        found = self.finish(logits, deltas, proposals, counts, image_sizes)
        return Detections(found.boxes, found.scores, found.labels, found.counts)

    def finish(
        self, logits: Tensor, deltas: Tensor, proposals: Tensor, counts: Tensor, image_sizes: Tensor
    ) -> ops.Detections:
        """What the head says of the proposals -> detections, each with the row of its proposal."""
        config = self.config
        return ops.detections(
            logits,
            deltas,
            proposals,
            counts,
            image_sizes,
            score_threshold=config.score_threshold,
            iou_threshold=config.detection_iou,
            max_detections=config.max_detections,
            min_size=config.detection_min_size,
            weights=config.box_weights,
        )
