// Class ids of any value, made into indices.
//
// For *_cpu_simd.cpp files, as kept_chains.h.
#pragma once
#include "../common/mutant.h"
#include "../common/workspace.h"

namespace frcnn_fast::nms {
namespace FF_ISA {

// Numbers the classes of one image densely enough to index an array by.
class ClassNumbers {
 public:
  // For at most that many rows. Without classes all rows have number 0.
  ClassNumbers(WorkspaceArena* arena, int64_t rows, bool classes) {
    if (classes)
      while (size_ < 2 * rows) size_ *= 2;
    slots_ = arena->take<Slot>(classes ? size_ : 0);
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

}  // namespace FF_ISA
}  // namespace frcnn_fast::nms
