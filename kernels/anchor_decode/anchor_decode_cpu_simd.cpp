// Ranges of boxes, in each instruction set: anchors of a block side by side, then one loop of vector arithmetic.
#include "anchor_decode_cpu.h"
#include "anchor_rows.h"

namespace frcnn_fast::anchor_decode {
namespace FF_ISA {
namespace {

template <class U>
Box<U> anchor_of(const AnchorBlock<U>& block, int i) {
  return {block.x1[i], block.y1[i], block.x2[i], block.y2[i]};
}

template <class T, bool kLegacy>
void decode_block(const AnchorBlock<Compute<T>>& anchors, int count, const T* deltas,
                  const DecodeParams<Compute<T>>& params, const Window<Compute<T>>& window, Compute<T>* boxes,
                  bool* valid) {
  using U = Compute<T>;
  const DecodeParams<U> p = params;
  const Window<U> w = window;
#pragma GCC ivdep
  for (int i = 0; i < count; ++i) {
    const Box<U> decoded = decode<kLegacy>(anchor_of(anchors, i), load(deltas + 4 * i), load(deltas + 4 * i + 1),
                                           load(deltas + 4 * i + 2), load(deltas + 4 * i + 3), p);
    const Box<U> box = clip(decoded, w);
    store_box(boxes + 4 * i, box);
    valid[i] = is_valid<kLegacy>(decoded, box, w.min_side);
  }
}

template <class T, bool kLegacy>
void gradient_block(const AnchorBlock<Compute<T>>& anchors, int count, const T* deltas, const Compute<T>* grad_boxes,
                    const DecodeParams<Compute<T>>& params, const Window<Compute<T>>& window, T* grad_deltas) {
  using U = Compute<T>;
  const DecodeParams<U> p = params;
  const Window<U> w = window;
#pragma GCC ivdep
  for (int i = 0; i < count; ++i) {
    const Box<U> gradient = decode_clip_gradient<kLegacy>(anchor_of(anchors, i), load(deltas + 4 * i),
                                                          load(deltas + 4 * i + 1), load(deltas + 4 * i + 2),
                                                          load(deltas + 4 * i + 3), p, w, load_box(grad_boxes + 4 * i));
    store(grad_deltas + 4 * i, gradient.x1);
    store(grad_deltas + 4 * i + 1, gradient.y1);
    store(grad_deltas + 4 * i + 2, gradient.x2);
    store(grad_deltas + 4 * i + 3, gradient.y2);
  }
}

template <class T, bool kLegacy>
void encode_block(const T* gt_boxes, const T* anchors, int64_t count, const DecodeParams<Compute<T>>& params,
                  Compute<T>* targets) {
  const DecodeParams<Compute<T>> p = params;
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i)
    store_box(targets + 4 * i, encode<kLegacy>(load_box(gt_boxes + 4 * i), load_box(anchors + 4 * i), p));
}

// Calls visit(image, first anchor, count) for blocks that cover rows begin .. end - 1 of [B, A].
template <class Visit>
void each_block(int64_t begin, int64_t end, int64_t A, const Visit& visit) {
  while (begin < end) {
    const int64_t image = begin / A, first = begin % A;
    int64_t count = A - first < end - begin ? A - first : end - begin;
    if (count > kAnchorBlock) count = kAnchorBlock;
    visit(image, first, int(count));
    begin += count;
  }
}

template <bool kLegacy, class U>
Window<U> window_of(const DecodeArguments& in, int64_t image) {
  const U* const scales = static_cast<const U*>(in.image_scales);
  return make_window<kLegacy>(static_cast<const U*>(in.image_sizes) + 2 * image, U(in.min_size),
                              scales ? scales + image : nullptr);
}

template <class T, bool kLegacy>
void decode_clip_range(const DecodeJob<T>& job, const DecodeArguments& in, int64_t begin, int64_t end) {
  using U = Compute<T>;
  AnchorRows<U> rows(job.anchors);
  AnchorBlock<U> block;
  each_block(begin, end, job.A, [&](int64_t image, int64_t first, int count) {
    rows.load(image, first, count, &block);
    const int64_t at = image * job.A + first;
    const Window<U> window = window_of<kLegacy, U>(in, image);
    if (job.grad_boxes) {
      gradient_block<T, kLegacy>(block, count, job.deltas + 4 * at, job.grad_boxes + 4 * at, job.params, window,
                                 job.grad_deltas + 4 * at);
    } else {
      decode_block<T, kLegacy>(block, count, job.deltas + 4 * at, job.params, window, job.boxes + 4 * at,
                               job.valid + at);
    }
  });
}

}  // namespace

template <class T>
void decode_range(const DecodeJob<T>& job, const DecodeArguments& in, int64_t begin, int64_t end) {
  in.legacy ? decode_clip_range<T, true>(job, in, begin, end) : decode_clip_range<T, false>(job, in, begin, end);
}

template <class T>
void encode_range(const T* gt_boxes, const T* anchors, int64_t count, const DecodeParams<Compute<T>>& params,
                  bool legacy, Compute<T>* targets) {
  legacy ? encode_block<T, true>(gt_boxes, anchors, count, params, targets)
         : encode_block<T, false>(gt_boxes, anchors, count, params, targets);
}

template <class U>
void grid_range(const Anchors<U>& anchors, int64_t begin, int64_t end, U* boxes) {
  AnchorRows<U> rows(anchors);
  AnchorBlock<U> block;
  each_block(begin, end, end, [&](int64_t, int64_t first, int count) {
    rows.load(0, first, count, &block);
    for (int i = 0; i < count; ++i) store_box(boxes + 4 * (first + i), anchor_of(block, i));
  });
}

#define FF_DECODE(T)                                                                         \
  template void decode_range(const DecodeJob<T>&, const DecodeArguments&, int64_t, int64_t); \
  template void encode_range(const T*, const T*, int64_t, const DecodeParams<Compute<T>>&, bool, Compute<T>*)
FF_DECODE(Half);
FF_DECODE(BFloat16);
FF_DECODE(float);
FF_DECODE(double);
#undef FF_DECODE
template void grid_range(const Anchors<float>&, int64_t, int64_t, float*);
template void grid_range(const Anchors<double>&, int64_t, int64_t, double*);

}  // namespace FF_ISA
}  // namespace frcnn_fast::anchor_decode
