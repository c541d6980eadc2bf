"""torchvision's FasterRCNN, built from our settings and fed our batches, so that only the detectors differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor as resnet_fpn_extractor
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign

from frcnn_fast.model import DetectorConfig


class Padding(GeneralizedRCNNTransform):
    """A transform that leaves images as large as they come, in training and at test."""

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor] | None]:
        return image, target


class TorchvisionDetector(nn.Module):
    """Takes what our detector takes and gives what it gives (lists instead of padded detections).

    Images come resized and scaled; crowd is not used (torchvision knows no difficult objects).
    """

    def __init__(self, model: GeneralizedRCNN) -> None:
        super().__init__()
        self.model = model
        model.transform = Padding(1, 1, image_mean=[0.0] * 3, image_std=[1.0] * 3)

    def forward(
        self,
        images: Tensor,
        image_sizes: Tensor,
        gt_boxes: Tensor | None = None,
        gt_labels: Tensor | None = None,
        gt_counts: Tensor | None = None,
        crowd: Tensor | None = None,
        image_scales: Tensor | None = None,
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Losses in training mode, else a dict of boxes, scores and labels for each image."""
        unpadded = [image[:, :h, :w] for image, (h, w) in zip(images, image_sizes.tolist())]
        if not self.training:
            return self.model(unpadded)
        if gt_boxes is None or gt_labels is None or gt_counts is None:
            raise ValueError("gt_boxes, gt_labels, gt_counts: got None, expected the ground truth (training mode)")
        targets = [
            {"boxes": boxes[:count], "labels": labels[:count]}
            for boxes, labels, count in zip(gt_boxes, gt_labels, gt_counts.tolist())
        ]
        return self.model(unpadded, targets)


class _RoIPool(nn.Module):
    """torchvision's operator, called as MultiScaleRoIAlign is."""

    def __init__(self, size: int, scale: float) -> None:
        super().__init__()
        self.size, self.scale = size, scale

    def forward(self, maps: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        return torchvision.ops.roi_pool(maps["0"], boxes, self.size, self.scale)


def with_settings(
    backbone: nn.Module, num_classes: int, config: DetectorConfig, head: nn.Module, width: int
) -> TorchvisionDetector:
    """On a backbone of one map of 512 channels at stride 16, with these settings; head: of pooled maps, to `width`."""
    levels = len(config.anchor_sizes)
    backbone.out_channels = 512  # type: ignore[assignment]
    detector = TorchvisionDetector(
        FasterRCNN(
            backbone,
            rpn_anchor_generator=AnchorGenerator(config.anchor_sizes, (config.anchor_ratios,) * levels),
            rpn_pre_nms_top_n_train=config.proposals_train[0],
            rpn_post_nms_top_n_train=config.proposals_train[1],
            rpn_pre_nms_top_n_test=config.proposals_test[0],
            rpn_post_nms_top_n_test=config.proposals_test[1],
            rpn_nms_thresh=config.proposal_iou,
            rpn_fg_iou_thresh=config.rpn_positive_iou,
            rpn_bg_iou_thresh=config.rpn_negative_iou,
            rpn_batch_size_per_image=config.rpn_batch_size,
            rpn_positive_fraction=config.rpn_positive_fraction,
            box_roi_pool=MultiScaleRoIAlign(["0"], config.pool_size, config.sampling_ratio),
            box_head=head,
            box_predictor=FastRCNNPredictor(width, num_classes),
            box_score_thresh=config.score_threshold,
            box_nms_thresh=config.detection_iou,
            box_detections_per_img=config.max_detections,
            box_fg_iou_thresh=config.roi_positive_iou,
            box_bg_iou_thresh=config.roi_negative_iou_high,
            box_batch_size_per_image=config.roi_batch_size,
            box_positive_fraction=config.roi_positive_fraction,
        )
    )
    if config.pooling == "roi_pool":
        detector.model.roi_heads.box_roi_pool = _RoIPool(config.pool_size, 1 / 16)
    return detector


def on_squeezenet(
    class_names: Sequence[str], config: DetectorConfig, weights: Mapping[str, Tensor]
) -> TorchvisionDetector:
    """With torchvision's SqueezeNet 1.0 as backbone, these settings and torchvision's own initialisation."""
    backbone = torchvision.models.squeezenet1_0(weights=None).features
    backbone.load_state_dict({name: weights[f"features.{name}"] for name in backbone.state_dict()})
    head = TwoMLPHead(512 * config.pool_size**2, config.head_channels)
    return with_settings(backbone, len(class_names) + 1, config, head, config.head_channels)


def on_vgg16(num_classes: int, config: DetectorConfig) -> TorchvisionDetector:
    """With torchvision's VGG-16, random, as backbone and head, and these settings."""
    network = torchvision.models.vgg16(weights=None)
    head = nn.Sequential(nn.Flatten(), *list(network.classifier)[:-1])
    return with_settings(network.features[:-1], num_classes, config, head, 4096)


def on_resnet50_fpn(num_classes: int, frozen_stages: int) -> TorchvisionDetector:
    """torchvision's R50-FPN with random weights and frozen normalisations, whose statistics are those of noise.

    frozen_stages: the stem, layer1, ...; they are not trained.
    """

    def extractor(norm: type[nn.Module]) -> nn.Module:
        return resnet_fpn_extractor(torchvision.models.resnet50(norm_layer=norm), 5 - frozen_stages)

    measured = extractor(nn.BatchNorm2d)
    for module in measured.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        measured(torch.randn(2, 3, 224, 224))
    backbone = extractor(FrozenBatchNorm2d)
    backbone.load_state_dict(measured.state_dict())
    return TorchvisionDetector(FasterRCNN(backbone, num_classes))
