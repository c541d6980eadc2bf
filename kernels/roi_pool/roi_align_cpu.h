// A RoI's weights along both axes: what RoIAlign's forward and backward share on the CPU.
#pragma once
#include "prroi_pool.h"
#include "roi_cpu.h"

namespace frcnn_fast::roi_pool {

template <class U>
struct RoiWeights {
  AxisWeights<U> rows, columns;
  int32_t first_row, last_row;  // touched; last < first: none
};

// How many cells of a run cost as much as one cell by itself.
constexpr int64_t kSparse = 8;

// The distinct cells along one axis that weights name, in ascending order.
struct TouchedCells {
  int32_t* cells;
  int32_t* places;  // scratch, one a cell of the map
  int32_t count;
  bool contiguous;  // one run of cells

  static TouchedCells take(WorkspaceArena& arena, int64_t limit) {
    return {arena.take<int32_t>(limit), arena.take<int32_t>(limit), 0, false};
  }

  // Lists the cells, then renames those of the weights to their places in the list. The list is a whole run of at least
  // `run` cells (as far as there are so many) unless that takes more than `waste` times as many: a run of cells is
  // loaded much faster than one cell after the other.
  template <class U>
  void gather(AxisWeights<U>& axis, int64_t bins, int32_t limit, int32_t run, int64_t waste) {
    const int32_t total = axis.begin[bins];
    count = 0;
    contiguous = true;
    if (total == 0) return;
    int32_t low = *std::min_element(axis.cells, axis.cells + total);
    int32_t high = *std::max_element(axis.cells, axis.cells + total);
    std::fill(places + low, places + high + 1, 0);
    int32_t distinct = 0;
    for (int32_t i = 0; i < total; ++i) distinct += !places[axis.cells[i]], places[axis.cells[i]] = 1;
    contiguous = high - low < waste * distinct;
    if (contiguous && high - low + 1 < run && run <= limit) {
      low = std::min(low, limit - run);
      high = low + run - 1;
    }
    for (int32_t cell = low; cell <= high; ++cell)
      if (contiguous || places[cell]) places[cell] = count, cells[count++] = cell;
    for (int32_t i = 0; i < total; ++i) axis.cells[i] = places[axis.cells[i]];
  }

  // Of a row of the map these cells' channels into target [count][lanes].
  template <class T, class U>
  void load(DType dtype, const T* row, CellStrides strides, int channels, int64_t lanes, U* target) const {
    if (contiguous) {
      if (count)
        FF_ISA_CALL(load_lanes, dtype, row + cells[0] * strides.cell, strides, channels, int(lanes), count, target);
      return;
    }
    for (int64_t j = 0; j < count; ++j)
      FF_ISA_CALL(load_lanes, dtype, row + cells[j] * strides.cell, strides, channels, int(lanes), 1,
                  target + j * lanes);
  }
};

template <class U>
class RoiGeometry {
 public:
  RoiGeometry(const RoiAlignShape& shape, const void* rois) : s_(shape), rois_(static_cast<const U*>(rois)) {
    for (int i = 0; i < s_.num_thresholds; ++i) thresholds_[i] = U(s_.thresholds[i]);
  }

  const U* roi(int64_t k) const { return rois_ + k * kRoiFields; }

  Status group(RoiGroups* groups) const {
    return group_rois(
        s_.precise ? "rois" : "boxes", rois_, s_.R, s_.B, s_.L,
        [this](const U* roi) { return roi_level(roi, thresholds_, s_.num_thresholds); }, groups);
  }

  // Memory for find(), of so many RoIs. slopes: it is to find them as well.
  RoiWeights<U> take(WorkspaceArena& arena, bool slopes = false, int64_t rois = 1) const {
    return {take_axis(arena, rois * s_.PH, rois, most_cells(s_.max_height()), slopes),
            take_axis(arena, rois * s_.PW, rois, most_cells(s_.max_width()), slopes), 0, -1};
  }
  // The i-th RoI's part of it, without slopes.
  RoiWeights<U> part(const RoiWeights<U>& all, int64_t i) const {
    return {part(all.rows, i, s_.PH, most_cells(s_.max_height())),
            part(all.columns, i, s_.PW, most_cells(s_.max_width())), 0, -1};
  }

  // False where the RoI pools nothing at all.
  bool find(int64_t k, int64_t l, RoiWeights<U>& out) const {
    const U* box = roi(k);
    if (!roi_is_finite(box)) return false;
    const RoiAlignLevel& level = s_.levels[l];
    const U scale = U(level.scale);
    if (s_.precise) {
      const auto axes = make_axes(box, scale, s_.PH, s_.PW, level.H, level.W);
      if (axes.rows.limit == 0) return false;
      fill(axes.rows, out.rows);
      fill(axes.columns, out.columns);
      return true;
    }
    const auto rows = make_samples(box[2], box[4], scale, s_.aligned, s_.PH, s_.sampling_ratio, level.H);
    const auto columns = make_samples(box[1], box[3], scale, s_.aligned, s_.PW, s_.sampling_ratio, level.W);
    fill(rows, s_.PH, sample_share(rows, columns), out.rows);
    fill(columns, s_.PW, U(1), out.columns);
    return true;
  }

  // The rows that the RoI touches, first to last.
  void find_rows(int64_t k, int64_t l, RoiWeights<U>& scratch) const {
    scratch.first_row = 0;
    scratch.last_row = -1;
    if (!find(k, l, scratch)) return;
    const int32_t total = scratch.rows.begin[s_.PH];
    if (total == 0 || scratch.columns.begin[s_.PW] == 0) return;
    scratch.first_row = *std::min_element(scratch.rows.cells, scratch.rows.cells + total);
    scratch.last_row = *std::max_element(scratch.rows.cells, scratch.rows.cells + total);
  }

 private:
  // Of a bin: two cells a sample, and no cell twice.
  int64_t most_cells(int64_t limit) const {
    return s_.sampling_ratio > 0 ? std::min<int64_t>(limit, 2 * int64_t(s_.sampling_ratio)) : limit;
  }
  static AxisWeights<U> take_axis(WorkspaceArena& arena, int64_t bins, int64_t rois, int64_t most, bool slopes) {
    return {arena.take<int32_t>(bins + rois), arena.take<int32_t>(bins * most), arena.take<U>(bins * most),
            slopes ? arena.take<Slope<U>>(bins * most) : nullptr};
  }
  static AxisWeights<U> part(const AxisWeights<U>& all, int64_t i, int64_t bins, int64_t most) {
    return {all.begin + i * (bins + 1), all.cells + i * bins * most, all.weights + i * bins * most, nullptr};
  }

  void fill(const SampleAxis<U>& axis, int64_t bins, U factor, AxisWeights<U>& out) const {
    int32_t n = 0;
    for (int32_t bin = 0; bin < bins; ++bin) {
      const int32_t begin = out.begin[bin] = n;
      // Positions ascend, so a cell already listed is the last or the one before.
      const auto place_of = [&](int32_t cell) {
        int32_t i = n - 1;
        while (i >= begin && i >= n - 2 && out.cells[i] != cell) --i;
        if (i < begin || i < n - 2) {
          i = n++;
          out.cells[i] = cell;
          out.weights[i] = U(0);
          if (out.slopes) out.slopes[i] = {U(0), U(0)};
        }
        return i;
      };
      Sample<U> sample;
      for (int32_t i = axis.first(bin); i < axis.count && axis.at(bin, i, &sample); ++i) {
        const int32_t low = place_of(sample.low);
        out.weights[low] += U(1) - sample.fraction;
        const int32_t high = place_of(sample.high);
        out.weights[high] += sample.fraction;
        if (!out.slopes) continue;
        const Slope<U> slope = axis.slope(bin, i, sample);
        out.slopes[low] = {out.slopes[low].low - slope.low, out.slopes[low].high - slope.high};
        out.slopes[high] = {out.slopes[high].low + slope.low, out.slopes[high].high + slope.high};
      }
      for (int32_t i = begin; i < n; ++i) out.weights[i] *= factor;
      if (out.slopes)
        for (int32_t i = begin; i < n; ++i) out.slopes[i] = {out.slopes[i].low * factor, out.slopes[i].high * factor};
    }
    out.begin[bins] = n;
  }

  void fill(const PreciseAxis<U>& axis, AxisWeights<U>& out) const {
    int32_t n = 0;
    for (int32_t p = 0; p < axis.bins; ++p) {
      out.begin[p] = n;
      const auto bin = axis.bin(p);
      for (int32_t cell = bin.first; cell <= bin.last; ++cell) {
        out.cells[n] = cell;
        out.weights[n] = bin.weight(cell);
        if (out.slopes) out.slopes[n] = bin.slope(cell, out.weights[n]);
        ++n;
      }
    }
    out.begin[axis.bins] = n;
  }

  const RoiAlignShape& s_;
  const U* rois_;
  U thresholds_[kMaxRoiLevels];
};

inline Status check_align_shape(const RoiAlignShape& s) {
  for (int64_t l = 0; l < s.L; ++l)
    if (s.levels[l].H * s.levels[l].W > INT32_MAX)
      return invalid("features[%lld]: a map of %lld x %lld cells has more than 2^31 - 1", (long long)l,
                     (long long)s.levels[l].H, (long long)s.levels[l].W);
  if (s.R > INT32_MAX) return invalid("boxes: %lld rows, at most 2^31 - 1 are supported", (long long)s.R);
  return kOk;
}

}  // namespace frcnn_fast::roi_pool
