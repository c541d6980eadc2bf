// The proposal step of one image on one thread. Nothing is computed before it is needed: every level hands out its
// candidates best first, in chunks, decoded 64 at a time, and only until the image has its boxes.
#include "../anchor_decode/anchor_decode.h"
#include "../nms/cells.h"
#include "../top_n/ranked.h"
#include "proposals_cpu.h"

namespace frcnn_fast::proposals {
using namespace anchor_decode;
using namespace nms;
using namespace top_n;
namespace FF_ISA {
using namespace frcnn_fast::FF_ISA;
using namespace nms::FF_ISA;
using namespace top_n::FF_ISA;
namespace {

constexpr int kBlock = 64;
#if defined(FF_TEST_BUILD)
constexpr int64_t kLongList = 128;  // small cases have cells too
#else
constexpr int64_t kLongList = 1024;  // kept boxes from which on cells pay
#endif

// Decoded, clipped and judged boxes, a lane each.
template <class U>
struct Block {
  U x1[kBlock], y1[kBlock], x2[kBlock], y2[kBlock];
  bool valid[kBlock];
};

template <class T, bool kLegacy>
struct Decoder {
  using U = Compute<T>;
  Anchors<U> anchors;
  DecodeParams<U> params;
  Window<U> window;
  int64_t image;

  // The boxes of the anchors first + indices[i]. deltas: of the level, from this image's first on.
  void operator()(const AnchorMap<T>& map, const T* deltas, const uint32_t* indices, int64_t first, int count,
                  Block<U>* out) const {
    alignas(64) U a[4][kBlock], d[4][kBlock];
    for (int i = 0; i < count; ++i) {
      const Box<U> anchor = anchors.at(image, first + indices[i]);
      a[0][i] = anchor.x1, a[1][i] = anchor.y1, a[2][i] = anchor.x2, a[3][i] = anchor.y2;
      const T* const own = deltas + map.offset(indices[i]);
      for (int k = 0; k < 4; ++k) d[k][i] = load(own + k * map.value_stride);
    }
    for (int i = count; i < kBlock; ++i)
      for (int k = 0; k < 4; ++k) a[k][i] = d[k][i] = U(0);
#pragma GCC ivdep
    for (int i = 0; i < kBlock; ++i) {
      const Box<U> decoded =
          decode<kLegacy>(Box<U>{a[0][i], a[1][i], a[2][i], a[3][i]}, d[0][i], d[1][i], d[2][i], d[3][i], params);
      const Box<U> box = clip(decoded, window);
      out->x1[i] = box.x1, out->y1[i] = box.y1, out->x2[i] = box.x2, out->y2[i] = box.y2;
      out->valid[i] = is_valid<kLegacy>(decoded, box, window.min_side);
    }
  }
};

// What a level works in.
template <bool kLegacy, class U>
struct LevelMemory {
  int64_t chunk;     // ranks at a time
  int64_t capacity;  // kept boxes at most
  RankedBuffers<RankKey<U>> ranked;
  KeptChains<kLegacy, U> kept;

  LevelMemory(WorkspaceArena* arena, int64_t size, const ProposalSettings& set)
      : chunk(smaller(ranked_chunk(size), smaller(size, set.pre_nms_top_n))),
        capacity(smaller(smaller(size, set.pre_nms_top_n), set.post_nms_top_n)),
        ranked(take_ranked_buffers<RankKey<U>>(arena, size, chunk)),
        kept(arena, Cells<kLegacy, U>::most(listed()), capacity, make_suppression<U>(set.iou_threshold)) {}

  // The capacity that cells are made for: none for a list so short that a candidate meets all of it faster.
  int64_t listed() const { return capacity < kLongList ? 0 : capacity; }

 private:
  static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
};

// One level's survivors of NMS, best first.
template <class T, bool kLegacy>
class Level {
 public:
  using U = Compute<T>;

  // The best pre_nms_top_n candidates compete: of those with a valid box (filter_before_top_n), or of all.
  Level(WorkspaceArena* arena, const AnchorMap<T>& scores, const AnchorMap<T>& deltas, int64_t first, int64_t size,
        const ProposalSettings& set, const Decoder<T, kLegacy>& decoder)
      : deltas_(deltas),
        own_deltas_(deltas.data + decoder.image * deltas.image_stride),
        first_(first),
        decoder_(decoder),
        suppression_(make_suppression<U>(set.iou_threshold)),
        memory_(arena, size, set),
        valid_left_(set.pre_nms_top_n),
        ranked_(scores, scores.data + decoder.image * scores.image_stride, size,
                FF_MUTANT(proposals_filter_order, set.filter_before_top_n, false) ? size : set.pre_nms_top_n,
                memory_.chunk, memory_.ranked) {}

  // Moves on to the next survivor; false when there is none.
  bool advance() {
    for (;;) {
      while (lane_ < lanes_) {
        const int i = lane_++;
        if (!block_.valid[i]) continue;
        if (FF_MUTANT(proposals_valid_left, valid_left_ == 0, false)) return false;
        --valid_left_;
        box_ = {block_.x1[i], block_.y1[i], block_.x2[i], block_.y2[i]};
        const U box_area = area<kLegacy>(box_);
        Candidate<U> candidate = {{box_, suppression_.share * box_area}, box_area, 0, 0, 1, 1, 0};
        cells_.place(&candidate);
        if (memory_.kept.suppressed(candidate)) continue;
        memory_.kept.push(candidate);
        const uint32_t index = chunk_[at_ - lanes_ + i];
        score_ = ranked_.at(index);
        anchor_ = first_ + index;
        return true;
      }
      if (at_ == in_chunk_) {
        in_chunk_ = ranked_.next_chunk(&chunk_);
        at_ = 0;
        if (in_chunk_ == 0) return false;
      }
      lanes_ = int(in_chunk_ - at_ < kBlock ? in_chunk_ - at_ : kBlock);
      lane_ = 0;
      decoder_(deltas_, own_deltas_, chunk_ + at_, first_, lanes_, &block_);
      at_ += lanes_;
      if (!started_) start();
    }
  }

  // The current survivor's score, box and anchor.
  const Box<U>& box() const { return box_; }
  U score() const { return load(score_); }
  T stored_score() const { return *score_; }
  int64_t anchor() const { return anchor_; }

 private:
  // The first block with a valid box tells how large boxes are; where they lie is known from the image.
  void start() {
    Spread<U> x = {U(0), U(2) * decoder_.window.right, U(0)}, y = {U(0), U(2) * decoder_.window.bottom, U(0)};
    int boxes = 0;
    for (int i = 0; i < lanes_; ++i) {
      if (!block_.valid[i]) continue;
      x.mean += block_.x2[i] - block_.x1[i], y.mean += block_.y2[i] - block_.y1[i];
      ++boxes;
    }
    if (boxes == 0) return;
    x.mean /= U(boxes), y.mean /= U(boxes);
    const int64_t chains = cells_.start(memory_.listed(), suppression_.threshold, x, y);
    memory_.kept.start(chains, cells_.columns());
    started_ = true;
  }

  AnchorMap<T> deltas_;
  const T* own_deltas_;  // from the image's first on
  int64_t first_;
  const Decoder<T, kLegacy>& decoder_;
  Suppression<U> suppression_;
  LevelMemory<kLegacy, U> memory_;
  Cells<kLegacy, U> cells_;
  bool started_ = false;
  int64_t valid_left_;
  Ranked<T> ranked_;
  const uint32_t* chunk_ = nullptr;
  int64_t in_chunk_ = 0, at_ = 0;
  int lane_ = 0, lanes_ = 0;
  Block<U> block_;
  Box<U> box_;
  const T* score_;
  int64_t anchor_;
};

// Memory for a Level without a constructor call a level that is not there.
template <class L>
union Slot {
  Slot() {}
  ~Slot() {}
  L level;
};

template <class T, bool kLegacy>
void propose(const ProposalInputs& in, const ProposalSettings& set, int64_t b, const Anchors<Compute<T>>& anchors,
             void* workspace, const ProposalOutputs& out) {
  using U = Compute<T>;
  const int64_t P = set.post_nms_top_n;
  Decoder<T, kLegacy> decoder;
  decoder.anchors = anchors;
  decoder.params = make_decode_params<U>(set.weights, set.clamp);
  const U* scales = static_cast<const U*>(in.image_scales);
  decoder.window = make_window<kLegacy>(static_cast<const U*>(in.image_sizes) + 2 * b, U(set.min_size),
                                        FF_MUTANT(proposals_scale, scales ? scales + b : nullptr, nullptr));
  decoder.image = b;

  Slot<Level<T, kLegacy>> slots[kMaxLevels];
  bool alive[kMaxLevels];
  WorkspaceArena arena(workspace);
  int64_t first = 0;
  for (int64_t l = 0; l < in.L; ++l) {
    new (&slots[l].level) Level<T, kLegacy>(&arena, make_anchor_map<T>(in.scores[l]), make_anchor_map<T>(in.deltas[l]),
                                            first, in.level_sizes[l], set, decoder);
    alive[l] = slots[l].level.advance();
    first += in.level_sizes[l];
  }

  U* boxes = static_cast<U*>(out.boxes) + 4 * b * P;
  T* kept_scores = static_cast<T*>(out.scores) + b * P;
  int64_t* indices = out.indices + b * P;
  int64_t count = 0;
  while (count < P) {
    int64_t best = -1;
    for (int64_t l = 0; l < in.L; ++l) {
      if (!alive[l]) continue;
      if (best < 0 || comes_before(slots[l].level.score(), l, slots[best].level.score(), best)) best = l;
    }
    if (best < 0) break;
    Level<T, kLegacy>& level = slots[best].level;
    store_box(boxes + 4 * count, level.box());
    kept_scores[count] = level.stored_score();
    indices[count] = level.anchor();
    if (++count < P) alive[best] = level.advance();
  }
  out.counts[b] = count;
  for (int64_t i = count; i < P; ++i) {
    store_box(boxes + 4 * i, Box<U>{0, 0, 0, 0});
    store(kept_scores + i, U(0));
    indices[i] = -1;
  }
}

}  // namespace

size_t propose_image_workspace(const ProposalInputs& in, const ProposalSettings& set) {
  return visit_compute(in.dtype, [&](auto tag) {
    WorkspaceArena arena(nullptr);
    for (int64_t l = 0; l < in.L; ++l) LevelMemory<false, typename decltype(tag)::type>(&arena, in.level_sizes[l], set);
    return arena.used();
  });
}

void propose_image(const ProposalInputs& in, const ProposalSettings& set, int64_t b, const void* anchors,
                   void* workspace, const ProposalOutputs& out) {
  visit(in.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const auto& own = *static_cast<const Anchors<Compute<T>>*>(anchors);
    set.legacy ? propose<T, true>(in, set, b, own, workspace, out) : propose<T, false>(in, set, b, own, workspace, out);
  });
}

}  // namespace FF_ISA
}  // namespace frcnn_fast::proposals
