// Activations on vectors. For kernel sources only.
#pragma once
#include <cmath>

#include "activation.hpp"
#include "simd.hpp"

namespace gossamer::GOSSAMER_NS {
namespace {

// exp(x) for x <= 0: 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2]; relative error below 2e-7.
GOSSAMER_INLINE V exp_negative(V x) {
  x = at_least(x, set(-87.0f));
  const V shifted = add(mul(x, set(1.44269504f)), set(12582912.0f));  // 1.5 * 2^23: rounds to a whole number
  const V n = add(shifted, set(-12582912.0f));
  const V r = fma(n, set(2.12194440e-4f), fma(n, set(-0.693359375f), x));
  V p = set(1.9875691500e-4f);
  p = fma(p, r, set(1.3981999507e-3f));
  p = fma(p, r, set(8.3334519073e-3f));
  p = fma(p, r, set(4.1665795894e-2f));
  p = fma(p, r, set(1.6666665459e-1f));
  p = fma(p, r, set(5.0000001201e-1f));
  return mul(add(fma(mul(r, r), p, r), set(1.0f)), power_of_two(n));
}

// v Phi(v) = max(v, 0) - |v| / 2 erfc(|v| / sqrt 2), which cancels nothing for negative v.
// The complement of the error function is Abramowitz and Stegun 7.1.26: absolute error below 2e-7.
GOSSAMER_OUTLINED V gelu(V v) {
  const V a = mul(magnitude(v), set(0.70710678f));
  const V t = div(set(1.0f), fma(a, set(0.3275911f), set(1.0f)));
  V p = set(1.061405429f);
  p = fma(p, t, set(-1.453152027f));
  p = fma(p, t, set(1.421413741f));
  p = fma(p, t, set(-0.284496736f));
  p = fma(p, t, set(0.254829592f));
  const V complement = mul(mul(p, t), exp_negative(mul(mul(a, a), set(-1.0f))));
  return fma(mul(magnitude(v), set(-0.5f)), complement, at_least(v, set(0.0f)));
}

GOSSAMER_OUTLINED V hardswish(V v) {
  const V gate = at_most(at_least(add(v, set(3.0f)), set(0.0f)), set(6.0f));
  return mul(mul(v, gate), set(1.0f / 6.0f));
}

// 1 / (1 + exp(-v)) by exponentials of what is not positive.
GOSSAMER_OUTLINED V sigmoid(V v) {
  const V zero = set(0.0f), below = at_most(v, zero), above = at_least(v, zero);
  const V small = exp_negative(add(below, mul(above, set(-1.0f))));
  return div(exp_negative(below), add(set(1.0f), small));
}

GOSSAMER_INLINE V hardsigmoid(V v) {
  return at_most(at_least(fma(v, set(1.0f / 6.0f), set(0.5f)), set(0.0f)), set(1.0f));
}

GOSSAMER_OUTLINED V curved(V v, Activation activation) {
  switch (activation) {
    case Activation::hardswish: return hardswish(v);
    case Activation::gelu: return gelu(v);
    case Activation::silu: return mul(v, sigmoid(v));
    case Activation::sigmoid: return sigmoid(v);
    case Activation::hardsigmoid: return hardsigmoid(v);
    default: return v;
  }
}

// ReLU and its kin are a clamp; the others take a call.
struct Finish {
  V low, high;
  Activation activation;

  explicit GOSSAMER_INLINE Finish(Activation a)
      : low(set(a == Activation::relu || a == Activation::relu6 ? 0.0f : -INFINITY)),
        high(set(a == Activation::relu6 ? 6.0f : INFINITY)), activation(a) {}

  GOSSAMER_INLINE V operator()(V v) const {
    v = at_most(at_least(v, low), high);
    return activation > Activation::relu6 ? curved(v, activation) : v;
  }
};

}  // namespace
}  // namespace gossamer::GOSSAMER_NS
