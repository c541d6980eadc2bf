// Which anchors train the RPN, which boxes train the head, and towards what (Ren et al. 2015, sections 3.1.2 and 3.1.3;
// Girshick 2015, section 2.3).
//
// The decisions here are all there are; the CPU and the CUDA kernels call them. No anchors x objects matrix exists: an
// anchor's best overlap lives in registers, an object's highest overlap (its peak) is an integer maximum over the bits,
// which needs no order, and whoever asks for `overlap == peak` computes the overlap again by the same operations.
//
// Sampling: every candidate has a random key (philox.h); the smallest keys win, ties by index.
#pragma once
#include "../common/anchors.h"
#include "../common/box.h"
#include "../common/mutant.h"
#include "../common/philox.h"
#include "../common/status.h"

namespace frcnn_fast::anchor_target {

constexpr int8_t kPositive = 1, kNegative = 0, kIgnored = -1;

// What an anchor may be.
template <class U>
struct AnchorRule {
  U positive_iou, negative_iou, min_quality, crowd_overlap;
  bool low_quality, overwrite;
};
// What a candidate RoI may be.
template <class U>
struct RoiRule {
  U positive_iou, negative_high, negative_low, crowd_overlap;
};

// Whether an anchor lies in its image, by one axis and by both. image_size: (height, width).
template <bool kLegacy, class U>
FF_HD bool is_inside(U low, U high, U size) {
  const bool open = FF_MUTANT(target_inside_edge, kLegacy, !kLegacy);
  return low >= U(0) && (open ? high < size : high <= size);
}
template <bool kLegacy, class U>
FF_HD bool is_inside(const Box<U>& box, const U* image_size) {
  return is_inside<kLegacy>(box.x1, box.x2, image_size[1]) && is_inside<kLegacy>(box.y1, box.y2, image_size[0]);
}

// Whether an object (or crowd box) is there at all.
template <class U>
FF_HD bool exists(const Box<U>& gt_box, int64_t index, int64_t count) {
  return index < count && is_finite(gt_box);
}

// V, here: U, or a vector of U.

// Whether a crowd box that shares `intersection` with a box covers it. 0/0 covers nothing.
template <class V>
FF_HD auto is_covered(V intersection, V box_area, V crowd_overlap) {
  const V part = intersection / box_area;
  return FF_MUTANT(target_crowd_edge, part >= crowd_overlap, part > crowd_overlap);
}

// IoU, where NaN (0/0, inf/inf) counts as 0.
template <class V>
FF_HD V overlap_of(V intersection, V area, V other_area) {
  const V iou = intersection / ((area + other_area) - intersection);
  return iou > V{} ? iou : V{};
}
template <bool kLegacy, class U>
FF_HD U overlap_of(const Box<U>& a, U area_a, const Box<U>& b, U area_b) {
  return overlap_of(intersection<kLegacy>(a, b), area_a, area_b);
}

// Whether two boxes share an area. A box outside the hull of several meets none of them.
template <bool kLegacy, class U>
FF_HD bool meets(const Box<U>& hull, const Box<U>& box) {
  return extent<kLegacy>(maximum(hull.x1, box.x1), minimum(hull.x2, box.x2)) > U(0) &&
         extent<kLegacy>(maximum(hull.y1, box.y1), minimum(FF_MUTANT(target_hull, hull.y2, hull.y1), box.y2)) > U(0);
}

// Whether this object's overlap takes over from that of an earlier one.
template <class V>
FF_HD auto is_better(V overlap, V best) {
  return FF_MUTANT(target_first_object, overlap > best, overlap >= best);
}

// Overlaps are never negative and never NaN, so their bits sort as they do.
FF_HD uint32_t overlap_bits(float overlap) { return float_bits(overlap); }
FF_HD unsigned long long overlap_bits(double overlap) { return double_bits(overlap); }
FF_HD float bits_overlap(uint32_t bits) { return bits_float(bits); }
FF_HD double bits_overlap(unsigned long long bits) { return bits_double(bits); }
template <class U>
using OverlapBits = decltype(overlap_bits(U(0)));

template <class U>
FF_HD bool is_positive(U best, U positive_iou) {
  const bool over = FF_MUTANT(target_positive_edge, best >= positive_iou, best > positive_iou);
  return over && FF_MUTANT(target_zero_overlap, best > U(0), true);
}
template <class U>
FF_HD bool is_negative(U best, U negative_iou) {
  return FF_MUTANT(target_negative_edge, best < negative_iou, best <= negative_iou);
}
// An object's peak, given its highest overlap with any anchor. A peak of 0 makes no anchor its best.
template <class U>
FF_HD U peak_of(U highest, U min_quality) {
  return FF_MUTANT(target_min_quality, highest >= min_quality, highest > min_quality) ? highest : U(0);
}
// Whether an anchor with that overlap is (one of) the object's best.
template <class U>
FF_HD bool is_peak(U overlap, U peak) {
  return overlap == peak && FF_MUTANT(target_zero_peak, peak > U(0), true);
}

// The label of an anchor that takes part. has_peak: it is some object's best, and low_quality holds.
template <class U>
FF_HD int8_t anchor_label(U best, bool has_peak, bool any_object, const AnchorRule<U>& rule) {
  if (is_positive(best, rule.positive_iou) || has_peak) return kPositive;
  const bool negative = FF_MUTANT(target_no_object, !any_object, false) || is_negative(best, rule.negative_iou);
  return negative ? kNegative : kIgnored;
}

// The label of a candidate RoI that takes part.
template <class U>
FF_HD int8_t roi_label(U best, const RoiRule<U>& rule) {
  if (is_positive(best, rule.positive_iou)) return kPositive;
  const bool above = FF_MUTANT(roi_low_edge, best >= rule.negative_low, best > rule.negative_low);
  return above && is_negative(best, rule.negative_high) ? kNegative : kIgnored;
}

// A key that at least `wanted` of `candidates` uniform keys are nearly sure to be at most, and few more than that: only
// a guess that saves work. Six standard deviations fail once in 10^9 draws, and then all keys are looked at.
FF_HD uint32_t likely_key(int64_t wanted, int64_t candidates) {
  const double share = (1.125 * double(wanted) + 88.0) / double(candidates);  // 6 sqrt(n) <= n / 8 + 72
  return share >= 1.0 || candidates <= 0 ? 0xffffffffu : uint32_t(share * 4294967296.0);
}

// What sampling sorts by: the key, then the index.
FF_HD uint32_t draw_order(uint32_t index) { return FF_MUTANT(sample_tie, index, ~index); }  // its own inverse
FF_HD uint64_t draw_item(uint32_t key, uint32_t index) { return uint64_t(key) << 32 | draw_order(index); }
FF_HD uint32_t draw_index(uint64_t item) { return draw_order(uint32_t(item)); }

// Launchers. dtype is float32 or float64 and that of every void*: half inputs are widened by the caller.

struct GroundTruth {
  const void* boxes;      // [B, G, 4]
  const int64_t* counts;  // [B]
  const bool* crowd;      // [B, G] or null
  int64_t G;
};
struct AnchorOptions {
  const void* image_sizes;  // [B, 2] (height, width): anchors that cross the border are ignored; or null
  double positive_iou, negative_iou, min_quality, crowd_overlap;
  bool low_quality, legacy;
  bool
      overwrite;  // an object's best anchors are its own, the last object's where there are several; not in rpn_targets
};
struct SampleOptions {
  const int64_t* rng;  // [2] (seed, step), on the device
  int64_t batch_size;
  double positive_fraction;  // of the batch, at most, in [0, 1]
  int64_t stream_id;

  int64_t max_positive() const { return int64_t(double(batch_size) * positive_fraction); }
};
struct RoiOptions {
  double positive_iou, negative_iou_high, negative_iou_low, crowd_overlap;
  bool append_gt, legacy;
};

// labels [B, A], matched [B, A] (object of a positive, else -1).
size_t assign_anchors_workspace_cpu(DType dtype, int64_t B, const AnchorSource& anchors, int64_t G);
size_t assign_anchors_workspace_cuda(DType dtype, int64_t B, const AnchorSource& anchors, int64_t G);
Status assign_anchors_cpu(DType dtype, int64_t B, const AnchorSource& anchors, const GroundTruth& gt,
                          const AnchorOptions& options, void* workspace, int8_t* labels, int32_t* matched);
Status assign_anchors_cuda(DType dtype, int64_t B, const AnchorSource& anchors, const GroundTruth& gt,
                           const AnchorOptions& options, void* workspace, int8_t* labels, int32_t* matched,
                           Stream stream);

// labels [B, A] -> indices [B, S] ascending, positives first; sampled [B, S]; counts [B, 2] (positive, negative).
size_t sample_anchors_workspace_cpu(int64_t B, int64_t A, int64_t S);
size_t sample_anchors_workspace_cuda(int64_t B, int64_t A, int64_t S);
Status sample_anchors_cpu(const int8_t* labels, int64_t B, int64_t A, const SampleOptions& sample, void* workspace,
                          int64_t* indices, int8_t* sampled, int64_t* counts);
Status sample_anchors_cuda(const int8_t* labels, int64_t B, int64_t A, const SampleOptions& sample, void* workspace,
                           int64_t* indices, int8_t* sampled, int64_t* counts, Stream stream);

// All of it: indices [B, S], labels [B, S], targets [B, S, 4], matched [B, S], counts [B, 2]. weights: host [4].
struct RpnOutputs {
  int64_t* indices;
  int8_t* labels;
  void* targets;
  int32_t* matched;
  int64_t* counts;
};
size_t rpn_targets_workspace_cpu(DType dtype, int64_t B, const AnchorSource& anchors, int64_t G, int64_t S);
size_t rpn_targets_workspace_cuda(DType dtype, int64_t B, const AnchorSource& anchors, int64_t G, int64_t S);
Status rpn_targets_cpu(DType dtype, int64_t B, const AnchorSource& anchors, const GroundTruth& gt,
                       const AnchorOptions& options, const SampleOptions& sample, const double* weights,
                       void* workspace, const RpnOutputs& outputs);
Status rpn_targets_cuda(DType dtype, int64_t B, const AnchorSource& anchors, const GroundTruth& gt,
                        const AnchorOptions& options, const SampleOptions& sample, const double* weights,
                        void* workspace, const RpnOutputs& outputs, Stream stream);

// proposals [B, N, 4], counts [B], gt_labels [B, G] -> rois [B, S, 4], labels [B, S], targets [B, S, 4],
// matched [B, S], counts [B, 2]. Candidates: the proposals, then, with append_gt, the objects as N + g.
struct Proposals {
  const void* boxes;
  const int64_t* counts;
  int64_t N;
};
struct RoiOutputs {
  void* rois;
  int64_t* labels;
  void* targets;
  int32_t* matched;
  int64_t* counts;
};
size_t sample_rois_workspace_cpu(DType dtype, int64_t B, int64_t N, int64_t G, int64_t S);
size_t sample_rois_workspace_cuda(DType dtype, int64_t B, int64_t N, int64_t G, int64_t S);
Status sample_rois_cpu(DType dtype, int64_t B, const Proposals& proposals, const GroundTruth& gt,
                       const int64_t* gt_labels, const RoiOptions& options, const SampleOptions& sample,
                       const double* weights, void* workspace, const RoiOutputs& outputs);
Status sample_rois_cuda(DType dtype, int64_t B, const Proposals& proposals, const GroundTruth& gt,
                        const int64_t* gt_labels, const RoiOptions& options, const SampleOptions& sample,
                        const double* weights, void* workspace, const RoiOutputs& outputs, Stream stream);

}  // namespace frcnn_fast::anchor_target
