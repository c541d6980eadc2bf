// The one place where an op's (anchors, anchor_grid, anchor_offset) become an AnchorSource.
#pragma once
#include "../kernels/common/anchors.h"
#include "run.h"

namespace frcnn_fast::bindings {

// anchor_grid is empty for given anchors, [A, 4] or [B, A, 4]; else it holds kGridFields numbers a level, and anchors
// the cell anchors of all levels. It is not copied.
inline AnchorSource anchor_source(const TensorView& anchors, const Integers& anchor_grid, double anchor_offset) {
  if (anchor_grid.size() % kGridFields)
    throw py::value_error("anchor_grid: expected " + std::to_string(kGridFields) + " numbers a level, got " +
                          std::to_string(anchor_grid.size()));
  AnchorSource source = {
      anchors.floats("anchors"), 0, anchor_grid.data(), int64_t(anchor_grid.size()) / kGridFields, anchor_offset, 0};
  for (int64_t l = 0; l < source.L; ++l) {
    const int64_t* level = source.grid + l * kGridFields;
    source.A += level[0] * level[1] * level[2];
  }
  if (source.L == 0) {
    source.A = anchors.size(anchors.ndim() - 2);
    source.image_stride = anchors.ndim() == 3 ? 4 * source.A : 0;
  }
  return source;
}

}  // namespace frcnn_fast::bindings
