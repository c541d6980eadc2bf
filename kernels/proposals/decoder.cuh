// From an anchor's index to its box, for the kernels of the proposal step.
#pragma once
#include "../anchor_decode/anchor_decode.h"
#include "../common/launch.cuh"
#include "proposals.h"

namespace frcnn_fast::proposals {
using namespace anchor_decode;

// Passed to kernels by value.
template <class T, bool kLegacy>
struct Decoder {
  using U = Compute<T>;
  AnchorMaps<T> deltas;
  Anchors<U> anchors;
  const U* image_sizes;   // [B, 2]
  const U* image_scales;  // [B] or null
  int64_t A;
  U min_size;
  DecodeParams<U> params;

  // The clipped box of an anchor of that level; false where it may not compete.
  FF_HD bool operator()(int64_t b, int level, int64_t a, Box<U>* box) const {
    const T* const own = deltas.at(b, level, a);
    const int64_t step = deltas.maps[level].value_stride;
    const Box<U> d = {load(own), load(own + step), load(own + 2 * step), load(own + 3 * step)};
    const Window<U> window =
        make_window<kLegacy>(image_sizes + 2 * b, min_size, image_scales ? image_scales + b : nullptr);
    const Box<U> decoded = decode<kLegacy>(anchors.at(b, a), d.x1, d.y1, d.x2, d.y2, params);
    *box = clip(decoded, window);
    return is_valid<kLegacy>(decoded, *box, window.min_side);
  }
};

template <class T, bool kLegacy>
Status make_decoder(const ProposalInputs& in, const ProposalSettings& set, Decoder<T, kLegacy>* decoder) {
  using U = Compute<T>;
  decoder->deltas = make_anchor_maps<T>(in.deltas, in.L);
  decoder->image_sizes = static_cast<const U*>(in.image_sizes);
  decoder->image_scales = static_cast<const U*>(in.image_scales);
  decoder->A = in.A;
  decoder->min_size = U(set.min_size);
  decoder->params = make_decode_params<U>(set.weights, set.clamp);
  return make_anchors(in.anchors, in.A, &decoder->anchors);
}

}  // namespace frcnn_fast::proposals
