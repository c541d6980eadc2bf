// Boxes of one class, put into vertical strips of the image, or the cells of a grid over it, by their centres, so that
// a candidate meets a long list of kept boxes only in part. Exact (reach.h).
//
// For *_cpu_simd.cpp files, as kept_chains.h.
#pragma once
#include <cmath>

#include "kept_chains.h"
#include "reach.h"

namespace frcnn_fast::nms {
namespace FF_ISA {
using namespace frcnn_fast::FF_ISA;

// Where doubled centres lie along a side of the image (most of them), and how long boxes are along it on average.
template <class U>
struct Spread {
  U low, high, mean;
};

// One side of the grid.
template <class U>
class CellAxis {
 public:
  // Cells along this side that are as wide as boxes reach: of narrower ones a box would only visit more. 1: unknown.
  static U wanted(const Spread<U>& s, U reach) {
    const U range = s.high - s.low, cells = range / (reach * s.mean);
    return range < U(1e30) && cells >= U(2) ? cells : U(1);
  }

  void start(const Spread<U>& s, U reach, int64_t cells) {
    low_ = s.low;
    reach_ = reach;
    last_ = U(cells - 1);
    per_pixel_ = cells > 1 ? U(cells) / (s.high - s.low) : U(0);
  }

  // Never falls as the centre grows, which is all that matters: cells at the ends take what lies beyond.
  FF_HD int32_t cell(U centre) const {
    const U at = (centre - low_) * per_pixel_;
    return int32_t(at > U(0) ? (at < last_ ? at : last_) : U(0));  // of a NaN the first
  }

  // The cells that a box of that centre and length reaches.
  FF_HD void reached(U centre, U length, int32_t* first, int32_t* last) const {
    const U reach = reach_of(FF_MUTANT(nms_cell_reach, reach_, reach_ / U(2)), centre, length);
    *first = cell(centre - reach);
    const U end = centre + reach;
    *last = end == end ? cell(end) : int32_t(last_);
  }

 private:
  U low_ = U(0), per_pixel_ = U(0), last_ = U(0), reach_ = U(0);
};

template <bool kLegacy, class U>
class Cells {
 public:
  // Cells at most, for a list of that many kept boxes; 1: a list so short is met whole.
  FF_HD static int64_t most(int64_t capacity) {
    const int64_t wanted = capacity / (capacity < kGridFrom ? kStripBoxes : kCellBoxes);
    return wanted < 1 ? 1 : (wanted < kMost ? wanted : kMost);
  }

  // Settles the grid for boxes like these: they may be few of all. Returns how many cells it has.
  int64_t start(int64_t capacity, U threshold, const Candidate<U>* candidates, int64_t n) {
    if (n == 0 || most(capacity) == 1) return start(capacity, threshold, Spread<U>{}, Spread<U>{});  // one cell
    Spread<U> x = {doubled_x(candidates[0].pretest.box), doubled_x(candidates[0].pretest.box), U(0)};
    Spread<U> y = {doubled_y(candidates[0].pretest.box), doubled_y(candidates[0].pretest.box), U(0)};
    for (int64_t i = 0; i < n; ++i) {
      const Box<U>& box = candidates[i].pretest.box;
      add(doubled_x(box), extent<kLegacy>(box.x1, box.x2), &x);
      add(doubled_y(box), extent<kLegacy>(box.y1, box.y2), &y);
    }
    x.mean /= U(n), y.mean /= U(n);
    return start(capacity, threshold, x, y);
  }

  int64_t start(int64_t capacity, U threshold, const Spread<U>& x, const Spread<U>& y) {
    columns_ = rows_ = 1;
    const U reach = reach_in_lengths(threshold);
    if (most(capacity) > 1 && reach > U(0)) {
      // Of strips there are as many as the list is long enough for; where a grid has too many cells, both sides get
      // fewer.
      U columns = CellAxis<U>::wanted(x, reach), rows = capacity < kGridFrom ? U(1) : CellAxis<U>::wanted(y, reach);
      const U room = U(most(capacity)), fewer = std::sqrt(room / (columns * rows));
      if (fewer < U(1)) {
        columns = within(rows > U(1) ? columns * fewer : room, room);
        rows = within(rows * fewer, room / columns);
      }
      columns_ = int32_t(columns), rows_ = int32_t(rows);
    }
    x_.start(x, reach, columns_);
    y_.start(y, reach, rows_);
    return int64_t(columns_) * rows_;
  }

  FF_HD void place(Candidate<U>* c) const {
    const Box<U>& box = c->pretest.box;
    int32_t left = 0, right = columns_ - 1, top = 0, bottom = rows_ - 1;
    c->chain = 0;
    if (columns_ * rows_ > 1) {
      const U x = doubled_x(box), y = doubled_y(box);
      c->chain = y_.cell(y) * columns_ + x_.cell(x);
      if (has_reach(c->area)) {
        x_.reached(x, extent<kLegacy>(box.x1, box.x2), &left, &right);
        y_.reached(y, extent<kLegacy>(box.y1, box.y2), &top, &bottom);
      }
    }
    c->first = top * columns_ + left;
    c->width = right - left + 1;
    c->height = c->area > U(0) ? bottom - top + 1 : 0;
  }

  int32_t columns() const { return columns_; }

 private:
#if defined(FF_TEST_BUILD)
  static constexpr int64_t kGridFrom = 256;  // small cases have grids too
#else
  static constexpr int64_t kGridFrom = 16384;  // a shorter list is met sooner in strips, whose chains are few and long
#endif
  static constexpr int64_t kStripBoxes = 64, kCellBoxes = 16, kMost = 1 << 20;

  FF_HD static U doubled_x(const Box<U>& box) { return box.x1 + box.x2; }
  FF_HD static U doubled_y(const Box<U>& box) { return box.y1 + box.y2; }
  static U within(U value, U most) { return value < U(1) ? U(1) : (value < most ? value : most); }
  static void add(U centre, U length, Spread<U>* s) {
    s->low = centre < s->low ? centre : s->low;
    s->high = centre > s->high ? centre : s->high;
    s->mean += length;
  }

  CellAxis<U> x_, y_;
  int32_t columns_ = 1, rows_ = 1;
};

}  // namespace FF_ISA
}  // namespace frcnn_fast::nms
