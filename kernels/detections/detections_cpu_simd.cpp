// Softmax lane by lane, decoding of what scores enough, then the NMS family's own pass over those candidates.
#include "../nms/nms_cpu.h"
#include "detections_cpu.h"

namespace frcnn_fast {
namespace FF_ISA {
namespace {

// powers [C]: e_c of each class, C rounded up to whole lanes; returns lane 0's sum.
template <class T>
Compute<T> softmax_powers(const T* logits, int64_t C, Compute<T>* powers) {
  using U = Compute<T>;
  U most = load(logits);
  for (int64_t c = 1; c < C; ++c) most = maximum(load(logits + c), most);
  const int64_t padded = (C + kSoftmaxLanes - 1) / kSoftmaxLanes * kSoftmaxLanes;
  for (int64_t c = 0; c < C; ++c) powers[c] = load(logits + c) - most;
  for (int64_t c = C; c < padded; ++c) powers[c] = U(0);
#pragma omp simd
  for (int64_t c = 0; c < padded; ++c) powers[c] = exp_(powers[c]);
  // The classes that are not there add 0, which changes no sum: no power is -0.
  for (int64_t c = C; c < padded; ++c) powers[c] = U(0);
  alignas(64) U lanes[kSoftmaxLanes];
  for (int l = 0; l < kSoftmaxLanes; ++l) lanes[l] = U(0);
  for (int64_t c = 0; c < padded; c += kSoftmaxLanes)
    for (int l = 0; l < kSoftmaxLanes; ++l) lanes[l] = lanes[l] + powers[c + l];
  for (int d = kSoftmaxLanes / 2; d > 0; d /= 2)
    for (int l = 0; l < d; ++l) lanes[l] = lanes[l] + lanes[l + d];
  return lanes[0];
}

template <class T, bool kLegacy>
void detect(const DetectionInputs& in, const DetectionSettings& set, int64_t b, const DetectionMemory& memory,
            const DetectionOutputs& out) {
  using U = Compute<T>;
  const int64_t D = set.max_detections, rows = in.N * (in.C - 1);
  const DecodeParams<U> params = make_decode_params<U>(set.weights, set.clamp);
  const Window<U> window =
      make_window<kLegacy>(static_cast<const U*>(in.image_sizes) + 2 * b, U(set.min_size), static_cast<const U*>(nullptr));
  const U threshold = U(set.score_threshold);
  const int64_t boxes_a_row = in.class_agnostic ? 1 : in.C;
  U* const powers = static_cast<U*>(memory.powers);
  U* const boxes = static_cast<U*>(memory.boxes);
  U* const scores = static_cast<U*>(memory.scores);

  int64_t found = 0;
  for (int64_t n = 0; n < in.counts[b]; ++n) {
    const int64_t row = b * in.N + n;
    const U sum = softmax_powers(static_cast<const T*>(in.class_logits) + row * in.C, in.C, powers);
    const Box<U> proposal = load_box(static_cast<const U*>(in.proposals) + 4 * row);
    const T* const deltas = static_cast<const T*>(in.box_deltas) + 4 * row * boxes_a_row;
    for (int64_t c = FF_MUTANT(detections_background, 1, 0); c < in.C; ++c) {
      const U score = powers[c] / sum;
      if (!scores_enough(score, threshold)) continue;
      const T* const d = deltas + (FF_MUTANT(detections_agnostic, in.class_agnostic, false) ? 0 : 4 * (c % boxes_a_row));
      const Box<U> decoded = decode<kLegacy>(proposal, load(d), load(d + 1), load(d + 2), load(d + 3), params);
      const Box<U> box = clip(decoded, window);
      if (!FF_MUTANT(detections_valid, is_valid<kLegacy>(decoded, box, window.min_side), is_finite(decoded))) continue;
      if (found == rows) break;
      store_box(boxes + 4 * found, box);
      scores[found] = score;
      memory.class_ids[found] = c;
      ++found;
    }
  }
  NmsImage nms{};
  nms.dtype = sizeof(U) == 8 ? DType::kFloat64 : DType::kFloat32;
  nms.boxes = boxes;
  nms.scores = scores;
  nms.class_ids = memory.class_ids;
  nms.rows = found;
  nms.padded_rows = rows;
  nms.threshold = set.iou_threshold;
  nms.max_output = D;
  nms.legacy = kLegacy;
  nms.workspace = memory.nms;
  nms.keep = memory.keep;
  const int64_t count = found ? nms_image(nms) : 0;

  U* const out_boxes = static_cast<U*>(out.boxes) + 4 * b * D;
  U* const out_scores = static_cast<U*>(out.scores) + b * D;
  int64_t* const labels = out.labels + b * D;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t row = memory.keep[i];
    store_box(out_boxes + 4 * i, load_box(boxes + 4 * row));
    out_scores[i] = scores[row];
    labels[i] = memory.class_ids[row];
  }
  for (int64_t i = count; i < D; ++i) {
    store_box(out_boxes + 4 * i, Box<U>{0, 0, 0, 0});
    out_scores[i] = U(0);
    labels[i] = -1;
  }
  out.counts[b] = count;
}

}  // namespace

void detect_image(const DetectionInputs& in, const DetectionSettings& set, int64_t b, const DetectionMemory& memory,
                  const DetectionOutputs& out) {
  visit(in.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    set.legacy ? detect<T, true>(in, set, b, memory, out) : detect<T, false>(in, set, b, memory, out);
  });
}

}  // namespace FF_ISA
}  // namespace frcnn_fast
