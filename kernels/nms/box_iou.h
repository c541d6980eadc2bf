// IoU of every pair, and its gradient.
#pragma once
#include "../common/box.h"
#include "../common/mutant.h"
#include "../common/status.h"

namespace frcnn_fast::nms {

// A non-finite box has a NaN area, which makes its every IoU NaN.
template <bool kLegacy, class U>
FF_HD U finite_area(const Box<U>& box) {
  return FF_MUTANT(box_iou_non_finite, is_finite(box), true) ? area<kLegacy>(box) : U(bits_float(0x7fc00000u));
}

// The areas are finite_area's; two empty boxes give 0/0, NaN.
template <bool kLegacy, class U>
FF_HD U pair_iou(const Box<U>& a, U area_a, const Box<U>& b, U area_b) {
  const U overlap = intersection<kLegacy>(a, b);
  return overlap / ((area_a + area_b) - overlap);
}

// Half of a tie's gradient goes to either side, as torch.maximum and torch.minimum do.
template <class U>
FF_HD U share_of_larger(U mine, U other) {
  return mine > other ? U(1) : (mine == other ? FF_MUTANT(box_iou_tie, U(0.5), U(1)) : U(0));
}

// d iou(a, b) / d a, four coordinates; the other box's gradient is this one with the boxes swapped. Boxes that only
// touch pass nothing through the intersection.
template <bool kLegacy, class U>
FF_HD Box<U> pair_iou_gradient(const Box<U>& a, const Box<U>& b) {
  const U w = extent<kLegacy>(maximum(a.x1, b.x1), minimum(a.x2, b.x2));
  const U h = extent<kLegacy>(maximum(a.y1, b.y1), minimum(a.y2, b.y2));
  const U overlap = maximum(U(0), w) * maximum(U(0), h);
  const U joined = (area<kLegacy>(a) + area<kLegacy>(b)) - overlap;
  // iou = o / j with j = A + B - o: d iou = (do * (j + o) - dA * o) / j^2
  const U square = joined * joined;
  const U per_overlap = (joined + overlap) / square, per_area = overlap / square;
  const U along_x = w > U(0) ? per_overlap * maximum(U(0), h) : U(0);
  const U along_y = h > U(0) ? per_overlap * maximum(U(0), w) : U(0);
  const U height = per_area * extent<kLegacy>(a.y1, a.y2), width = per_area * extent<kLegacy>(a.x1, a.x2);
  return {height - along_x * share_of_larger(a.x1, b.x1), width - along_y * share_of_larger(a.y1, b.y1),
          along_x * share_of_larger(b.x2, a.x2) - height, along_y * share_of_larger(b.y2, a.y2) - width};
}

// boxes1 [N, 4], boxes2 [M, 4], both dtype -> iou [N, M] in U.
Status box_iou_cpu(DType dtype, const void* boxes1, const void* boxes2, int64_t N, int64_t M, bool legacy, void* iou);
Status box_iou_cuda(DType dtype, const void* boxes1, const void* boxes2, int64_t N, int64_t M, bool legacy, void* iou,
                    Stream stream);

// grad [N, M] in U, or transposed, [M, N] -> grad_boxes [N, 4] in dtype, the gradient of boxes1: each row's sum over
// boxes2, in ascending order within 32 interleaved partial sums that are folded in halves.
Status box_iou_backward_cpu(DType dtype, const void* grad, const void* boxes1, const void* boxes2, int64_t N, int64_t M,
                            bool transposed, bool legacy, void* grad_boxes);
Status box_iou_backward_cuda(DType dtype, const void* grad, const void* boxes1, const void* boxes2, int64_t N,
                             int64_t M, bool transposed, bool legacy, void* grad_boxes, Stream stream);

}  // namespace frcnn_fast::nms
