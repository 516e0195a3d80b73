// Elementary functions on lanes: polynomials in a fixed sequence of operations, so that every ISA gives the same bits.
#pragma once

#include "lanes.hpp"

namespace headrace::HEADRACE_ISA {

// e^x within 2 ulp on [-87.3, 88]; arguments beyond are clamped to those ends. exp(0) is exactly 1.
// x = n·ln 2 + r, |r| ≤ ln 2 / 2 (Cody-Waite in two parts); e^r = 1 + r + r²·g(r) with g fitted on Chebyshev nodes.
HEADRACE_INLINE F16 exp(F16 x) {
    x = min(max(x, splat(-87.3f)), splat(88.0f));
    const I16 n = to_int(x * splat(1.44269504089f));
    const F16 count = to_float(n);
    F16 r = fnma(count, splat(0.693359375f), x);
    r = fnma(count, splat(-2.12194440e-4f), r);
    F16 g = splat(1.989928714e-04f);
    g = fma(g, r, splat(1.393365208e-03f));
    g = fma(g, r, splat(8.333298378e-03f));
    g = fma(g, r, splat(4.166646674e-02f));
    g = fma(g, r, splat(1.666666716e-01f));
    g = fma(g, r, splat(0.5f));
    const F16 value = fma(g, r * r, r + splat(1.0f));
    return as_float(as_int(value) + shift_left<23>(n));
}

// 2^x within 2 ulp on [-126, 127]; arguments below are clamped to that end. power_of_two(0) is exactly 1.
// x = n + r, |r| ≤ 1/2, exactly; 2^r = 1 + r·g(r) with g fitted to the smallest relative error.
HEADRACE_INLINE F16 power_of_two(F16 x) {
    x = max(x, splat(-126.0f));
    const I16 n = to_int(x);
    const F16 r = x - to_float(n);
    F16 g = splat(1.326472033e-03f);
    g = fma(g, r, splat(9.671512991e-03f));
    g = fma(g, r, splat(5.550733581e-02f));
    g = fma(g, r, splat(2.402224243e-01f));
    g = fma(g, r, splat(6.931470037e-01f));
    const F16 value = fma(g, r, splat(1.0f));
    return as_float(as_int(value) + shift_left<23>(n));
}

// x·sigmoid(x)
HEADRACE_INLINE F16 silu(F16 x) { return x / (splat(1.0f) + exp(-x)); }

// 0.5·x·(1 + tanh(√(2/π)·(x + 0.044715·x³))) = x·sigmoid(2·√(2/π)·(…))
HEADRACE_INLINE F16 gelu_tanh(F16 x) {
    const F16 inner = x * fma(splat(0.0713548162726f), x * x, splat(1.59576912161f));
    return x / (splat(1.0f) + exp(-inner));
}

}  // namespace headrace::HEADRACE_ISA
