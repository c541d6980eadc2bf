// Where the numbers of an anchor lie: in a table, [B, A] and [B, A, 4], or in the maps of a head, one a level,
// [B, k, H, W] and [B, 4k, H, W], in whatever order they are stored. A level of a table is one row of cells.
#pragma once
#include "anchors.h"
#include "mutant.h"

namespace frcnn_fast {

// One level's numbers as an op's launcher is told, in elements. Anchor a of cell (y, x) of image b has its first number
// at b * image_stride + a * anchor_stride + y * row_stride + x * cell_stride; deltas have three more, each value_stride
// further on.
struct MapLayout {
  const void* data;
  int64_t image_stride, anchor_stride, row_stride, cell_stride, value_stride;
  int64_t per_cell, height, width;
};

// What kernels take of it. Where the anchors of a cell, or the rows, follow each other without a gap, they are cells of
// one longer row, and an index costs no division.
template <class T>
struct AnchorMap {
  const T* data;
  int64_t image_stride, anchor_stride, row_stride, cell_stride, value_stride;
  uint32_t per_cell, rows, width;

  // Whether an index is where the number lies.
  FF_HD bool flat() const { return per_cell == 1 && rows == 1 && FF_MUTANT(map_flat, cell_stride == 1, true); }
  // Where the anchor of that index, ((y * width + x) * per_cell + a), has its first number.
  FF_HD int64_t offset(uint32_t index) const {
    int64_t at = 0;
    if (per_cell > 1) {
      const uint32_t cell = index / per_cell;
      at = int64_t(FF_MUTANT(map_anchor, index - cell * per_cell, 0u)) * anchor_stride;
      index = cell;
    }
    if (rows > 1) {
      const uint32_t y = index / width;
      at += int64_t(y) * FF_MUTANT(map_row, row_stride, int64_t(width) * cell_stride);
      index -= y * width;
    }
    return at + int64_t(index) * cell_stride;
  }
};

template <class T>
FF_HD AnchorMap<T> make_anchor_map(const MapLayout& in) {
  AnchorMap<T> map = {static_cast<const T*>(in.data),
                      in.image_stride,
                      in.anchor_stride,
                      in.row_stride,
                      in.cell_stride,
                      in.value_stride,
                      uint32_t(in.per_cell),
                      uint32_t(in.height),
                      uint32_t(in.width)};
  const int64_t cell = int64_t(map.per_cell) * map.anchor_stride;
  if (map.per_cell > 1 && FF_MUTANT(map_one_row_of_anchors, map.cell_stride == cell, map.cell_stride >= cell)) {
    map.width *= map.per_cell;
    map.per_cell = 1;
    map.cell_stride = map.anchor_stride;
  }
  const int64_t row = int64_t(map.width) * map.cell_stride;
  if (map.rows > 1 && FF_MUTANT(map_one_row, map.row_stride == row, map.row_stride >= row)) {
    map.width *= map.rows;
    map.rows = 1;
  }
  return map;
}

// What an AnchorMap says of numbers that follow each other, for code that takes nothing else.
template <class T>
struct AnchorRow {
  const T* data;
  int64_t image_stride;
  FF_HD bool flat() const { return true; }
  FF_HD int64_t offset(uint32_t index) const { return index; }
};

// N numbers an image, all of them one after the other.
FF_HD MapLayout row_layout(const void* numbers, int64_t N) { return {numbers, N, 0, 0, 1, 0, 1, 1, N}; }
template <class T>
FF_HD AnchorMap<T> row_map(const T* numbers, int64_t N) {
  return {numbers, N, 0, 0, 1, 0, 1, 1, uint32_t(N)};
}

// All levels. Passed to kernels by value.
template <class T>
struct AnchorMaps {
  int64_t starts[kMaxLevels + 1];  // index of a level's first anchor, and A from the last level's end on
  AnchorMap<T> maps[kMaxLevels];

  // Where the anchor of that index has its first number; level: the one it is in.
  FF_HD const T* at(int64_t image, int level, int64_t index) const {
    const AnchorMap<T>& map = maps[level];
    return map.data + image * map.image_stride + map.offset(uint32_t(index - starts[level]));
  }
  FF_HD int level_of(int64_t index) const {
    int level = 0;
    while (level + 1 < kMaxLevels && FF_MUTANT(map_level, index >= starts[level + 1], index > starts[level + 1]))
      ++level;
    return level;
  }
};

template <class T>
FF_HD AnchorMaps<T> make_anchor_maps(const MapLayout* layouts, int64_t L) {
  AnchorMaps<T> all = {};
  int64_t start = 0;
  for (int64_t l = 0; l < L; ++l) {
    all.maps[l] = make_anchor_map<T>(layouts[l]);
    all.starts[l] = start;
    start += layouts[l].per_cell * layouts[l].height * layouts[l].width;
  }
  for (int64_t l = L; l <= kMaxLevels; ++l) all.starts[l] = start;
  return all;
}

}  // namespace frcnn_fast
