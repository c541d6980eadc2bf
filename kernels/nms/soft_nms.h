// Soft-NMS (Bodla et al., ICCV 2017): a kept box lowers the scores of those that it overlaps, instead of dropping them.
//
// The box that comes first by its score as it is now (score descending, index ascending) is kept; every other score is
// then multiplied by a weight of the box's IoU with the kept one. A box takes part while its score is above
// score_threshold, strictly. A box with a non-finite coordinate or a NaN score takes no part.
#pragma once
#include "../common/numeric.h"
#include "nms.h"

namespace frcnn_fast::nms {

enum class SoftMethod : int { kLinear, kGaussian, kHard };

template <class U>
struct SoftRule {
  SoftMethod method;
  U iou_threshold, sigma, score_threshold;
};

// The score of a box that is kept already or takes no part; below every score_threshold.
template <class U>
constexpr U kOutOfPlay = U(-1);

template <class U>
FF_HD bool in_play(U score, const SoftRule<U>& rule) {
  return FF_MUTANT(soft_score, score > rule.score_threshold, score >= rule.score_threshold);
}

// The weight of a score whose box has that IoU with the kept one. An IoU of 0/0 lowers nothing.
template <SoftMethod kMethod, class U>
FF_HD U soft_weight(U iou, const SoftRule<U>& rule) {
  if (kMethod == SoftMethod::kGaussian) return iou > U(0) ? exp_(-(iou * iou) / rule.sigma) : U(1);
  const bool lowers = FF_MUTANT(soft_threshold, iou > rule.iou_threshold, iou >= rule.iou_threshold);
  return lowers ? (kMethod == SoftMethod::kLinear ? U(1) - iou : U(0)) : U(1);
}

// The score after the box `kept` was kept.
template <bool kLegacy, SoftMethod kMethod, class U>
FF_HD U softened(U score, const Box<U>& kept, const Box<U>& box, const SoftRule<U>& rule) {
  const U lowered = score * soft_weight<kMethod>(iou<kLegacy>(kept, box), rule);
  return in_play(lowered, rule) ? lowered : kOutOfPlay<U>;
}

// boxes        T [B, N, 4]
// scores       T [B, N]
// counts       int64 [B]: rows from counts[b] on do not exist; null: all N. Outside [0, N]: an error on the CPU, an
//              empty image in CUDA
// keep         int64 [B, max_output]: rows, in the order in which they were kept, then -1
// kept_scores  U [B, max_output]: the scores when they were kept, then 0
// num_keep     int64 [B]
size_t soft_nms_workspace_cpu(DType dtype, int64_t B, int64_t N);
Status soft_nms_cpu(DType dtype, const void* boxes, const void* scores, const int64_t* counts, int64_t B, int64_t N,
                    double iou_threshold, double sigma, double score_threshold, int64_t max_output, SoftMethod method,
                    bool legacy, void* workspace, int64_t* keep, void* kept_scores, int64_t* num_keep);
size_t soft_nms_workspace_cuda(DType dtype, int64_t B, int64_t N);
Status soft_nms_cuda(DType dtype, const void* boxes, const void* scores, const int64_t* counts, int64_t B, int64_t N,
                     double iou_threshold, double sigma, double score_threshold, int64_t max_output, SoftMethod method,
                     bool legacy, void* workspace, int64_t* keep, void* kept_scores, int64_t* num_keep, Stream stream);

}  // namespace frcnn_fast::nms
