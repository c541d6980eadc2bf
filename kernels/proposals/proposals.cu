// The proposal step on CUDA. Where blocks form clusters and their shared memory takes the boxes to be kept, a cluster
// does all of a level (proposals_cluster.cu): one launch, and one that merges the levels, where there are several. The
// merge is a launch of its own because a ticket that tells the last cluster of an image would need a zeroed word in the
// workspace, hence a node that zeroes it: the same number of nodes, and this one overlaps its start with the clusters.
//
// Elsewhere, a fixed chain of launches over all images and levels. Their grids have one dimension (the others end at
// 65,535, which images times levels may pass): `blocks` of them an image or a segment.
//
//   valid     (filter_before_top_n only) one thread an anchor: does it decode to a box that may compete?
//   top-N     every (image, level) segment's best pre_nms_top_n, sorted (kernels/top_n)
//   decode    one thread a selected anchor: decode, clip, judge
//   compact   one block a segment closes the gaps that dropped boxes leave, in place
//   NMS       every segment by itself, early exit at post_nms_top_n (kernels/nms)
//   merge     one thread a kept box: its place among all levels of the image by binary search in the other levels
#include <algorithm>

#include "../common/workspace.h"
#include "../nms/nms.h"
#include "../top_n/top_n.h"
#include "decoder.cuh"
#include "proposals_cuda.h"
#include "proposals_merge.cuh"

namespace frcnn_fast::proposals {
using namespace nms;
using namespace top_n;
namespace {

constexpr int kThreads = 256;
constexpr int kCompactThreads = 512;

template <class U>
struct Pieces {
  uint8_t* valid;         // [B, A] (filter_before_top_n), then [S, n]: may the box compete?
  int32_t* selected;      // [S, n] anchor indices, best first; compacted with the boxes
  int32_t* num_selected;  // [S]
  U* boxes;               // [S, n, 4]
  int32_t* num_boxes;     // [S] after compaction
  int32_t* keep;          // [S, k] ranks
  int32_t* num_keep;      // [S]
  char* top_n;
  char* nms;
  size_t bytes;
};

template <class U>
Pieces<U> take_from(const ProposalInputs& in, const ProposalSettings& set, int64_t n, int64_t k, void* workspace) {
  const int64_t S = in.B * in.L;
  WorkspaceArena arena(workspace);
  Pieces<U> p;
  const int64_t all = set.filter_before_top_n ? in.B * in.A : 0;
  p.valid = arena.take<uint8_t>(all > S * n ? all : S * n);
  p.selected = arena.take<int32_t>(S * n);
  p.num_selected = arena.take<int32_t>(S);
  p.boxes = arena.take<U>(S * n * 4);
  p.num_boxes = arena.take<int32_t>(S);
  p.keep = arena.take<int32_t>(S * k);
  p.num_keep = arena.take<int32_t>(S);
  p.top_n = arena.take<char>(int64_t(top_n_segments_workspace_cuda(in.dtype, in.B, in.A, in.L, n)));
  p.nms = arena.take<char>(int64_t(
      nms_sorted_segments_workspace_cuda(in.dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32, S, n, k)));
  p.bytes = arena.used();
  return p;
}

// What the clusters leave for the merge: [S, k] each.
template <class T>
ProposalOutputs lay_out_rows(const ProposalInputs& in, int64_t k, void* workspace, size_t* bytes) {
  const int64_t S = in.B * in.L;
  WorkspaceArena arena(workspace);
  ProposalOutputs rows = {};
  rows.boxes = arena.take<Compute<T>>(S * k * 4);
  rows.scores = arena.take<T>(S * k);
  rows.indices = arena.take<int64_t>(S * k);
  rows.counts = arena.take<int64_t>(S);
  if (bytes) *bytes = arena.used();
  return rows;
}

template <class T, bool kLegacy>
__global__ void __launch_bounds__(kThreads, 1)
    proposals_valid_kernel(const __grid_constant__ Decoder<T, kLegacy> decoder,
                           uint8_t* __restrict__ valid /* [B, A] */, unsigned blocks) {
  const int64_t b = blockIdx.x / blocks, a = int64_t(blockIdx.x % blocks) * kThreads + threadIdx.x;
  if (a >= decoder.A) return;
  Box<Compute<T>> box;
  valid[b * decoder.A + a] = decoder(b, decoder.deltas.level_of(a), a, &box);
}

template <class T, bool kLegacy>
__global__ void __launch_bounds__(kThreads, 1)
    proposals_decode_kernel(const __grid_constant__ Decoder<T, kLegacy> decoder, unsigned L, int64_t n,
                            const int32_t* __restrict__ selected /* [S, n] */,
                            const int32_t* __restrict__ num_selected /* [S] */,
                            Compute<T>* __restrict__ boxes /* [S, n, 4] */, uint8_t* __restrict__ valid /* [S, n] */,
                            unsigned blocks) {
  const unsigned s = blockIdx.x / blocks, rank = blockIdx.x % blocks * kThreads + threadIdx.x;
  if (rank >= unsigned(num_selected[s])) return;
  const int64_t row = s * n + rank;
  Box<Compute<T>> box;
  valid[row] = decoder(s / L, int(s % L), selected[row], &box);
  store_box(boxes + 4 * row, box);
}

// One block a segment walks its ranks in pieces of kCompactThreads; a block-wide scan gives every valid box its place,
// so that order survives. A place is never behind its rank: a piece is read whole before any of it is written, and the
// barriers inside block_exclusive_count stand between the two and between the pieces.
template <class U>
__global__ void __launch_bounds__(kCompactThreads)
    proposals_compact_kernel(int64_t n, const uint8_t* __restrict__ valid /* [S, n] */,
                             const int32_t* __restrict__ num_selected /* [S] */, U* boxes /* [S, n, 4] */,
                             int32_t* anchors /* [S, n] */, int32_t* __restrict__ num_boxes /* [S] */) {
  FF_SHARED(int, scratch, [kCompactThreads / kWarp]);
  const int64_t s = blockIdx.x;
  const int count = num_selected[s];
  int written = 0;
  for (int first = 0; first < count; first += kCompactThreads) {
    const int rank = first + int(threadIdx.x);
    const bool stays = rank < count && valid[s * n + rank];
    Box<U> box = {};
    int32_t a = 0;
    if (stays) {
      box = load_box(boxes + 4 * (s * n + rank));
      a = anchors[s * n + rank];
    }
    int total;
    const int64_t place = s * n + written + block_exclusive_count(stays, scratch, &total);
    if (stays) {
      store_box(boxes + 4 * place, box);
      anchors[place] = a;
    }
    written += total;
  }
  if (threadIdx.x == 0) num_boxes[s] = written;
}

// What the chain leaves for the merge.
template <class T>
struct ChainKept {
  AnchorMaps<T> scores;
  const Compute<T>* boxes;        // [S, n, 4]
  const int32_t *anchors, *keep;  // [S, n], [S, k] ranks
  const int32_t* num_keep;        // [S]
  int64_t L, n, k;

  __device__ __forceinline__ int64_t row(int64_t s, int i) const { return s * n + keep[s * k + i]; }
  __device__ __forceinline__ int count(int64_t s) const { return num_keep[s]; }
  __device__ __forceinline__ const T* score(int64_t s, int i) const {
    return scores.at(s / L, int(s % L), index(s, i));
  }
  __device__ __forceinline__ int64_t index(int64_t s, int i) const { return anchors[row(s, i)]; }
  __device__ __forceinline__ Box<Compute<T>> box(int64_t s, int i) const { return load_box(boxes + 4 * row(s, i)); }
};

// What the clusters leave for it.
template <class T>
struct ClusterKept {
  const T* scores;          // [S, k]
  const Compute<T>* boxes;  // [S, k, 4]
  const int64_t* indices;   // [S, k]
  const int64_t* counts;    // [S]
  int64_t k;

  __device__ __forceinline__ int count(int64_t s) const { return int(counts[s]); }
  __device__ __forceinline__ const T* score(int64_t s, int i) const { return scores + s * k + i; }
  __device__ __forceinline__ int64_t index(int64_t s, int i) const { return indices[s * k + i]; }
  __device__ __forceinline__ Box<Compute<T>> box(int64_t s, int i) const { return load_box(boxes + 4 * (s * k + i)); }
};

template <class T, class Kept>
Status merge(const Kept& kept, int64_t B, int64_t L, int64_t k, int64_t P, const ProposalOutputs& out, Stream stream) {
  const unsigned blocks = blocks_for(std::max({L * k, P, int64_t(1)}), kMergeThreads);  // one at least, for the count
  const int room = merge_room(k);
  const auto launch = [&](auto kernel) {
    FF_LAUNCH_OVERLAPPED(kernel, dim3(blocks * unsigned(B)), dim3(kMergeThreads), 0, stream, kept, int(L),
                         int(k > 0 ? k : 1), room, P, static_cast<Compute<T>*>(out.boxes), static_cast<T*>(out.scores),
                         out.indices, out.counts, blocks);
  };
  if (L * room <= kMergeShared / int64_t(sizeof(RankKey<Compute<T>>)))
    launch(proposals_merge_kernel<T, Kept, true>);
  else
    launch(proposals_merge_kernel<T, Kept, false>);
  return launched();
}

template <class T>
Status run_clusters(const ProposalInputs& in, const ProposalSettings& set, void* workspace, const ProposalOutputs& out,
                    Stream stream) {
  if (in.L == 1) return propose_by_cluster(in, set, out, set.post_nms_top_n, true, stream);
  const int64_t k = level_limits(in, set).k;
  const ProposalOutputs rows = lay_out_rows<T>(in, k, workspace, nullptr);
  FF_TRY(propose_by_cluster(in, set, rows, k, false, stream));
  const ClusterKept<T> kept = {static_cast<const T*>(rows.scores), static_cast<const Compute<T>*>(rows.boxes),
                               rows.indices, rows.counts, k};
  return merge<T>(kept, in.B, in.L, k, set.post_nms_top_n, out, stream);
}

template <class T, bool kLegacy>
Status run_chain(const ProposalInputs& in, const ProposalSettings& set, void* workspace, const ProposalOutputs& out,
                 Stream stream) {
  using U = Compute<T>;
  const DType compute = in.dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
  const int64_t S = in.B * in.L;
  const LevelLimits limits = level_limits(in, set);
  const int64_t n = limits.n, k = limits.k;
  const Pieces<U> p = take_from<U>(in, set, n, k, workspace);
  Decoder<T, kLegacy> decoder{};
  FF_TRY(make_decoder(in, set, &decoder));
  if (set.filter_before_top_n) {
    const unsigned blocks = blocks_for(in.A, kThreads);
    FF_LAUNCH((proposals_valid_kernel<T, kLegacy>), dim3(blocks * unsigned(in.B)), dim3(kThreads), 0, stream, decoder,
              p.valid, blocks);
  }
  FF_TRY(top_n_segments_cuda(in.dtype, in.scores, in.B, in.L, n, set.filter_before_top_n ? p.valid : nullptr, p.top_n,
                             p.selected, p.num_selected, stream));
  const unsigned blocks = blocks_for(n, kThreads);
  FF_LAUNCH((proposals_decode_kernel<T, kLegacy>), dim3(blocks * unsigned(S)), dim3(kThreads), 0, stream, decoder,
            unsigned(in.L), n, p.selected, p.num_selected, p.boxes, p.valid, blocks);
  FF_LAUNCH((proposals_compact_kernel<U>), dim3(unsigned(S)), dim3(kCompactThreads), 0, stream, n, p.valid,
            p.num_selected, p.boxes, p.selected, p.num_boxes);
  FF_TRY(nms_sorted_segments_cuda(compute, p.boxes, nullptr, p.num_boxes, S, n, set.iou_threshold, k, set.legacy, p.nms,
                                  p.keep, p.num_keep, stream));
  const ChainKept<T> kept = {make_anchor_maps<T>(in.scores, in.L), p.boxes, p.selected, p.keep, p.num_keep, in.L, n, k};
  return merge<T>(kept, in.B, in.L, k, set.post_nms_top_n, out, stream);
}

// No anchors at all.
template <class T>
Status run_empty(const ProposalInputs& in, const ProposalSettings& set, const ProposalOutputs& out, Stream stream) {
  return merge<T>(ClusterKept<T>{}, in.B, 0, 0, set.post_nms_top_n, out, stream);
}

}  // namespace

// What the more demanding of the two ways needs, so that it does not matter which device is current.
size_t rpn_proposals_workspace_cuda(const ProposalInputs& in, const ProposalSettings& set) {
  const LevelLimits limits = level_limits(in, set);
  return visit(in.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    size_t rows = 0;
    lay_out_rows<T>(in, limits.k, nullptr, &rows);
    return std::max(rows, take_from<Compute<T>>(in, set, limits.n, limits.k, nullptr).bytes);
  });
}

Status rpn_proposals_cuda(const ProposalInputs& in, const ProposalSettings& set, void* workspace,
                          const ProposalOutputs& out, Stream stream) {
  if (in.L > kMaxLevels)
    return invalid("level_sizes: %lld levels, at most %d are supported", (long long)in.L, kMaxLevels);
  if (in.B == 0) return kOk;
  const bool any = level_limits(in, set).n > 0;
  const bool clusters = any && proposals_fit_cluster(in, set);  // the one place where the way is chosen
  return visit(in.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    if (!any) return run_empty<T>(in, set, out, stream);
    if (clusters) return run_clusters<T>(in, set, workspace, out, stream);
    return set.legacy ? run_chain<T, true>(in, set, workspace, out, stream)
                      : run_chain<T, false>(in, set, workspace, out, stream);
  });
}

}  // namespace frcnn_fast::proposals
