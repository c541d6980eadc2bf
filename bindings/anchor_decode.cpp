#include "../kernels/anchor_decode/anchor_decode.h"

#include <pybind11/stl.h>

#include "anchors.h"

namespace frcnn_fast::bindings {
using namespace anchor_decode;
namespace {

void grid_anchors(const TensorView& anchors, const Integers& anchor_grid, double anchor_offset,
                  const TensorView& boxes) {
  const DType dtype = anchors.dtype("anchors");
  const AnchorSource source = anchor_source(anchors, anchor_grid, anchor_offset);
  void* out = boxes.floats("boxes");
  run(
      "grid_anchors", anchors, [&] { return grid_anchors_cpu(dtype, source, out); },
      [&](auto stream) { return grid_anchors_cuda(dtype, source, out, stream); });
}

void decode_clip(const TensorView& deltas, const TensorView& anchors, const Integers& anchor_grid, double anchor_offset,
                 const TensorView& image_sizes, const OptionalTensor& image_scales, const Weights& weights,
                 double clamp, double min_size, bool legacy, const TensorView& boxes, const TensorView& valid) {
  const DType dtype = deltas.dtype("deltas");
  const void* in = deltas.floats("deltas");
  const int64_t B = deltas.size(0), A = deltas.size(1);
  const DecodeArguments arguments = {anchor_source(anchors, anchor_grid, anchor_offset),
                                     image_sizes.floats("image_sizes"),
                                     image_scales.floats("image_scales"),
                                     weights.data(),
                                     clamp,
                                     min_size,
                                     legacy};
  void* out = boxes.floats("boxes");
  bool* flags = valid.data<bool>("valid");
  run(
      "decode_clip", deltas, [&] { return decode_clip_cpu(dtype, in, B, A, arguments, out, flags); },
      [&](auto stream) { return decode_clip_cuda(dtype, in, B, A, arguments, out, flags, stream); });
}

void decode_clip_backward(const TensorView& grad_boxes, const TensorView& deltas, const TensorView& anchors,
                          const Integers& anchor_grid, double anchor_offset, const TensorView& image_sizes,
                          const Weights& weights, double clamp, bool legacy, const TensorView& grad_deltas) {
  const DType dtype = deltas.dtype("deltas");
  const void *gradient = grad_boxes.floats("grad_boxes"), *in = deltas.floats("deltas");
  const int64_t B = deltas.size(0), A = deltas.size(1);
  const DecodeArguments arguments = {anchor_source(anchors, anchor_grid, anchor_offset),
                                     image_sizes.floats("image_sizes"),
                                     nullptr,
                                     weights.data(),
                                     clamp,
                                     0.0,
                                     legacy};
  void* out = grad_deltas.floats("grad_deltas");
  run(
      "decode_clip_backward", deltas,
      [&] { return decode_clip_backward_cpu(dtype, gradient, in, B, A, arguments, out); },
      [&](auto stream) { return decode_clip_backward_cuda(dtype, gradient, in, B, A, arguments, out, stream); });
}

void encode(const TensorView& gt_boxes, const TensorView& anchors, const Weights& weights, bool legacy,
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
  m.def("grid_anchors", &grid_anchors, "anchors"_a, "anchor_grid"_a, "anchor_offset"_a, "boxes"_a);
  m.def("decode_clip", &decode_clip, "deltas"_a, "anchors"_a, "anchor_grid"_a, "anchor_offset"_a, "image_sizes"_a,
        "image_scales"_a, "weights"_a, "clamp"_a, "min_size"_a, "legacy"_a, "boxes"_a, "valid"_a);
  m.def("decode_clip_backward", &decode_clip_backward, "grad_boxes"_a, "deltas"_a, "anchors"_a, "anchor_grid"_a,
        "anchor_offset"_a, "image_sizes"_a, "weights"_a, "clamp"_a, "legacy"_a, "grad_deltas"_a);
  m.def("encode", &encode, "gt_boxes"_a, "anchors"_a, "weights"_a, "legacy"_a, "targets"_a);
});

}  // namespace
}  // namespace frcnn_fast::bindings
