#include "../common/vectors.h"
#include "box_iou_cpu.h"

namespace frcnn_fast::nms {
namespace FF_ISA {
using namespace frcnn_fast::FF_ISA;
namespace {

template <class U>
struct alignas(64) Columns {
  U x1[kIouColumns], y1[kIouColumns], x2[kIouColumns], y2[kIouColumns], area[kIouColumns];
};

template <bool kLegacy, class U>
FF_SIMD Vector<U> iou_lanes(const Box<U>& a, U area_a, const Columns<U>& columns, int64_t at) {
  using V = Vector<U>;
  const V zero = splat(U(0)), one = splat(U(kLegacy ? 1 : 0));
  V w = min_lanes(splat(a.x2), load_aligned<V>(columns.x2 + at)) -
        max_lanes(splat(a.x1), load_aligned<V>(columns.x1 + at));
  V h = min_lanes(splat(a.y2), load_aligned<V>(columns.y2 + at)) -
        max_lanes(splat(a.y1), load_aligned<V>(columns.y1 + at));
  if (kLegacy) w = w + one, h = h + one;
  const V overlap = max_lanes(zero, w) * max_lanes(zero, h);
  return overlap / ((splat(area_a) + load_aligned<V>(columns.area + at)) - overlap);
}

template <bool kLegacy, class T>
void tile(const T* boxes1, int64_t n, const T* boxes2, int64_t m, Compute<T>* out, int64_t row_stride) {
  using U = Compute<T>;
  constexpr int64_t kStep = kVectorBytes / int64_t(sizeof(U));
  Columns<U> columns;
  for (int64_t j = 0; j < m; ++j) {
    const Box<U> box = load_box(boxes2 + 4 * j);
    columns.x1[j] = box.x1, columns.y1[j] = box.y1, columns.x2[j] = box.x2, columns.y2[j] = box.y2;
    columns.area[j] = finite_area<kLegacy>(box);
  }
  const int64_t whole = m / kStep * kStep, padded = (m + kStep - 1) / kStep * kStep;
  for (int64_t j = m; j < padded; ++j)
    columns.x1[j] = columns.y1[j] = columns.x2[j] = columns.y2[j] = columns.area[j] = U(0);
  for (int64_t i = 0; i < n; ++i) {
    const Box<U> a = load_box(boxes1 + 4 * i);
    const U area_a = finite_area<kLegacy>(a);
    U* const row = out + i * row_stride;
    for (int64_t j = 0; j < whole; j += kStep) store_raw(row + j, iou_lanes<kLegacy>(a, area_a, columns, j));
    if (whole < m) {
      const Vector<U> last = iou_lanes<kLegacy>(a, area_a, columns, whole);
      __builtin_memcpy(row + whole, &last, size_t(m - whole) * sizeof(U));
    }
  }
}

template <bool kLegacy, class T>
void backward_row(const Compute<T>* grad, int64_t column_stride, const T* box1, const T* boxes2, int64_t M,
                  T* grad_box1) {
  using U = Compute<T>;
  constexpr int kPartial = 32;
  U sums[4][kPartial] = {};
  const Box<U> a = load_box(box1);
  for (int64_t j = 0; j < M; ++j) {
    const Box<U> g = pair_iou_gradient<kLegacy>(a, load_box(boxes2 + 4 * j));
    const U weight = grad[j * column_stride];
    sums[0][j % kPartial] += weight * g.x1;
    sums[1][j % kPartial] += weight * g.y1;
    sums[2][j % kPartial] += weight * g.x2;
    sums[3][j % kPartial] += weight * g.y2;
  }
  for (int k = 0; k < 4; ++k) {
    for (int half = kPartial / 2; half > 0; half /= 2)
      for (int l = 0; l < half; ++l) sums[k][l] += sums[k][l + half];
    store(grad_box1 + k, sums[k][0]);
  }
}

}  // namespace

void box_iou_tile(DType dtype, const void* boxes1, int64_t n, const void* boxes2, int64_t m, bool legacy, void* out,
                  int64_t row_stride) {
  visit(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const T *const a = static_cast<const T*>(boxes1), *const b = static_cast<const T*>(boxes2);
    Compute<T>* const result = static_cast<Compute<T>*>(out);
    legacy ? tile<true>(a, n, b, m, result, row_stride) : tile<false>(a, n, b, m, result, row_stride);
  });
}

void box_iou_backward_row(DType dtype, const void* grad, int64_t column_stride, const void* box1, const void* boxes2,
                          int64_t M, bool legacy, void* grad_box1) {
  visit(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const T *const a = static_cast<const T*>(box1), *const b = static_cast<const T*>(boxes2);
    const Compute<T>* const g = static_cast<const Compute<T>*>(grad);
    T* const result = static_cast<T*>(grad_box1);
    legacy ? backward_row<true>(g, column_stride, a, b, M, result)
           : backward_row<false>(g, column_stride, a, b, M, result);
  });
}

}  // namespace FF_ISA
}  // namespace frcnn_fast::nms
