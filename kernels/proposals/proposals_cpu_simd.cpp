// The proposal step of one image on one thread. Nothing is computed before it is needed: every level hands out its
// candidates best first, in chunks, decoded 64 at a time, and only until the image has its boxes.
#include "../anchor_decode/anchor_decode.h"
#include "../nms/kept_list.h"
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

// Decoded, clipped and judged boxes, a lane each.
template <class U>
struct Block {
  U x1[kBlock], y1[kBlock], x2[kBlock], y2[kBlock];
  bool valid[kBlock];
};

template <class T, bool kLegacy>
struct Decoder {
  using U = Compute<T>;
  const T* deltas;  // [A, 4] of this image
  Anchors<U> anchors;
  DecodeParams<U> params;
  Window<U> window;
  int64_t image;

  // The boxes of the anchors first + indices[i].
  void operator()(const uint32_t* indices, int64_t first, int count, Block<U>* out) const {
    alignas(64) U a[4][kBlock], d[4][kBlock];
    for (int i = 0; i < count; ++i) {
      const int64_t index = first + indices[i];
      const Box<U> anchor = anchors.at(image, index);
      a[0][i] = anchor.x1, a[1][i] = anchor.y1, a[2][i] = anchor.x2, a[3][i] = anchor.y2;
      for (int k = 0; k < 4; ++k) d[k][i] = load(deltas + 4 * index + k);
    }
    for (int i = count; i < kBlock; ++i)
      for (int k = 0; k < 4; ++k) a[k][i] = d[k][i] = U(0);
#pragma omp simd
    for (int i = 0; i < kBlock; ++i) {
      const Box<U> decoded =
          decode<kLegacy>(Box<U>{a[0][i], a[1][i], a[2][i], a[3][i]}, d[0][i], d[1][i], d[2][i], d[3][i], params);
      const Box<U> box = clip(decoded, window);
      out->x1[i] = box.x1, out->y1[i] = box.y1, out->x2[i] = box.x2, out->y2[i] = box.y2;
      out->valid[i] = is_valid<kLegacy>(decoded, box, window.min_side);
    }
  }
};

// One level's survivors of NMS, best first.
template <class T, bool kLegacy>
class Level {
 public:
  using U = Compute<T>;

  Level(const T* scores, int64_t first, int64_t size, int64_t budget, const LevelMemory<U>& memory,
        const Suppression<U>& suppression, const Decoder<T, kLegacy>& decoder)
      : scores_(scores + first),
        first_(first),
        decoder_(decoder),
        ranked_(scores_, size, budget, memory.chunk, memory.ranked),
        kept_(memory.kept, suppression) {}

  // Moves on to the next survivor; false when there is none.
  bool advance() {
    for (;;) {
      while (lane_ < lanes_) {
        const int i = lane_++;
        if (!block_.valid[i]) continue;
        box_ = {block_.x1[i], block_.y1[i], block_.x2[i], block_.y2[i]};
        const U box_area = area<kLegacy>(box_);
        if (kept_.suppresses(box_, box_area)) continue;
        kept_.push(box_, box_area);
        const uint32_t index = chunk_[at_ - lanes_ + i];
        score_ = load(scores_ + index);
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
      decoder_(chunk_ + at_, first_, lanes_, &block_);
      at_ += lanes_;
    }
  }

  // The current survivor's score, box and anchor.
  const Box<U>& box() const { return box_; }
  U score() const { return score_; }
  int64_t anchor() const { return anchor_; }

 private:
  const T* scores_;
  int64_t first_;
  const Decoder<T, kLegacy>& decoder_;
  Ranked<T> ranked_;
  KeptList<kLegacy, U> kept_;
  const uint32_t* chunk_ = nullptr;
  int64_t in_chunk_ = 0, at_ = 0;
  int lane_ = 0, lanes_ = 0;
  Block<U> block_;
  Box<U> box_;
  U score_;
  int64_t anchor_;
};

// Memory for a Level without a constructor call a level that is not there.
template <class L>
union Slot {
  Slot() {}
  ~Slot() {}
  L level;
};

FF_HD Half nan_of(const Half*) { return {0x7e00}; }
FF_HD BFloat16 nan_of(const BFloat16*) { return {0x7fc0}; }
FF_HD float nan_of(const float*) { return bits_float(0x7fc00000u); }
FF_HD double nan_of(const double*) { return bits_double(0x7ff8000000000000ull); }

template <class T, bool kLegacy>
void propose(const ProposalInputs& in, const ProposalSettings& set, int64_t b, const ImageTask<Compute<T>>& task,
             const ProposalOutputs& out) {
  using U = Compute<T>;
  const int64_t P = set.post_nms_top_n;
  Decoder<T, kLegacy> decoder;
  decoder.anchors = task.anchors;
  decoder.deltas = static_cast<const T*>(in.deltas) + 4 * b * in.A;
  decoder.params = make_decode_params<U>(set.weights, set.clamp);
  const U* scales = static_cast<const U*>(in.image_scales);
  decoder.window = make_window<kLegacy>(static_cast<const U*>(in.image_sizes) + 2 * b, U(set.min_size),
                                        FF_MUTANT(proposals_scale, scales ? scales + b : nullptr, nullptr));
  decoder.image = b;

  const T* const own_scores = static_cast<const T*>(in.scores) + b * in.A;
  const T* scores = own_scores;
  if (FF_MUTANT(proposals_filter_order, set.filter_before_top_n, false)) {
    T* const masked = static_cast<T*>(task.masked_scores);
    for (int64_t a = 0; a < in.A; a += kBlock) {
      const int count = int(in.A - a < kBlock ? in.A - a : kBlock);
      uint32_t indices[kBlock];
      for (int i = 0; i < kBlock; ++i) indices[i] = uint32_t(i);
      Block<U> block;
      decoder(indices, a, count, &block);
      for (int i = 0; i < count; ++i) masked[a + i] = block.valid[i] ? own_scores[a + i] : nan_of(own_scores);
    }
    scores = masked;
  }

  Slot<Level<T, kLegacy>> slots[kMaxLevels];
  bool alive[kMaxLevels];
  const Suppression<U> suppression = make_suppression<U>(set.iou_threshold);
  int64_t first = 0;
  for (int64_t l = 0; l < in.L; ++l) {
    new (&slots[l].level)
        Level<T, kLegacy>(scores, first, in.level_sizes[l], set.pre_nms_top_n, task.levels[l], suppression, decoder);
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
    kept_scores[count] = own_scores[level.anchor()];
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

void propose_image(const ProposalInputs& in, const ProposalSettings& set, int64_t b, const void* task,
                   const ProposalOutputs& out) {
  visit(in.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const auto& own = *static_cast<const ImageTask<Compute<T>>*>(task);
    set.legacy ? propose<T, true>(in, set, b, own, out) : propose<T, false>(in, set, b, own, out);
  });
}

}  // namespace FF_ISA
}  // namespace frcnn_fast::proposals
