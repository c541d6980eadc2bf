// The proposal step of every level of every image by a cluster of blocks each (kernels/nms/greedy_cluster.cuh): a
// level's scores are the segment, and a candidate is decoded, clipped and judged when its turn comes.
#include "../nms/cluster_launch.cuh"
#include "decoder.cuh"
#include "proposals_cuda.h"

namespace frcnn_fast::proposals {
using namespace nms;
using namespace top_n;
namespace {

// Where the results go: rows [S, stride].
template <class T>
struct ProposalRows {
  Compute<T>* boxes;
  T* scores;
  int64_t *indices, *counts;
  int64_t stride;
  bool padded;

  __device__ __forceinline__ void write(int64_t row, const Box<Compute<T>>& box, T score, int64_t index) const {
    store_box(boxes + 4 * row, box);
    scores[row] = score;
    indices[row] = index;
  }
};

// One level of one image, as GreedyCluster asks for it.
template <class T, bool kLegacy>
class Level {
 public:
  using Score = T;
  using U = Compute<T>;
  using ClassId = NoClass;

  __device__ __forceinline__ Level(const Decoder<T, kLegacy>& decoder, const ScoreSegments<T>& scores,
                                   const ProposalRows<T>& out, int segment)
      : decoder_(decoder),
        scores_(scores),
        out_(out),
        segment_(segment),
        image_(segment / scores.levels),
        level_(segment % scores.levels) {}

  __device__ __forceinline__ SegmentSlice<T> slice() const { return SegmentSlice<T>(scores_, int(segment_)); }
  __device__ __forceinline__ bool read(int64_t anchor, Box<U>* box) const {
    return decoder_(image_, level_, anchor, box);
  }
  __device__ __forceinline__ int64_t rows() const { return out_.padded ? out_.stride : 0; }
  __device__ __forceinline__ void write_count(int kept) const { out_.counts[segment_] = kept; }
  __device__ __forceinline__ void write(int64_t row, uint32_t anchor, const Box<U>& box) const {
    out_.write(int64_t(segment_) * out_.stride + row, box, *scores_.at(segment_, anchor), anchor);
  }
  __device__ __forceinline__ void pad(int64_t row) const {
    out_.write(int64_t(segment_) * out_.stride + row, Box<U>{}, T{}, -1);
  }

 private:
  const Decoder<T, kLegacy>& decoder_;
  const ScoreSegments<T>& scores_;
  const ProposalRows<T>& out_;
  const int segment_, image_, level_;
};

// Grid: a cluster a segment.
template <class T, bool kLegacy>
__global__ void __launch_bounds__(kClusterChunk, 1)
    proposals_cluster_kernel(const __grid_constant__ Decoder<T, kLegacy> decoder,
                             const __grid_constant__ ScoreSegments<T> segments,
                             const __grid_constant__ ProposalRows<T> out,
                             const __grid_constant__ ClusterSettings<Compute<T>> set) {
#if FF_CODE_HAS_CLUSTERS
  FF_SHARED(uint32_t, scratch, [kChunkWarps]);
  FF_DYN_SHARED(unsigned char, memory);
  // proposals_merge_kernel waits for this one's end before it does anything. With one level it does not come, and what
  // comes instead is none of ours.
  if (segments.levels > 1) let_next_launch_start();
  const ClusterMemory<Compute<T>, NoClass> arrays(memory, set);
  const Level<T, kLegacy> level(decoder, segments, out, int(blockIdx.x) / kCluster);
  GreedyCluster<Level<T, kLegacy>, kLegacy>(level, set, arrays, scratch).run();
#else
  __trap();
#endif
}

template <class T>
ClusterSettings<Compute<T>> make_settings(const ProposalInputs& in, const ProposalSettings& set) {
  const LevelLimits limits = level_limits(in, set);
  return cluster_settings<Compute<T>>(limits.longest, limits.n, limits.k, set.iou_threshold, set.filter_before_top_n);
}

}  // namespace

bool proposals_fit_cluster(const ProposalInputs& in, const ProposalSettings& set) {
  return visit(in.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    if (!fits_cluster<NoClass>(in.A, make_settings<T>(in, set))) return false;
    return set.legacy ? device_runs_greedy_clusters<&proposals_cluster_kernel<T, true>>()
                      : device_runs_greedy_clusters<&proposals_cluster_kernel<T, false>>();
  });
}

Status propose_by_cluster(const ProposalInputs& in, const ProposalSettings& set, const ProposalOutputs& rows,
                          int64_t stride, bool padded, Stream stream) {
  const auto launch = [&](auto tag, auto legacy) -> Status {
    using T = typename decltype(tag)::type;
    constexpr bool kLegacy = decltype(legacy)::value;
    Decoder<T, kLegacy> decoder{};
    FF_TRY(make_decoder(in, set, &decoder));
    const ScoreSegments<T> segments = make_segments<T>(in.scores, in.L, nullptr);
    const ProposalRows<T> out = {
        static_cast<Compute<T>*>(rows.boxes), static_cast<T*>(rows.scores), rows.indices, rows.counts, stride, padded};
    return launch_greedy_clusters<&proposals_cluster_kernel<T, kLegacy>, NoClass>(
        in.B * in.L, make_settings<T>(in, set), stream, decoder, segments, out);
  };
  return visit(in.dtype,
               [&](auto tag) { return set.legacy ? launch(tag, std::true_type()) : launch(tag, std::false_type()); });
}

}  // namespace frcnn_fast::proposals
