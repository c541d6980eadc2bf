#include "../kernels/anchor_gather/anchor_gather.h"

#include <pybind11/stl.h>

#include "anchor_maps.h"

namespace frcnn_fast::bindings {
using namespace anchor_gather;
namespace {

Integers level_sizes(const py::sequence& maps, int64_t values) {
  Integers sizes;
  for (const py::handle one : maps) {
    TensorView map;
    map.load(one.ptr());
    sizes.push_back(map.size(1) / values * map.size(2) * map.size(3));
  }
  return sizes;
}

void gather_anchors(const py::sequence& maps, const TensorView& indices, int64_t values, const TensorView& rows) {
  const AnchorMapViews views(maps, level_sizes(maps, values), values, "maps");
  const int64_t B = indices.size(0), S = indices.size(1);
  const GatherMaps in = {views.first().dtype("maps"), views.layouts(), B, int64_t(maps.size()), values};
  const int64_t* chosen = indices.data<int64_t>("indices");
  void* to = rows.floats("rows");
  run(
      "gather_anchors", views.first(), [&] { return gather_anchors_cpu(in, chosen, S, to); },
      [&](auto stream) { return gather_anchors_cuda(in, chosen, S, to, stream); });
}

// map_shapes and channels_last are those of grad_maps, which say so themselves.
void gather_anchors_backward(const TensorView& grad, const TensorView& indices, const Integers&,
                             const std::vector<bool>&, const py::sequence& grad_maps) {
  const int64_t B = grad.size(0), S = grad.size(1), values = grad.size(2);
  const AnchorMapViews views(grad_maps, level_sizes(grad_maps, values), values, "grad_maps");
  const GatherMaps out = {grad.dtype("grad"), views.layouts(), B, int64_t(grad_maps.size()), values};
  const void* from = grad.floats("grad");
  const int64_t* chosen = indices.data<int64_t>("indices");
  run(
      "gather_anchors_backward", grad, [&] { return gather_anchors_backward_cpu(from, chosen, S, out); },
      [&](auto stream) { return gather_anchors_backward_cuda(from, chosen, S, out, stream); });
}

const Registrar registrar([](py::module_& m) {
  m.def("gather_anchors", &gather_anchors, "maps"_a, "indices"_a, "values"_a, "rows"_a);
  m.def("gather_anchors_backward", &gather_anchors_backward, "grad"_a, "indices"_a, "map_shapes"_a, "channels_last"_a,
        "grad_maps"_a);
});

}  // namespace
}  // namespace frcnn_fast::bindings
