// The detector's last step: softmax, per-class decode and clip, score threshold, per-class NMS, the best D an image.
//
// Softmax sums in one order on every backend: m is the row's maximum, e_c = exp_(l_c - m), lane l of 32 adds classes
// l, l + 32, ... in turn, and the lanes are folded in halves (l + 16, then 8, 4, 2, 1); the score is e_c / sum. A NaN
// logit makes every score of its row NaN, which passes no threshold.
//
// Class k of row n, counted from 0 without the background, is candidate n * K + k: ranks are by (score descending,
// index ascending). Its logit is column first_class + k: 1 + k after the background, k where the background is the last
// column.
#pragma once
#include "../anchor_decode/anchor_decode.h"
#include "../nms/nms.h"

namespace frcnn_fast::detections {
using namespace anchor_decode;
using namespace nms;

constexpr int kSoftmaxLanes = 32;

// T is the logits' type, U its compute type.
struct DetectionInputs {
  DType dtype;
  const void* class_logits;  // T [B, N, K + 1]
  const void* box_deltas;    // T [B, N, (first_class + K) * 4], or [B, N, 4] if agnostic
  const void* proposals;     // U [B, N, 4]
  const int64_t* counts;     // [B]: rows from counts[b] on do not exist
  const void* image_sizes;   // U [B, 2] (height, width)
  int64_t B, N, K;
  bool agnostic;
  int64_t first_class;  // 1: column 0 is the background; 0: column K is, and has no deltas
};

struct DetectionSettings {
  double score_threshold;
  double iou_threshold;
  int64_t max_detections;  // D
  double min_size;
  double weights[4];  // of the deltas
  double clamp;
  bool legacy;
};

struct DetectionOutputs {
  void* boxes;       // U [B, D, 4], 0-padded
  void* scores;      // U [B, D], 0-padded
  int64_t* labels;   // [B, D]: the column of class_logits; -1-padded
  int64_t* indices;  // [B, D]: the row of proposals; -1-padded
  int64_t* counts;   // [B]
};

// Strictly above; both in the compute type.
template <class U>
FF_HD bool passes(U score, U threshold) {
  return FF_MUTANT(detect_threshold, score > threshold, score >= threshold);
}

// Numbers of box_deltas a row.
FF_HD int64_t deltas_of_row(int64_t K, int64_t first_class, bool agnostic) {
  return agnostic ? 4 : 4 * (first_class + K);
}

// Where the deltas of class k of row n begin.
FF_HD int64_t delta_offset(int64_t n, int64_t k, int64_t K, int64_t first_class, bool agnostic) {
  return n * deltas_of_row(K, first_class, FF_MUTANT(detect_agnostic, agnostic, false)) +
         (agnostic ? 0 : 4 * (first_class + k));
}

size_t detections_workspace_cpu(const DetectionInputs& inputs, const DetectionSettings& settings);
size_t detections_workspace_cuda(const DetectionInputs& inputs, const DetectionSettings& settings);
Status detections_cpu(const DetectionInputs& inputs, const DetectionSettings& settings, void* workspace,
                      const DetectionOutputs& outputs);
Status detections_cuda(const DetectionInputs& inputs, const DetectionSettings& settings, void* workspace,
                       const DetectionOutputs& outputs, Stream stream);

}  // namespace frcnn_fast::detections
