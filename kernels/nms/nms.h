// Greedy non-maximum suppression: what suppresses what, and the launchers.
//
// Boxes are visited by (score descending, index ascending). One is kept unless an earlier kept box of its class
// overlaps it by more than the threshold: iou > U(threshold), strictly, with true division (kernels/common/box.h). A
// box with a non-finite coordinate or a NaN score takes no part. Suppression is symmetric to the bit.
#pragma once
#include "../common/box.h"
#include "../common/mutant.h"
#include "../common/status.h"

namespace frcnn_fast::nms {

// The threshold in two forms. With overlap o and areas a, b, the rule is o / ((a + b) - o) > t. That implies
// o >= share * a + share * b, which costs no division: over the reals o > t / (1 + t) * (a + b), the factor 1 - 1e-5
// covers the roundings, and among subnormals, where it cannot, sums are whole multiples of the smallest one, so that
// >= (not >) still holds.
template <class U>
struct Suppression {
  U threshold;
  U share;
};

// An infinite threshold gives a NaN share: nothing passes.
template <class U>
FF_HD Suppression<U> make_suppression(double threshold) {
  const U t = U(threshold);
  return {t, FF_MUTANT(nms_pretest, t / (U(1) + t) * U(1 - 1e-5), t)};
}

// A box with its part of the division-free test.
template <class U>
struct PretestBox {
  Box<U> box;
  U share;  // suppression.share * area(box)
};

template <bool kLegacy, class U>
FF_HD PretestBox<U> make_pretest_box(const Box<U>& box, const Suppression<U>& s) {
  return {box, s.share * area<kLegacy>(box)};
}

template <class U>
FF_HD bool exceeds(U iou, U threshold) {
  return FF_MUTANT(nms_threshold, iou > threshold, iou >= threshold);
}

// False for nearly every pair that exceeds() would refuse, and never for one it would accept. A pair that lies apart
// vertically gives a negative product here instead of 0: no need to clamp both sides.
template <bool kLegacy, class U>
FF_HD bool may_exceed(const PretestBox<U>& a, const PretestBox<U>& b) {
  const U w = maximum(U(0), extent<kLegacy>(maximum(a.box.x1, b.box.x1), minimum(a.box.x2, b.box.x2)));
  const U h = extent<kLegacy>(maximum(a.box.y1, b.box.y1), minimum(a.box.y2, b.box.y2));
  return w * h >= a.share + b.share;
}

// Whether the earlier of the two, if kept, suppresses the later.
template <bool kLegacy, class U>
FF_HD bool suppresses(const PretestBox<U>& a, const PretestBox<U>& b, const Suppression<U>& s) {
  return may_exceed<kLegacy>(a, b) && exceeds(iou<kLegacy>(a.box, b.box), s.threshold);
}

template <class U>
FF_HD bool takes_part(const Box<U>& box) {
  return FF_MUTANT(nms_non_finite, is_finite(box), true);
}

// Every image's boxes by themselves. O(B * N) workspace; stops at max_output kept boxes an image.
//
// boxes      T [B, N, 4]
// scores     T [B, N]
// class_ids  int64 [B, N], any values; null: all one class
// counts     int64 [B]: rows from counts[b] on do not exist; null: all N. Outside [0, N]: an error on the CPU, an
//            empty image in CUDA
// keep       int64 [B, max_output]: rows, best first, then -1
// num_keep   int64 [B]
size_t nms_padded_workspace_cpu(DType dtype, int64_t B, int64_t N, int64_t max_output, bool classes);
Status nms_padded_cpu(DType dtype, const void* boxes, const void* scores, const int64_t* class_ids,
                      const int64_t* counts, int64_t B, int64_t N, double iou_threshold, int64_t max_output,
                      bool legacy, void* workspace, int64_t* keep, int64_t* num_keep);
size_t nms_padded_workspace_cuda(DType dtype, int64_t B, int64_t N, int64_t max_output, bool classes);
Status nms_padded_cuda(DType dtype, const void* boxes, const void* scores, const int64_t* class_ids,
                       const int64_t* counts, int64_t B, int64_t N, double iou_threshold, int64_t max_output,
                       bool legacy, void* workspace, int64_t* keep, int64_t* num_keep, Stream stream);

// The core, for callers whose boxes are already in order: rows of `boxes` are ranks.
//
// dtype      of the boxes: kFloat64, or kFloat32 for all other inputs
// boxes      U [S, N, 4]
// class_ids  int64 [S, N] or null
// counts     int32 [S]: ranks from counts[s] on do not exist; at most N
// keep       int32 [S, max_output]: ranks, ascending, then -1
// num_keep   int32 [S]
// The number of launches depends on N alone; segments that are done skip them. Boxes and workspace start at multiples
// of 16 bytes; at most half a megabyte a segment.
size_t nms_sorted_segments_workspace_cuda(DType dtype, int64_t S, int64_t N, int64_t max_output);
Status nms_sorted_segments_cuda(DType dtype, const void* boxes, const int64_t* class_ids, const int32_t* counts,
                                int64_t S, int64_t N, double iou_threshold, int64_t max_output, bool legacy,
                                void* workspace, int32_t* keep, int32_t* num_keep, Stream stream);

}  // namespace frcnn_fast::nms
