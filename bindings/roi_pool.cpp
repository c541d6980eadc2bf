#include "../kernels/roi_pool/roi_pool.h"

#include <pybind11/stl.h>

#include <vector>

#include "../kernels/roi_pool/roi_align.h"
#include "run.h"

namespace frcnn_fast::bindings {
using namespace roi_pool;
namespace {

bool channels_last(const TensorView& tensor, const char* name) {
  if (tensor.is_contiguous()) return false;
  if (!tensor.is_channels_last())
    throw py::value_error(std::string(name) + ": expected a contiguous or channels_last tensor, got other strides");
  return true;
}

// The compute type of dtype.
const void* rois_data(const TensorView& rois, DType dtype) {
  if (dtype == DType::kFloat64) return rois.data<double>("boxes");
  return rois.data<float>("boxes");
}

RoiPoolShape pool_shape(const TensorView& map, const TensorView& rois, const TensorView& pooled, const char* name) {
  return {map.size(0),  map.size(1),    map.size(2),    map.size(3),
          rois.size(0), pooled.size(2), pooled.size(3), channels_last(map, name)};
}

void bind_pool(py::module_& m) {
  m.def("roi_pool_workspace", [](const TensorView& input, const TensorView& rois, const TensorView& output) -> size_t {
    if (uses_cuda(input)) return 0;
    return roi_pool_workspace_cpu(input.dtype("input"), pool_shape(input, rois, output, "input"));
  });
  m.def("roi_pool", [](const TensorView& input, const TensorView& rois, double scale, const OptionalTensor& workspace,
                       const TensorView& output, const OptionalTensor& argmax) {
    const DType dtype = input.dtype("input");
    const RoiPoolShape shape = pool_shape(input, rois, output, "input");
    const void *from = input.raw("input"), *boxes = rois_data(rois, dtype);
    uint8_t* memory = workspace.data<uint8_t>("workspace");
    void* to = output.raw("output");
    int32_t* places = argmax.present ? static_cast<int32_t*>(argmax.view.raw("argmax")) : nullptr;
    run(
        "roi_pool", input, [&] { return roi_pool_cpu(dtype, shape, from, boxes, scale, memory, to, places); },
        [&](auto stream) { return roi_pool_cuda(dtype, shape, from, boxes, scale, to, places, stream); });
  });
  m.def("roi_pool_backward_workspace",
        [](const TensorView& grad_output, const TensorView& rois, const TensorView& grad_input) -> size_t {
          const DType dtype = grad_output.dtype("grad_output");
          const RoiPoolShape shape = pool_shape(grad_input, rois, grad_output, "grad_input");
          if (!uses_cuda(grad_output)) return roi_pool_backward_workspace_cpu(dtype, shape);
          if constexpr (kWithCuda) return roi_pool_backward_workspace_cuda(dtype, shape);
          return 0;
        });
  m.def("roi_pool_backward", [](const TensorView& grad_output, const TensorView& argmax, const TensorView& rois,
                                double scale, const OptionalTensor& workspace, const TensorView& grad_input) {
    const DType dtype = grad_output.dtype("grad_output");
    const RoiPoolShape shape = pool_shape(grad_input, rois, grad_output, "grad_input");
    const bool last = channels_last(grad_output, "grad_output");
    const void *from = grad_output.raw("grad_output"), *boxes = rois_data(rois, dtype);
    const int32_t* places = static_cast<const int32_t*>(argmax.raw("argmax"));
    uint8_t* memory = workspace.data<uint8_t>("workspace");
    void* to = grad_input.raw("grad_input");
    run(
        "roi_pool_backward", grad_output,
        [&] { return roi_pool_backward_cpu(dtype, shape, from, last, places, boxes, memory, to); },
        [&](auto stream) {
          return roi_pool_backward_cuda(dtype, shape, from, last, places, boxes, scale, memory, to, stream);
        });
  });
}

// The maps of all levels, features or gradients.
struct Levels {
  TensorView views[kMaxRoiLevels];
  void* data[kMaxRoiLevels];
  DType dtype;
  RoiAlignShape shape{};

  Levels(const py::sequence& maps, const TensorView& rois, const TensorView& pooled, const std::vector<double>& scales,
         const std::vector<double>& thresholds, int32_t sampling_ratio, bool aligned) {
    const size_t L = maps.size();
    if (L == 0 || L > size_t(kMaxRoiLevels))
      throw py::value_error("features: expected 1 to " + std::to_string(kMaxRoiLevels) + " levels, got " +
                            std::to_string(L));
    if (scales.size() != L || thresholds.size() >= L)
      throw py::value_error("spatial_scales: expected one for each of " + std::to_string(L) + " levels");
    for (size_t l = 0; l < L; ++l) {
      views[l].load(py::object(maps[l]).ptr());
      data[l] = views[l].raw("features");
      shape.levels[l] = {views[l].size(2), views[l].size(3), scales[l], channels_last(views[l], "features")};
    }
    for (size_t i = 0; i < thresholds.size(); ++i) shape.thresholds[i] = thresholds[i];
    dtype = views[0].dtype("features");
    shape.B = views[0].size(0);
    shape.C = views[0].size(1);
    shape.K = rois.size(0);
    shape.P = pooled.size(2);
    shape.Q = pooled.size(3);
    shape.L = int64_t(L);
    shape.num_thresholds = int32_t(thresholds.size());
    shape.sampling_ratio = sampling_ratio;
    shape.aligned = aligned;
    shape.output_channels_last = channels_last(pooled, "output");
  }
  bool cuda() const { return uses_cuda(views[0]); }
};

void bind_align(py::module_& m) {
  m.def("roi_align_workspace",
        [](const py::sequence& features, const TensorView& rois, const Numbers& scales, const Numbers& thresholds,
           int32_t sampling_ratio, bool aligned, const TensorView& output) -> size_t {
          const Levels levels(features, rois, output, scales, thresholds, sampling_ratio, aligned);
          if (!levels.cuda()) return roi_align_workspace_cpu(levels.dtype, levels.shape);
          if constexpr (kWithCuda) return roi_align_workspace_cuda(levels.dtype, levels.shape);
          return 0;
        });
  m.def("roi_align",
        [](const py::sequence& features, const TensorView& rois, const Numbers& scales, const Numbers& thresholds,
           int32_t sampling_ratio, bool aligned, const OptionalTensor& workspace, const TensorView& output) {
          const Levels levels(features, rois, output, scales, thresholds, sampling_ratio, aligned);
          const void* boxes = rois_data(rois, levels.dtype);
          uint8_t* memory = workspace.data<uint8_t>("workspace");
          void* to = output.raw("output");
          run(
              "roi_align", levels.views[0],
              [&] { return roi_align_cpu(levels.dtype, levels.shape, levels.data, boxes, memory, to); },
              [&](auto stream) {
                return roi_align_cuda(levels.dtype, levels.shape, levels.data, boxes, memory, to, stream);
              });
        });
  m.def("roi_align_backward_workspace",
        [](const TensorView& grad_output, const TensorView& rois, const Numbers& scales, const Numbers& thresholds,
           int32_t sampling_ratio, bool aligned, const py::sequence& grads) -> size_t {
          const Levels levels(grads, rois, grad_output, scales, thresholds, sampling_ratio, aligned);
          if (!levels.cuda()) return roi_align_backward_workspace_cpu(levels.dtype, levels.shape);
          if constexpr (kWithCuda) return roi_align_backward_workspace_cuda(levels.dtype, levels.shape);
          return 0;
        });
  m.def("roi_align_backward",
        [](const TensorView& grad_output, const TensorView& rois, const Numbers& scales, const Numbers& thresholds,
           int32_t sampling_ratio, bool aligned, const OptionalTensor& workspace, const py::sequence& grads) {
          const Levels levels(grads, rois, grad_output, scales, thresholds, sampling_ratio, aligned);
          const void *from = grad_output.raw("grad_output"), *boxes = rois_data(rois, levels.dtype);
          uint8_t* memory = workspace.data<uint8_t>("workspace");
          run(
              "roi_align_backward", grad_output,
              [&] { return roi_align_backward_cpu(levels.dtype, levels.shape, from, boxes, memory, levels.data); },
              [&](auto stream) {
                return roi_align_backward_cuda(levels.dtype, levels.shape, from, boxes, memory, levels.data, stream);
              });
        });
}

const Registrar registrar([](py::module_& m) {
  bind_pool(m);
  bind_align(m);
});

}  // namespace
}  // namespace frcnn_fast::bindings
