// The rules of focal_loss.h have no branches: the loops over them are the compiler's to vectorise.
#include "focal_loss_cpu.h"

namespace frcnn_fast::focal_loss {
namespace FF_ISA {
namespace {

#define FF_INLINE __attribute__((always_inline))

// A gradient for each element, or one for all.
template <class U>
struct Gradients {
  const U* each;
  U same;

  Gradients(const void* grad, int64_t stride)
      : each(stride ? static_cast<const U*>(grad) : nullptr), same(stride ? U(0) : *static_cast<const U*>(grad)) {}
  inline FF_INLINE U operator[](int64_t i) const { return each ? each[i] : same; }
};

// element(i, t, w) for every element of the rows from begin to end; w: the factor of its row.
//
// First as if all rows were background, as nearly all are, in one loop without a target; then what a class makes
// otherwise: one element, or with weights a row.
template <class U, class Element>
void for_classes(const int64_t* targets, const U* weight, int64_t begin, int64_t end, int64_t C,
                 const Element& element) {
#pragma GCC ivdep
  for (int64_t i = begin * C; i < end * C; ++i) element(i, U(0), U(1));
  for (int64_t row = begin; row < end; ++row) {
    const int64_t target = targets[row];
    if (!is_class(target, C)) continue;
    const int64_t first = weight ? 0 : target, last = weight ? C : target + 1;
    const U w = weight ? weight[target] : U(1);
#pragma GCC ivdep
    for (int64_t c = first; c < last; ++c) element(row * C + c, U(c == target), w);
  }
}

}  // namespace

void sigmoid_focal_loss_part(DType dtype, const void* inputs, const void* targets, int64_t begin, int64_t end,
                             double alpha, double gamma, void* loss) {
  visit_focal(dtype, gamma, [&](auto tag, auto square) {
    using T = typename decltype(tag)::type;
    using U = Compute<T>;
    const FocalRule<U> rule = make_focal_rule<U>(alpha, gamma);
    const T *const x = static_cast<const T*>(inputs), *const t = static_cast<const T*>(targets);
    U* const out = static_cast<U*>(loss);
#pragma GCC ivdep
    for (int64_t i = begin; i < end; ++i)
      out[i] = focal_element<decltype(square)::square>(load(x + i), load(t + i), rule);
  });
}

void sigmoid_focal_loss_backward_part(DType dtype, const void* grad, int64_t grad_stride, const void* inputs,
                                      const void* targets, int64_t begin, int64_t end, double alpha, double gamma,
                                      void* grad_inputs) {
  visit_focal(dtype, gamma, [&](auto tag, auto square) {
    using T = typename decltype(tag)::type;
    using U = Compute<T>;
    const FocalRule<U> rule = make_focal_rule<U>(alpha, gamma);
    const T *const x = static_cast<const T*>(inputs), *const t = static_cast<const T*>(targets);
    const Gradients<U> g(grad, grad_stride);
    T* const out = static_cast<T*>(grad_inputs);
#pragma GCC ivdep
    for (int64_t i = begin; i < end; ++i)
      store(out + i, focal_slope<decltype(square)::square>(load(x + i), load(t + i), rule) * g[i]);
  });
}

void class_focal_loss_rows(DType dtype, const void* inputs, const int64_t* targets, const void* weight, int64_t begin,
                           int64_t end, int64_t C, double alpha, double gamma, void* loss) {
  visit_focal(dtype, gamma, [&](auto tag, auto square) {
    using T = typename decltype(tag)::type;
    using U = Compute<T>;
    const FocalRule<U> rule = make_focal_rule<U>(alpha, gamma);
    const T* const x = static_cast<const T*>(inputs);
    U* const out = static_cast<U*>(loss);
    for_classes(targets, static_cast<const U*>(weight), begin, end, C, [=](int64_t i, U t, U w) FF_INLINE {
      out[i] = focal_element<decltype(square)::square>(load(x + i), t, rule) * w;
    });
  });
}

void class_focal_loss_backward_rows(DType dtype, const void* grad, int64_t grad_stride, const void* inputs,
                                    const int64_t* targets, const void* weight, int64_t begin, int64_t end, int64_t C,
                                    double alpha, double gamma, void* grad_inputs) {
  visit_focal(dtype, gamma, [&](auto tag, auto square) {
    using T = typename decltype(tag)::type;
    using U = Compute<T>;
    const FocalRule<U> rule = make_focal_rule<U>(alpha, gamma);
    const T* const x = static_cast<const T*>(inputs);
    const Gradients<U> g(grad, grad_stride);
    T* const out = static_cast<T*>(grad_inputs);
    for_classes(targets, static_cast<const U*>(weight), begin, end, C, [=](int64_t i, U t, U w) FF_INLINE {
      store(out + i, focal_slope<decltype(square)::square>(load(x + i), t, rule) * w * g[i]);
    });
  });
}

#undef FF_INLINE

}  // namespace FF_ISA
}  // namespace frcnn_fast::focal_loss
