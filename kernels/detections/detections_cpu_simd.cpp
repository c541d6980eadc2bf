#include <utility>

#include "../nms/kept_chains.h"
#include "../top_n/ranked.h"
#include "detections_cpu.h"

namespace frcnn_fast::detections {
using namespace nms;
using namespace top_n;
namespace FF_ISA {
using namespace frcnn_fast::FF_ISA;
using namespace nms::FF_ISA;
using namespace top_n::FF_ISA;
namespace {

// Candidates decoded at a time.
constexpr int kDecoded = 64;

template <class U>
struct DecodeBlock {
  alignas(64) U x1[kDecoded], y1[kDecoded], x2[kDecoded], y2[kDecoded];  // first the proposals, then the boxes
  alignas(64) U d0[kDecoded], d1[kDecoded], d2[kDecoded], d3[kDecoded];
  bool valid[kDecoded];
};

// Rows whose softmax is taken together: none then waits for what another has just written.
constexpr int64_t kRows = 8;

template <class U>
struct Memory {
  int64_t classes;    // with the background, padded to whole lanes
  U* logits;          // [kRows, classes], -inf in the lanes without a class
  U* powers;          // [kRows, classes]
  U* scores;          // [N * K]: the candidates', in index order
  uint32_t* indices;  // [N * K]
  int64_t chunk;
  RankedBuffers<RankKey<U>> ranked;

  Memory(WorkspaceArena* arena, const DetectionInputs& in) {
    classes = (in.K + kSoftmaxLanes) / kSoftmaxLanes * kSoftmaxLanes;
    logits = arena->take<U>(kRows * classes);
    powers = arena->take<U>(kRows * classes);
    scores = arena->take<U>(in.N * in.K);
    indices = arena->take<uint32_t>(in.N * in.K);
    chunk = ranked_chunk(in.N * in.K);
    ranked = take_ranked_buffers<RankKey<U>>(arena, in.N * in.K, chunk);
  }
};

// Lane l of v with lane l + half: combine(lower, upper) in the lower `half` lanes; what is above counts no more.
template <int half, class V, class Combine, size_t... l>
FF_SIMD V fold_lanes(V v, const Combine& combine, std::index_sequence<l...> lanes) {
  constexpr int n = sizeof...(l);
  const V upper = FF_MUTANT(detect_fold, (__builtin_shufflevector(v, v, int((l + half) % n)...)),
                            (__builtin_shufflevector(v, v, int((n + 2 * half - 1 - l) % n)...)));
  const V folded = combine(v, upper);
  if constexpr (half > 1)
    return fold_lanes<half / 2>(folded, combine, lanes);
  else
    return folded;
}

// All lanes of the registers in one, in halves: lane l with lane l + 16, then 8, 4, 2, 1.
template <class U, class Combine, int n>
FF_SIMD U fold(Vector<U> (&registers)[n], const Combine& combine) {
  constexpr int kLanes = kSoftmaxLanes / n;
#pragma GCC unroll 8
  for (int half = n / 2; half > 0; half /= 2)
#pragma GCC unroll 8
    for (int r = 0; r < half; ++r) registers[r] = combine(registers[r], registers[r + half]);
  return fold_lanes<kLanes / 2>(registers[0], combine, std::make_index_sequence<kLanes>())[0];
}

// powers[c] = exp_(logits[c] - maximum); returns their sum.
template <class U>
FF_SIMD U soft_powers(const U* logits, int64_t classes, U* powers) {
  using V = Vector<U>;
  constexpr int kLanes = kVectorBytes / int(sizeof(U)), n = kSoftmaxLanes / kLanes;
  V folded[n];
#pragma GCC unroll 16
  for (int r = 0; r < n; ++r) folded[r] = load_aligned<V>(logits + r * kLanes);
  for (int64_t c = kSoftmaxLanes; c < classes; c += kSoftmaxLanes)
#pragma GCC unroll 16
    for (int r = 0; r < n; ++r) folded[r] = max_lanes(folded[r], load_aligned<V>(logits + c + r * kLanes));
  const U most = fold<U>(folded, [](V a, V b) { return max_lanes(a, b); });
#pragma GCC unroll 16
  for (int r = 0; r < n; ++r) folded[r] = V{};
  for (int64_t c = 0; c < classes; c += kSoftmaxLanes) {
#pragma GCC ivdep
    for (int l = 0; l < kSoftmaxLanes; ++l) powers[c + l] = exp_(logits[c + l] - most);
#pragma GCC unroll 16
    for (int r = 0; r < n; ++r) folded[r] += load_aligned<V>(powers + c + r * kLanes);
  }
  return fold<U>(folded, [](V a, V b) { return a + b; });
}

// The candidates of the image's rows, in index order; returns how many.
template <class T, class U = Compute<T>>
int64_t find_candidates(const DetectionInputs& in, U threshold, int64_t b, const Memory<U>& memory) {
  using V = Vector<U>;
  constexpr int64_t kStep = kVectorBytes / int64_t(sizeof(U));
  const int64_t classes = in.K + 1, background = in.first_class ? 0 : in.K;
  const int64_t rows = FF_MUTANT(detect_counts, in.counts[b], in.N);
  const T* logits = static_cast<const T*>(in.class_logits) + b * in.N * classes;
  int64_t count = 0;
  U sums[kRows];
  for (int64_t r = 0; r < kRows; ++r)
    for (int64_t c = classes; c < memory.classes; ++c) memory.logits[r * memory.classes + c] = -U(__builtin_inf());
  for (int64_t first_row = 0; first_row < rows; first_row += kRows) {
    const int64_t here = rows - first_row < kRows ? rows - first_row : kRows;
    for (int64_t r = 0; r < here; ++r, logits += classes)
      for (int64_t c = 0; c < classes; ++c) memory.logits[r * memory.classes + c] = load(logits + c);
    for (int64_t r = 0; r < here; ++r)
      sums[r] = soft_powers(memory.logits + r * memory.classes, memory.classes, memory.powers + r * memory.classes);
    for (int64_t r = 0; r < here; ++r) {
      const U* const powers = memory.powers + r * memory.classes;
      // power / sum > threshold implies power >= the rounded product: the division is taken for those only.
      const V likely_from = splat(threshold * sums[r]);
      for (int64_t first = 0; first < classes; first += kStep) {
        unsigned likely = at_least(load_aligned<V>(powers + first), likely_from);
        if (first <= background && background < first + kStep)
          likely &= ~FF_MUTANT(detect_background, 1u << (background - first), 0u);
        for (; likely; likely &= likely - 1) {
          const int64_t c = first + __builtin_ctz(likely);
          const U score = powers[c] / sums[r];
          if (c >= classes || !passes(score, threshold)) continue;
          memory.scores[count] = score;
          memory.indices[count++] = uint32_t((first_row + r) * in.K + c - (c > background));
        }
      }
    }
  }
  return count;
}

// Decodes the candidates of these indices, size <= kDecoded.
template <bool kLegacy, class T, class U = Compute<T>>
void decode_block(const DetectionInputs& in, int64_t b, const DecodeParams<U>& params, const Window<U>& window,
                  const uint32_t* indices, int size, DecodeBlock<U>* block) {
  const T* const deltas =
      static_cast<const T*>(in.box_deltas) + b * in.N * deltas_of_row(in.K, in.first_class, in.agnostic);
  const U* const proposals = static_cast<const U*>(in.proposals) + b * in.N * 4;
  for (int i = 0; i < size; ++i) {
    const int64_t n = indices[i] / in.K, k = indices[i] % in.K;
    const U* const box = proposals + 4 * n;
    const T* const delta = deltas + delta_offset(n, k, in.K, in.first_class, in.agnostic);
    block->x1[i] = box[0], block->y1[i] = box[1], block->x2[i] = box[2], block->y2[i] = box[3];
    block->d0[i] = load(delta), block->d1[i] = load(delta + 1);
    block->d2[i] = load(delta + 2), block->d3[i] = load(delta + 3);
  }
#pragma GCC ivdep
  for (int i = 0; i < size; ++i) {
    const Box<U> proposal = {block->x1[i], block->y1[i], block->x2[i], block->y2[i]};
    const Box<U> decoded = decode<kLegacy>(proposal, block->d0[i], block->d1[i], block->d2[i], block->d3[i], params);
    const Box<U> box = clip(decoded, window);
    block->x1[i] = box.x1, block->y1[i] = box.y1, block->x2[i] = box.x2, block->y2[i] = box.y2;
    block->valid[i] = is_valid<kLegacy>(decoded, box, window.min_side);
  }
}

template <bool kLegacy, class T>
void detect(const DetectionInputs& in, const DetectionSettings& set, int64_t b, void* workspace,
            const DetectionOutputs& out) {
  using U = Compute<T>;
  WorkspaceArena arena(workspace);
  const Memory<U> memory(&arena, in);
  const Suppression<U> s = make_suppression<U>(set.iou_threshold);
  const int64_t D = set.max_detections;
  KeptChains<kLegacy, U> kept(&arena, in.K, D < in.N * in.K ? D : in.N * in.K, s);
  kept.start(in.K, 1);
  const DecodeParams<U> params = make_decode_params<U>(set.weights, set.clamp);
  const Window<U> window = make_window<kLegacy>(static_cast<const U*>(in.image_sizes) + 2 * b, U(set.min_size),
                                                static_cast<const U*>(nullptr));
  U* const boxes = static_cast<U*>(out.boxes) + b * D * 4;
  U* const scores = static_cast<U*>(out.scores) + b * D;
  int64_t *const labels = out.labels + b * D, *const rows = out.indices + b * D;

  const int64_t candidates = find_candidates<T>(in, U(set.score_threshold), b, memory);
  Ranked<U> ranked(memory.scores, candidates, candidates, memory.chunk, memory.ranked);
  const uint32_t* best;
  DecodeBlock<U> block;
  uint32_t indices[kDecoded];
  for (int64_t found; kept.size() < D && (found = ranked.next_chunk(&best)) > 0;) {
    for (int64_t first = 0; first < found && kept.size() < D; first += kDecoded) {
      const int size = int(found - first < kDecoded ? found - first : kDecoded);
      for (int i = 0; i < size; ++i) indices[i] = memory.indices[best[first + i]];
      decode_block<kLegacy, T>(in, b, params, window, indices, size, &block);
      for (int i = 0; i < size && kept.size() < D; ++i) {
        if (!FF_MUTANT(detect_valid, block.valid[i], true)) continue;
        const Box<U> box = {block.x1[i], block.y1[i], block.x2[i], block.y2[i]};
        const U box_area = area<kLegacy>(box);
        const int32_t k = int32_t(indices[i] % uint32_t(in.K)), chain = FF_MUTANT(detect_class, k, 0);
        const Candidate<U> c = {{box, s.share * box_area}, box_area, chain, chain, 1, 1, 0};
        if (kept.suppressed(c)) continue;
        store_box(boxes + 4 * kept.size(), box);
        scores[kept.size()] = memory.scores[best[first + i]];
        labels[kept.size()] = FF_MUTANT(detect_label, k + in.first_class, k);
        rows[kept.size()] = FF_MUTANT(detect_row, indices[i] / uint32_t(in.K), indices[i]);
        kept.push(c);
      }
    }
  }
  out.counts[b] = kept.size();
  for (int64_t i = kept.size(); i < D; ++i) {
    store_box(boxes + 4 * i, Box<U>{});
    scores[i] = U(0);
    labels[i] = rows[i] = -1;
  }
}

}  // namespace

void detect_image(const DetectionInputs& in, const DetectionSettings& set, int64_t b, void* workspace,
                  const DetectionOutputs& out) {
  visit(in.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    set.legacy ? detect<true, T>(in, set, b, workspace, out) : detect<false, T>(in, set, b, workspace, out);
  });
}

size_t detect_image_workspace(const DetectionInputs& in, const DetectionSettings& set) {
  return visit_compute(in.dtype, [&](auto tag) {
    using U = typename decltype(tag)::type;
    const int64_t most = set.max_detections < in.N * in.K ? set.max_detections : in.N * in.K;
    WorkspaceArena arena(nullptr);
    Memory<U>(&arena, in);
    KeptChains<false, U>(&arena, in.K, most, Suppression<U>{});
    return arena.used();
  });
}

}  // namespace FF_ISA
}  // namespace frcnn_fast::detections
