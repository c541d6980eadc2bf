// IoU of every pair, and the gradient of one side.
#include "../common/launch.cuh"
#include "box_iou.h"

namespace frcnn_fast::nms {
namespace {

constexpr int kColumns = 128, kRows = 16;  // a block's tile of the matrix

// A thread has one column and walks kRows rows, which the block shares: the stores of a warp are one line. Grid: tiles
// across x tiles down, in one dimension.
template <bool kLegacy, class T>
__global__ void __launch_bounds__(kColumns)
    box_iou_kernel(const T* boxes1, int64_t N, const T* boxes2, int64_t M, int64_t across, Compute<T>* out) {
  using U = Compute<T>;
  FF_SHARED(Box<U>, rows, [kRows]);
  FF_SHARED(U, row_areas, [kRows]);
  const int64_t first = int64_t(blockIdx.x) / across * kRows, j = int64_t(blockIdx.x) % across * kColumns + threadIdx.x;
  const int count = int(min((long long)kRows, (long long)(N - first)));
  if (int(threadIdx.x) < count) {
    const Box<U> row = load_box(boxes1 + 4 * (first + threadIdx.x));
    rows[threadIdx.x] = row;
    row_areas[threadIdx.x] = finite_area<kLegacy>(row);
  }
  __syncthreads();  // the rows are there
  if (j >= M) return;
  const Box<U> mine = load_box(boxes2 + 4 * j);
  const U my_area = finite_area<kLegacy>(mine);
  for (int i = 0; i < count; ++i) out[(first + i) * M + j] = pair_iou<kLegacy>(rows[i], row_areas[i], mine, my_area);
}

constexpr int kWarps = 8;

// A warp a row; lane l sums columns l, l + 32, ..., then the lanes are folded in halves.
template <bool kLegacy, class T>
__global__ void __launch_bounds__(kWarps* kWarp)
    box_iou_backward_kernel(const Compute<T>* grad, int64_t row_stride, int64_t column_stride, const T* boxes1,
                            int64_t N, const T* boxes2, int64_t M, T* grad_boxes1) {
  using U = Compute<T>;
  const int64_t i = int64_t(blockIdx.x) * kWarps + warp_id();
  if (i >= N) return;
  const Box<U> mine = load_box(boxes1 + 4 * i);
  U sums[4] = {};
  for (int64_t j = lane_id(); j < M; j += kWarp) {
    const Box<U> g = pair_iou_gradient<kLegacy>(mine, load_box(boxes2 + 4 * j));
    const U weight = grad[i * row_stride + j * column_stride];
    sums[0] += weight * g.x1;
    sums[1] += weight * g.y1;
    sums[2] += weight * g.x2;
    sums[3] += weight * g.y2;
  }
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const U sum = warp_reduce(sums[k], Plus());
    if (lane_id() == 0) store(grad_boxes1 + 4 * i + k, sum);
  }
}

}  // namespace

Status box_iou_cuda(DType dtype, const void* boxes1, const void* boxes2, int64_t N, int64_t M, bool legacy, void* iou,
                    Stream stream) {
  if (N == 0 || M == 0) return kOk;
  return visit(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const int64_t across = blocks_for(M, kColumns);
    const unsigned blocks = unsigned(across * blocks_for(N, kRows));
    const T *const a = static_cast<const T*>(boxes1), *const b = static_cast<const T*>(boxes2);
    Compute<T>* const result = static_cast<Compute<T>*>(iou);
    if (legacy) {
      FF_LAUNCH((box_iou_kernel<true, T>), blocks, kColumns, 0, stream, a, N, b, M, across, result);
    } else {
      FF_LAUNCH((box_iou_kernel<false, T>), blocks, kColumns, 0, stream, a, N, b, M, across, result);
    }
    return launched();
  });
}

Status box_iou_backward_cuda(DType dtype, const void* grad, const void* boxes1, const void* boxes2, int64_t N,
                             int64_t M, bool transposed, bool legacy, void* grad_boxes, Stream stream) {
  if (N == 0) return kOk;
  const int64_t row_stride = transposed ? 1 : M, column_stride = transposed ? N : 1;
  return visit(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const unsigned blocks = blocks_for(N, kWarps);
    const T *const a = static_cast<const T*>(boxes1), *const b = static_cast<const T*>(boxes2);
    const Compute<T>* const g = static_cast<const Compute<T>*>(grad);
    T* const result = static_cast<T*>(grad_boxes);
    if (legacy) {
      FF_LAUNCH((box_iou_backward_kernel<true, T>), blocks, kWarps * kWarp, 0, stream, g, row_stride, column_stride, a,
                N, b, M, result);
    } else {
      FF_LAUNCH((box_iou_backward_kernel<false, T>), blocks, kWarps * kWarp, 0, stream, g, row_stride, column_stride, a,
                N, b, M, result);
    }
    return launched();
  });
}

}  // namespace frcnn_fast::nms
