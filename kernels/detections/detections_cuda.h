// What the two ways of the last step on a GPU have in common: a cluster of blocks an image (detections_cluster.cu), and
// a chain of launches for what is too much for that (detections.cu).
#pragma once
#include "../common/launch.cuh"
#include "detections.h"

namespace frcnn_fast::detections {

template <class T>
struct DetectorInputs {
  using U = Compute<T>;
  const T* logits;
  const T* deltas;
  const U* proposals;
  const int64_t* counts;
  const U* image_sizes;
  int64_t B, N, K, first_class;
  bool agnostic;
  U score_threshold, min_size;
  DecodeParams<U> params;
};

template <class T>
DetectorInputs<T> make_inputs(const DetectionInputs& in, const DetectionSettings& set) {
  using U = Compute<T>;
  return {static_cast<const T*>(in.class_logits),
          static_cast<const T*>(in.box_deltas),
          static_cast<const U*>(in.proposals),
          in.counts,
          static_cast<const U*>(in.image_sizes),
          in.B,
          in.N,
          in.K,
          in.first_class,
          in.agnostic,
          U(set.score_threshold),
          U(set.min_size),
          make_decode_params<U>(set.weights, set.clamp)};
}

template <bool kLegacy, class T, class U = Compute<T>>
__device__ __forceinline__ Box<U> decoded_box(const DetectorInputs<T>& d, int64_t b, int64_t n, int64_t k,
                                              bool* valid) {
  const T* const delta = d.deltas + b * d.N * deltas_of_row(d.K, d.first_class, d.agnostic) +
                         delta_offset(n, k, d.K, d.first_class, d.agnostic);
  const Window<U> window = make_window<kLegacy>(d.image_sizes + 2 * b, d.min_size, static_cast<const U*>(nullptr));
  const Box<U> box = decode<kLegacy>(load_box(d.proposals + 4 * (b * d.N + n)), load(delta), load(delta + 1),
                                     load(delta + 2), load(delta + 3), d.params);
  const Box<U> clipped = clip(box, window);
  *valid = is_valid<kLegacy>(box, clipped, window.min_side);
  return clipped;
}

// Whether rows, classes and detections are few enough for the current device.
bool detections_fit_cluster(const DetectionInputs& in, const DetectionSettings& set);
Status detect_by_cluster(const DetectionInputs& in, const DetectionSettings& set, const DetectionOutputs& out,
                         Stream stream);

}  // namespace frcnn_fast::detections
