// Generalized, distance and complete IoU: of every pair, as a loss of two boxes in a row, and the gradients of one
// side.
#include "../common/launch.cuh"
#include "iou_kinds.h"

namespace frcnn_fast::nms {
namespace {

constexpr int kKindColumns = 128, kKindRows = 16;  // a block's tile of the matrix

// A thread has one column and walks kKindRows rows, which the block shares: the stores of a warp are one line. What is
// worked out once a box (an angle costs more than a pair) is in shared memory, or in the thread. Grid: tiles across x
// tiles down, in one dimension.
template <IouKind kKind, class T>
__global__ void __launch_bounds__(kKindColumns)
    pairwise_iou_kernel(const T* boxes1, int64_t N, const T* boxes2, int64_t M, int64_t across, Compute<T> eps,
                        Compute<T>* out) {
  using U = Compute<T>;
  FF_SHARED(MeasuredBox<U>, rows, [kKindRows]);
  const int64_t first = int64_t(blockIdx.x) / across * kKindRows;
  const int64_t j = int64_t(blockIdx.x) % across * kKindColumns + threadIdx.x;
  const int count = int(min((long long)kKindRows, (long long)(N - first)));
  if (int(threadIdx.x) < count) rows[threadIdx.x] = measured<kKind>(load_box(boxes1 + 4 * (first + threadIdx.x)));
  __syncthreads();  // the rows are there
  if (j >= M) return;
  const MeasuredBox<U> mine = measured<kKind>(load_box(boxes2 + 4 * j));
  for (int i = 0; i < count; ++i) out[(first + i) * M + j] = iou_score<kKind, false>(rows[i], mine, eps);
}

constexpr int kKindWarps = 4;

// A warp a row; lane l sums columns l, l + 32, ..., then the lanes are folded in halves.
template <IouKind kKind, class T>
__global__ void __launch_bounds__(kKindWarps* kWarp)
    pairwise_iou_backward_kernel(const Compute<T>* grad, int64_t row_stride, int64_t column_stride, const T* boxes1,
                                 int64_t N, const T* boxes2, int64_t M, Compute<T> eps, T* grad_boxes1) {
  using U = Compute<T>;
  const int64_t i = int64_t(blockIdx.x) * kKindWarps + warp_id();
  if (i >= N) return;
  const MeasuredBox<U> mine = measured<kKind>(load_box(boxes1 + 4 * i));
  U sums[4] = {};
  for (int64_t j = lane_id(); j < M; j += kWarp) {
    const Box<U> g = iou_slopes<kKind, false>(mine, measured<kKind>(load_box(boxes2 + 4 * j)), eps);
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

constexpr int kLossThreads = 256;

// A thread a row.
template <IouKind kKind, class T>
__global__ void __launch_bounds__(kLossThreads)
    iou_loss_kernel(const T* boxes1, const T* boxes2, int64_t N, Compute<T> eps, Compute<T>* loss) {
  const int64_t i = int64_t(blockIdx.x) * kLossThreads + threadIdx.x;
  if (i >= N) return;
  loss[i] =
      iou_score<kKind, true>(measured<kKind>(load_box(boxes1 + 4 * i)), measured<kKind>(load_box(boxes2 + 4 * i)), eps);
}

// A thread a row.
template <IouKind kKind, class T>
__global__ void __launch_bounds__(kLossThreads)
    iou_loss_backward_kernel(const Compute<T>* grad, const T* boxes1, const T* boxes2, int64_t N, Compute<T> eps,
                             T* grad_boxes1) {
  using U = Compute<T>;
  const int64_t i = int64_t(blockIdx.x) * kLossThreads + threadIdx.x;
  if (i >= N) return;
  const Box<U> g = iou_slopes<kKind, true>(measured<kKind>(load_box(boxes1 + 4 * i)),
                                           measured<kKind>(load_box(boxes2 + 4 * i)), eps);
  const U weight = -grad[i];
  store(grad_boxes1 + 4 * i, weight * g.x1);
  store(grad_boxes1 + 4 * i + 1, weight * g.y1);
  store(grad_boxes1 + 4 * i + 2, weight * g.x2);
  store(grad_boxes1 + 4 * i + 3, weight * g.y2);
}

}  // namespace

Status pairwise_iou_cuda(DType dtype, const void* boxes1, const void* boxes2, int64_t N, int64_t M, IouKind kind,
                         double eps, void* iou, Stream stream) {
  if (N == 0 || M == 0) return kOk;
  return visit_kind(dtype, kind, [&](auto tag, auto which) {
    using T = typename decltype(tag)::type;
    const int64_t across = blocks_for(M, kKindColumns);
    FF_LAUNCH((pairwise_iou_kernel<decltype(which)::kind, T>), unsigned(across * blocks_for(N, kKindRows)),
              kKindColumns, 0, stream, static_cast<const T*>(boxes1), N, static_cast<const T*>(boxes2), M, across,
              Compute<T>(eps), static_cast<Compute<T>*>(iou));
    return launched();
  });
}

Status pairwise_iou_backward_cuda(DType dtype, const void* grad, const void* boxes1, const void* boxes2, int64_t N,
                                  int64_t M, IouKind kind, double eps, bool transposed, void* grad_boxes,
                                  Stream stream) {
  if (N == 0) return kOk;
  const int64_t row_stride = transposed ? 1 : M, column_stride = transposed ? N : 1;
  return visit_kind(dtype, kind, [&](auto tag, auto which) {
    using T = typename decltype(tag)::type;
    FF_LAUNCH((pairwise_iou_backward_kernel<decltype(which)::kind, T>), blocks_for(N, kKindWarps), kKindWarps * kWarp,
              0, stream, static_cast<const Compute<T>*>(grad), row_stride, column_stride, static_cast<const T*>(boxes1),
              N, static_cast<const T*>(boxes2), M, Compute<T>(eps), static_cast<T*>(grad_boxes));
    return launched();
  });
}

Status iou_loss_cuda(DType dtype, const void* boxes1, const void* boxes2, int64_t N, IouKind kind, double eps,
                     void* loss, Stream stream) {
  if (N == 0) return kOk;
  return visit_kind(dtype, kind, [&](auto tag, auto which) {
    using T = typename decltype(tag)::type;
    FF_LAUNCH((iou_loss_kernel<decltype(which)::kind, T>), blocks_for(N, kLossThreads), kLossThreads, 0, stream,
              static_cast<const T*>(boxes1), static_cast<const T*>(boxes2), N, Compute<T>(eps),
              static_cast<Compute<T>*>(loss));
    return launched();
  });
}

Status iou_loss_backward_cuda(DType dtype, const void* grad, const void* boxes1, const void* boxes2, int64_t N,
                              IouKind kind, double eps, void* grad_boxes, Stream stream) {
  if (N == 0) return kOk;
  return visit_kind(dtype, kind, [&](auto tag, auto which) {
    using T = typename decltype(tag)::type;
    FF_LAUNCH((iou_loss_backward_kernel<decltype(which)::kind, T>), blocks_for(N, kLossThreads), kLossThreads, 0,
              stream, static_cast<const Compute<T>*>(grad), static_cast<const T*>(boxes1),
              static_cast<const T*>(boxes2), N, Compute<T>(eps), static_cast<T*>(grad_boxes));
    return launched();
  });
}

}  // namespace frcnn_fast::nms
