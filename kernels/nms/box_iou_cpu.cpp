#include "box_iou_cpu.h"

namespace frcnn_fast::nms {
namespace {

// Fewer pairs than this are not worth a second thread.
constexpr int64_t kPairsForThreads = 1 << 21;

int64_t element_bytes(DType dtype) { return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2; }
int64_t compute_bytes(DType dtype) { return dtype == DType::kFloat64 ? 8 : 4; }

}  // namespace

Status box_iou_cpu(DType dtype, const void* boxes1, const void* boxes2, int64_t N, int64_t M, bool legacy, void* iou) {
  const int64_t box = 4 * element_bytes(dtype), value = compute_bytes(dtype);
  const int64_t across = (M + kIouColumns - 1) / kIouColumns, down = (N + kIouRows - 1) / kIouRows;
  const int64_t pairs = std::min(kIouRows, N) * std::min(kIouColumns, M);  // of a tile
  parallel_for(down * across, 1 + kPairsForThreads / (pairs + 1), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const int64_t i = t / across * kIouRows, j = t % across * kIouColumns;
      FF_ISA_CALL(box_iou_tile, dtype, static_cast<const char*>(boxes1) + i * box, std::min(kIouRows, N - i),
                  static_cast<const char*>(boxes2) + j * box, std::min(kIouColumns, M - j), legacy,
                  static_cast<char*>(iou) + (i * M + j) * value, M);
    }
  });
  return kOk;
}

Status box_iou_backward_cpu(DType dtype, const void* grad, const void* boxes1, const void* boxes2, int64_t N, int64_t M,
                            bool transposed, bool legacy, void* grad_boxes) {
  const int64_t row_stride = transposed ? 1 : M, column_stride = transposed ? N : 1;
  const int64_t box = 4 * element_bytes(dtype), value = compute_bytes(dtype);
  parallel_for(N, 1 + kPairsForThreads / 16 / (M + 1), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      FF_ISA_CALL(box_iou_backward_row, dtype, static_cast<const char*>(grad) + i * row_stride * value, column_stride,
                  static_cast<const char*>(boxes1) + i * box, boxes2, M, legacy,
                  static_cast<char*>(grad_boxes) + i * box);
  });
  return kOk;
}

}  // namespace frcnn_fast::nms
