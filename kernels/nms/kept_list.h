// The boxes kept so far, in blocks of lanes, for testing one candidate against all of them.
//
// For *_cpu_simd.cpp files: everything is inlined, inside the instruction set's namespace. Memory is the caller's.
#pragma once
#include "../common/vectors.h"
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

// Boxes kept so far, in order. Candidates must have passed takes_part().
//
//   KeptList<false, float> kept(blocks, make_suppression<float>(0.7));     blocks: of take_kept_blocks()
//   for each candidate: const U a = area<false>(box); if (!kept.suppresses(box, a)) kept.push(box, a);
template <bool kLegacy, class U>
class KeptList {
 public:
  static constexpr int kLanes = KeptBlock<U>::kLanes;

  FF_HD KeptList(KeptBlock<U>* blocks, const Suppression<U>& s) : blocks_(blocks), s_(s) {}

  FF_HD int64_t size() const { return size_; }
  FF_HD bool suppresses(const Box<U>& box, U area) const { return suppresses_from(0, box, area); }
  // Tests only the blocks from that of element `first` on.
  FF_HD bool suppresses_from(int64_t first, const Box<U>& box, U area) const {
    const PretestBox<U> candidate{box, s_.share * area};
    const int64_t blocks = (size_ + kLanes - 1) / kLanes;
    for (int64_t b = first / kLanes; b < blocks; ++b)
      if (suppressed_by<kLegacy>(blocks_[b], candidate, area, s_.threshold)) return true;
    return false;
  }
  FF_HD void push(const Box<U>& box, U area) {
    KeptBlock<U>& block = blocks_[size_ / kLanes];
    const int lane = int(size_ % kLanes);
    if (lane == 0) block.clear();
    block.set(lane, {box, s_.share * area});
    ++size_;
  }

 private:
  KeptBlock<U>* blocks_;
  Suppression<U> s_;
  int64_t size_ = 0;
};

}  // namespace FF_ISA
}  // namespace frcnn_fast::nms
