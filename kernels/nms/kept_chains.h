// Kept boxes of several classes: a chain of blocks for each, so that a candidate meets its own class only.
//
// For *_cpu_simd.cpp files, as kept_list.h.
#pragma once
#include "../common/workspace.h"
#include "kept_list.h"

namespace frcnn_fast {
namespace FF_ISA {

// A class and its chain.
struct KeptGroup {
  int64_t id;
  int32_t head, tail;  // blocks, -1: none
  int32_t size;        // boxes in the tail block
  int32_t round;       // the last round in which it took a box ...
  int32_t since;       // ... and the block of the first it took then
  bool used;
};

// A box on its way to the list.
template <class U>
struct Candidate {
  Rival<U> rival;
  U area;
  int32_t group;
  int32_t row;
};

template <bool kLegacy, class U>
class KeptChains {
 public:
  // capacity: kept boxes at most. rows: candidates at most. With classes there can be as many as kept boxes, each with
  // a block of its own.
  KeptChains(Carver* carver, int64_t rows, int64_t capacity, bool classes, const Suppression<U>& s) : s_(s) {
    if (classes)
      while (num_groups_ < 2 * rows) num_groups_ *= 2;
    const int64_t blocks = capacity / KeptBlock<U>::kLanes + (classes ? capacity : 1) + 1;
    groups_ = carver->take<KeptGroup>(num_groups_);
    blocks_ = carver->take<KeptBlock<U>>(blocks);
    next_ = carver->take<int32_t>(blocks);
  }

  // Before the first candidate. class_ids: of all rows, or null.
  void start(const int64_t* class_ids, int64_t rows) {
    class_ids_ = class_ids;
    int64_t groups = 1;
    if (class_ids && rows > 0) {
      int64_t least = class_ids[0], most = least;
      for (int64_t i = 1; i < rows; ++i) {
        least = class_ids[i] < least ? class_ids[i] : least;
        most = class_ids[i] > most ? class_ids[i] : most;
      }
      const uint64_t range = uint64_t(most) - uint64_t(least);
      direct_ = range < uint64_t(num_groups_);
      base_ = least;
      groups = direct_ ? int64_t(range) + 1 : num_groups_;
    }
    for (int64_t g = 0; g < groups; ++g) groups_[g] = {0, -1, -1, 0, -1, -1, false};
  }

  // The number of that row's class.
  int32_t group_of(int64_t row) {
    if (!class_ids_) return 0;
    const int64_t id = FF_MUTANT(nms_class, class_ids_[row], base_);
    if (direct_) return int32_t(id - base_);
    uint64_t slot = (uint64_t(id) * 0x9E3779B97F4A7C15ull >> 20) & uint64_t(num_groups_ - 1);
    while (groups_[slot].used && groups_[slot].id != id) slot = (slot + 1) & uint64_t(num_groups_ - 1);
    groups_[slot].id = id;
    groups_[slot].used = true;
    return int32_t(slot);
  }

  int64_t size() const { return size_; }
  // Kept boxes that a candidate meets, on average over the classes.
  int64_t chain_length() const { return num_chains_ ? size_ / num_chains_ : 0; }

  // Rounds part the candidates: those of one may first be tested, by several threads, against what was kept before
  // the round, and then, in order, against what the round itself keeps.
  void next_round() { ++round_; }
  bool suppressed_before_round(const Candidate<U>& c) const { return suppressed_from(groups_[c.group].head, c); }
  bool suppressed_in_round(const Candidate<U>& c) const {
    const KeptGroup& group = groups_[c.group];
    return group.round == round_ && suppressed_from(group.since, c);
  }
  bool suppressed(const Candidate<U>& c) const { return suppressed_from(groups_[c.group].head, c); }

  void push(const Candidate<U>& c) {
    KeptGroup& group = groups_[c.group];
    if (group.head < 0 || group.size == KeptBlock<U>::kLanes) {
      const int32_t fresh = num_blocks_++;
      blocks_[fresh].clear();
      next_[fresh] = -1;
      num_chains_ += group.head < 0;
      (group.head < 0 ? group.head : next_[group.tail]) = fresh;
      group.tail = fresh;
      group.size = 0;
    }
    if (group.round != round_) group.round = round_, group.since = group.tail;
    blocks_[group.tail].set(group.size++, c.rival);
    ++size_;
  }

 private:
  FF_HD bool suppressed_from(int32_t block, const Candidate<U>& c) const {
    for (; block >= 0; block = next_[block])
      if (suppressed_by<kLegacy>(blocks_[block], c.rival, c.area, s_.threshold)) return true;
    return false;
  }

  Suppression<U> s_;
  const int64_t* class_ids_ = nullptr;
  KeptGroup* groups_;
  KeptBlock<U>* blocks_;
  int32_t* next_;  // per block, -1 at a chain's end
  int64_t num_groups_ = 1, num_chains_ = 0, base_ = 0, size_ = 0;
  int32_t num_blocks_ = 0, round_ = 0;
  bool direct_ = true;
};

}  // namespace FF_ISA
}  // namespace frcnn_fast
