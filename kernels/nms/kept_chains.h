// Kept boxes of several classes: a chain of blocks for each, so that a candidate meets its own class only.
//
// For *_cpu_simd.cpp files, as kept_list.h.
#pragma once
#include "../common/workspace.h"
#include "kept_list.h"

namespace frcnn_fast {
namespace FF_ISA {

// Numbers the classes of one image densely enough to index an array by.
class ClassNumbers {
 public:
  // For at most that many rows. Without classes all rows have number 0.
  ClassNumbers(Carver* carver, int64_t rows, bool classes) {
    if (classes)
      while (size_ < 2 * rows) size_ *= 2;
    slots_ = carver->take<Slot>(classes ? size_ : 0);
  }

  // Before the first number. class_ids: of all rows, or null. Ids that lie close together are their own numbers, less
  // the smallest; others are hashed.
  void start(const int64_t* class_ids, int64_t rows) {
    class_ids_ = class_ids;
    used_ = 1;
    if (!class_ids || rows == 0) return;
    int64_t least = class_ids[0], most = least;
    for (int64_t i = 1; i < rows; ++i) {
      least = class_ids[i] < least ? class_ids[i] : least;
      most = class_ids[i] > most ? class_ids[i] : most;
    }
    const uint64_t range = uint64_t(most) - uint64_t(least);
    base_ = least;
    hashed_ = range >= uint64_t(size_);
    used_ = hashed_ ? size_ : int64_t(range) + 1;
    for (int64_t i = 0; hashed_ && i < size_; ++i) slots_[i].taken = false;
  }

  int64_t capacity() const { return size_; }
  // Every number is below this.
  int64_t used() const { return used_; }

  int32_t of(int64_t row) {
    if (!class_ids_) return 0;
    const int64_t id = FF_MUTANT(nms_class, class_ids_[row], base_);
    if (!hashed_) return int32_t(id - base_);
    uint64_t i = (uint64_t(id) * 0x9E3779B97F4A7C15ull >> 20) & uint64_t(size_ - 1);
    while (slots_[i].taken && slots_[i].id != id) i = (i + 1) & uint64_t(size_ - 1);
    slots_[i] = {id, true};
    return int32_t(i);
  }

 private:
  struct Slot {
    int64_t id;
    bool taken;
  };
  Slot* slots_;
  const int64_t* class_ids_ = nullptr;
  int64_t size_ = 1, used_ = 1, base_ = 0;
  bool hashed_ = false;
};

// A box on its way to the list; group: the number of its class.
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
  // For at most that many groups and kept boxes.
  KeptChains(Carver* carver, int64_t groups, int64_t capacity, const Suppression<U>& s) : s_(s) {
    // Every group with a box may have a block that is part full.
    const int64_t blocks = capacity / KeptBlock<U>::kLanes + (groups < capacity ? groups : capacity) + 1;
    groups_ = carver->take<Group>(groups);
    blocks_ = carver->take<KeptBlock<U>>(blocks);
    next_ = carver->take<int32_t>(blocks);
  }

  // Empty; groups: in use from now on.
  void start(int64_t groups) {
    for (int64_t g = 0; g < groups; ++g) groups_[g] = {-1, -1, 0, -1, -1};
    num_chains_ = size_ = 0;
    num_blocks_ = round_ = 0;
  }

  int64_t size() const { return size_; }
  // Kept boxes that a candidate meets, on average over the classes.
  int64_t chain_length() const { return num_chains_ ? size_ / num_chains_ : 0; }

  bool suppressed(const Candidate<U>& c) const { return suppressed_from(groups_[c.group].head, c); }
  // Rounds part the candidates: those of one may first be tested, by several threads, against what was kept before
  // the round, and then, in order, against what the round itself keeps.
  void next_round() { ++round_; }
  bool suppressed_before_round(const Candidate<U>& c) const { return suppressed(c); }
  bool suppressed_in_round(const Candidate<U>& c) const {
    const Group& group = groups_[c.group];
    return group.round == round_ && suppressed_from(group.since, c);
  }

  void push(const Candidate<U>& c) {
    Group& group = groups_[c.group];
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
  struct Group {
    int32_t head, tail;  // blocks, -1: none
    int32_t size;        // boxes in the tail block
    int32_t round;       // the last round in which it took a box ...
    int32_t since;       // ... and the block of the first it took then
  };

  FF_HD bool suppressed_from(int32_t block, const Candidate<U>& c) const {
    for (; block >= 0; block = next_[block])
      if (suppressed_by<kLegacy>(blocks_[block], c.rival, c.area, s_.threshold)) return true;
    return false;
  }

  Suppression<U> s_;
  Group* groups_;
  KeptBlock<U>* blocks_;
  int32_t* next_;  // per block, -1 at a chain's end
  int64_t num_chains_ = 0, size_ = 0;
  int32_t num_blocks_ = 0, round_ = 0;
};

}  // namespace FF_ISA
}  // namespace frcnn_fast
