"""Gradients through the proposals' corners, against finite differences in double precision."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from frcnn_fast import ops
from frcnn_fast.model import build_detector, preset
from frcnn_fast.model.losses import ROI_LOSSES, head_losses
from frcnn_fast.model.through_boxes import ThroughBoxes


def example() -> tuple[Any, ...]:
    """A batch in double precision for a detector of two classes: images, sizes, objects, labels, counts."""
    images = torch.randn(2, 3, 96, 128, dtype=torch.float64)
    sizes = torch.tensor([[96, 128], [90, 120]])
    boxes = torch.tensor(
        [[[10.0, 12, 60, 50], [70, 20, 120, 90]], [[5, 30, 44, 80], [0, 0, 0, 0]]], dtype=torch.float64
    )
    labels, counts = torch.tensor([[1, 2], [2, -1]]), torch.tensor([2, 1])
    return images, sizes, boxes, labels, counts


def double_detector(**changes: Any) -> Any:
    torch.manual_seed(1)
    config = preset(
        "small",
        pooling="prroi_pool",
        head_channels=8,
        roi_batch_size=24,
        proposals_train=(200, 60),
        pool_size=3,
        **changes,
    )
    detector = build_detector(["a", "b"], config).double()
    detector.seed(3)
    with torch.no_grad():
        # Proposals that are not the anchors, and a head whose losses feel where they are.
        detector.rpn.bbox_pred.weight.normal_(std=0.05)
        detector.roi_head.bbox_pred.weight.normal_(std=0.3)
        detector.roi_head.cls_score.weight.normal_(std=0.3)
    return detector


class TestThroughBoxes:
    def parts(self, detector: Any) -> tuple[Any, ...]:
        """The steps of a training forward up to the sampled regions."""
        images, sizes, boxes, labels, counts = example()
        features = [feature.detach() for feature in detector.features(images)]
        rpn = detector.rpn(features, tuple(images.shape[2:]))
        proposals = detector.propose(rpn, sizes)
        sampled = ops.sample_rois(proposals.boxes, proposals.counts, boxes, labels, counts, detector.rng, batch_size=24)
        through = ThroughBoxes(rpn, proposals, sizes, boxes, detector.config.box_weights)
        return features, rpn, sampled, through

    def test_the_values_are_those_of_the_constants(self):
        detector = double_detector()
        _, _, sampled, through = self.parts(detector)
        rois, targets = through(sampled)
        assert torch.equal(rois, sampled.rois)
        torch.testing.assert_close(targets, sampled.targets, rtol=1e-12, atol=1e-12)
        assert (sampled.labels > 0).any()
        assert (sampled.labels == 0).any()

    @pytest.mark.parametrize("changes", [{}, {"pool_levels": (1, 2)}, {"class_agnostic": True}])
    def test_finite_differences_of_the_heads_loss_in_the_deltas(self, changes):
        """With the selection held fixed: the derivative of features and of targets, through decode and clip."""
        detector = double_detector(**changes)
        features, rpn, sampled, through = self.parts(detector)

        def loss(deltas: Tensor) -> Tensor:
            """Of a table [B, A, 4]."""
            levels = zip(deltas.split(rpn.anchors.level_sizes, 1), rpn.deltas, strict=True)
            maps = [rows.reshape(m.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2) for rows, m in levels]
            moved = dataclasses.replace(through, rpn=rpn._replace(deltas=maps))
            rois, targets = moved(sampled)
            logits, box_deltas = detector.roi_head(features, rois, sampled.counts.sum(1))
            return torch.stack(head_losses(logits, box_deltas, sampled.labels, targets, beta=1.0)).sum()

        deltas = rpn.tables()[1].detach().requires_grad_()
        (grad,) = torch.autograd.grad(loss(deltas), deltas)
        image, anchor = grad.abs().sum(-1).nonzero().T.tolist()
        assert len(anchor) > 20  # the sampled proposals, and no other anchor
        assert len(anchor) <= int(sampled.counts.sum())
        step, checked = 1e-6, 0
        with torch.no_grad():
            for b, a in list(zip(image, anchor, strict=True))[::4]:
                for c in range(4):
                    ends = []
                    for sign in (1, -1):
                        moved = deltas.detach().clone()
                        moved[b, a, c] += sign * step
                        ends.append(float(loss(moved)))
                    assert float(grad[b, a, c]) == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-5, abs=1e-8)
                    checked += grad[b, a, c] != 0
        assert checked > 10

    def test_the_rpn_learns_from_the_heads_losses(self):
        detector = double_detector()
        batch = example()

        def grads(**how: Any) -> dict[str, Tensor | None]:
            detector.zero_grad(set_to_none=True)
            detector.seed(3)
            losses = detector(*batch, losses=ROI_LOSSES, **how)
            torch.stack(list(losses.values())).sum().backward()
            return {name: parameter.grad for name, parameter in detector.rpn.named_parameters()} | {
                "losses": torch.stack(list(losses.values())).detach()
            }

        constants, through = grads(), grads(through_boxes=True)
        assert constants["bbox_pred.weight"] is None
        assert through["bbox_pred.weight"] is not None
        assert through["bbox_pred.weight"].abs().sum() > 0
        assert through["cls_logits.weight"] is None  # which boxes are proposals has no derivative
        torch.testing.assert_close(through["losses"], constants["losses"], rtol=1e-12, atol=0)

    def test_boxes_at_the_border_and_images_without_objects(self):
        """No derivative is infinite or NaN where a corner is clipped, a region padded or an image empty."""
        detector = double_detector()
        images, sizes, boxes, labels, _ = example()
        with torch.no_grad():
            detector.rpn.bbox_pred.bias.fill_(3.0)  # far beyond the image
        for more in ((boxes, labels, torch.tensor([2, 0])), (boxes[:, :0], labels[:, :0], torch.tensor([0, 0]))):
            detector.zero_grad(set_to_none=True)
            losses = detector(images, sizes, *more, through_boxes=True)
            torch.stack(list(losses.values())).sum().backward()
            assert all(p.grad is None or p.grad.isfinite().all() for p in detector.parameters())

    def test_another_pooling_is_refused(self):
        detector = build_detector(["a", "b"], preset("small", head_channels=8))
        images, sizes, boxes, labels, counts = example()
        with pytest.raises(ValueError, match="through_boxes: pooling 'roi_align' has no gradient in the boxes"):
            detector(images.float(), sizes, boxes.float(), labels, counts, through_boxes=True)

    def test_regions_of_a_pyramid_come_from_their_level(self):
        head = double_detector().roi_head
        features = [torch.randn(1, 64, 24, 32, dtype=torch.float64), torch.randn(1, 64, 12, 16, dtype=torch.float64)]
        scale, level = head.config.canonical_scale, head.config.canonical_level
        side = scale * 2.0 ** (3 - level)  # from here on a region belongs to stride 8
        rois = torch.tensor([[0, 1.0, 2, 1 + side * 0.9, 2 + side * 0.9], [0, 1, 2, 1 + side * 1.1, 2 + side * 1.1]])
        pooled = head.pool(features, rois.double())
        for row, (feature, stride) in enumerate(zip(features, (4, 8), strict=True)):
            assert torch.equal(pooled[row], ops.prroi_pool(feature, rois[row : row + 1].double(), 3, 1 / stride)[0])
