// Where an anchor comes from: a given table, or the grid index.
#pragma once
#include "box.h"
#include "status.h"

namespace frcnn_fast {

constexpr int kMaxLevels = 8;
constexpr int kGridFields = 5;  // height, width, anchors per cell, stride_y, stride_x

struct AnchorLevel {
  int64_t start;       // index of the level's first anchor
  int64_t cell_start;  // row of its first cell anchor
  int32_t width, per_cell;
  int32_t stride_y, stride_x;
};

// Passed to kernels by value.
template <class U>
struct Anchors {
  const U* boxes;        // given: [A, 4] or [B, A, 4]; grid: the cell anchors of all levels, [sum k, 4]
  int64_t image_stride;  // elements from image to image: 0 or 4 * A; 0 for a grid
  int32_t num_levels;    // 0: given
  U offset;
  AnchorLevel levels[kMaxLevels];

  // The anchor of that index: ((y*w + x)*k + a) within its level. Products are exact; one rounded sum a coordinate.
  FF_HD Box<U> at(int64_t image, int64_t index) const {
    if (num_levels == 0) return load_box(boxes + image * image_stride + 4 * index);
    int l = 0;
    while (l + 1 < num_levels && index >= levels[l + 1].start) ++l;
    const AnchorLevel& level = levels[l];
    const uint32_t local = uint32_t(index - level.start);
    const uint32_t cell = local / uint32_t(level.per_cell), a = local % uint32_t(level.per_cell);
    const uint32_t y = cell / uint32_t(level.width), x = cell % uint32_t(level.width);
    const U dx = U(int64_t(x) * level.stride_x) + offset * U(level.stride_x);
    const U dy = U(int64_t(y) * level.stride_y) + offset * U(level.stride_y);
    const Box<U> base = load_box(boxes + 4 * (level.cell_start + a));
    return {dx + base.x1, dy + base.y1, dx + base.x2, dy + base.y2};
  }
};

// Where an op's anchors come from, as its launcher is told. U is the compute type.
struct AnchorSource {
  const void* boxes;     // U; given: [A, 4] or [B, A, 4]; grid: the cell anchors of all levels, [sum k, 4]
  int64_t image_stride;  // elements from image to image: 0 or 4 * A
  const int64_t* grid;   // host [L, 5], see kGridFields
  int64_t L;             // levels; 0: the anchors are given
  double offset;         // of a grid's anchors, in strides
  int64_t A;
};

// What kernels take of it. Checks that the levels add up to A.
template <class U>
Status make_anchors(const AnchorSource& source, Anchors<U>* out) {
  const int64_t L = source.L;
  if (L > kMaxLevels) return invalid("anchors: %lld levels given, at most %d are supported", (long long)L, kMaxLevels);
  *out = {};
  out->boxes = static_cast<const U*>(source.boxes);
  out->image_stride = L ? 0 : source.image_stride;
  out->num_levels = int32_t(L);
  out->offset = U(source.offset);
  int64_t start = 0, cell_start = 0;
  for (int64_t l = 0; l < L; ++l) {
    const int64_t* g = source.grid + l * kGridFields;
    out->levels[l] = {start, cell_start, int32_t(g[1]), int32_t(g[2]), int32_t(g[3]), int32_t(g[4])};
    const int64_t size = g[0] * g[1] * g[2];
    if (size > 0xffffffffll) return invalid("anchors: level %lld has 2^32 anchors or more", (long long)l);
    start += size;
    cell_start += g[2];
  }
  if (L && start != source.A)
    return invalid("anchors: the levels hold %lld anchors, expected %lld", (long long)start, (long long)source.A);
  return kOk;
}

// For an op with A scores or deltas an image.
template <class U>
Status make_anchors(const AnchorSource& source, int64_t A, Anchors<U>* out) {
  if (source.A != A)
    return invalid("anchors: got %lld of them for %lld scores or deltas", (long long)source.A, (long long)A);
  return make_anchors(source, out);
}

}  // namespace frcnn_fast
