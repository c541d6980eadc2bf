"""The ops in ten lines: from a network's raw outputs to proposals, their features, and detections.

python docs/examples/ops.py
"""

import torch

from frcnn_fast import ops

image_sizes = [[600, 800]]  # height and width in pixels
grid = ops.AnchorGrids([(ops.generate_anchors((64, 128, 256), (0.5, 1.0, 2.0)), (38, 50), 16)])  # a map of stride 16
objectness, deltas = torch.randn(1, grid.num_anchors), 0.2 * torch.randn(1, grid.num_anchors, 4)  # of your network
found = ops.rpn_proposals(objectness, deltas, grid, image_sizes, pre_nms_top_n=6000, post_nms_top_n=300)
rois = torch.cat([torch.zeros(300, 1), found.boxes[0]], 1)  # (image, x1, y1, x2, y2)
pooled = ops.roi_align(torch.randn(1, 256, 38, 50), rois, 7, 1 / 16, sampling_ratio=2)  # [300, 256, 7, 7] for your head
class_logits, box_deltas = torch.randn(1, 300, 21), torch.randn(1, 300, 84)  # of your head: background and 20 classes
detections = ops.detections(class_logits, box_deltas, found.boxes, found.counts, image_sizes, max_detections=100)
print(f"{grid.num_anchors} anchors, {int(found.counts)} proposals, {int(detections.counts)} detections; the best:")
print(detections.labels[0, 0].item(), detections.scores[0, 0].item(), detections.boxes[0, 0].tolist())
