// Sigmoid focal loss (Lin et al. 2017) of single elements: a logit x and a target t in [0, 1].
//
//   p = sigmoid(x);  ce = -t * log(p) - (1 - t) * log(1 - p);  q = p * (1 - t) + (1 - p) * t
//   loss = (alpha * t + (1 - alpha) * (1 - t)) * (q^gamma * ce)
//
// q is 1 less the probability of the truth. Two launchers: targets of every element, and a class a row. Both take one
// rule: a class makes t 1 in its own column and 0 in the others.
//
// Nothing is lost at certain scores: with e = exp(-|x|), p and 1 - p are 1 / (1 + e) and e / (1 + e), and
// ce = |x| * (the target's share on the other side) + log(1 + e).
#pragma once
#include "../common/mutant.h"
#include "../common/numeric.h"
#include "../common/status.h"

namespace frcnn_fast::focal_loss {

template <class U>
struct FocalRule {
  U alpha, rest, always;  // of the factor (alpha * t + rest * (1 - t)) + always: alpha, 1 - alpha and 0, or 0, 0 and 1
  U gamma;
};

template <class U>
FF_HD FocalRule<U> make_focal_rule(double alpha, double gamma) {
  const bool weighs = FF_MUTANT(focal_alpha, alpha >= 0, alpha > 0);
  return {weighs ? U(alpha) : U(0), weighs ? U(1 - alpha) : U(0), weighs ? U(0) : U(1), U(gamma)};
}

// Calls visitor(Tag<T>{}, SquareTag<gamma is 2>{}).
template <bool kIs>
struct SquareTag {
  static constexpr bool square = kIs;
};
template <class Visitor>
auto visit_focal(DType dtype, double gamma, Visitor&& visitor) {
  return visit(
      dtype, [&](auto tag) { return gamma == 2 ? visitor(tag, SquareTag<true>{}) : visitor(tag, SquareTag<false>{}); });
}

// exp(-|x|), from which all else comes.
template <class U>
FF_HD U focal_tail(U x) {
  return exp_(x < U(0) ? x : -x);
}

// p, n: sigmoid of x and of -x. wrong, missed: their shares where the target is the other one; q is their sum, and
// their difference is d ce / dx.
template <class U>
struct FocalTerms {
  U p, n, wrong, missed, q, ce;
};

template <class U>
FF_HD FocalTerms<U> focal_terms(U x, U t, U tail) {
  const bool below = x < U(0);
  const U other = U(1) - t, whole = U(1) + tail;
  const U sure = U(1) / whole, rare = tail * sure;
  const U p = below ? rare : sure, n = below ? sure : rare;
  const U wrong = p * other, missed = n * t;
  // The logit's distance from 0, times the target's share on the other side: an infinite one on the right side costs
  // nothing.
  const U against = below ? t : other, distance = (below ? -x : x) * against;
  const U far = FF_MUTANT(focal_certain, against == U(0), false) ? U(0) : distance;
  // log(1 + tail): what rounding took from the sum is put back.
  const U near = log_(whole) + (tail - (whole - U(1))) * sure;
  return {p, n, wrong, missed, wrong + missed, far + near};
}

// q^gamma is q * q, or power_of(gamma * log_(q)); 0^0 is 1. Apart, since a loop that holds an exponential of a
// logarithm, or the reverse, is not made into vectors: what either gives at its ends is followed into the other.
template <class U>
FF_HD U power_of(U exponent, U gamma) {
  const U power = exp_(exponent);
  return FF_MUTANT(focal_power_0, gamma == U(0), false) ? U(1) : power;
}

template <class U>
FF_HD U focal_balance(U t, FocalRule<U> rule) {
  return (rule.alpha * t + rule.rest * (U(1) - t)) + rule.always;
}

// The loss. power: q^gamma.
template <class U>
FF_HD U focal_value(const FocalTerms<U>& f, U t, U power, FocalRule<U> rule) {
  return focal_balance(t, rule) * (power * f.ce);
}

// d loss / dx: dq / dx = (1 - 2t) * p * n, d ce / dx = p - t. power as above; where gamma is 2 it is not asked for.
template <bool kSquare, class U>
FF_HD U focal_slope(const FocalTerms<U>& f, U t, U power, FocalRule<U> rule) {
  const U turn = (U(1) - t) - t, both = f.p * f.n;
  // p * n is 0 long before: it shall not meet an infinity.
  const U ce = FF_MUTANT(focal_slope_far, f.ce > U(1000), false) ? U(1000) : f.ce;
  U slope;
  if (kSquare) {
    slope = f.q * ((U(2) * turn) * (both * ce) + f.q * (f.wrong - f.missed));
  } else {
    const U quotient = both / f.q;
    const U ratio = FF_MUTANT(focal_slope_0, f.q > U(0), true) ? quotient : U(0);
    slope = power * (rule.gamma * (turn * (ratio * ce)) + (f.wrong - f.missed));
  }
  return focal_balance(t, rule) * slope;
}

// Whether a row's target is one of the C classes; every other number is the background.
FF_HD bool is_class(int64_t target, int64_t C) {
  return FF_MUTANT(focal_negative, target >= 0, true) && FF_MUTANT(focal_background, target < C, target <= C);
}

// inputs, targets [N], both dtype -> loss [N] in U.
Status sigmoid_focal_loss_cpu(DType dtype, const void* inputs, const void* targets, int64_t N, double alpha,
                              double gamma, void* loss);
Status sigmoid_focal_loss_cuda(DType dtype, const void* inputs, const void* targets, int64_t N, double alpha,
                               double gamma, void* loss, Stream stream);

// grad in U: [N], or, with grad_stride 0, one number for all of them -> grad_inputs [N] in dtype.
Status sigmoid_focal_loss_backward_cpu(DType dtype, const void* grad, int64_t grad_stride, const void* inputs,
                                       const void* targets, int64_t N, double alpha, double gamma, void* grad_inputs);
Status sigmoid_focal_loss_backward_cuda(DType dtype, const void* grad, int64_t grad_stride, const void* inputs,
                                        const void* targets, int64_t N, double alpha, double gamma, void* grad_inputs,
                                        Stream stream);

// inputs [N, C] in dtype; targets [N]: the class of a row; weight [C] in U, or null: factors of a whole row, by its
// class, of which the background has none -> loss [N, C] in U.
Status class_focal_loss_cpu(DType dtype, const void* inputs, const int64_t* targets, const void* weight, int64_t N,
                            int64_t C, double alpha, double gamma, void* loss);
Status class_focal_loss_cuda(DType dtype, const void* inputs, const int64_t* targets, const void* weight, int64_t N,
                             int64_t C, double alpha, double gamma, void* loss, Stream stream);

// grad in U: [N, C], or, with grad_stride 0, one number -> grad_inputs [N, C] in dtype.
Status class_focal_loss_backward_cpu(DType dtype, const void* grad, int64_t grad_stride, const void* inputs,
                                     const int64_t* targets, const void* weight, int64_t N, int64_t C, double alpha,
                                     double gamma, void* grad_inputs);
Status class_focal_loss_backward_cuda(DType dtype, const void* grad, int64_t grad_stride, const void* inputs,
                                      const int64_t* targets, const void* weight, int64_t N, int64_t C, double alpha,
                                      double gamma, void* grad_inputs, Stream stream);

}  // namespace frcnn_fast::focal_loss
