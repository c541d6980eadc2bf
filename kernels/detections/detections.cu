// The last step where a cluster (detections_cluster.cu) has no room for it, in a number of launches that shapes alone
// decide:
//
//   score_kernel   a warp a row: softmax, and a score for every candidate whose box decodes to something valid
//   top-N          the candidates of every image, sorted (kernels/top_n)
//   decode_kernel  a thread a rank: its box again
//   NMS            within the classes of every image, early exit at D (kernels/nms)
//   write_kernel   a thread a row of the result
//
// Scores of a row add up to 1, so that few of its classes are above the threshold: the sort is given room for those.
#include <algorithm>
#include <cmath>

#include "../common/workspace.h"
#include "../top_n/top_n.h"
#include "detections_cuda.h"

namespace frcnn_fast::detections {
using namespace top_n;
namespace {

constexpr int kThreads = 256;
constexpr int kRowsPerBlock = kThreads / kWarp;

// By value, to every kernel.
template <class T>
struct Detector : DetectorInputs<T> {
  using U = Compute<T>;
  int64_t D;
  int64_t ranks;        // an image at most
  U* scores;            // [B, N * K], NaN where there is no candidate
  int32_t* order;       // [B, ranks]: candidates, best first
  int32_t* num_ranked;  // [B]
  Box<U>* boxes;        // [B, ranks]
  int64_t* classes;     // [B, ranks]
  int32_t* keep;        // [B, D]: ranks
  int32_t* num_kept;    // [B]
};

// A warp a row, a lane every 32nd class: the lanes' partial sums and their tree are the order of summation that
// detections.h states. The powers are computed twice: few classes fit a lane's registers in general.
template <bool kLegacy, class T>
__global__ void __launch_bounds__(kThreads) score_kernel(Detector<T> d) {
  using U = Compute<T>;
  const int64_t row = int64_t(blockIdx.x) * kRowsPerBlock + warp_id(), b = row / d.N, n = row % d.N;
  if (b >= d.B) return;
  U* const scores = d.scores + row * d.K;
  const int64_t given = FF_MUTANT(detect_counts, d.counts[b], d.N), count = given < 0 || given > d.N ? 0 : given;
  const T* const logits = d.logits + row * (d.K + 1);
  U top = -U(bits_float(0x7f800000u));
  for (int64_t c = lane_id(); c <= d.K; c += kWarp) {
    const U logit = load(logits + c);
    top = logit > top ? logit : top;
  }
  top = warp_reduce(top, Larger());
  U sum = U(0);
  for (int64_t c = lane_id(); c <= d.K; c += kWarp) sum += exp_(load(logits + c) - top);
  sum = warp_reduce(sum, Plus());
  for (int64_t k = lane_id(); k < d.K; k += kWarp) {
    const U score = exp_(load(logits + d.first_class + k) - top) / sum;
    bool candidate = n < count && passes(score, d.score_threshold);
    if (candidate) decoded_box<kLegacy>(d, b, n, k, &candidate);
    scores[k] = candidate ? score : U(bits_float(0x7fc00000u));
  }
}

template <bool kLegacy, class T>
__global__ void __launch_bounds__(kThreads) decode_kernel(Detector<T> d) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= d.B * d.ranks || d.order[i] < 0) return;
  bool valid;
  d.boxes[i] = decoded_box<kLegacy>(d, i / d.ranks, d.order[i] / d.K, d.order[i] % d.K, &valid);
  d.classes[i] = FF_MUTANT(detect_class, int64_t(d.order[i] % d.K), int64_t(0));
}

template <class T>
__global__ void __launch_bounds__(kThreads) write_kernel(Detector<T> d, Compute<T>* boxes, Compute<T>* scores,
                                                         int64_t* labels, int64_t* indices, int64_t* counts) {
  using U = Compute<T>;
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i < d.B) counts[i] = d.num_kept[i];
  if (i >= d.B * d.D) return;
  const int64_t b = i / d.D, rank = d.keep[i];
  const int64_t candidate = rank < 0 ? 0 : d.order[b * d.ranks + rank];
  store_box(boxes + 4 * i, rank < 0 ? Box<U>{} : d.boxes[b * d.ranks + rank]);
  scores[i] = rank < 0 ? U(0) : d.scores[b * d.N * d.K + candidate];
  labels[i] = rank < 0 ? -1 : candidate % d.K + FF_MUTANT(detect_label, d.first_class, 0);
  indices[i] = rank < 0 ? -1 : FF_MUTANT(detect_row, candidate / d.K, candidate);
}

// Candidates that an image can have: of a row's scores, which add up to 1, fewer than 1 / threshold are above it. The
// factor is for their rounding.
int64_t most_candidates(const DetectionInputs& in, double threshold) {
  const double a_row = threshold > 0 ? std::floor(1.001 / threshold) : double(in.K);
  return in.N * int64_t(std::min(double(in.K), a_row));
}

// Cuts the workspace; *scratch is for the sort, then for the suppression.
template <class T>
size_t take_detector(void* workspace, const DetectionInputs& in, const DetectionSettings& set, Detector<T>* d,
                     void** scratch) {
  using U = Compute<T>;
  const DType compute = sizeof(U) == 8 ? DType::kFloat64 : DType::kFloat32;
  WorkspaceArena arena(workspace);
  d->ranks = most_candidates(in, set.score_threshold);
  d->scores = arena.take<U>(in.B * in.N * in.K);
  d->order = arena.take<int32_t>(in.B * d->ranks);
  d->num_ranked = arena.take<int32_t>(in.B);
  d->boxes = arena.take<Box<U>>(in.B * d->ranks);
  d->classes = arena.take<int64_t>(in.B * d->ranks);
  d->keep = arena.take<int32_t>(in.B * set.max_detections);
  d->num_kept = arena.take<int32_t>(in.B);
  *scratch = arena.take<char>(
      int64_t(std::max(top_n_segments_workspace_cuda(compute, in.B, in.N * in.K, 1, d->ranks),
                       nms_sorted_segments_workspace_cuda(compute, in.B, d->ranks, set.max_detections))));
  return arena.used();
}

template <bool kLegacy, class T>
Status detect(const DetectionInputs& in, const DetectionSettings& set, void* workspace, const DetectionOutputs& out,
              Stream stream) {
  using U = Compute<T>;
  const DType compute = sizeof(U) == 8 ? DType::kFloat64 : DType::kFloat32;
  Detector<T> d = {};
  void* scratch;
  take_detector(workspace, in, set, &d, &scratch);
  static_cast<DetectorInputs<T>&>(d) = make_inputs<T>(in, set);
  d.D = set.max_detections;
  if (d.ranks == 0) {
    FF_TRY(fill_bytes(d.num_kept, 0, size_t(in.B) * sizeof(int32_t), stream));
    if (d.D > 0) FF_TRY(fill_bytes(d.keep, 0xff, size_t(in.B * d.D) * sizeof(int32_t), stream));
  } else {
    const MapLayout scores = row_layout(d.scores, in.N * in.K);
    FF_LAUNCH((score_kernel<kLegacy, T>), blocks_for(in.B * in.N, kRowsPerBlock), kThreads, 0, stream, d);
    FF_TRY(top_n_segments_cuda(compute, &scores, in.B, 1, d.ranks, nullptr, scratch, d.order, d.num_ranked, stream));
    FF_LAUNCH((decode_kernel<kLegacy, T>), blocks_for(in.B * d.ranks, kThreads), kThreads, 0, stream, d);
    FF_TRY(nms_sorted_segments_cuda(compute, d.boxes, d.classes, d.num_ranked, in.B, d.ranks, set.iou_threshold, d.D,
                                    set.legacy, scratch, d.keep, d.num_kept, stream));
  }
  FF_LAUNCH(write_kernel<T>, blocks_for(std::max(in.B, in.B * d.D), kThreads), kThreads, 0, stream, d,
            static_cast<U*>(out.boxes), static_cast<U*>(out.scores), out.labels, out.indices, out.counts);
  return launched();
}

}  // namespace

size_t detections_workspace_cuda(const DetectionInputs& in, const DetectionSettings& set) {
  if (detections_fit_cluster(in, set)) return 0;
  return visit(in.dtype, [&](auto tag) {
    Detector<typename decltype(tag)::type> d;
    void* scratch;
    return take_detector(nullptr, in, set, &d, &scratch);
  });
}

Status detections_cuda(const DetectionInputs& in, const DetectionSettings& set, void* workspace,
                       const DetectionOutputs& out, Stream stream) {
  if (in.B == 0) return kOk;
  if (in.N * in.K > INT32_MAX)
    return invalid("class_logits: expected fewer than 2^31 candidates an image, got %lld boxes of %lld classes",
                   (long long)in.N, (long long)in.K);
  if (detections_fit_cluster(in, set)) return detect_by_cluster(in, set, out, stream);
  return visit(in.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    return set.legacy ? detect<true, T>(in, set, workspace, out, stream)
                      : detect<false, T>(in, set, workspace, out, stream);
  });
}

}  // namespace frcnn_fast::detections
