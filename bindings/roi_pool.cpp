#include "../kernels/roi_pool/roi_pool.h"

#include <pybind11/stl.h>

#include <algorithm>

#include "../kernels/roi_pool/prroi_pool.h"
#include "../kernels/roi_pool/roi_align.h"
#include "../kernels/roi_pool/roi_align_max.h"
#include "../kernels/roi_pool/roi_levels.h"
#include "run.h"

namespace frcnn_fast::bindings {
using namespace roi_pool;
namespace {

bool is_channels_last(const TensorView& tensor, const char* name) {
  if (tensor.is_contiguous()) return false;
  if (!tensor.is_channels_last())
    throw py::value_error(std::string(name) + ": expected a contiguous or channels_last tensor, got other strides");
  return true;
}

// Of the pooled maps that go with such a map: `is_channels_last` of maps whose two layouts are the same memory is
// false.
bool output_is_channels_last(const TensorView& map, const char* name, int64_t output_height, int64_t output_width) {
  return is_channels_last(map, name) && output_height * output_width != 1;
}

// Where pooled maps go that are to be stored so. One channel, or one bin, is the same memory either way.
void* pooled_data(const TensorView& output, bool channels_last) {
  const bool either = output.numel() == 0 || output.size(1) == 1 || output.size(2) * output.size(3) == 1;
  if (output.is_contiguous() ? channels_last && !either : !channels_last || !output.is_channels_last())
    throw py::value_error(std::string("output: expected a ") + (channels_last ? "channels_last" : "contiguous") +
                          " tensor, as channels_last says, got other strides");
  return output.raw("output");
}

// In the compute type of dtype. Scripted modules ask nobody else.
const void* rois_data(const TensorView& rois, DType dtype) {
  if (rois.ndim() != 2 || rois.size(1) != kRoiFields)
    throw py::value_error("rois: expected [R, 5] rows of (image, x1, y1, x2, y2), got " + rois.describe());
  if (dtype == DType::kFloat64) return rois.data<double>("rois");
  return rois.data<float>("rois");
}

RoiPoolShape pool_shape(const TensorView& map, const TensorView& rois, int64_t output_height, int64_t output_width,
                        bool rounded, const char* name) {
  return {map.size(0),  map.size(1),  map.size(2),
          map.size(3),  rois.size(0), output_height,
          output_width, rounded,      is_channels_last(map, name)};
}

// How much does not depend on the rounding.
size_t roi_pool_workspace(const TensorView& input, const TensorView& rois, int64_t output_height,
                          int64_t output_width) {
  const DType dtype = input.dtype("input");
  const RoiPoolShape shape = pool_shape(input, rois, output_height, output_width, true, "input");
  return workspace_bytes(input, [&] { return roi_pool_workspace_cpu(dtype, shape); }, [](auto) { return size_t(0); });
}

void roi_pool(const TensorView& input, const TensorView& rois, int64_t output_height, int64_t output_width,
              double spatial_scale, bool rounded, bool with_argmax, const OptionalTensor& workspace,
              const TensorView& output, const TensorView& argmax) {
  const DType dtype = input.dtype("input");
  const RoiPoolShape shape = pool_shape(input, rois, output_height, output_width, rounded, "input");
  const void *from = input.raw("input"), *boxes = rois_data(rois, dtype);
  const Workspace memory(workspace);
  void* to = output.raw("output");
  int32_t* places = with_argmax ? static_cast<int32_t*>(argmax.raw("argmax")) : nullptr;
  run(
      "roi_pool", input,
      [&] { return roi_pool_cpu(dtype, shape, from, boxes, spatial_scale, memory.data(), to, places); },
      [&](auto stream) { return roi_pool_cuda(dtype, shape, from, boxes, spatial_scale, to, places, stream); });
}

size_t roi_pool_backward_workspace(const TensorView& grad, const TensorView& rois, const Integers& input_shape,
                                   bool channels_last) {
  const DType dtype = grad.dtype("grad");
  const RoiPoolShape shape = {input_shape.at(0), input_shape.at(1), input_shape.at(2), input_shape.at(3),
                              rois.size(0),      grad.size(2),      grad.size(3),      true,
                              channels_last};
  return workspace_bytes(
      grad, [&] { return roi_pool_backward_workspace_cpu(dtype, shape); }, [](auto) { return size_t(0); });
}

// input_shape and channels_last are those of grad_input, which says so itself.
void roi_pool_backward(const TensorView& grad, const TensorView& argmax, const TensorView& rois, const Integers&, bool,
                       double spatial_scale, bool rounded, const OptionalTensor& workspace,
                       const TensorView& grad_input) {
  const DType dtype = grad.dtype("grad");
  const RoiPoolShape shape = pool_shape(grad_input, rois, grad.size(2), grad.size(3), rounded, "grad_input");
  const bool last = is_channels_last(grad, "grad");
  const void *from = grad.raw("grad"), *boxes = rois_data(rois, dtype);
  const int32_t* places = static_cast<const int32_t*>(argmax.raw("argmax"));
  const Workspace memory(workspace);
  void* to = grad_input.raw("grad_input");
  run(
      "roi_pool_backward", grad,
      [&] { return roi_pool_backward_cpu(dtype, shape, from, last, places, boxes, memory.data(), to); },
      [&](auto stream) {
        return roi_pool_backward_cuda(dtype, shape, from, last, places, boxes, spatial_scale, to, stream);
      });
}

// What RoIAlign of one map and over a pyramid's levels share.
struct AlignOptions {
  const double* spatial_scales;  // [L]
  int64_t sampling_ratio;
  bool aligned;
  double canonical_scale;  // of a pyramid
  int64_t canonical_level;
};

// levels: height, width and layout of each map; their scales come from the options.
RoiAlignShape align_shape(int64_t B, int64_t C, const std::vector<RoiAlignLevel>& levels, int64_t R,
                          int64_t output_height, int64_t output_width, bool output_channels_last,
                          const AlignOptions& options) {
  RoiAlignShape shape{};
  shape.B = B;
  shape.C = C;
  shape.R = R;
  shape.PH = output_height;
  shape.PW = output_width;
  shape.L = int64_t(levels.size());
  for (size_t l = 0; l < levels.size(); ++l) {
    shape.levels[l] = levels[l];
    shape.levels[l].scale = options.spatial_scales[l];
  }
  if (shape.L > 1 && level_thresholds(options.spatial_scales, shape.L, options.canonical_scale, options.canonical_level,
                                      shape.thresholds, &shape.num_thresholds))
    throw py::value_error(last_error());
  shape.sampling_ratio = int32_t(std::clamp<int64_t>(options.sampling_ratio, -1, kMaxSamples));
  shape.aligned = options.aligned;
  shape.output_channels_last = output_channels_last;
  return shape;
}

RoiAlignLevel level_of(const TensorView& map, const char* name) {
  return {map.size(2), map.size(3), 0.0, is_channels_last(map, name)};
}

// The maps of a pyramid's levels.
struct Maps {
  TensorView views[kMaxRoiLevels];
  void* data[kMaxRoiLevels];
  std::vector<RoiAlignLevel> levels;

  Maps(const py::sequence& maps, const char* name) {
    if (maps.empty() || maps.size() > size_t(kMaxRoiLevels))
      throw py::value_error(std::string(name) + ": expected 1 to " + std::to_string(kMaxRoiLevels) + " levels, got " +
                            std::to_string(maps.size()));
    for (size_t l = 0; l < maps.size(); ++l) {
      views[l].load(py::object(maps[l]).ptr());
      data[l] = views[l].raw(name);
      levels.push_back(level_of(views[l], name));
    }
  }
};

size_t forward_workspace(const TensorView& first, const RoiAlignShape& shape) {
  const DType dtype = first.dtype("features");
  return workspace_bytes(
      first, [&] { return roi_align_workspace_cpu(dtype, shape); },
      [&](auto) { return roi_align_workspace_cuda(dtype, shape); });
}

void forward(const char* op, const TensorView& first, const void* const* features, const TensorView& rois,
             const RoiAlignShape& shape, const OptionalTensor& workspace, const TensorView& output) {
  const DType dtype = first.dtype("features");
  const void* boxes = rois_data(rois, dtype);
  const Workspace memory(workspace);
  void* to = pooled_data(output, shape.output_channels_last);
  run(
      op, first, [&] { return roi_align_cpu(dtype, shape, features, boxes, memory.data(), to); },
      [&](auto stream) { return roi_align_cuda(dtype, shape, features, boxes, memory.data(), to, stream); });
}

size_t backward_workspace(const TensorView& grad, const RoiAlignShape& shape) {
  const DType dtype = grad.dtype("grad");
  return workspace_bytes(
      grad, [&] { return roi_align_backward_workspace_cpu(dtype, shape); },
      [&](auto) { return roi_align_backward_workspace_cuda(dtype, shape); });
}

void backward(const char* op, const TensorView& grad, const TensorView& rois, const RoiAlignShape& shape,
              const OptionalTensor& workspace, void* const* grad_features) {
  const DType dtype = grad.dtype("grad");
  const void *from = grad.raw("grad"), *boxes = rois_data(rois, dtype);
  const Workspace memory(workspace);
  run(
      op, grad, [&] { return roi_align_backward_cpu(dtype, shape, from, boxes, memory.data(), grad_features); },
      [&](auto stream) {
        return roi_align_backward_cuda(dtype, shape, from, boxes, memory.data(), grad_features, stream);
      });
}

size_t rois_backward_workspace(const TensorView& grad, const RoiAlignShape& shape) {
  const DType dtype = grad.dtype("grad");
  return workspace_bytes(
      grad, [&] { return roi_align_rois_backward_workspace_cpu(dtype, shape); },
      [&](auto) { return roi_align_rois_backward_workspace_cuda(dtype, shape); });
}

void rois_backward(const char* op, const TensorView& grad, const void* map, const TensorView& rois,
                   const RoiAlignShape& shape, const OptionalTensor& workspace, const TensorView& grad_rois) {
  const DType dtype = grad.dtype("grad");
  const void *from = grad.raw("grad"), *boxes = rois_data(rois, dtype);
  const Workspace memory(workspace);
  void* to = grad_rois.raw("grad_rois");
  run(
      op, grad, [&] { return roi_align_rois_backward_cpu(dtype, shape, from, map, boxes, memory.data(), to); },
      [&](auto stream) {
        return roi_align_rois_backward_cuda(dtype, shape, from, map, boxes, memory.data(), to, stream);
      });
}

size_t roi_align_workspace(const TensorView& input, const TensorView& rois, int64_t output_height, int64_t output_width,
                           double spatial_scale, int64_t sampling_ratio, bool aligned, bool channels_last) {
  const RoiAlignLevel level = level_of(input, "input");
  const AlignOptions options = {&spatial_scale, sampling_ratio, aligned, 0.0, 0};
  return forward_workspace(input, align_shape(input.size(0), input.size(1), {level}, rois.size(0), output_height,
                                              output_width, channels_last, options));
}

void roi_align(const TensorView& input, const TensorView& rois, int64_t output_height, int64_t output_width,
               double spatial_scale, int64_t sampling_ratio, bool aligned, bool channels_last,
               const OptionalTensor& workspace, const TensorView& output) {
  const AlignOptions options = {&spatial_scale, sampling_ratio, aligned, 0.0, 0};
  const void* map = input.raw("input");
  const RoiAlignShape shape = align_shape(input.size(0), input.size(1), {level_of(input, "input")}, rois.size(0),
                                          output_height, output_width, channels_last, options);
  forward("roi_align", input, &map, rois, shape, workspace, output);
}

size_t roi_align_backward_workspace(const TensorView& grad, const TensorView& rois, const Integers& input_shape,
                                    bool channels_last, double spatial_scale, int64_t sampling_ratio, bool aligned) {
  const AlignOptions options = {&spatial_scale, sampling_ratio, aligned, 0.0, 0};
  const RoiAlignLevel level = {input_shape.at(2), input_shape.at(3), 0.0, channels_last};
  return backward_workspace(grad, align_shape(input_shape.at(0), input_shape.at(1), {level}, rois.size(0), grad.size(2),
                                              grad.size(3), is_channels_last(grad, "grad"), options));
}

// input_shape and channels_last are those of grad_input, which says so itself.
void roi_align_backward(const TensorView& grad, const TensorView& rois, const Integers&, bool, double spatial_scale,
                        int64_t sampling_ratio, bool aligned, const OptionalTensor& workspace,
                        const TensorView& grad_input) {
  const AlignOptions options = {&spatial_scale, sampling_ratio, aligned, 0.0, 0};
  void* map = grad_input.raw("grad_input");
  const RoiAlignShape shape =
      align_shape(grad_input.size(0), grad_input.size(1), {level_of(grad_input, "grad_input")}, rois.size(0),
                  grad.size(2), grad.size(3), is_channels_last(grad, "grad"), options);
  backward("roi_align_backward", grad, rois, shape, workspace, &map);
}

RoiAlignShape rois_backward_shape(const TensorView& grad, const TensorView& input, const TensorView& rois,
                                  double spatial_scale, int64_t sampling_ratio, bool aligned) {
  const AlignOptions options = {&spatial_scale, sampling_ratio, aligned, 0.0, 0};
  return align_shape(input.size(0), input.size(1), {level_of(input, "input")}, rois.size(0), grad.size(2), grad.size(3),
                     is_channels_last(grad, "grad"), options);
}

size_t roi_align_rois_backward_workspace(const TensorView& grad, const TensorView& input, const TensorView& rois,
                                         double spatial_scale, int64_t sampling_ratio, bool aligned) {
  return rois_backward_workspace(grad, rois_backward_shape(grad, input, rois, spatial_scale, sampling_ratio, aligned));
}

void roi_align_rois_backward(const TensorView& grad, const TensorView& input, const TensorView& rois,
                             double spatial_scale, int64_t sampling_ratio, bool aligned,
                             const OptionalTensor& workspace, const TensorView& grad_rois) {
  rois_backward("roi_align_rois_backward", grad, input.raw("input"), rois,
                rois_backward_shape(grad, input, rois, spatial_scale, sampling_ratio, aligned), workspace, grad_rois);
}

size_t roi_align_max_workspace(const TensorView& input, const TensorView& rois, int64_t output_height,
                               int64_t output_width, double spatial_scale, int64_t sampling_ratio, bool aligned) {
  const DType dtype = input.dtype("input");
  const AlignOptions options = {&spatial_scale, sampling_ratio, aligned, 0.0, 0};
  const RoiAlignShape shape =
      align_shape(input.size(0), input.size(1), {level_of(input, "input")}, rois.size(0), output_height, output_width,
                  output_is_channels_last(input, "input", output_height, output_width), options);
  return workspace_bytes(
      input, [&] { return roi_align_max_workspace_cpu(dtype, shape); }, [](auto) { return size_t(0); });
}

void roi_align_max(const TensorView& input, const TensorView& rois, int64_t output_height, int64_t output_width,
                   double spatial_scale, int64_t sampling_ratio, bool aligned, bool with_argmax,
                   const OptionalTensor& workspace, const TensorView& output, const TensorView& argmax_y,
                   const TensorView& argmax_x) {
  const DType dtype = input.dtype("input");
  const AlignOptions options = {&spatial_scale, sampling_ratio, aligned, 0.0, 0};
  const RoiAlignShape shape = align_shape(input.size(0), input.size(1), {level_of(input, "input")}, rois.size(0),
                                          output_height, output_width, is_channels_last(output, "output"), options);
  const void *map = input.raw("input"), *boxes = rois_data(rois, dtype);
  const Workspace memory(workspace);
  void* to = output.raw("output");
  void* y = with_argmax ? argmax_y.raw("argmax_y") : nullptr;
  void* x = with_argmax ? argmax_x.raw("argmax_x") : nullptr;
  run(
      "roi_align_max", input, [&] { return roi_align_max_cpu(dtype, shape, map, boxes, memory.data(), to, y, x); },
      [&](auto stream) { return roi_align_max_cuda(dtype, shape, map, boxes, to, y, x, stream); });
}

size_t roi_align_max_backward_workspace(const TensorView& grad, const TensorView& rois, const Integers& input_shape,
                                        bool channels_last, double spatial_scale, int64_t sampling_ratio,
                                        bool aligned) {
  const DType dtype = grad.dtype("grad");
  const AlignOptions options = {&spatial_scale, sampling_ratio, aligned, 0.0, 0};
  const RoiAlignLevel level = {input_shape.at(2), input_shape.at(3), 0.0, channels_last};
  const RoiAlignShape shape = align_shape(input_shape.at(0), input_shape.at(1), {level}, rois.size(0), grad.size(2),
                                          grad.size(3), is_channels_last(grad, "grad"), options);
  return workspace_bytes(
      grad, [&] { return roi_align_max_backward_workspace_cpu(dtype, shape); },
      [&](auto) { return roi_align_max_backward_workspace_cuda(dtype, shape); });
}

// input_shape and channels_last are those of grad_input, which says so itself.
void roi_align_max_backward(const TensorView& grad, const TensorView& argmax_y, const TensorView& argmax_x,
                            const TensorView& rois, const Integers&, bool, double spatial_scale, int64_t sampling_ratio,
                            bool aligned, const OptionalTensor& workspace, const TensorView& grad_input) {
  const DType dtype = grad.dtype("grad");
  const AlignOptions options = {&spatial_scale, sampling_ratio, aligned, 0.0, 0};
  const RoiAlignShape shape =
      align_shape(grad_input.size(0), grad_input.size(1), {level_of(grad_input, "grad_input")}, rois.size(0),
                  grad.size(2), grad.size(3), is_channels_last(grad, "grad"), options);
  const void *from = grad.raw("grad"), *boxes = rois_data(rois, dtype);
  const void *y = argmax_y.raw("argmax_y"), *x = argmax_x.raw("argmax_x");
  const Workspace memory(workspace);
  void* to = grad_input.raw("grad_input");
  run(
      "roi_align_max_backward", grad,
      [&] { return roi_align_max_backward_cpu(dtype, shape, from, y, x, boxes, memory.data(), to); },
      [&](auto stream) {
        return roi_align_max_backward_cuda(dtype, shape, from, y, x, boxes, memory.data(), to, stream);
      });
}

// Of one map: RoIAlign's kernels with other weights.
RoiAlignShape precise_shape(int64_t B, int64_t C, RoiAlignLevel level, const TensorView& rois, int64_t output_height,
                            int64_t output_width, bool output_channels_last, double spatial_scale) {
  const AlignOptions options = {&spatial_scale, 0, false, 0.0, 0};
  RoiAlignShape shape =
      align_shape(B, C, {level}, rois.size(0), output_height, output_width, output_channels_last, options);
  shape.precise = true;
  return shape;
}

size_t prroi_pool_workspace(const TensorView& features, const TensorView& rois, int64_t output_height,
                            int64_t output_width, double spatial_scale) {
  const RoiAlignLevel level = level_of(features, "features");
  return forward_workspace(
      features,
      precise_shape(features.size(0), features.size(1), level, rois, output_height, output_width,
                    output_is_channels_last(features, "features", output_height, output_width), spatial_scale));
}

void prroi_pool(const TensorView& features, const TensorView& rois, int64_t output_height, int64_t output_width,
                double spatial_scale, const OptionalTensor& workspace, const TensorView& output) {
  const void* map = features.raw("features");
  const RoiAlignShape shape =
      precise_shape(features.size(0), features.size(1), level_of(features, "features"), rois, output_height,
                    output_width, is_channels_last(output, "output"), spatial_scale);
  forward("prroi_pool", features, &map, rois, shape, workspace, output);
}

size_t prroi_pool_backward_workspace(const TensorView& grad, const TensorView& rois, const Integers& input_shape,
                                     bool channels_last, double spatial_scale) {
  const RoiAlignLevel level = {input_shape.at(2), input_shape.at(3), 0.0, channels_last};
  return backward_workspace(grad, precise_shape(input_shape.at(0), input_shape.at(1), level, rois, grad.size(2),
                                                grad.size(3), is_channels_last(grad, "grad"), spatial_scale));
}

// input_shape and channels_last are those of grad_features, which says so itself.
void prroi_pool_backward(const TensorView& grad, const TensorView& rois, const Integers&, bool, double spatial_scale,
                         const OptionalTensor& workspace, const TensorView& grad_features) {
  void* map = grad_features.raw("grad_features");
  const RoiAlignLevel level = level_of(grad_features, "grad_features");
  const RoiAlignShape shape = precise_shape(grad_features.size(0), grad_features.size(1), level, rois, grad.size(2),
                                            grad.size(3), is_channels_last(grad, "grad"), spatial_scale);
  backward("prroi_pool_backward", grad, rois, shape, workspace, &map);
}

RoiAlignShape precise_rois_shape(const TensorView& grad, const TensorView& features, const TensorView& rois,
                                 double spatial_scale) {
  return precise_shape(features.size(0), features.size(1), level_of(features, "features"), rois, grad.size(2),
                       grad.size(3), is_channels_last(grad, "grad"), spatial_scale);
}

size_t prroi_pool_rois_backward_workspace(const TensorView& grad, const TensorView& features, const TensorView& rois,
                                          double spatial_scale) {
  return rois_backward_workspace(grad, precise_rois_shape(grad, features, rois, spatial_scale));
}

void prroi_pool_rois_backward(const TensorView& grad, const TensorView& features, const TensorView& rois,
                              double spatial_scale, const OptionalTensor& workspace, const TensorView& grad_rois) {
  rois_backward("prroi_pool_rois_backward", grad, features.raw("features"), rois,
                precise_rois_shape(grad, features, rois, spatial_scale), workspace, grad_rois);
}

void check_scales(const Numbers& spatial_scales, size_t L) {
  if (L == 0 || L > size_t(kMaxRoiLevels))
    throw py::value_error("features: expected 1 to " + std::to_string(kMaxRoiLevels) + " levels, got " +
                          std::to_string(L));
  if (spatial_scales.size() != L)
    throw py::value_error("spatial_scales: expected one for each of " + std::to_string(L) + " levels, got " +
                          std::to_string(spatial_scales.size()));
}

RoiAlignShape pyramid_shape(const Maps& maps, const TensorView& rois, int64_t output_height, int64_t output_width,
                            bool output_channels_last, const Numbers& spatial_scales, int64_t sampling_ratio,
                            bool aligned, double canonical_scale, int64_t canonical_level) {
  check_scales(spatial_scales, maps.levels.size());
  const AlignOptions options = {spatial_scales.data(), sampling_ratio, aligned, canonical_scale, canonical_level};
  const TensorView& first = maps.views[0];
  return align_shape(first.size(0), first.size(1), maps.levels, rois.size(0), output_height, output_width,
                     output_channels_last, options);
}

size_t multiscale_roi_align_workspace(const py::sequence& features, const TensorView& rois, int64_t output_height,
                                      int64_t output_width, const Numbers& spatial_scales, int64_t sampling_ratio,
                                      bool aligned, double canonical_scale, int64_t canonical_level,
                                      bool channels_last) {
  const Maps maps(features, "features");
  return forward_workspace(maps.views[0],
                           pyramid_shape(maps, rois, output_height, output_width, channels_last, spatial_scales,
                                         sampling_ratio, aligned, canonical_scale, canonical_level));
}

void multiscale_roi_align(const py::sequence& features, const TensorView& rois, int64_t output_height,
                          int64_t output_width, const Numbers& spatial_scales, int64_t sampling_ratio, bool aligned,
                          double canonical_scale, int64_t canonical_level, bool channels_last,
                          const OptionalTensor& workspace, const TensorView& output) {
  const Maps maps(features, "features");
  const RoiAlignShape shape = pyramid_shape(maps, rois, output_height, output_width, channels_last, spatial_scales,
                                            sampling_ratio, aligned, canonical_scale, canonical_level);
  forward("multiscale_roi_align", maps.views[0], maps.data, rois, shape, workspace, output);
}

size_t multiscale_roi_align_backward_workspace(const TensorView& grad, const TensorView& rois,
                                               const Integers& input_shapes, const std::vector<bool>& channels_last,
                                               const Numbers& spatial_scales, int64_t sampling_ratio, bool aligned,
                                               double canonical_scale, int64_t canonical_level) {
  const size_t L = channels_last.size();
  check_scales(spatial_scales, L);
  std::vector<RoiAlignLevel> levels;
  for (size_t l = 0; l < L; ++l)
    levels.push_back({input_shapes.at(4 * l + 2), input_shapes.at(4 * l + 3), 0.0, channels_last[l]});
  const AlignOptions options = {spatial_scales.data(), sampling_ratio, aligned, canonical_scale, canonical_level};
  return backward_workspace(grad, align_shape(input_shapes.at(0), input_shapes.at(1), levels, rois.size(0),
                                              grad.size(2), grad.size(3), is_channels_last(grad, "grad"), options));
}

// input_shapes and channels_last are those of grad_features, which say so themselves.
void multiscale_roi_align_backward(const TensorView& grad, const TensorView& rois, const Integers&,
                                   const std::vector<bool>&, const Numbers& spatial_scales, int64_t sampling_ratio,
                                   bool aligned, double canonical_scale, int64_t canonical_level,
                                   const OptionalTensor& workspace, const py::sequence& grad_features) {
  const Maps maps(grad_features, "grad_features");
  const RoiAlignShape shape = pyramid_shape(maps, rois, grad.size(2), grad.size(3), is_channels_last(grad, "grad"),
                                            spatial_scales, sampling_ratio, aligned, canonical_scale, canonical_level);
  backward("multiscale_roi_align_backward", grad, rois, shape, workspace, maps.data);
}

const Registrar registrar([](py::module_& m) {
  m.def("roi_pool_workspace", &roi_pool_workspace, "input"_a, "rois"_a, "output_height"_a, "output_width"_a);
  m.def("roi_pool", &roi_pool, "input"_a, "rois"_a, "output_height"_a, "output_width"_a, "spatial_scale"_a, "rounded"_a,
        "with_argmax"_a, "workspace"_a, "output"_a, "argmax"_a);
  m.def("roi_pool_backward_workspace", &roi_pool_backward_workspace, "grad"_a, "rois"_a, "input_shape"_a,
        "channels_last"_a);
  m.def("roi_pool_backward", &roi_pool_backward, "grad"_a, "argmax"_a, "rois"_a, "input_shape"_a, "channels_last"_a,
        "spatial_scale"_a, "rounded"_a, "workspace"_a, "grad_input"_a);
  m.def("roi_align_workspace", &roi_align_workspace, "input"_a, "rois"_a, "output_height"_a, "output_width"_a,
        "spatial_scale"_a, "sampling_ratio"_a, "aligned"_a, "channels_last"_a);
  m.def("roi_align", &roi_align, "input"_a, "rois"_a, "output_height"_a, "output_width"_a, "spatial_scale"_a,
        "sampling_ratio"_a, "aligned"_a, "channels_last"_a, "workspace"_a, "output"_a);
  m.def("roi_align_backward_workspace", &roi_align_backward_workspace, "grad"_a, "rois"_a, "input_shape"_a,
        "channels_last"_a, "spatial_scale"_a, "sampling_ratio"_a, "aligned"_a);
  m.def("roi_align_backward", &roi_align_backward, "grad"_a, "rois"_a, "input_shape"_a, "channels_last"_a,
        "spatial_scale"_a, "sampling_ratio"_a, "aligned"_a, "workspace"_a, "grad_input"_a);
  m.def("roi_align_rois_backward_workspace", &roi_align_rois_backward_workspace, "grad"_a, "input"_a, "rois"_a,
        "spatial_scale"_a, "sampling_ratio"_a, "aligned"_a);
  m.def("roi_align_rois_backward", &roi_align_rois_backward, "grad"_a, "input"_a, "rois"_a, "spatial_scale"_a,
        "sampling_ratio"_a, "aligned"_a, "workspace"_a, "grad_rois"_a);
  m.def("prroi_pool_workspace", &prroi_pool_workspace, "features"_a, "rois"_a, "output_height"_a, "output_width"_a,
        "spatial_scale"_a);
  m.def("prroi_pool", &prroi_pool, "features"_a, "rois"_a, "output_height"_a, "output_width"_a, "spatial_scale"_a,
        "workspace"_a, "output"_a);
  m.def("prroi_pool_backward_workspace", &prroi_pool_backward_workspace, "grad"_a, "rois"_a, "input_shape"_a,
        "channels_last"_a, "spatial_scale"_a);
  m.def("prroi_pool_backward", &prroi_pool_backward, "grad"_a, "rois"_a, "input_shape"_a, "channels_last"_a,
        "spatial_scale"_a, "workspace"_a, "grad_features"_a);
  m.def("prroi_pool_rois_backward_workspace", &prroi_pool_rois_backward_workspace, "grad"_a, "features"_a, "rois"_a,
        "spatial_scale"_a);
  m.def("prroi_pool_rois_backward", &prroi_pool_rois_backward, "grad"_a, "features"_a, "rois"_a, "spatial_scale"_a,
        "workspace"_a, "grad_rois"_a);
  m.def("roi_align_max_workspace", &roi_align_max_workspace, "input"_a, "rois"_a, "output_height"_a, "output_width"_a,
        "spatial_scale"_a, "sampling_ratio"_a, "aligned"_a);
  m.def("roi_align_max", &roi_align_max, "input"_a, "rois"_a, "output_height"_a, "output_width"_a, "spatial_scale"_a,
        "sampling_ratio"_a, "aligned"_a, "with_argmax"_a, "workspace"_a, "output"_a, "argmax_y"_a, "argmax_x"_a);
  m.def("roi_align_max_backward_workspace", &roi_align_max_backward_workspace, "grad"_a, "rois"_a, "input_shape"_a,
        "channels_last"_a, "spatial_scale"_a, "sampling_ratio"_a, "aligned"_a);
  m.def("roi_align_max_backward", &roi_align_max_backward, "grad"_a, "argmax_y"_a, "argmax_x"_a, "rois"_a,
        "input_shape"_a, "channels_last"_a, "spatial_scale"_a, "sampling_ratio"_a, "aligned"_a, "workspace"_a,
        "grad_input"_a);
  m.def("multiscale_roi_align_workspace", &multiscale_roi_align_workspace, "features"_a, "rois"_a, "output_height"_a,
        "output_width"_a, "spatial_scales"_a, "sampling_ratio"_a, "aligned"_a, "canonical_scale"_a, "canonical_level"_a,
        "channels_last"_a);
  m.def("multiscale_roi_align", &multiscale_roi_align, "features"_a, "rois"_a, "output_height"_a, "output_width"_a,
        "spatial_scales"_a, "sampling_ratio"_a, "aligned"_a, "canonical_scale"_a, "canonical_level"_a,
        "channels_last"_a, "workspace"_a, "output"_a);
  m.def("multiscale_roi_align_backward_workspace", &multiscale_roi_align_backward_workspace, "grad"_a, "rois"_a,
        "input_shapes"_a, "channels_last"_a, "spatial_scales"_a, "sampling_ratio"_a, "aligned"_a, "canonical_scale"_a,
        "canonical_level"_a);
  m.def("multiscale_roi_align_backward", &multiscale_roi_align_backward, "grad"_a, "rois"_a, "input_shapes"_a,
        "channels_last"_a, "spatial_scales"_a, "sampling_ratio"_a, "aligned"_a, "canonical_scale"_a,
        "canonical_level"_a, "workspace"_a, "grad_features"_a);
});

}  // namespace
}  // namespace frcnn_fast::bindings
