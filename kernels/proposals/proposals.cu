// The proposal step on CUDA: a fixed chain of launches over all images and levels.
//
//   valid     (filter_first only) one thread an anchor: does it decode to a box that may compete?
//   top-N     every (image, level) segment's best pre_nms_top_n, sorted (kernels/top_n)
//   decode    one thread a selected anchor: decode, clip, judge
//   compact   one block a segment closes the gaps that dropped boxes leave, in place
//   NMS       every segment by itself, early exit at post_nms_top_n (kernels/nms)
//   merge     one thread a kept box: its place among all levels of the image by binary search in the other levels
#include "../anchor_decode/anchor_decode.h"
#include "../common/launch.cuh"
#include "../common/mutant.h"
#include "../common/workspace.h"
#include "../nms/nms.h"
#include "../top_n/top_n.h"
#include "proposals.h"

namespace frcnn_fast {
namespace {

constexpr int kThreads = 256;
constexpr int kCompactThreads = 512;

template <class U>
struct Pieces {
  uint8_t* valid;         // [B, A] (filter_first), then [S, n]: may the box compete?
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
Pieces<U> carve(const ProposalInputs& in, const ProposalSettings& set, int64_t n, int64_t k, void* workspace) {
  const int64_t S = in.B * in.L;
  Carver carver(workspace);
  Pieces<U> p;
  const int64_t all = set.filter_first ? in.B * in.A : 0;
  p.valid = carver.take<uint8_t>(all > S * n ? all : S * n);
  p.selected = carver.take<int32_t>(S * n);
  p.num_selected = carver.take<int32_t>(S);
  p.boxes = carver.take<U>(S * n * 4);
  p.num_boxes = carver.take<int32_t>(S);
  p.keep = carver.take<int32_t>(S * k);
  p.num_keep = carver.take<int32_t>(S);
  p.top_n = carver.take<char>(int64_t(top_n_segments_workspace_cuda(in.dtype, in.B, in.A, in.L, n)));
  p.nms = carver.take<char>(int64_t(
      nms_sorted_segments_workspace_cuda(in.dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32, S, n, k)));
  p.bytes = carver.used();
  return p;
}

// Candidates a level and kept boxes a level: no level gives more than it has, none contributes more than P.
int64_t largest_level(const ProposalInputs& in) {
  int64_t largest = 0;
  for (int64_t l = 0; l < in.L; ++l) largest = in.level_sizes[l] > largest ? in.level_sizes[l] : largest;
  return largest;
}

// Anchor to clipped box.
template <class T, bool kLegacy>
struct Decoder {
  using U = Compute<T>;
  const T* deltas;  // [B, A, 4]
  Anchors<U> anchors;
  const U* image_sizes;   // [B, 2]
  const U* image_scales;  // [B] or null
  int64_t A;
  U min_size;
  DecodeParams<U> params;

  // False where the box may not compete.
  FF_HD bool operator()(int64_t b, int64_t a, Box<U>* box) const {
    const Box<U> d = load_box(deltas + 4 * (b * A + a));
    const Window<U> window =
        make_window<kLegacy>(image_sizes + 2 * b, min_size, image_scales ? image_scales + b : nullptr);
    const Box<U> decoded = decode<kLegacy>(anchors.at(b, a), d.x1, d.y1, d.x2, d.y2, params);
    *box = clip(decoded, window);
    return is_valid<kLegacy>(decoded, *box, window.min_side);
  }
};

template <class T, bool kLegacy>
__global__ void __launch_bounds__(kThreads, 1)
    proposals_valid_kernel(const __grid_constant__ Decoder<T, kLegacy> decoder,
                           uint8_t* __restrict__ valid /* [B, A] */) {
  const int64_t a = int64_t(blockIdx.x) * kThreads + threadIdx.x, b = blockIdx.y;
  if (a >= decoder.A) return;
  Box<Compute<T>> box;
  valid[b * decoder.A + a] = decoder(b, a, &box);
}

template <class T, bool kLegacy>
__global__ void __launch_bounds__(kThreads, 1)
    proposals_decode_kernel(const __grid_constant__ Decoder<T, kLegacy> decoder, unsigned L, int64_t n,
                            const int32_t* __restrict__ selected /* [S, n] */,
                            const int32_t* __restrict__ num_selected /* [S] */,
                            Compute<T>* __restrict__ boxes /* [S, n, 4] */, uint8_t* __restrict__ valid /* [S, n] */) {
  const unsigned s = blockIdx.y, rank = blockIdx.x * kThreads + threadIdx.x;
  if (rank >= unsigned(num_selected[s])) return;
  const int64_t row = s * n + rank;
  Box<Compute<T>> box;
  valid[row] = decoder(s / L, selected[row], &box);
  store_box(boxes + 4 * row, box);
}

// One block a segment walks its ranks in pieces of kCompactThreads; a block-wide scan gives every valid box its place,
// so that order survives. A place is never behind its rank: a piece is read whole before any of it is written, and the
// barriers inside block_exclusive_sum stand between the two and between the pieces.
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
    const int64_t place = s * n + written + block_exclusive_sum(int(stays), scratch, &total);
    if (stays) {
      store_box(boxes + 4 * place, box);
      anchors[place] = a;
    }
    written += total;
  }
  if (threadIdx.x == 0) num_boxes[s] = written;
}

// Thread (b, l, i) places the i-th kept box of level l: i boxes of its own level come first, and of every other level
// those with a higher score, or an equal one in a lower level. Threads beyond the last box write the padding.
template <class T, class U = Compute<T>>
__global__ void __launch_bounds__(kThreads, 1)
    proposals_merge_kernel(const T* __restrict__ scores /* [B, A] */, const U* __restrict__ boxes /* [S, n, 4] */,
                           const int32_t* __restrict__ anchors /* [S, n] */,
                           const int32_t* __restrict__ keep /* [S, k] */,
                           const int32_t* __restrict__ num_keep /* [S] */, int64_t A, int64_t L, int64_t n, int64_t k,
                           int64_t P, U* __restrict__ out_boxes, T* __restrict__ out_scores,
                           int64_t* __restrict__ out_indices, int64_t* __restrict__ out_counts) {
  const int64_t b = blockIdx.y, thread = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  int64_t total = 0;
  for (int64_t l = 0; l < L; ++l) total += num_keep[b * L + l];
  const int64_t count = total < P ? total : P;
  if (thread == 0) out_counts[b] = count;
  if (thread >= count && thread < P) {
    const int64_t row = b * P + thread;
    store_box(out_boxes + 4 * row, Box<U>{0, 0, 0, 0});
    store(out_scores + row, U(0));
    out_indices[row] = -1;
  }
  const int64_t l = thread / k, i = thread % k;
  if (l >= L || i >= num_keep[b * L + l]) return;

  const int64_t s = b * L + l, candidate = s * n + keep[s * k + i], a = anchors[candidate];
  const U score = load(scores + b * A + a);
  int64_t place = i;
  for (int64_t other = 0; other < L; ++other) {
    if (other == l) continue;
    const int64_t so = b * L + other;
    int64_t low = 0, high = num_keep[so];
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      const U theirs = load(scores + b * A + anchors[so * n + keep[so * k + middle]]);
      const bool first = theirs > score || (theirs == score && FF_MUTANT(proposals_merge_ties, other<l, other> l));
      if (first)
        low = middle + 1;
      else
        high = middle;
    }
    place += low;
  }
  if (place >= P) return;
  const int64_t row = b * P + place;
  store_box(out_boxes + 4 * row, load_box(boxes + 4 * candidate));
  out_scores[row] = scores[b * A + a];
  out_indices[row] = a;
}

template <class T, bool kLegacy>
Status run_proposals(const ProposalInputs& in, const ProposalSettings& set, void* workspace, const ProposalOutputs& out,
                     Stream stream) {
  using U = Compute<T>;
  const DType compute = in.dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
  const int64_t S = in.B * in.L, P = set.post_nms_top_n, largest = largest_level(in);
  const int64_t n = largest < set.pre_nms_top_n ? largest : set.pre_nms_top_n, k = n < P ? n : P;
  const Pieces<U> p = carve<U>(in, set, n, k, workspace);

  Decoder<T, kLegacy> decoder{};
  FF_TRY(make_anchors(in.anchors, in.anchor_image_stride, in.grid, in.grid_levels, in.anchor_offset, in.A,
                      &decoder.anchors));
  decoder.deltas = static_cast<const T*>(in.deltas);
  decoder.image_sizes = static_cast<const U*>(in.image_sizes);
  decoder.image_scales = static_cast<const U*>(in.image_scales);
  decoder.A = in.A;
  decoder.min_size = U(set.min_size);
  decoder.params = make_decode_params<U>(set.weights, set.clamp);
  const T* scores = static_cast<const T*>(in.scores);

  if (S && n) {
    if (set.filter_first)
      FF_LAUNCH((proposals_valid_kernel<T, kLegacy>), dim3(blocks_for(in.A, kThreads), unsigned(in.B)), dim3(kThreads),
                0, stream, decoder, p.valid);
    int64_t starts[kMaxLevels + 1] = {0};
    for (int64_t l = 0; l < in.L; ++l) starts[l + 1] = starts[l] + in.level_sizes[l];
    FF_TRY(top_n_segments_cuda(in.dtype, in.scores, in.B, in.A, starts, in.L, n, set.filter_first ? p.valid : nullptr,
                               p.top_n, p.selected, p.num_selected, stream));
    FF_LAUNCH((proposals_decode_kernel<T, kLegacy>), dim3(blocks_for(n, kThreads), unsigned(S)), dim3(kThreads), 0,
              stream, decoder, unsigned(in.L), n, p.selected, p.num_selected, p.boxes, p.valid);
    FF_LAUNCH((proposals_compact_kernel<U>), dim3(unsigned(S)), dim3(kCompactThreads), 0, stream, n, p.valid,
              p.num_selected, p.boxes, p.selected, p.num_boxes);
    FF_TRY(nms_sorted_segments_cuda(compute, p.boxes, nullptr, p.num_boxes, S, n, set.iou_threshold, k, set.legacy,
                                    p.nms, p.keep, p.num_keep, stream));
  }
  if (in.B) {
    const bool any = S && n;
    const int64_t threads = any && in.L * k > P ? in.L * k : P;
    FF_LAUNCH((proposals_merge_kernel<T>), dim3(blocks_for(threads, kThreads), unsigned(in.B)), dim3(kThreads), 0,
              stream, scores, p.boxes, p.selected, p.keep, p.num_keep, in.A, any ? in.L : 0, n, k > 0 ? k : 1, P,
              static_cast<U*>(out.boxes), static_cast<T*>(out.scores), out.indices, out.counts);
  }
  return launched();
}

}  // namespace

size_t rpn_proposals_workspace_cuda(const ProposalInputs& in, const ProposalSettings& set) {
  const int64_t largest = largest_level(in);
  const int64_t n = largest < set.pre_nms_top_n ? largest : set.pre_nms_top_n;
  const int64_t k = n < set.post_nms_top_n ? n : set.post_nms_top_n;
  return in.dtype == DType::kFloat64 ? carve<double>(in, set, n, k, nullptr).bytes
                                     : carve<float>(in, set, n, k, nullptr).bytes;
}

Status rpn_proposals_cuda(const ProposalInputs& in, const ProposalSettings& set, void* workspace,
                          const ProposalOutputs& out, Stream stream) {
  if (in.L > kMaxLevels)
    return invalid("level_sizes: %lld levels, at most %d are supported", (long long)in.L, kMaxLevels);
  return visit(in.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    return set.legacy ? run_proposals<T, true>(in, set, workspace, out, stream)
                      : run_proposals<T, false>(in, set, workspace, out, stream);
  });
}

}  // namespace frcnn_fast
