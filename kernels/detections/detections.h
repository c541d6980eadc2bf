// From the head's raw outputs to final boxes: softmax, per-class decode, score threshold, per-class NMS, the best D
// (Girshick 2015, section 2.3; Ren et al. 2015).
//
// The softmax has one order of summation: m is the largest logit; e_c = exp_(l_c - m); lane l adds e_c for c = l, l + 32,
// ... in turn, starting from 0; then lane l adds lane l + d for d = 16, 8, 4, 2, 1; the score is e_c / lane 0. A NaN
// logit makes every score of its row NaN, and NaN exceeds no threshold.
//
// Candidate (n, c), c = 1 ... K, has index n * K + c - 1. Planted mistakes: detections_threshold, detections_background,
// detections_ties, detections_valid, detections_counts, detections_agnostic.
#pragma once
#include "../anchor_decode/anchor_decode.h"

namespace frcnn_fast {

constexpr int kSoftmaxLanes = 32;

// U is the compute type of dtype.
struct DetectionInputs {
  DType dtype;               // of class_logits and box_deltas
  const void* class_logits;  // [B, N, C], class 0 is the background
  const void* box_deltas;    // [B, N, 4 * C], or [B, N, 4] (class_agnostic)
  const void* proposals;     // U [B, N, 4]
  const int64_t* counts;     // [B], proposals of each image
  const void* image_sizes;   // U [B, 2]: height, width
  int64_t B, N, C;
  bool class_agnostic;
};

struct DetectionSettings {
  double score_threshold;
  double iou_threshold;
  int64_t max_detections;  // D
  double min_size;         // pixels
  double weights[4];
  double clamp;
  bool legacy;
};

struct DetectionOutputs {
  void* boxes;      // U [B, D, 4], 0-padded
  void* scores;     // U [B, D], 0-padded
  int64_t* labels;  // [B, D], -1-padded
  int64_t* counts;  // [B]
};

template <class U>
FF_HD bool scores_enough(U score, U threshold) {
  return FF_MUTANT(detections_threshold, score > threshold, score >= threshold);
}

size_t detections_workspace_cpu(const DetectionInputs& inputs, const DetectionSettings& settings);
size_t detections_workspace_cuda(const DetectionInputs& inputs, const DetectionSettings& settings);
Status detections_cpu(const DetectionInputs& inputs, const DetectionSettings& settings, void* workspace,
                      const DetectionOutputs& outputs);
Status detections_cuda(const DetectionInputs& inputs, const DetectionSettings& settings, void* workspace,
                       const DetectionOutputs& outputs, Stream stream);

}  // namespace frcnn_fast
