// One thread a box.
#include "../common/launch.cuh"
#include "../common/quad.cuh"
#include "anchor_decode.h"

namespace frcnn_fast::anchor_decode {
namespace {

constexpr int kThreads = 256;

__device__ __forceinline__ int64_t global_thread() { return int64_t(blockIdx.x) * blockDim.x + threadIdx.x; }

template <class T>
__device__ __forceinline__ Box<Compute<T>> load_quad(const T* p) {
  Compute<T> v[4];
  frcnn_fast::load_quad(p, v);
  return {v[0], v[1], v[2], v[3]};
}
template <class T>
__device__ __forceinline__ void store_quad(T* p, const Box<Compute<T>>& box) {
  const Compute<T> v[4] = {box.x1, box.y1, box.x2, box.y2};
  frcnn_fast::store_quad(p, v);
}

template <class U>
__global__ void __launch_bounds__(kThreads)
    grid_anchors_kernel(const __grid_constant__ Anchors<U> anchors, int64_t A, U* boxes) {
  const int64_t i = global_thread();
  if (i < A) store_quad(boxes + 4 * i, anchors.at(0, i));
}

template <class T>
struct DecodeInputs {
  const T* deltas;  // [B, A, 4]
  int64_t B, A;
  Anchors<Compute<T>> anchors;
  DecodeParams<Compute<T>> params;
  const Compute<T>* image_sizes;   // [B, 2]
  const Compute<T>* image_scales;  // [B] or null
  Compute<T> min_size;

  template <bool kLegacy>
  __device__ __forceinline__ Window<Compute<T>> window(int64_t b) const {
    return make_window<kLegacy>(image_sizes + 2 * b, min_size, image_scales ? image_scales + b : nullptr);
  }
};

template <class T, bool kLegacy>
__global__ void __launch_bounds__(kThreads)
    decode_clip_kernel(const __grid_constant__ DecodeInputs<T> in, Compute<T>* boxes, bool* valid) {
  using U = Compute<T>;
  const int64_t i = global_thread();
  if (i >= in.B * in.A) return;
  const int64_t b = i / in.A;
  const Window<U> window = in.template window<kLegacy>(b);
  const Box<U> d = load_quad(in.deltas + 4 * i);
  const Box<U> decoded = decode<kLegacy>(in.anchors.at(b, i - b * in.A), d.x1, d.y1, d.x2, d.y2, in.params);
  const Box<U> box = clip(decoded, window);
  store_quad(boxes + 4 * i, box);
  valid[i] = is_valid<kLegacy>(decoded, box, window.min_side);
}

template <class T, bool kLegacy>
__global__ void __launch_bounds__(kThreads) decode_clip_backward_kernel(const __grid_constant__ DecodeInputs<T> in,
                                                                        const Compute<T>* grad_boxes, T* grad_deltas) {
  using U = Compute<T>;
  const int64_t i = global_thread();
  if (i >= in.B * in.A) return;
  const int64_t b = i / in.A;
  const Box<U> d = load_quad(in.deltas + 4 * i);
  store_quad(grad_deltas + 4 * i,
             decode_clip_gradient<kLegacy>(in.anchors.at(b, i - b * in.A), d.x1, d.y1, d.x2, d.y2, in.params,
                                           in.template window<kLegacy>(b), load_quad(grad_boxes + 4 * i)));
}

template <class T, bool kLegacy>
__global__ void __launch_bounds__(kThreads) encode_kernel(const T* gt_boxes, const T* anchors, int64_t N,
                                                          DecodeParams<Compute<T>> params, Compute<T>* targets) {
  const int64_t i = global_thread();
  if (i >= N) return;
  store_quad(targets + 4 * i, encode<kLegacy>(load_quad(gt_boxes + 4 * i), load_quad(anchors + 4 * i), params));
}

template <class T>
Status make_inputs(const void* deltas, int64_t B, int64_t A, const DecodeArguments& in, DecodeInputs<T>* out) {
  using U = Compute<T>;
  *out = {static_cast<const T*>(deltas),
          B,
          A,
          {},
          make_decode_params<U>(in.weights, in.clamp),
          static_cast<const U*>(in.image_sizes),
          static_cast<const U*>(in.image_scales),
          U(in.min_size)};
  return make_anchors(in.anchors, A, &out->anchors);
}

}  // namespace

Status grid_anchors_cuda(DType dtype, const AnchorSource& anchors, void* boxes, Stream stream) {
  return visit_compute(dtype, [&](auto tag) {
    using U = typename decltype(tag)::type;
    const int64_t A = anchors.A;
    Anchors<U> made;
    FF_TRY(make_anchors(anchors, &made));
    if (A == 0) return kOk;
    FF_LAUNCH(grid_anchors_kernel<U>, dim3(blocks_for(A, kThreads)), dim3(kThreads), 0, stream, made, A,
              static_cast<U*>(boxes));
    return launched();
  });
}

Status decode_clip_cuda(DType dtype, const void* deltas, int64_t B, int64_t A, const DecodeArguments& arguments,
                        void* boxes, bool* valid, Stream stream) {
  return visit(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    DecodeInputs<T> in;
    FF_TRY(make_inputs(deltas, B, A, arguments, &in));
    if (B * A == 0) return kOk;
    const auto kernel = arguments.legacy ? decode_clip_kernel<T, true> : decode_clip_kernel<T, false>;
    FF_LAUNCH(kernel, dim3(blocks_for(B * A, kThreads)), dim3(kThreads), 0, stream, in, static_cast<Compute<T>*>(boxes),
              valid);
    return launched();
  });
}

Status decode_clip_backward_cuda(DType dtype, const void* grad_boxes, const void* deltas, int64_t B, int64_t A,
                                 const DecodeArguments& arguments, void* grad_deltas, Stream stream) {
  return visit(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    DecodeInputs<T> in;
    FF_TRY(make_inputs(deltas, B, A, arguments, &in));
    if (B * A == 0) return kOk;
    const auto kernel = arguments.legacy ? decode_clip_backward_kernel<T, true> : decode_clip_backward_kernel<T, false>;
    FF_LAUNCH(kernel, dim3(blocks_for(B * A, kThreads)), dim3(kThreads), 0, stream, in,
              static_cast<const Compute<T>*>(grad_boxes), static_cast<T*>(grad_deltas));
    return launched();
  });
}

Status encode_cuda(DType dtype, const void* gt_boxes, const void* anchors, int64_t N, const double* weights,
                   bool legacy, void* targets, Stream stream) {
  if (N == 0) return kOk;
  return visit(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const auto kernel = legacy ? encode_kernel<T, true> : encode_kernel<T, false>;
    FF_LAUNCH(kernel, dim3(blocks_for(N, kThreads)), dim3(kThreads), 0, stream, static_cast<const T*>(gt_boxes),
              static_cast<const T*>(anchors), N, make_decode_params<Compute<T>>(weights, 0.0),
              static_cast<Compute<T>*>(targets));
    return launched();
  });
}

}  // namespace frcnn_fast::anchor_decode
