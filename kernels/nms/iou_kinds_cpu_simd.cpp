// Boxes are taken apart into columns, so that the loops over them are the compiler's to vectorise: the rules of
// iou_kinds.h have no branches.
#include "iou_kinds_cpu.h"

namespace frcnn_fast::nms {
namespace FF_ISA {
namespace {

constexpr int kPartial = 32;  // partial sums of a row's gradient

template <class U>
struct alignas(64) KindColumns {
  U x1[kKindColumns], y1[kKindColumns], x2[kKindColumns], y2[kKindColumns], area[kKindColumns], angle[kKindColumns];

  inline __attribute__((always_inline)) MeasuredBox<U> operator[](int64_t j) const {
    return {{x1[j], y1[j], x2[j], y2[j]}, area[j], angle[j]};
  }
};

template <IouKind kKind, class T, class U = Compute<T>>
void load_columns(KindColumns<U>& columns, const T* boxes, int64_t m) {
  for (int64_t j = 0; j < m; ++j) {
    const Box<U> box = load_box(boxes + 4 * j);
    columns.x1[j] = box.x1, columns.y1[j] = box.y1, columns.x2[j] = box.x2, columns.y2[j] = box.y2;
  }
  for (int64_t j = 0; j < m; ++j) {
    const Box<U> box = {columns.x1[j], columns.y1[j], columns.x2[j], columns.y2[j]};
    const MeasuredBox<U> found = measured<kKind>(box);
    columns.area[j] = found.area, columns.angle[j] = found.angle;
  }
}

template <IouKind kKind, class T, class U = Compute<T>>
void tile(const T* boxes1, int64_t n, const T* boxes2, int64_t m, U eps, U* out, int64_t row_stride) {
  KindColumns<U> columns;
  load_columns<kKind>(columns, boxes2, m);
  for (int64_t i = 0; i < n; ++i) {
    const MeasuredBox<U> a = measured<kKind>(load_box(boxes1 + 4 * i));
    U* const row = out + i * row_stride;
    for (int64_t j = 0; j < m; ++j) row[j] = iou_score<kKind, false>(a, columns[j], eps);
  }
}

template <IouKind kKind, class T, class U = Compute<T>>
void backward_rows(const U* grad, int64_t row_stride, int64_t column_stride, const T* boxes1, int64_t n,
                   const T* boxes2, int64_t M, U eps, T* grad_boxes) {
  KindColumns<U> columns;
  alignas(64) U sums[kKindRows][4][kPartial] = {};
  for (int64_t first = 0; first < M; first += kKindColumns) {
    const int64_t m = M - first < kKindColumns ? M - first : kKindColumns;
    load_columns<kKind>(columns, boxes2 + 4 * first, m);
    for (int64_t i = 0; i < n; ++i) {
      const MeasuredBox<U> a = measured<kKind>(load_box(boxes1 + 4 * i));
      const U* const weights = grad + i * row_stride + first * column_stride;
      for (int64_t j = 0; j < m; j += kPartial) {
        const int64_t lanes = m - j < kPartial ? m - j : kPartial;
        alignas(64) U weight[kPartial];
        for (int64_t l = 0; l < lanes; ++l) weight[l] = weights[(j + l) * column_stride];
        for (int64_t l = 0; l < lanes; ++l) {
          const Box<U> g = iou_slopes<kKind, false>(a, columns[j + l], eps);
          sums[i][0][l] += weight[l] * g.x1;
          sums[i][1][l] += weight[l] * g.y1;
          sums[i][2][l] += weight[l] * g.x2;
          sums[i][3][l] += weight[l] * g.y2;
        }
      }
    }
  }
  for (int64_t i = 0; i < n; ++i) {
    for (int k = 0; k < 4; ++k) {
      for (int half = kPartial / 2; half > 0; half /= 2)
        for (int l = 0; l < half; ++l) sums[i][k][l] += sums[i][k][l + half];
      store(grad_boxes + 4 * i + k, sums[i][k][0]);
    }
  }
}

template <IouKind kKind, class T, class U = Compute<T>>
void loss_rows(const T* boxes1, const T* boxes2, int64_t n, U eps, U* loss) {
  KindColumns<U> a, b;
  for (int64_t first = 0; first < n; first += kKindColumns) {
    const int64_t m = n - first < kKindColumns ? n - first : kKindColumns;
    load_columns<kKind>(a, boxes1 + 4 * first, m);
    load_columns<kKind>(b, boxes2 + 4 * first, m);
    for (int64_t j = 0; j < m; ++j) loss[first + j] = iou_score<kKind, true>(a[j], b[j], eps);
  }
}

template <IouKind kKind, class T, class U = Compute<T>>
void loss_backward_rows(const U* grad, const T* boxes1, const T* boxes2, int64_t n, U eps, T* grad_boxes) {
  KindColumns<U> a, b;
  alignas(64) U found[4][kKindColumns];
  for (int64_t first = 0; first < n; first += kKindColumns) {
    const int64_t m = n - first < kKindColumns ? n - first : kKindColumns;
    load_columns<kKind>(a, boxes1 + 4 * first, m);
    load_columns<kKind>(b, boxes2 + 4 * first, m);
    for (int64_t j = 0; j < m; ++j) {
      const Box<U> g = iou_slopes<kKind, true>(a[j], b[j], eps);
      const U weight = -grad[first + j];
      found[0][j] = weight * g.x1, found[1][j] = weight * g.y1;
      found[2][j] = weight * g.x2, found[3][j] = weight * g.y2;
    }
    for (int64_t j = 0; j < m; ++j)
      for (int k = 0; k < 4; ++k) store(grad_boxes + 4 * (first + j) + k, found[k][j]);
  }
}

}  // namespace

void pairwise_iou_tile(DType dtype, const void* boxes1, int64_t n, const void* boxes2, int64_t m, IouKind kind,
                       double eps, void* out, int64_t row_stride) {
  visit_kind(dtype, kind, [&](auto tag, auto which) {
    using T = typename decltype(tag)::type;
    tile<decltype(which)::kind>(static_cast<const T*>(boxes1), n, static_cast<const T*>(boxes2), m, Compute<T>(eps),
                                static_cast<Compute<T>*>(out), row_stride);
  });
}

void pairwise_iou_backward_rows(DType dtype, const void* grad, int64_t row_stride, int64_t column_stride,
                                const void* boxes1, int64_t n, const void* boxes2, int64_t M, IouKind kind, double eps,
                                void* grad_boxes) {
  visit_kind(dtype, kind, [&](auto tag, auto which) {
    using T = typename decltype(tag)::type;
    backward_rows<decltype(which)::kind>(static_cast<const Compute<T>*>(grad), row_stride, column_stride,
                                         static_cast<const T*>(boxes1), n, static_cast<const T*>(boxes2), M,
                                         Compute<T>(eps), static_cast<T*>(grad_boxes));
  });
}

void iou_loss_rows(DType dtype, const void* boxes1, const void* boxes2, int64_t n, IouKind kind, double eps,
                   void* loss) {
  visit_kind(dtype, kind, [&](auto tag, auto which) {
    using T = typename decltype(tag)::type;
    loss_rows<decltype(which)::kind>(static_cast<const T*>(boxes1), static_cast<const T*>(boxes2), n, Compute<T>(eps),
                                     static_cast<Compute<T>*>(loss));
  });
}

void iou_loss_backward_rows(DType dtype, const void* grad, const void* boxes1, const void* boxes2, int64_t n,
                            IouKind kind, double eps, void* grad_boxes) {
  visit_kind(dtype, kind, [&](auto tag, auto which) {
    using T = typename decltype(tag)::type;
    loss_backward_rows<decltype(which)::kind>(static_cast<const Compute<T>*>(grad), static_cast<const T*>(boxes1),
                                              static_cast<const T*>(boxes2), n, Compute<T>(eps),
                                              static_cast<T*>(grad_boxes));
  });
}

}  // namespace FF_ISA
}  // namespace frcnn_fast::nms
