// Anchors, and the map between boxes and regression deltas (Ren et al. 2015, section 3.1.1 and eq. 2).
//
// The arithmetic here is all there is: the CPU and the CUDA kernels of every family that decodes or encodes call it.
// A box is decoded, then clipped, then judged.
#pragma once
#include "../common/anchors.h"
#include "../common/box.h"
#include "../common/mutant.h"
#include "../common/status.h"

namespace frcnn_fast::anchor_decode {

// What the deltas were divided by when they were learned, and the bound of the two logarithmic ones.
template <class U>
struct DecodeParams {
  U wx, wy, ww, wh;
  U clamp;
};

// weights: host array (wx, wy, ww, wh).
template <class U>
FF_HD DecodeParams<U> make_decode_params(const double* weights, double clamp) {
  return {U(weights[0]), U(weights[1]), U(weights[2]), U(weights[3]), U(clamp)};
}

// Where boxes of one image may lie, and how small they may be.
template <class U>
struct Window {
  U right, bottom;  // the largest coordinates: the image's size, one less for inclusive pixels
  U min_side;
};

// image_size: (height, width) of that image; scale: the image's factor on min_size, null for 1.
template <bool kLegacy, class U>
FF_HD Window<U> make_window(const U* image_size, U min_size, const U* scale) {
  const U last = kLegacy ? U(1) : U(0);
  const U inset = FF_MUTANT(decode_legacy_limit, last, U(0));
  return {image_size[1] - inset, image_size[0] - inset, scale ? min_size * *scale : min_size};
}

// One axis of a box: its side and its centre.
template <class U>
struct Span {
  U side, centre;
};
template <bool kLegacy, class U>
FF_HD Span<U> span(U low, U high) {
  const U side = extent<kLegacy>(low, high);
  return {side, low + U(0.5) * side};
}

template <class U>
FF_HD U clamped(U growth, U clamp) {
  return growth > clamp ? clamp : growth;  // NaN stays
}

// The box that the deltas (d0, d1, d2, d3) = (tx, ty, tw, th) make of the anchor: neither clipped nor checked.
template <bool kLegacy, class U>
FF_HD Box<U> decode(const Box<U>& anchor, U d0, U d1, U d2, U d3, const DecodeParams<U>& params) {
  const Span<U> x = span<kLegacy>(anchor.x1, anchor.x2), y = span<kLegacy>(anchor.y1, anchor.y2);
  const U centre_x = (d0 / params.wx) * x.side + x.centre;
  const U centre_y = (d1 / params.wy) * y.side + y.centre;
  const U dw = d2 / params.ww, dh = d3 / params.wh;
  const U half_w = U(0.5) * (exp_(FF_MUTANT(decode_clamp, clamped(dw, params.clamp), dw)) * x.side);
  const U half_h = U(0.5) * (exp_(clamped(dh, params.clamp)) * y.side);
  return {centre_x - half_w, centre_y - half_h, centre_x + half_w, centre_y + half_h};
}

// Into [0, limit]; NaN stays NaN, and so does -0.0.
template <class U>
FF_HD U clip(U x, U limit) {
  return x < U(0) ? U(0) : (x > limit ? limit : x);
}
template <class U>
FF_HD Box<U> clip(const Box<U>& box, const Window<U>& window) {
  return {clip(box.x1, window.right), clip(box.y1, window.bottom),
          clip(box.x2, FF_MUTANT(decode_clip_side, window.right, window.bottom)), clip(box.y2, window.bottom)};
}

// Whether the box was finite before it was clipped and has both sides after.
template <bool kLegacy, class U>
FF_HD bool is_valid(const Box<U>& decoded, const Box<U>& clipped, U min_side) {
  const U w = extent<kLegacy>(clipped.x1, clipped.x2), h = extent<kLegacy>(clipped.y1, clipped.y2);
  const bool large = FF_MUTANT(decode_min_side, (w >= min_side) & (h >= min_side), (w > min_side) & (h > min_side));
  return FF_MUTANT(decode_finite, is_finite(decoded), true) & large;
}

// The gradient in the four deltas, given the one in the clipped box: nothing passes a clipped coordinate or a clamped
// delta.
template <bool kLegacy, class U>
FF_HD Box<U> decode_clip_gradient(const Box<U>& anchor, U d0, U d1, U d2, U d3, const DecodeParams<U>& params,
                                  const Window<U>& window, const Box<U>& gradient) {
  const Box<U> box = decode<kLegacy>(anchor, d0, d1, d2, d3, params);
  const auto pass = [](U x, U limit, U g) {
    return (x < U(0)) | FF_MUTANT(decode_gradient_clip, x > limit, false) ? U(0) : g;
  };
  const U x1 = pass(box.x1, window.right, gradient.x1), x2 = pass(box.x2, window.right, gradient.x2);
  const U y1 = pass(box.y1, window.bottom, gradient.y1), y2 = pass(box.y2, window.bottom, gradient.y2);
  const U w = extent<kLegacy>(anchor.x1, anchor.x2), h = extent<kLegacy>(anchor.y1, anchor.y2);
  const U dw = d2 / params.ww, dh = d3 / params.wh;
  const U half_w = U(0.5) * (exp_(clamped(dw, params.clamp)) * w);
  const U half_h = U(0.5) * (exp_(clamped(dh, params.clamp)) * h);
  return {((x1 + x2) * w) / params.wx, ((y1 + y2) * h) / params.wy,
          FF_MUTANT(decode_gradient_clamp, dw > params.clamp, false) ? U(0) : ((x2 - x1) * half_w) / params.ww,
          dh > params.clamp ? U(0) : ((y2 - y1) * half_h) / params.wh};
}

// The deltas (tx, ty, tw, th), as a Box's four members, that decode to gt_box.
template <bool kLegacy, class U>
FF_HD Box<U> encode(const Box<U>& gt_box, const Box<U>& anchor, const DecodeParams<U>& params) {
  const Span<U> x = span<kLegacy>(anchor.x1, anchor.x2), y = span<kLegacy>(anchor.y1, anchor.y2);
  const Span<U> gx = span<kLegacy>(gt_box.x1, gt_box.x2), gy = span<kLegacy>(gt_box.y1, gt_box.y2);
  const U shift_x = params.wx * (gx.centre - x.centre);
  return {FF_MUTANT(encode_weight, shift_x / x.side, gx.centre - x.centre),
          (params.wy * (gy.centre - y.centre)) / y.side, params.ww * log_(gx.side / x.side),
          params.wh * log_(gy.side / y.side)};
}

// Launchers. U is float64 for float64 deltas (boxes), else float32; anchors, image_sizes and image_scales are in U.
// weights: host [4].

// boxes [A, 4]: the grid's anchors, or a copy of those given.
Status grid_anchors_cpu(DType dtype, const AnchorSource& anchors, void* boxes);
Status grid_anchors_cuda(DType dtype, const AnchorSource& anchors, void* boxes, Stream stream);

struct DecodeArguments {
  AnchorSource anchors;
  const void* image_sizes;   // [B, 2] (height, width)
  const void* image_scales;  // [B] or null
  const double* weights;     // [4]
  double clamp;
  double min_size;
  bool legacy;
};

// deltas [B, A, 4] -> boxes [B, A, 4] in U, valid [B, A].
Status decode_clip_cpu(DType dtype, const void* deltas, int64_t B, int64_t A, const DecodeArguments& arguments,
                       void* boxes, bool* valid);
Status decode_clip_cuda(DType dtype, const void* deltas, int64_t B, int64_t A, const DecodeArguments& arguments,
                        void* boxes, bool* valid, Stream stream);

// grad_boxes [B, A, 4] in U -> grad_deltas [B, A, 4] in dtype.
Status decode_clip_backward_cpu(DType dtype, const void* grad_boxes, const void* deltas, int64_t B, int64_t A,
                                const DecodeArguments& arguments, void* grad_deltas);
Status decode_clip_backward_cuda(DType dtype, const void* grad_boxes, const void* deltas, int64_t B, int64_t A,
                                 const DecodeArguments& arguments, void* grad_deltas, Stream stream);

// gt_boxes [N, 4], anchors [N, 4], both dtype -> targets [N, 4] in U.
Status encode_cpu(DType dtype, const void* gt_boxes, const void* anchors, int64_t N, const double* weights, bool legacy,
                  void* targets);
Status encode_cuda(DType dtype, const void* gt_boxes, const void* anchors, int64_t N, const double* weights,
                   bool legacy, void* targets, Stream stream);

}  // namespace frcnn_fast::anchor_decode
