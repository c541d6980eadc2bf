// Consecutive anchors, a lane each, whether given or made from the grid.
//
// For *_cpu_simd.cpp files: everything here lives in the instruction set's own namespace.
#pragma once
#include "../common/anchors.h"

namespace frcnn_fast::anchor_decode {
namespace FF_ISA {

constexpr int kAnchorBlock = 256;

template <class U>
struct AnchorBlock {
  alignas(64) U x1[kAnchorBlock], y1[kAnchorBlock], x2[kAnchorBlock], y2[kAnchorBlock];
};

// Anchors of a grid repeat from cell to cell, so a level's first cells, written out once, serve all of its rows.
template <class U>
class AnchorRows {
 public:
  explicit AnchorRows(const Anchors<U>& anchors) : anchors_(anchors) {}

  // Anchors first .. first + count - 1 of that image, count <= kAnchorBlock.
  void load(int64_t image, int64_t first, int count, AnchorBlock<U>* out) {
    if (anchors_.num_levels == 0) {
      const U* const boxes = anchors_.boxes + image * anchors_.image_stride + 4 * first;
      for (int i = 0; i < count; ++i) {
        out->x1[i] = boxes[4 * i];
        out->y1[i] = boxes[4 * i + 1];
        out->x2[i] = boxes[4 * i + 2];
        out->y2[i] = boxes[4 * i + 3];
      }
      return;
    }
    for (int done = 0; done < count;) done += load_row(first + done, count - done, done, out);
  }

 private:
  static constexpr int kPattern = 1024;

  // Up to the end of the grid's row at most; returns how many.
  int load_row(int64_t index, int room, int at, AnchorBlock<U>* out) {
    while (index < begin_ || index >= end_) enter_level(index < begin_ ? 0 : level_ + 1);
    const AnchorLevel& level = anchors_.levels[level_];
    const int64_t row_size = int64_t(level.width) * level.per_cell, local = index - level.start;
    const int64_t y = local / row_size, in_row = local % row_size;
    const int count = row_size - in_row < room ? int(row_size - in_row) : room;
    if (cells_ == 0) {  // too many anchors a cell to be written out
      for (int i = 0; i < count; ++i) {
        const Box<U> box = anchors_.at(0, index + i);
        out->x1[at + i] = box.x1, out->y1[at + i] = box.y1, out->x2[at + i] = box.x2, out->y2[at + i] = box.y2;
      }
      return count;
    }
    const U dy = U(y * level.stride_y) + anchors_.offset * U(level.stride_y);
    const U shift = anchors_.offset * U(level.stride_x);
    const int phase = int(in_row % level.per_cell), period = cells_ * level.per_cell;
    int32_t left = int32_t(in_row / level.per_cell) * level.stride_x;
    for (int done = 0; done < count; done += period, left += cells_ * level.stride_x) {
      const int n = count - done < period ? count - done : period, to = at + done;
#pragma GCC ivdep
      for (int i = 0; i < n; ++i) {
        const U dx = U(left + x_[phase + i]) + shift;
        out->x1[to + i] = dx + x1_[phase + i];
        out->y1[to + i] = dy + y1_[phase + i];
        out->x2[to + i] = dx + x2_[phase + i];
        out->y2[to + i] = dy + y2_[phase + i];
      }
    }
    return count;
  }

  void enter_level(int l) {
    level_ = l;
    const AnchorLevel& level = anchors_.levels[l];
    begin_ = level.start;
    end_ = l + 1 < anchors_.num_levels ? anchors_.levels[l + 1].start : INT64_MAX;
    if (begin_ == end_) return;
    const int k = level.per_cell, most = kPattern / k - 1;
    cells_ = most < 16 ? (most < 0 ? 0 : most) : 16;
    const U* const cell = anchors_.boxes + 4 * level.cell_start;
    for (int i = 0; cells_ > 0 && i < (cells_ + 1) * k; ++i) {
      const int a = i % k;
      x_[i] = i / k * level.stride_x;
      x1_[i] = cell[4 * a], y1_[i] = cell[4 * a + 1], x2_[i] = cell[4 * a + 2], y2_[i] = cell[4 * a + 3];
    }
  }

  const Anchors<U>& anchors_;
  int level_ = -1, cells_ = 0;    // cells_: as many are written out, and one more to start within
  int64_t begin_ = 0, end_ = -1;  // the level's anchors
  int32_t x_[kPattern];           // from the first cell, in pixels
  U x1_[kPattern], y1_[kPattern], x2_[kPattern], y2_[kPattern];
};

}  // namespace FF_ISA
}  // namespace frcnn_fast::anchor_decode
