// Sigmoid focal loss and its gradient, of targets of every element and of a class a row: one launch, one pass. A thread
// owns four elements that follow each other, read and written in one access where the addresses allow it, or one
// double, since four spill; threads share nothing, so there is no barrier.
#include "../common/launch.cuh"
#include "../common/quad.cuh"
#include "focal_loss.h"

namespace frcnn_fast::focal_loss {
namespace {

constexpr int kThreads = 256;
template <class T>
constexpr int kEach = sizeof(T) == 8 ? 1 : 4;

template <class U>
__device__ __forceinline__ int64_t first_element() {
  return (int64_t(blockIdx.x) * kThreads + int64_t(threadIdx.x)) * kEach<U>;
}

// The loss of an element, or its slope.
template <bool kSquare, bool kSlope, class U>
__device__ __forceinline__ U evaluated(U x, U t, FocalRule<U> rule) {
  const FocalTerms<U> f = focal_terms(x, t, focal_tail(x));
  const U power = kSquare ? f.q * f.q : power_of(rule.gamma * log_(f.q), rule.gamma);
  return kSlope ? focal_slope<kSquare>(f, t, power, rule) : focal_value(f, t, power, rule);
}

// The elements from p on that a thread owns; left: how many there are.
template <class T>
__device__ __forceinline__ void load_own(const T* p, int64_t left, Compute<T> (&values)[kEach<T>]) {
  if constexpr (kEach<T> == 4)
    if (left >= kEach<T>) return load_quad(p, values);
  for (int k = 0; k < kEach<T>; ++k) values[k] = k < left ? load(p + k) : Compute<T>(0);
}
template <class T>
__device__ __forceinline__ void store_own(T* p, int64_t left, const Compute<T> (&values)[kEach<T>]) {
  if constexpr (kEach<T> == 4)
    if (left >= kEach<T>) return store_quad(p, values);
  for (int k = 0; k < kEach<T>; ++k)
    if (FF_MUTANT(focal_cuda_tail, k < left, k + 1 < left)) store(p + k, values[k]);
}

// A gradient for each element, or, with stride 0, one for all.
template <class U>
__device__ __forceinline__ void load_gradients(const U* grad, int64_t stride, int64_t i, int64_t left,
                                               U (&values)[kEach<U>]) {
  if (stride) return load_own(grad + i, left, values);
  for (int k = 0; k < kEach<U>; ++k) values[k] = grad[0];
}

// What a thread's elements of [N, C] are made of beside the logits: whether the column is the row's class, and the
// row's weight.
template <class U>
struct ClassTargets {
  const int64_t* targets;  // [N]
  const U* weight;         // [C] or null
  int64_t N, C;

  __device__ __forceinline__ void load(int64_t i, U (&t)[kEach<U>], U (&w)[kEach<U>]) const {
    // A division of 64 bits takes as long as half of the loss.
    int64_t row = N * C <= 0xffffffff ? int64_t(uint32_t(i) / uint32_t(C)) : i / C;
    int64_t column = i - row * C, target = targets[row];
    U factor = weight_of(target);
    for (int k = 0; k < kEach<U>; ++k) {
      t[k] = U(column == target);
      w[k] = factor;
      if (FF_MUTANT(focal_cuda_row, ++column < C, ++column <= C)) continue;
      column = 0;
      if (++row < N) target = targets[row], factor = weight_of(target);
    }
  }

  __device__ __forceinline__ U weight_of(int64_t target) const {
    return weight && is_class(target, C) ? weight[target] : U(1);
  }
};

template <bool kSquare, class T>
__global__ void __launch_bounds__(kThreads)
    sigmoid_focal_loss_kernel(const T* __restrict__ inputs, const T* __restrict__ targets, int64_t N,
                              FocalRule<Compute<T>> rule, Compute<T>* __restrict__ loss) {
  using U = Compute<T>;
  const int64_t i = first_element<U>(), left = N - i;
  if (left <= 0) return;
  U x[kEach<U>], t[kEach<U>];
  load_own(inputs + i, left, x);
  load_own(targets + i, left, t);
  for (int k = 0; k < kEach<U>; ++k) x[k] = evaluated<kSquare, false>(x[k], t[k], rule);
  store_own(loss + i, left, x);
}

template <bool kSquare, class T>
__global__ void __launch_bounds__(kThreads)
    sigmoid_focal_loss_backward_kernel(const Compute<T>* __restrict__ grad, int64_t grad_stride,
                                       const T* __restrict__ inputs, const T* __restrict__ targets, int64_t N,
                                       FocalRule<Compute<T>> rule, T* __restrict__ grad_inputs) {
  using U = Compute<T>;
  const int64_t i = first_element<U>(), left = N - i;
  if (left <= 0) return;
  U x[kEach<U>], t[kEach<U>], g[kEach<U>];
  load_own(inputs + i, left, x);
  load_own(targets + i, left, t);
  load_gradients(grad, grad_stride, i, left, g);
  for (int k = 0; k < kEach<U>; ++k) x[k] = evaluated<kSquare, true>(x[k], t[k], rule) * g[k];
  store_own(grad_inputs + i, left, x);
}

template <bool kSquare, class T>
__global__ void __launch_bounds__(kThreads)
    class_focal_loss_kernel(const T* __restrict__ inputs, ClassTargets<Compute<T>> classes, FocalRule<Compute<T>> rule,
                            Compute<T>* __restrict__ loss) {
  using U = Compute<T>;
  const int64_t i = first_element<U>(), left = classes.N * classes.C - i;
  if (left <= 0) return;
  U x[kEach<U>], t[kEach<U>] = {}, w[kEach<U>] = {};
  load_own(inputs + i, left, x);
  classes.load(i, t, w);
  for (int k = 0; k < kEach<U>; ++k) x[k] = evaluated<kSquare, false>(x[k], t[k], rule) * w[k];
  store_own(loss + i, left, x);
}

template <bool kSquare, class T>
__global__ void __launch_bounds__(kThreads)
    class_focal_loss_backward_kernel(const Compute<T>* __restrict__ grad, int64_t grad_stride,
                                     const T* __restrict__ inputs, ClassTargets<Compute<T>> classes,
                                     FocalRule<Compute<T>> rule, T* __restrict__ grad_inputs) {
  using U = Compute<T>;
  const int64_t i = first_element<U>(), left = classes.N * classes.C - i;
  if (left <= 0) return;
  U x[kEach<U>], t[kEach<U>] = {}, w[kEach<U>] = {}, g[kEach<U>];
  load_own(inputs + i, left, x);
  classes.load(i, t, w);
  load_gradients(grad, grad_stride, i, left, g);
  for (int k = 0; k < kEach<U>; ++k) x[k] = evaluated<kSquare, true>(x[k], t[k], rule) * w[k] * g[k];
  store_own(grad_inputs + i, left, x);
}

}  // namespace

Status sigmoid_focal_loss_cuda(DType dtype, const void* inputs, const void* targets, int64_t N, double alpha,
                               double gamma, void* loss, Stream stream) {
  if (N == 0) return kOk;
  return visit_focal(dtype, gamma, [&](auto tag, auto square) {
    using T = typename decltype(tag)::type;
    using U = Compute<T>;
    FF_LAUNCH((sigmoid_focal_loss_kernel<decltype(square)::square, T>), blocks_for(N, kThreads * kEach<U>), kThreads, 0,
              stream, static_cast<const T*>(inputs), static_cast<const T*>(targets), N,
              make_focal_rule<U>(alpha, gamma), static_cast<U*>(loss));
    return launched();
  });
}

Status sigmoid_focal_loss_backward_cuda(DType dtype, const void* grad, int64_t grad_stride, const void* inputs,
                                        const void* targets, int64_t N, double alpha, double gamma, void* grad_inputs,
                                        Stream stream) {
  if (N == 0) return kOk;
  return visit_focal(dtype, gamma, [&](auto tag, auto square) {
    using T = typename decltype(tag)::type;
    using U = Compute<T>;
    FF_LAUNCH((sigmoid_focal_loss_backward_kernel<decltype(square)::square, T>), blocks_for(N, kThreads * kEach<U>),
              kThreads, 0, stream, static_cast<const U*>(grad), grad_stride, static_cast<const T*>(inputs),
              static_cast<const T*>(targets), N, make_focal_rule<U>(alpha, gamma), static_cast<T*>(grad_inputs));
    return launched();
  });
}

Status class_focal_loss_cuda(DType dtype, const void* inputs, const int64_t* targets, const void* weight, int64_t N,
                             int64_t C, double alpha, double gamma, void* loss, Stream stream) {
  if (N * C == 0) return kOk;
  return visit_focal(dtype, gamma, [&](auto tag, auto square) {
    using T = typename decltype(tag)::type;
    using U = Compute<T>;
    FF_LAUNCH((class_focal_loss_kernel<decltype(square)::square, T>), blocks_for(N * C, kThreads * kEach<U>), kThreads,
              0, stream, static_cast<const T*>(inputs), ClassTargets<U>{targets, static_cast<const U*>(weight), N, C},
              make_focal_rule<U>(alpha, gamma), static_cast<U*>(loss));
    return launched();
  });
}

Status class_focal_loss_backward_cuda(DType dtype, const void* grad, int64_t grad_stride, const void* inputs,
                                      const int64_t* targets, const void* weight, int64_t N, int64_t C, double alpha,
                                      double gamma, void* grad_inputs, Stream stream) {
  if (N * C == 0) return kOk;
  return visit_focal(dtype, gamma, [&](auto tag, auto square) {
    using T = typename decltype(tag)::type;
    using U = Compute<T>;
    FF_LAUNCH((class_focal_loss_backward_kernel<decltype(square)::square, T>), blocks_for(N * C, kThreads * kEach<U>),
              kThreads, 0, stream, static_cast<const U*>(grad), grad_stride, static_cast<const T*>(inputs),
              ClassTargets<U>{targets, static_cast<const U*>(weight), N, C}, make_focal_rule<U>(alpha, gamma),
              static_cast<T*>(grad_inputs));
    return launched();
  });
}

}  // namespace frcnn_fast::focal_loss
