#include "iou_kinds_cpu.h"

namespace frcnn_fast::nms {
namespace {

// Fewer pairs than this are not worth a second thread.
constexpr int64_t kPairsForThreads = 1 << 19;

int64_t element_bytes(DType dtype) { return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2; }
int64_t compute_bytes(DType dtype) { return dtype == DType::kFloat64 ? 8 : 4; }

const void* at(const void* base, int64_t bytes) { return static_cast<const char*>(base) + bytes; }
void* at(void* base, int64_t bytes) { return static_cast<char*>(base) + bytes; }

}  // namespace

Status pairwise_iou_cpu(DType dtype, const void* boxes1, const void* boxes2, int64_t N, int64_t M, IouKind kind,
                        double eps, void* iou) {
  const int64_t box = 4 * element_bytes(dtype), value = compute_bytes(dtype);
  const int64_t across = (M + kKindColumns - 1) / kKindColumns, down = (N + kKindRows - 1) / kKindRows;
  const int64_t pairs = std::min(kKindRows, N) * std::min(kKindColumns, M);  // of a tile
  parallel_for(down * across, 1 + kPairsForThreads / (pairs + 1), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const int64_t i = t / across * kKindRows, j = t % across * kKindColumns;
      FF_ISA_CALL(pairwise_iou_tile, dtype, at(boxes1, i * box), std::min(kKindRows, N - i), at(boxes2, j * box),
                  std::min(kKindColumns, M - j), kind, eps, at(iou, (i * M + j) * value), M);
    }
  });
  return kOk;
}

Status pairwise_iou_backward_cpu(DType dtype, const void* grad, const void* boxes1, const void* boxes2, int64_t N,
                                 int64_t M, IouKind kind, double eps, bool transposed, void* grad_boxes) {
  const int64_t row_stride = transposed ? 1 : M, column_stride = transposed ? N : 1;
  const int64_t box = 4 * element_bytes(dtype), value = compute_bytes(dtype);
  const int64_t tiles = (N + kKindRows - 1) / kKindRows;
  parallel_for(tiles, 1 + kPairsForThreads / 4 / (kKindRows * M + 1), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * kKindRows; i < std::min(N, end * kKindRows); i += kKindRows)
      FF_ISA_CALL(pairwise_iou_backward_rows, dtype, at(grad, i * row_stride * value), row_stride, column_stride,
                  at(boxes1, i * box), std::min(kKindRows, N - i), boxes2, M, kind, eps, at(grad_boxes, i * box));
  });
  return kOk;
}

Status iou_loss_cpu(DType dtype, const void* boxes1, const void* boxes2, int64_t N, IouKind kind, double eps,
                    void* loss) {
  const int64_t box = 4 * element_bytes(dtype), value = compute_bytes(dtype);
  parallel_for(N, kPairsForThreads / 16, [&](int64_t begin, int64_t end) {
    FF_ISA_CALL(iou_loss_rows, dtype, at(boxes1, begin * box), at(boxes2, begin * box), end - begin, kind, eps,
                at(loss, begin * value));
  });
  return kOk;
}

Status iou_loss_backward_cpu(DType dtype, const void* grad, const void* boxes1, const void* boxes2, int64_t N,
                             IouKind kind, double eps, void* grad_boxes) {
  const int64_t box = 4 * element_bytes(dtype), value = compute_bytes(dtype);
  parallel_for(N, kPairsForThreads / 16, [&](int64_t begin, int64_t end) {
    FF_ISA_CALL(iou_loss_backward_rows, dtype, at(grad, begin * value), at(boxes1, begin * box),
                at(boxes2, begin * box), end - begin, kind, eps, at(grad_boxes, begin * box));
  });
  return kOk;
}

}  // namespace frcnn_fast::nms
