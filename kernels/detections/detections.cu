// Detections on CUDA: a fixed chain of launches over all images.
//
//   score    one warp a proposal: softmax over the classes, decode of those that score enough
//   top-N    every image's candidates, sorted (kernels/top_n); what is no candidate scores NaN
//   gather   one thread a ranked candidate: boxes and classes into rank order
//   NMS      every image by itself, classes apart, early exit at D (kernels/nms)
//   output   one thread an output row
#include "../common/launch.cuh"
#include "../common/workspace.h"
#include "../nms/nms.h"
#include "../top_n/top_n.h"
#include "detections.h"

namespace frcnn_fast {
namespace {

constexpr int kThreads = 256;

template <class U>
struct Pieces {
  U* boxes;             // [B, R, 4] by candidate
  U* scores;            // [B, R] by candidate, NaN for none
  int32_t* ranked;      // [B, R] candidates, best first
  int32_t* num_ranked;  // [B]
  U* ranked_boxes;      // [B, R, 4]
  int64_t* class_ids;   // [B, R]
  int32_t* keep;        // [B, k] ranks
  int32_t* num_keep;    // [B]
  char* top_n;
  char* nms;
  size_t bytes;
};

// R = N * K candidates, k = min(R, D) detections an image.
template <class U>
Pieces<U> carve(int64_t B, int64_t R, int64_t k, void* workspace) {
  const DType compute = sizeof(U) == 8 ? DType::kFloat64 : DType::kFloat32;
  Carver carver(workspace);
  Pieces<U> p;
  p.boxes = carver.take<U>(B * R * 4);
  p.scores = carver.take<U>(B * R);
  p.ranked = carver.take<int32_t>(B * R);
  p.num_ranked = carver.take<int32_t>(B);
  p.ranked_boxes = carver.take<U>(B * R * 4);
  p.class_ids = carver.take<int64_t>(B * R);
  p.keep = carver.take<int32_t>(B * k);
  p.num_keep = carver.take<int32_t>(B);
  p.top_n = carver.take<char>(int64_t(top_n_segments_workspace_cuda(compute, B, R, 1, R)));
  p.nms = carver.take<char>(int64_t(nms_sorted_segments_workspace_cuda(compute, B, R, k)));
  p.bytes = carver.used();
  return p;
}

template <class T>
struct ScoreInputs {
  using U = Compute<T>;
  const T* class_logits;   // [B, N, C]
  const T* box_deltas;     // [B, N, 4 * C] or [B, N, 4]
  const U* proposals;      // [B, N, 4]
  const int64_t* counts;   // [B]
  const U* image_sizes;    // [B, 2]
  unsigned N, C;
  bool class_agnostic;
  U threshold, min_size;
  DecodeParams<U> params;
};

// A warp owns one proposal; lane l owns classes l, l + 32, ... An image whose count is out of range has none.
template <class T, bool kLegacy>
__global__ void __launch_bounds__(kThreads, 1)
    detections_score_kernel(const __grid_constant__ ScoreInputs<T> in, Compute<T>* __restrict__ boxes /* [B, N, K, 4] */,
                            Compute<T>* __restrict__ scores /* [B, N, K] */) {
  using U = Compute<T>;
  const unsigned n = blockIdx.x * (kThreads / kWarp) + warp_id(), b = blockIdx.y, K = in.C - 1;
  if (n >= in.N) return;
  const int64_t row = int64_t(b) * in.N + n, count = in.counts[b];
  const bool present = n < count && FF_MUTANT(detections_counts, count <= in.N, true);
  const T* const logits = in.class_logits + row * in.C;

  // Lanes without a class repeat the first: that changes no maximum. NaN must win, so that the row's scores are NaN.
  U most = load(logits);
  for (unsigned c = lane_id(); c < in.C; c += kWarp) {
    const U logit = load(logits + c);
    most = logit > most || logit != logit ? logit : most;
  }
#pragma unroll
  for (int d = kWarp / 2; d > 0; d /= 2) {
    const U other = __shfl_xor_sync(kFullMask, most, d);
    most = other > most || other != other ? other : most;
  }
  U sum = 0;
  for (unsigned c = lane_id(); c < in.C; c += kWarp) sum = sum + exp_(load(logits + c) - most);
#pragma unroll
  for (int d = kWarp / 2; d > 0; d /= 2) sum = sum + __shfl_down_sync(kFullMask, sum, d);
  sum = __shfl_sync(kFullMask, sum, 0);

  const Window<U> window = make_window<kLegacy>(in.image_sizes + 2 * b, in.min_size, static_cast<const U*>(nullptr));
  const Box<U> proposal = load_box(in.proposals + 4 * row);
  for (unsigned c = lane_id(); c < in.C; c += kWarp) {
    if (c == 0) continue;
    const int64_t candidate = row * K + c - 1;
    const U score = exp_(load(logits + c) - most) / sum;
    U result = U(0) / U(0);
    if (present && scores_enough(score, in.threshold)) {
      const Box<U> d = load_box(in.box_deltas + 4 * (in.class_agnostic ? row : row * in.C + c));
      const Box<U> decoded = decode<kLegacy>(proposal, d.x1, d.y1, d.x2, d.y2, in.params);
      const Box<U> box = clip(decoded, window);
      store_box(boxes + 4 * candidate, box);
      if (is_valid<kLegacy>(decoded, box, window.min_side)) result = score;
    }
    scores[candidate] = result;
  }
}

template <class U>
__global__ void __launch_bounds__(kThreads)
    detections_gather_kernel(const U* __restrict__ boxes /* [B, R, 4] */, const int32_t* __restrict__ ranked /* [B, R] */,
                             const int32_t* __restrict__ num_ranked /* [B] */, int64_t R, unsigned K,
                             U* __restrict__ ranked_boxes /* [B, R, 4] */, int64_t* __restrict__ class_ids /* [B, R] */) {
  const unsigned b = blockIdx.y, rank = blockIdx.x * kThreads + threadIdx.x;
  if (rank >= unsigned(num_ranked[b])) return;
  const int64_t row = b * R + rank;
  const unsigned candidate = unsigned(ranked[row]);
  store_box(ranked_boxes + 4 * row, load_box(boxes + 4 * (b * R + candidate)));
  class_ids[row] = candidate % K + 1;
}

template <class U>
__global__ void __launch_bounds__(kThreads)
    detections_output_kernel(const Pieces<U> p, int64_t R, int64_t k, int64_t D, U* __restrict__ out_boxes,
                             U* __restrict__ out_scores, int64_t* __restrict__ labels, int64_t* __restrict__ counts) {
  const unsigned b = blockIdx.y;
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x, count = R > 0 ? p.num_keep[b] : 0;
  if (i == 0) counts[b] = count;
  if (i >= D) return;
  const int64_t out = b * D + i;
  if (i >= count) {
    store_box(out_boxes + 4 * out, Box<U>{0, 0, 0, 0});
    out_scores[out] = U(0);
    labels[out] = -1;
    return;
  }
  const int64_t row = b * R + p.keep[b * k + i];
  store_box(out_boxes + 4 * out, load_box(p.ranked_boxes + 4 * row));
  out_scores[out] = p.scores[b * R + p.ranked[row]];
  labels[out] = p.class_ids[row];
}

template <class T, bool kLegacy>
Status detect(const DetectionInputs& in, const DetectionSettings& set, void* workspace, const DetectionOutputs& out,
              Stream stream) {
  using U = Compute<T>;
  const DType compute = sizeof(U) == 8 ? DType::kFloat64 : DType::kFloat32;
  const int64_t K = in.C > 1 ? in.C - 1 : 0, R = in.N * K, D = set.max_detections, k = R < D ? R : D;
  if (in.B == 0) return kOk;
  const Pieces<U> p = carve<U>(in.B, R, k, workspace);
  const unsigned B = unsigned(in.B);
  if (R > 0) {
    const ScoreInputs<T> inputs = {static_cast<const T*>(in.class_logits),
                                   static_cast<const T*>(in.box_deltas),
                                   static_cast<const U*>(in.proposals),
                                   in.counts,
                                   static_cast<const U*>(in.image_sizes),
                                   unsigned(in.N),
                                   unsigned(in.C),
                                   in.class_agnostic,
                                   U(set.score_threshold),
                                   U(set.min_size),
                                   make_decode_params<U>(set.weights, set.clamp)};
    FF_LAUNCH((detections_score_kernel<T, kLegacy>), dim3(blocks_for(in.N, kThreads / kWarp), B), dim3(kThreads), 0,
              stream, inputs, p.boxes, p.scores);
    const int64_t starts[2] = {0, R};
    FF_TRY(top_n_segments_cuda(compute, p.scores, in.B, R, starts, 1, R, nullptr, p.top_n, p.ranked, p.num_ranked,
                               stream));
    FF_LAUNCH((detections_gather_kernel<U>), dim3(blocks_for(R, kThreads), B), dim3(kThreads), 0, stream, p.boxes,
              p.ranked, p.num_ranked, R, unsigned(K), p.ranked_boxes, p.class_ids);
    FF_TRY(nms_sorted_segments_cuda(compute, p.ranked_boxes, p.class_ids, p.num_ranked, in.B, R, set.iou_threshold, k,
                                    set.legacy, p.nms, p.keep, p.num_keep, stream));
  }
  FF_LAUNCH((detections_output_kernel<U>), dim3(blocks_for(D, kThreads), B), dim3(kThreads), 0, stream, p, R, k, D,
            static_cast<U*>(out.boxes), static_cast<U*>(out.scores), out.labels, out.counts);
  return launched();
}

}  // namespace

size_t detections_workspace_cuda(const DetectionInputs& in, const DetectionSettings& set) {
  const int64_t R = in.N * (in.C > 1 ? in.C - 1 : 0), k = R < set.max_detections ? R : set.max_detections;
  return in.dtype == DType::kFloat64 ? carve<double>(in.B, R, k, nullptr).bytes : carve<float>(in.B, R, k, nullptr).bytes;
}

Status detections_cuda(const DetectionInputs& in, const DetectionSettings& set, void* workspace,
                       const DetectionOutputs& out, Stream stream) {
  return visit(in.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    return set.legacy ? detect<T, true>(in, set, workspace, out, stream)
                      : detect<T, false>(in, set, workspace, out, stream);
  });
}

}  // namespace frcnn_fast
