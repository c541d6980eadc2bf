// Kept boxes in several chains of blocks, so that a candidate meets only those that could suppress it: the boxes of its
// class, or those in the cells of the image that it reaches (cells.h).
//
// For *_cpu_simd.cpp files: everything is inlined, inside the instruction set's namespace. Memory is the caller's.
#pragma once
#include "../common/vectors.h"
#include "../common/workspace.h"
#include "kept_block.h"

namespace frcnn_fast::nms {
namespace FF_ISA {
using namespace frcnn_fast::FF_ISA;

// The lanes of the vector at `at` whose boxes suppress the candidate; the division is taken for likely ones only.
template <bool kLegacy, class U>
FF_SIMD bool suppressed_by_lanes(const KeptBlock<U>& block, int at, const PretestBox<U>& c, U candidate_area,
                                 U threshold) {
  using V = Vector<U>;
  const V bx1 = load_aligned<V>(block.x1 + at), by1 = load_aligned<V>(block.y1 + at);
  const V bx2 = load_aligned<V>(block.x2 + at), by2 = load_aligned<V>(block.y2 + at);
  const V one = splat(U(kLegacy ? 1 : 0));
  V w = min_lanes(splat(c.box.x2), bx2) - max_lanes(splat(c.box.x1), bx1);
  V h = min_lanes(splat(c.box.y2), by2) - max_lanes(splat(c.box.y1), by1);
  if (kLegacy) w = w + one, h = h + one;
  w = max_lanes(splat(U(0)), w);
  const unsigned likely = at_least(w * h, splat(c.share) + load_aligned<V>(block.share + at));
  if (__builtin_expect(likely == 0, 1)) return false;
  V bw = bx2 - bx1, bh = by2 - by1;
  if (kLegacy) bw = bw + one, bh = bh + one;
  const V overlap = w * max_lanes(splat(U(0)), h);
  const V iou = overlap / ((splat(candidate_area) + bw * bh) - overlap);
  const V limit = splat(threshold);
  return (likely & FF_MUTANT(nms_kept_threshold, above(iou, limit), at_least(iou, limit))) != 0;
}

// Whether a box in the block suppresses the candidate.
template <bool kLegacy, class U>
FF_SIMD bool suppressed_by(const KeptBlock<U>& block, const PretestBox<U>& candidate, U candidate_area, U threshold) {
  constexpr int kStep = kVectorBytes / int(sizeof(U));
  for (int at = 0; at < KeptBlock<U>::kLanes; at += kStep)
    if (suppressed_by_lanes<kLegacy>(block, at, candidate, candidate_area, threshold)) return true;
  return false;
}

// A box on its way to the list. It belongs to one chain, and meets a rectangle of them: `height` rows of `width`
// chains, the upper left one `first`; nothing where the height is 0.
template <class U>
struct Candidate {
  PretestBox<U> pretest;
  U area;
  int32_t chain, first, width, height;
  int32_t row;
};

template <bool kLegacy, class U>
class KeptChains {
 public:
  // For at most that many chains and kept boxes.
  KeptChains(WorkspaceArena* arena, int64_t chains, int64_t capacity, const Suppression<U>& s) : s_(s) {
    // Every chain with a box may have a block that is part full.
    const int64_t blocks = capacity / KeptBlock<U>::kLanes + (chains < capacity ? chains : capacity) + 1;
    chains_ = arena->take<Chain>(chains);
    blocks_ = arena->take<KeptBlock<U>>(blocks);
    next_ = arena->take<int32_t>(blocks);
  }

  // Empties the list, which has that many chains from now on, that many a row.
  void start(int64_t chains, int32_t columns) {
    for (int64_t g = 0; g < chains; ++g) chains_[g] = {-1, -1, 0, -1, -1};
    columns_ = columns;
    used_ = size_ = 0;
    num_blocks_ = round_ = 0;
  }

  int64_t size() const { return size_; }
  // Blocks in a chain that has any, on average.
  double chain_blocks() const { return used_ ? double(num_blocks_) / double(used_) : 0.0; }

  bool suppressed(const Candidate<U>& c) const {
    // Those of its own chain suppress it most often.
    if (c.height > 0 && suppressed_from(chains_[c.chain].head, c)) return true;
    return any_chain(c, [&](int32_t g) { return g != c.chain && suppressed_from(chains_[g].head, c); });
  }
  // Rounds part the candidates: those of one may first be tested, by several threads, against what was kept before
  // the round, and then, in order, against what the round itself keeps.
  void next_round() { ++round_; }
  bool suppressed_before_round(const Candidate<U>& c) const { return suppressed(c); }
  bool suppressed_in_round(const Candidate<U>& c) const {
    return any_chain(c, [&](int32_t g) { return chains_[g].round == round_ && suppressed_from(chains_[g].since, c); });
  }

  void push(const Candidate<U>& c) {
    Chain& chain = chains_[c.chain];
    if (chain.head < 0 || chain.size == KeptBlock<U>::kLanes) {
      const int32_t fresh = num_blocks_++;
      blocks_[fresh].clear();
      next_[fresh] = -1;
      used_ += chain.head < 0;
      (chain.head < 0 ? chain.head : next_[chain.tail]) = fresh;
      chain.tail = fresh;
      chain.size = 0;
    }
    if (chain.round != round_) chain.round = round_, chain.since = chain.tail;
    blocks_[chain.tail].set(chain.size++, c.pretest);
    ++size_;
  }

 private:
  struct Chain {
    int32_t head, tail;  // blocks, -1: none
    int32_t size;        // boxes in the tail block
    int32_t round;       // the last round in which it took a box ...
    int32_t since;       // ... and the block of the first it took then
  };

  template <class F>
  FF_HD bool any_chain(const Candidate<U>& c, const F& suppresses) const {
    for (int32_t y = 0, row = c.first; y < c.height; ++y, row += columns_)
      for (int32_t g = row; g < row + c.width; ++g)
        if (suppresses(g)) return true;
    return false;
  }

  FF_HD bool suppressed_from(int32_t block, const Candidate<U>& c) const {
    for (; block >= 0; block = next_[block])
      if (suppressed_by<kLegacy>(blocks_[block], c.pretest, c.area, s_.threshold)) return true;
    return false;
  }

  Suppression<U> s_;
  Chain* chains_;
  KeptBlock<U>* blocks_;
  int32_t* next_;  // per block, -1 at a chain's end
  int64_t used_ = 0, size_ = 0;
  int32_t columns_ = 1, num_blocks_ = 0, round_ = 0;
};

}  // namespace FF_ISA
}  // namespace frcnn_fast::nms
