// A block of elements at a time, in several loops, which the compiler makes into vectors: the rules of focal_loss.h
// have no branches.
#include "focal_loss_cpu.h"

namespace frcnn_fast::focal_loss {
namespace FF_ISA {
namespace {

constexpr int64_t kBlock = 256;

// The logits and targets, what they are made into, and the results.
template <class U>
struct alignas(64) FocalBlock {
  U x[kBlock], t[kBlock], tail[kBlock], power[kBlock], out[kBlock];
};

// The first n elements: out is the loss, or its slope.
template <bool kSquare, bool kSlope, class U>
void evaluate(FocalBlock<U>& b, int64_t n, FocalRule<U> rule) {
  for (int64_t i = 0; i < n; ++i) b.tail[i] = focal_tail(b.x[i]);
  if (!kSquare) {
    for (int64_t i = 0; i < n; ++i) b.power[i] = rule.gamma * log_(focal_terms(b.x[i], b.t[i], b.tail[i]).q);
    for (int64_t i = 0; i < n; ++i) b.power[i] = power_of(b.power[i], rule.gamma);
  }
  for (int64_t i = 0; i < n; ++i) {
    const FocalTerms<U> f = focal_terms(b.x[i], b.t[i], b.tail[i]);
    const U power = kSquare ? f.q * f.q : b.power[i];
    b.out[i] = kSlope ? focal_slope<kSquare>(f, b.t[i], power, rule) : focal_value(f, b.t[i], power, rule);
  }
}

// The loss is stored as it is, a slope times its gradient: one for each element, or with stride 0 one for all.
template <class U>
void store_results(FocalBlock<U>& b, int64_t n, U* loss) {
  for (int64_t i = 0; i < n; ++i) loss[i] = b.out[i];
}
template <class T, class U>
void store_results(FocalBlock<U>& b, int64_t n, const U* grad, int64_t stride, T* grad_inputs) {
  if (stride)
    for (int64_t i = 0; i < n; ++i) b.out[i] *= grad[i];
  else
    for (int64_t i = 0; i < n; ++i) b.out[i] *= grad[0];
  for (int64_t i = 0; i < n; ++i) store(grad_inputs + i, b.out[i]);
}

// done(block, i, n) for all elements from begin to end, the block's first one being i.
template <bool kSquare, bool kSlope, class T, class U, class Done>
void for_elements(const T* inputs, const T* targets, int64_t begin, int64_t end, FocalRule<U> rule, const Done& done) {
  FocalBlock<U> b;
  for (int64_t i = begin; i < end; i += kBlock) {
    const int64_t n = end - i < kBlock ? end - i : kBlock;
    for (int64_t k = 0; k < n; ++k) b.x[k] = load(inputs + i + k);
    for (int64_t k = 0; k < n; ++k) b.t[k] = load(targets + i + k);
    evaluate<kSquare, kSlope>(b, n, rule);
    done(b, i, n);
  }
}

// The same of rows of C, whose classes are given. First as if all rows were background, as nearly all are; then what a
// class makes otherwise: one element, or with weights its row.
template <bool kSquare, bool kSlope, class T, class U, class Done>
void for_classes(const T* inputs, const int64_t* targets, const U* weight, int64_t begin, int64_t end, int64_t C,
                 FocalRule<U> rule, const Done& done) {
  FocalBlock<U> b;
  for (int64_t k = 0; k < kBlock; ++k) b.t[k] = U(0);
  for (int64_t i = begin * C; i < end * C; i += kBlock) {
    const int64_t n = end * C - i < kBlock ? end * C - i : kBlock;
    for (int64_t k = 0; k < n; ++k) b.x[k] = load(inputs + i + k);
    evaluate<kSquare, kSlope>(b, n, rule);
    done(b, i, n);
  }
  for (int64_t row = begin; row < end; ++row) {
    const int64_t target = targets[row];
    if (!is_class(target, C)) continue;
    const int64_t last = weight ? C : target + 1;
    for (int64_t c = weight ? 0 : target; c < last; c += kBlock) {
      const int64_t i = row * C + c, n = last - c < kBlock ? last - c : kBlock;
      for (int64_t k = 0; k < n; ++k) b.x[k] = load(inputs + i + k);
      for (int64_t k = 0; k < n; ++k) b.t[k] = U(c + k == target);
      evaluate<kSquare, kSlope>(b, n, rule);
      if (weight)
        for (int64_t k = 0; k < n; ++k) b.out[k] *= weight[target];
      done(b, i, n);
    }
  }
}

}  // namespace

void sigmoid_focal_loss_part(DType dtype, const void* inputs, const void* targets, int64_t begin, int64_t end,
                             double alpha, double gamma, void* loss) {
  visit_focal(dtype, gamma, [&](auto tag, auto square) {
    using T = typename decltype(tag)::type;
    using U = Compute<T>;
    for_elements<decltype(square)::square, false>(
        static_cast<const T*>(inputs), static_cast<const T*>(targets), begin, end, make_focal_rule<U>(alpha, gamma),
        [&](FocalBlock<U>& b, int64_t i, int64_t n) { store_results(b, n, static_cast<U*>(loss) + i); });
  });
}

void sigmoid_focal_loss_backward_part(DType dtype, const void* grad, int64_t grad_stride, const void* inputs,
                                      const void* targets, int64_t begin, int64_t end, double alpha, double gamma,
                                      void* grad_inputs) {
  visit_focal(dtype, gamma, [&](auto tag, auto square) {
    using T = typename decltype(tag)::type;
    using U = Compute<T>;
    for_elements<decltype(square)::square, true>(static_cast<const T*>(inputs), static_cast<const T*>(targets), begin,
                                                 end, make_focal_rule<U>(alpha, gamma),
                                                 [&](FocalBlock<U>& b, int64_t i, int64_t n) {
                                                   store_results(b, n, static_cast<const U*>(grad) + i * grad_stride,
                                                                 grad_stride, static_cast<T*>(grad_inputs) + i);
                                                 });
  });
}

void class_focal_loss_rows(DType dtype, const void* inputs, const int64_t* targets, const void* weight, int64_t begin,
                           int64_t end, int64_t C, double alpha, double gamma, void* loss) {
  visit_focal(dtype, gamma, [&](auto tag, auto square) {
    using T = typename decltype(tag)::type;
    using U = Compute<T>;
    for_classes<decltype(square)::square, false>(
        static_cast<const T*>(inputs), targets, static_cast<const U*>(weight), begin, end, C,
        make_focal_rule<U>(alpha, gamma),
        [&](FocalBlock<U>& b, int64_t i, int64_t n) { store_results(b, n, static_cast<U*>(loss) + i); });
  });
}

void class_focal_loss_backward_rows(DType dtype, const void* grad, int64_t grad_stride, const void* inputs,
                                    const int64_t* targets, const void* weight, int64_t begin, int64_t end, int64_t C,
                                    double alpha, double gamma, void* grad_inputs) {
  visit_focal(dtype, gamma, [&](auto tag, auto square) {
    using T = typename decltype(tag)::type;
    using U = Compute<T>;
    for_classes<decltype(square)::square, true>(static_cast<const T*>(inputs), targets, static_cast<const U*>(weight),
                                                begin, end, C, make_focal_rule<U>(alpha, gamma),
                                                [&](FocalBlock<U>& b, int64_t i, int64_t n) {
                                                  store_results(b, n, static_cast<const U*>(grad) + i * grad_stride,
                                                                grad_stride, static_cast<T*>(grad_inputs) + i);
                                                });
  });
}

}  // namespace FF_ISA
}  // namespace frcnn_fast::focal_loss
