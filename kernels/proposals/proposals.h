// The proposal step: decode, clip, drop tiny, top-N, NMS per level, best n over all levels (Faster R-CNN, section 3.3).
#pragma once
#include "../common/anchor_maps.h"

namespace frcnn_fast::proposals {

struct ProposalSettings {
  int64_t pre_nms_top_n;   // candidates a level
  int64_t post_nms_top_n;  // P, proposals an image
  double iou_threshold;
  double min_size;           // pixels of the original image: times image_scales[b]
  bool filter_before_top_n;  // small boxes are dropped before top-N (py-faster-rcnn) or after it (torchvision,
                             // detectron2)
  double weights[4];         // of the deltas
  double clamp;              // upper bound of dw, dh
  bool legacy;               // inclusive pixels
};

// What both backends take. U is the compute type of dtype.
struct ProposalInputs {
  DType dtype;              // of scores and deltas
  const MapLayout* scores;  // host [L]
  const MapLayout* deltas;  // host [L]
  AnchorSource anchors;
  const void* image_sizes;   // U [B, 2]: height, width
  const void* image_scales;  // U [B] or null
  int64_t B, A;
  const int64_t* level_sizes;  // host [L], adding up to A
  int64_t L;
};

struct ProposalOutputs {
  void* boxes;       // U [B, P, 4], 0-padded
  void* scores;      // dtype [B, P], 0-padded
  int64_t* indices;  // [B, P], anchor index, -1-padded
  int64_t* counts;   // [B]
};

size_t rpn_proposals_workspace_cpu(const ProposalInputs& inputs, const ProposalSettings& settings);
size_t rpn_proposals_workspace_cuda(const ProposalInputs& inputs, const ProposalSettings& settings);
Status rpn_proposals_cpu(const ProposalInputs& inputs, const ProposalSettings& settings, void* workspace,
                         const ProposalOutputs& outputs);
Status rpn_proposals_cuda(const ProposalInputs& inputs, const ProposalSettings& settings, void* workspace,
                          const ProposalOutputs& outputs, Stream stream);

}  // namespace frcnn_fast::proposals
