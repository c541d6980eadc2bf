#include "../kernels/anchor_decode/anchor_decode.h"

#include <pybind11/stl.h>

#include <array>
#include <vector>

#include "run.h"

namespace frcnn_fast::bindings {
using namespace anchor_decode;
namespace {

void grid_anchors(const TensorView& cells, const Integers& grid, double offset, const TensorView& boxes) {
  const DType dtype = cells.dtype("cells");
  const void* in = cells.floats("cells");
  void* out = boxes.floats("boxes");
  const int64_t L = int64_t(grid.size()) / kGridFields, A = boxes.size(0);
  run(
      "grid_anchors", cells, [&] { return grid_anchors_cpu(dtype, in, grid.data(), L, offset, A, out); },
      [&](auto stream) { return grid_anchors_cuda(dtype, in, grid.data(), L, offset, A, out, stream); });
}

DecodeArguments decode_arguments(const TensorView& anchors, const Integers& grid, double offset,
                                 const TensorView& image_sizes, const Weights& weights, double clamp, double min_size,
                                 const void* image_scales, bool legacy) {
  const int64_t stride = anchors.ndim() == 3 ? 4 * anchors.size(1) : 0;
  return {anchors.floats("anchors"),
          stride,
          grid.data(),
          int64_t(grid.size()) / kGridFields,
          offset,
          image_sizes.floats("image_sizes"),
          weights.data(),
          clamp,
          min_size,
          image_scales,
          legacy};
}

void decode_clip(const TensorView& deltas, const TensorView& anchors, const Integers& grid, double offset,
                 const TensorView& image_sizes, const Weights& weights, double clamp, double min_size,
                 const OptionalTensor& image_scales, bool legacy, const TensorView& boxes, const TensorView& valid) {
  const DType dtype = deltas.dtype("deltas");
  const void* in = deltas.floats("deltas");
  const int64_t B = deltas.size(0), A = deltas.size(1);
  const DecodeArguments arguments = decode_arguments(anchors, grid, offset, image_sizes, weights, clamp, min_size,
                                                     image_scales.floats("image_scales"), legacy);
  void* out = boxes.floats("boxes");
  bool* flags = valid.data<bool>("valid");
  run(
      "decode_clip", deltas, [&] { return decode_clip_cpu(dtype, in, B, A, arguments, out, flags); },
      [&](auto stream) { return decode_clip_cuda(dtype, in, B, A, arguments, out, flags, stream); });
}

void decode_clip_backward(const TensorView& grad_boxes, const TensorView& deltas, const TensorView& anchors,
                          const Integers& grid, double offset, const TensorView& image_sizes, const Weights& weights,
                          double clamp, bool legacy, const TensorView& grad_deltas) {
  const DType dtype = deltas.dtype("deltas");
  const void *gradient = grad_boxes.floats("grad_boxes"), *in = deltas.floats("deltas");
  const int64_t B = deltas.size(0), A = deltas.size(1);
  const DecodeArguments arguments =
      decode_arguments(anchors, grid, offset, image_sizes, weights, clamp, 0.0, nullptr, legacy);
  void* out = grad_deltas.floats("grad_deltas");
  run(
      "decode_clip_backward", deltas,
      [&] { return decode_clip_backward_cpu(dtype, gradient, in, B, A, arguments, out); },
      [&](auto stream) { return decode_clip_backward_cuda(dtype, gradient, in, B, A, arguments, out, stream); });
}

void encode_boxes(const TensorView& gt_boxes, const TensorView& anchors, const Weights& weights, bool legacy,
                  const TensorView& targets) {
  const DType dtype = gt_boxes.dtype("gt_boxes");
  const void *in = gt_boxes.floats("gt_boxes"), *relative_to = anchors.floats("anchors");
  const int64_t N = gt_boxes.numel() / 4;
  void* out = targets.floats("targets");
  run(
      "encode", gt_boxes, [&] { return encode_cpu(dtype, in, relative_to, N, weights.data(), legacy, out); },
      [&](auto stream) { return encode_cuda(dtype, in, relative_to, N, weights.data(), legacy, out, stream); });
}

const Registrar registrar([](py::module_& m) {
  m.def("grid_anchors", &grid_anchors);
  m.def("decode_clip", &decode_clip);
  m.def("decode_clip_backward", &decode_clip_backward);
  m.def("encode", &encode_boxes);
});

}  // namespace
}  // namespace frcnn_fast::bindings
