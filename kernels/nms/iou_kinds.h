// The kinds of IoU that also tell apart boxes which do not meet: of every pair, as the loss of two boxes in a row, and
// the gradients. One set of rules for all; the kind, and whether it is a loss, are template parameters.
//
// Generalized (Rezatofighi et al. 2019), distance and complete IoU (Zheng et al. 2020) are the IoU less a penalty. The
// hull is the smallest box around both.
//
//   generalized: (hull - union) / hull, of areas
//   distance:    (distance of the centres)^2 / ((diagonal of the hull)^2 + eps)
//   complete:    that + alpha * v, v = 4 / pi^2 * (atan(w1 / h1) - atan(w2 / h2))^2, alpha = v / (((1 - iou) + v) +
//   eps)
//
// A loss is 1 less that, with eps also below the IoU and the hull's area.
#pragma once
#include "../common/atan.h"
#include "box_iou.h"

namespace frcnn_fast::nms {

enum class IouKind { kGeneralized, kDistance, kComplete };

template <IouKind kKind>
struct KindTag {
  static constexpr IouKind kind = kKind;
};

// Calls visitor(Tag<T>{}, KindTag<kKind>{}).
template <class Visitor>
auto visit_kind(DType dtype, IouKind kind, Visitor&& visitor) {
  return visit(dtype, [&](auto tag) {
    switch (kind) {
      case IouKind::kGeneralized:
        return visitor(tag, KindTag<IouKind::kGeneralized>{});
      case IouKind::kDistance:
        return visitor(tag, KindTag<IouKind::kDistance>{});
      default:
        return visitor(tag, KindTag<IouKind::kComplete>{});
    }
  });
}

// A box with what is worked out once: the area is NaN of a box that is not finite, which makes its every result NaN;
// the angle is of complete IoU.
template <class U>
struct MeasuredBox {
  Box<U> box;
  U area, angle;
};

template <IouKind kKind, class U>
FF_HD MeasuredBox<U> measured(const Box<U>& box) {
  const U angle = kKind == IouKind::kComplete ? atan_((box.x2 - box.x1) / (box.y2 - box.y1)) : U(0);
  return {box, finite_area<false>(box), angle};
}

// What two boxes have between them. w, h: sides of the intersection, negative where they are apart. whole, hull: what
// the IoU and the penalty are divided by.
template <class U>
struct IouTerms {
  U w, h, whole, iou;
  U hull_w, hull_h, hull, dx, dy, penalty;
  U turn, shape, alpha;  // of complete IoU
};

template <IouKind kKind, bool kLoss, class U>
FF_HD IouTerms<U> iou_terms(const MeasuredBox<U>& first, const MeasuredBox<U>& second, U eps) {
  const Box<U>&a = first.box, &b = second.box;
  IouTerms<U> t = {};
  t.w = minimum(a.x2, b.x2) - maximum(a.x1, b.x1);
  t.h = minimum(a.y2, b.y2) - maximum(a.y1, b.y1);
  const U overlap = maximum(U(0), t.w) * maximum(U(0), t.h);
  const U joined = (first.area + second.area) - overlap;
  t.whole = FF_MUTANT(iou_kind_eps, kLoss, !kLoss) ? joined + eps : joined;
  t.iou = overlap / t.whole;
  t.hull_w = maximum(a.x2, b.x2) - minimum(a.x1, b.x1);
  t.hull_h = maximum(a.y2, b.y2) - minimum(a.y1, b.y1);
  // Below 0 only where both boxes are inverted.
  if (FF_MUTANT(iou_kind_inverted, !kLoss, kLoss))
    t.hull_w = maximum(U(0), t.hull_w), t.hull_h = maximum(U(0), t.hull_h);
  if (kKind == IouKind::kGeneralized) {
    const U size = t.hull_w * t.hull_h;
    t.hull = FF_MUTANT(iou_kind_hull_eps, kLoss, !kLoss) ? size + eps : size;
    t.penalty = (size - joined) / t.hull;
  } else {
    t.hull = (t.hull_w * t.hull_w + t.hull_h * t.hull_h) + eps;
    t.dx = (a.x1 + a.x2) * U(0.5) - (b.x1 + b.x2) * U(0.5);
    t.dy = (a.y1 + a.y2) * U(0.5) - (b.y1 + b.y2) * U(0.5);
    t.penalty = (t.dx * t.dx + t.dy * t.dy) / t.hull;
  }
  if (kKind == IouKind::kComplete) {
    t.turn = first.angle - second.angle;
    t.shape = U(0.40528473456935109) * (t.turn * t.turn);  // 4 / pi^2
    t.alpha = t.shape / (((U(1) - t.iou) + t.shape) + eps);
  }
  return t;
}

// The IoU of that kind, or its loss.
template <IouKind kKind, bool kLoss, class U>
FF_HD U iou_score(const MeasuredBox<U>& a, const MeasuredBox<U>& b, U eps) {
  const IouTerms<U> t = iou_terms<kKind, kLoss>(a, b, eps);
  if (!kLoss) return kKind == IouKind::kComplete ? (t.iou - t.penalty) - t.alpha * t.shape : t.iou - t.penalty;
  if (kKind == IouKind::kGeneralized) return U(1) - (t.iou - t.penalty);
  const U loss = (U(1) - t.iou) + t.penalty;
  return kKind == IouKind::kComplete ? loss + t.alpha * t.shape : loss;
}

// d (IoU of that kind) / d a, four coordinates; of a loss, with its eps, the negative of the loss' own. The other box's
// gradient is this one with the boxes swapped. Boxes that only touch pass nothing through the intersection. alpha is a
// constant, as its authors have it.
template <IouKind kKind, bool kLoss, class U>
FF_HD Box<U> iou_slopes(const MeasuredBox<U>& first, const MeasuredBox<U>& second, U eps) {
  const Box<U>&a = first.box, &b = second.box;
  const IouTerms<U> t = iou_terms<kKind, kLoss>(first, second, eps);
  // iou = o / W with W = A + B - o + eps: d iou = do * (1 + iou) / W - dA * iou / W
  U per_overlap = (U(1) + t.iou) / t.whole, per_area = t.iou / t.whole;
  U hull_x, hull_y;  // - d IoU / d (width, height of the hull)
  if (kKind == IouKind::kGeneralized) {
    // The penalty is 1 - W / H: its derivative is dH * W / H^2 - (dA - do) / H.
    const U per_union = U(1) / t.hull, per_hull = (t.whole / t.hull) / t.hull;
    per_overlap = per_overlap - per_union, per_area = per_area - per_union;
    hull_x = per_hull * t.hull_h, hull_y = per_hull * t.hull_w;
  } else {
    const U per_hull = t.penalty / t.hull;
    hull_x = -(per_hull * (t.hull_w + t.hull_w)), hull_y = -(per_hull * (t.hull_h + t.hull_h));
  }
  const U along_x = FF_MUTANT(iou_kind_touch_x, t.w > U(0), t.w >= U(0)) ? per_overlap * maximum(U(0), t.h) : U(0);
  const U along_y = FF_MUTANT(iou_kind_touch_y, t.h > U(0), t.h >= U(0)) ? per_overlap * maximum(U(0), t.w) : U(0);
  const U width = a.x2 - a.x1, height = a.y2 - a.y1;
  const U area_x = per_area * height, area_y = per_area * width;
  Box<U> g = {(area_x - along_x * share_of_larger(a.x1, b.x1)) + hull_x * share_of_larger(b.x1, a.x1),
              (area_y - along_y * share_of_larger(a.y1, b.y1)) + hull_y * share_of_larger(b.y1, a.y1),
              (along_x * share_of_larger(b.x2, a.x2) - area_x) - hull_x * share_of_larger(a.x2, b.x2),
              (along_y * share_of_larger(b.y2, a.y2) - area_y) - hull_y * share_of_larger(a.y2, b.y2)};
  if (kKind != IouKind::kGeneralized) {
    const U centre_x = t.dx / t.hull, centre_y = t.dy / t.hull;
    g = {g.x1 - centre_x, g.y1 - centre_y, g.x2 - centre_x, g.y2 - centre_y};
  }
  if (kKind == IouKind::kComplete) {  // d atan(w / h) = (h dw - w dh) / (w^2 + h^2)
    const U bend = (t.alpha * (U(2 * 0.40528473456935109) * t.turn)) / (width * width + height * height);
    const U bend_x = bend * height, bend_y = bend * width;
    g = {g.x1 + bend_x, g.y1 - bend_y, g.x2 - bend_x, g.y2 + bend_y};
  }
  return g;
}

// boxes1 [N, 4], boxes2 [M, 4], both dtype -> iou [N, M] in U.
Status pairwise_iou_cpu(DType dtype, const void* boxes1, const void* boxes2, int64_t N, int64_t M, IouKind kind,
                        double eps, void* iou);
Status pairwise_iou_cuda(DType dtype, const void* boxes1, const void* boxes2, int64_t N, int64_t M, IouKind kind,
                         double eps, void* iou, Stream stream);

// grad [N, M] in U, or transposed, [M, N] -> grad_boxes [N, 4] in dtype, the gradient of boxes1; sums as in box_iou's.
Status pairwise_iou_backward_cpu(DType dtype, const void* grad, const void* boxes1, const void* boxes2, int64_t N,
                                 int64_t M, IouKind kind, double eps, bool transposed, void* grad_boxes);
Status pairwise_iou_backward_cuda(DType dtype, const void* grad, const void* boxes1, const void* boxes2, int64_t N,
                                  int64_t M, IouKind kind, double eps, bool transposed, void* grad_boxes,
                                  Stream stream);

// boxes1 [N, 4], boxes2 [N, 4], both dtype -> loss [N] in U, of the two boxes in each row.
Status iou_loss_cpu(DType dtype, const void* boxes1, const void* boxes2, int64_t N, IouKind kind, double eps,
                    void* loss);
Status iou_loss_cuda(DType dtype, const void* boxes1, const void* boxes2, int64_t N, IouKind kind, double eps,
                     void* loss, Stream stream);

// grad [N] in U -> grad_boxes [N, 4] in dtype, the gradient of boxes1.
Status iou_loss_backward_cpu(DType dtype, const void* grad, const void* boxes1, const void* boxes2, int64_t N,
                             IouKind kind, double eps, void* grad_boxes);
Status iou_loss_backward_cuda(DType dtype, const void* grad, const void* boxes1, const void* boxes2, int64_t N,
                              IouKind kind, double eps, void* grad_boxes, Stream stream);

}  // namespace frcnn_fast::nms
