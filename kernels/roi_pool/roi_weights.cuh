// What the CUDA kernels of RoIAlign and precise RoI pooling share: the shapes that they are given, and the tables of
// the RoIs' weights along both axes, cell by cell, that the first launch of a backward pass writes.
#pragma once
#include "roi_align.h"
#include "roi_gather.cuh"

namespace frcnn_fast::roi_pool {

template <class U>
struct DeviceLevel {
  int32_t H, W;
  U scale;
  CellStrides map;
  void* data;
};

// Passed to kernels by value.
template <class U>
struct DeviceShape {
  int64_t B, C, R;
  int32_t PH, PW, L, sampling_ratio, num_thresholds;
  bool aligned;
  CellStrides out;
  U thresholds[kMaxRoiLevels];
  DeviceLevel<U> levels[kMaxRoiLevels];

  __device__ __forceinline__ int level(const U* roi) const { return roi_level(roi, thresholds, num_thresholds); }
};

template <class U>
DeviceShape<U> device_shape(const RoiAlignShape& s, const void* const* maps) {
  DeviceShape<U> d{};
  d.B = s.B, d.C = s.C, d.R = s.R;
  d.PH = int32_t(s.PH), d.PW = int32_t(s.PW), d.L = int32_t(s.L);
  d.sampling_ratio = s.sampling_ratio, d.num_thresholds = s.num_thresholds, d.aligned = s.aligned;
  const bool last = FF_MUTANT(align_output_layout, s.output_channels_last, s.levels[0].channels_last);
  d.out = cell_strides(s.C, s.PH * s.PW, last);
  for (int i = 0; i < s.num_thresholds; ++i) d.thresholds[i] = U(s.thresholds[i]);
  for (int64_t l = 0; l < s.L; ++l) {
    const RoiAlignLevel& level = s.levels[l];
    d.levels[l] = {int32_t(level.H), int32_t(level.W), U(level.scale),
                   cell_strides(s.C, level.H * level.W, level.channels_last), const_cast<void*>(maps[l])};
  }
  return d;
}

// Weights along one axis, dense: of bin b at cell i, at (roi * bins + b) * stride + i; negative where the bin does not
// touch the cell. spans: the first and last touched cell of each bin; none: 0, -1, and the weights are not written.
template <class U>
struct AxisTable {
  U* weights;
  int32_t* spans;
  int32_t bins, stride;

  static AxisTable take(WorkspaceArena& arena, int64_t R, int64_t bins, int64_t cells) {
    return {arena.take<U>(R * bins * cells), arena.take<int32_t>(2 * R * bins), int32_t(bins), int32_t(cells)};
  }
  __device__ __forceinline__ U* of(int64_t roi, int32_t bin) const {
    return weights + (roi * bins + bin) * int64_t(stride);
  }
  __device__ __forceinline__ int32_t* span(int64_t roi, int32_t bin) const { return spans + 2 * (roi * bins + bin); }
};

template <class U>
struct Weights {
  AxisTable<U> rows, columns;

  static Weights take(WorkspaceArena& arena, const RoiAlignShape& s) {
    const auto rows = AxisTable<U>::take(arena, s.R, s.PH, s.max_height());
    return {rows, AxisTable<U>::take(arena, s.R, s.PW, s.max_width())};
  }
};

// Slopes of the weights of an AxisTable, each in its weight's place.
template <class U>
struct Slopes {
  Slope<U>*rows, *columns;

  static Slopes take(WorkspaceArena& arena, const RoiAlignShape& s) {
    Slope<U>* rows = arena.take<Slope<U>>(s.R * s.PH * s.max_height());
    return {rows, arena.take<Slope<U>>(s.R * s.PW * s.max_width())};
  }
};

// What the weights are for: with kGather there are tables to fill, with kSlopes slopes.
enum class Weighs { kGather, kSlopes };

// The list of the RoIs of one image of one level, group = level * B + image. The whole block.
template <class U>
__device__ __forceinline__ void list_group(const DeviceShape<U>& s, const U* rois, int64_t group,
                                           const RoiTables& tables) {
  const auto group_of = [&](const U* roi) {
    const int64_t image = roi_image(roi, s.B);
    return image < 0 ? int64_t(-1) : s.level(roi) * s.B + image;
  };
  list_members(rois, group, group_of, tables);
}

// Along one axis of one RoI, the cells that it touches, least ... most (none: most < 0), and for each the first and the
// last bin that does, where touches(bin, cell). The whole warp.
template <class Touches>
__device__ __forceinline__ void write_window(const RoiTables& tables, int64_t k, bool of_rows, int32_t least,
                                             int32_t most, int32_t bins, const Touches& touches) {
  if (lane_id() == 0) {
    int32_t* window = tables.windows + 4 * k + (of_rows ? 0 : 2);
    window[0] = most < 0 ? 0 : least;
    window[1] = most + 1;
  }
  uint32_t* cells = of_rows ? tables.row_bins + k * tables.H : tables.column_bins + k * tables.W;
  for (int32_t cell = least + lane_id(); cell <= most; cell += kWarp) {
    uint32_t first = kNoBins, last = 0;
    for (int32_t bin = 0; bin < bins; ++bin) {
      if (!touches(bin, cell)) continue;
      if (first == kNoBins) first = uint32_t(bin);
      last = uint32_t(bin);
    }
    cells[cell] = first | last << 16;
  }
}

inline Status check_shape(const RoiAlignShape& s) {
  for (int64_t l = 0; l < s.L; ++l)
    if (s.levels[l].H * s.levels[l].W > INT32_MAX || s.C > INT32_MAX / 64)
      return invalid("features[%lld]: a map of %lld channels of %lld x %lld cells is too large", (long long)l,
                     (long long)s.C, (long long)s.levels[l].H, (long long)s.levels[l].W);
  if (s.PH > kMaxBins || s.PW > kMaxBins || s.PH * s.PW * s.C > INT32_MAX)
    return invalid("output_size: %lld x %lld bins are too many", (long long)s.PH, (long long)s.PW);
  return kOk;
}

// A warp for each axis of each RoI.
inline unsigned table_blocks(const RoiAlignShape& s) { return blocks_for(2 * s.R, 4); }

inline RoiTables take_tables(WorkspaceArena& arena, const RoiAlignShape& s) {
  return RoiTables::take(arena, s.L * s.B, s.R, s.max_height(), s.max_width());
}

}  // namespace frcnn_fast::roi_pool
