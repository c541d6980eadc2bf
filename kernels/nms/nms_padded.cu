// NMS of images whose boxes are in no order. Where blocks form clusters and their shared memory takes the boxes to be
// kept, a cluster does all of an image (nms_cluster.cu): one launch. Elsewhere a chain: sort by score, bring the boxes
// into that order, suppress, name the rows.
#include <algorithm>

#include "../common/launch.cuh"
#include "../common/workspace.h"
#include "../top_n/top_n.h"
#include "nms_cuda.cuh"

namespace frcnn_fast::nms {
using namespace top_n;
namespace {

constexpr int kThreads = 256;

__device__ __forceinline__ int64_t thread_index() { return int64_t(blockIdx.x) * blockDim.x + threadIdx.x; }

// A thread a box: whether it competes.
template <class T>
__global__ void __launch_bounds__(kThreads)
    compete_kernel(const T* boxes, const int64_t* counts, int64_t B, int64_t N, uint8_t* competes) {
  const int64_t i = thread_index();
  if (i >= B * N) return;
  competes[i] = i % N < real_rows(counts, i / N, N) && takes_part(load_box(boxes + 4 * i));
}

// A thread a rank.
template <class T>
__global__ void __launch_bounds__(kThreads)
    gather_kernel(const T* boxes, const int64_t* class_ids, const int32_t* order, int64_t B, int64_t N,
                  Box<Compute<T>>* sorted_boxes, int64_t* sorted_ids) {
  const int64_t i = thread_index();
  if (i >= B * N || order[i] < 0) return;
  const int64_t from = i / N * N + order[i];
  sorted_boxes[i] = load_box(boxes + 4 * from);
  if (class_ids) sorted_ids[i] = class_ids[from];
}

// A thread a row of the result.
__global__ void __launch_bounds__(kThreads)
    ranks_to_rows_kernel(const int32_t* order, const int32_t* keep_ranks, const int32_t* num_ranks, int64_t B,
                         int64_t N, int64_t max_output, int64_t* keep, int64_t* num_keep) {
  const int64_t i = thread_index();
  if (i < B) num_keep[i] = num_ranks[i];
  if (i < B * max_output) keep[i] = keep_ranks[i] < 0 ? -1 : int64_t(order[i / max_output * N + keep_ranks[i]]);
}

template <class U>
struct Workspace {
  uint8_t* competes;   // [B, N]
  int32_t* order;      // [B, N]: rows by rank, -1 beyond the count
  int32_t* ranked;     // [B]: how many have a rank
  Box<U>* boxes;       // [B, N], by rank
  int64_t* class_ids;  // [B, N], by rank
  int32_t* keep;       // [B, max_output]: ranks
  int32_t* num_keep;   // [B]
  void* scratch;       // of the sort, then of the suppression
  size_t bytes;

  Workspace(void* base, DType dtype, int64_t B, int64_t N, int64_t max_output, bool classes) {
    WorkspaceArena arena(base);
    competes = arena.take<uint8_t>(B * N);
    order = arena.take<int32_t>(B * N);
    ranked = arena.take<int32_t>(B);
    boxes = arena.take<Box<U>>(B * N);
    class_ids = arena.take<int64_t>(classes ? B * N : 0);
    keep = arena.take<int32_t>(B * max_output);
    num_keep = arena.take<int32_t>(B);
    scratch = arena.take<char>(int64_t(std::max(top_n_segments_workspace_cuda(dtype, B, N, 1, N),
                                                nms_sorted_segments_workspace_cuda(dtype, B, N, max_output))));
    bytes = arena.used();
  }
};

template <class T>
Status run_chain(const PaddedBoxes& in, void* workspace, int64_t* keep, int64_t* num_keep, Stream stream) {
  using U = Compute<T>;
  const int64_t B = in.B, N = in.N, max_output = in.max_output;
  const Workspace<U> w(workspace, in.dtype, B, N, max_output, in.class_ids != nullptr);
  const T* const all = static_cast<const T*>(in.boxes);
  const unsigned blocks = blocks_for(B * N, kThreads);
  const MapLayout scores = row_layout(in.scores, N);
  FF_LAUNCH(compete_kernel<T>, blocks, kThreads, 0, stream, all, in.counts, B, N, w.competes);
  FF_TRY(top_n_segments_cuda(in.dtype, &scores, B, 1, N, w.competes, w.scratch, w.order, w.ranked, stream));
  FF_LAUNCH(gather_kernel<T>, blocks, kThreads, 0, stream, all, in.class_ids, w.order, B, N, w.boxes, w.class_ids);
  FF_TRY(nms_sorted_segments_cuda(sizeof(U) == 8 ? DType::kFloat64 : DType::kFloat32, w.boxes,
                                  in.class_ids ? w.class_ids : nullptr, w.ranked, B, N, in.iou_threshold, max_output,
                                  in.legacy, w.scratch, w.keep, w.num_keep, stream));
  FF_LAUNCH(ranks_to_rows_kernel, blocks_for(B * max_output, kThreads), kThreads, 0, stream, w.order, w.keep,
            w.num_keep, B, N, max_output, keep, num_keep);
  return launched();
}

}  // namespace

// What the chain needs, so that it does not matter which device is current.
size_t nms_padded_workspace_cuda(DType dtype, int64_t B, int64_t N, int64_t max_output, bool classes) {
  return visit_compute(dtype, [&](auto tag) {
    return Workspace<typename decltype(tag)::type>(nullptr, dtype, B, N, max_output, classes).bytes;
  });
}

Status nms_padded_cuda(DType dtype, const void* boxes, const void* scores, const int64_t* class_ids,
                       const int64_t* counts, int64_t B, int64_t N, double iou_threshold, int64_t max_output,
                       bool legacy, void* workspace, int64_t* keep, int64_t* num_keep, Stream stream) {
  if (B == 0) return kOk;
  if (N > INT32_MAX || max_output > INT32_MAX)
    return invalid("boxes, max_output: expected fewer than 2^31 an image, got %lld and %lld", (long long)N,
                   (long long)max_output);
  if (N == 0 || max_output == 0) {
    if (max_output > 0) FF_TRY(fill_bytes(keep, 0xff, size_t(B * max_output) * sizeof(int64_t), stream));
    return fill_bytes(num_keep, 0, size_t(B) * sizeof(int64_t), stream);
  }
  const PaddedBoxes in = {dtype, boxes, scores, class_ids, counts, B, N, iou_threshold, max_output, legacy};
  if (nms_fits_cluster(in)) return nms_by_cluster(in, keep, num_keep, stream);  // the one place where the way is chosen
  return visit(
      dtype, [&](auto tag) { return run_chain<typename decltype(tag)::type>(in, workspace, keep, num_keep, stream); });
}

}  // namespace frcnn_fast::nms
