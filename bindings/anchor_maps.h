// The one place where an op's tables or maps of anchors become MapLayouts.
#pragma once
#include "../kernels/common/anchor_maps.h"
#include "run.h"

namespace frcnn_fast::bindings {

// tensors: one table, [B, A] or, where an anchor has several values, [B, A, values], cut into levels of these sizes; or
// a map for each level, [B, k * values, H, W]. Any strides.
class AnchorMapViews {
 public:
  AnchorMapViews(const py::sequence& tensors, const Integers& level_sizes, int64_t values, const char* name) {
    const size_t L = level_sizes.size();
    if (tensors.empty()) throw py::value_error(std::string(name) + ": expected tensors, got none");
    if (L > size_t(kMaxLevels))
      throw py::value_error("level_sizes: expected at most " + std::to_string(kMaxLevels) + " levels, got " +
                            std::to_string(L));
    load(0, tensors);
    if (first().ndim() != 4) {
      cut(level_sizes, values, name);
      return;
    }
    if (tensors.size() != L)
      throw py::value_error(std::string(name) + ": expected a map for each of " + std::to_string(L) + " levels, got " +
                            std::to_string(tensors.size()));
    for (size_t l = 0; l < L; ++l) {
      if (l) load(l, tensors);
      const TensorView& map = views_[l];
      layouts_[l] = {map.raw(name),        map.stride(0), values * map.stride(1),
                     map.stride(2),        map.stride(3), map.stride(1),
                     map.size(1) / values, map.size(2),   map.size(3)};
      const int64_t size = map.size(1) / values * map.size(2) * map.size(3);
      if (map.ndim() != 4 || map.dtype(name) != first().dtype(name) || size != level_sizes[l])
        throw py::value_error(std::string(name) + ": expected a map of " + std::to_string(level_sizes[l]) +
                              " anchors, got " + map.describe());
    }
  }

  const TensorView& first() const { return views_[0]; }
  const MapLayout* layouts() const { return layouts_; }

 private:
  void load(size_t l, const py::sequence& tensors) { views_[l].load(py::object(tensors[l]).ptr()); }

  void cut(const Integers& level_sizes, int64_t values, const char* name) {
    const TensorView& table = first();
    const int64_t step = table.stride(1), bytes = step * int64_t(table.element_bytes());
    char* data = static_cast<char*>(table.raw(name));
    for (size_t l = 0; l < level_sizes.size(); ++l) {
      layouts_[l] = {data, table.stride(0), 0, 0, step, values > 1 ? table.stride(2) : 0, 1, 1, level_sizes[l]};
      data += bytes * level_sizes[l];
    }
  }

  TensorView views_[kMaxLevels];
  MapLayout layouts_[kMaxLevels];
};

}  // namespace frcnn_fast::bindings
