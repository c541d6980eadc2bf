// Stands in for anchor_decode.h until that family is merged.
#pragma once
#include "../common/box.h"

namespace frcnn_fast {

template <class U>
struct DecodeParams {
  U wx, wy, ww, wh;
  U clamp;
};
template <class U>
DecodeParams<U> make_decode_params(const double* weights, double clamp) {
  return {U(weights[0]), U(weights[1]), U(weights[2]), U(weights[3]), U(clamp)};
}
template <class U>
struct Span {
  U side, centre;
};
template <bool kLegacy, class U>
FF_HD Span<U> span(U low, U high) {
  const U side = extent<kLegacy>(low, high);
  return {side, low + U(0.5) * side};
}
template <bool kLegacy, class U>
FF_HD Box<U> encode(const Box<U>& gt_box, const Box<U>& anchor, const DecodeParams<U>& params) {
  const Span<U> x = span<kLegacy>(anchor.x1, anchor.x2), y = span<kLegacy>(anchor.y1, anchor.y2);
  const Span<U> gx = span<kLegacy>(gt_box.x1, gt_box.x2), gy = span<kLegacy>(gt_box.y1, gt_box.y2);
  return {(params.wx * (gx.centre - x.centre)) / x.side, (params.wy * (gy.centre - y.centre)) / y.side,
          params.ww * log_(gx.side / x.side), params.wh * log_(gy.side / y.side)};
}

}  // namespace frcnn_fast
