// Products of bf16 numbers in pairs, with one order of float steps everywhere: of two neighbours (even, odd) the odd one's
// product is added first, then the even one's, each rounded once, and numbers too small to be normal count as zeros.
//
// That is what `vdpbf16ps` does to a pair in one instruction, twice the products of an fp32 fma. A product of two bf16 is
// exact in fp32, so that two fma under the same treatment of tiny numbers (FlushTiny) give its bits on any CPU.
//
// Kernels walk over pairs in parts: with the instruction a pair is one part; without it its odd half is part 0 and its even
// half part 1. `Lane` is one part of sixteen lanes, `Factor` the same part of one number pair in all lanes; queries and
// weights are kept as `Kept` numbers, keys and values that many queries share as `Wide` ones.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kv_format.hpp"
#include "lanes.hpp"

#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

namespace headrace::HEADRACE_ISA {

// While one lives, this thread's float steps take numbers below the smallest normal one as zero and give zero for them.
// Steps must not be inlined beside it: compilers move float operations across a change of this state.
class FlushTiny {
  public:
#if defined(__SSE2__)
    FlushTiny() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | 0x8040u); }
    ~FlushTiny() { _mm_setcsr(saved_); }

  private:
    unsigned saved_;

  public:
#else
    FlushTiny() {}
#endif
    FlushTiny(const FlushTiny&) = delete;
    FlushTiny& operator=(const FlushTiny&) = delete;
};

// The nearest bf16 (even on a tie), as a float. Not for NaN.
HEADRACE_INLINE F16 round_bf16(F16 x) {
    const I16 bits = as_int(x), odd = shift_right<16>(bits) & splat_int(1);
    return as_float((bits + splat_int(0x7fff) + odd) & splat_int(static_cast<std::int32_t>(0xffff0000u)));
}

#if defined(HEADRACE_LANES_512) && defined(__AVX512BF16__)

inline constexpr int kPairParts = 1;
using Kept = std::uint16_t;
using Wide = std::uint32_t;
struct Lane { __m512bh v; };
using Factor = Lane;

// Of two rows of 16 numbers: number i of the first, then of the second.
HEADRACE_INLINE __m512i interleaved(__m512i rows) {
    alignas(64) static constexpr auto order = [] {
        struct { std::uint16_t at[32]; } table{};
        for (int i = 0; i < 32; ++i) table.at[i] = static_cast<std::uint16_t>(i / 2 + i % 2 * 16);
        return table;
    }();
    return _mm512_permutexvar_epi16(_mm512_load_si512(order.at), rows);
}
HEADRACE_INLINE __m512i two_rows(const std::uint16_t* first, const std::uint16_t* second) {
    const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(first));
    return _mm512_inserti64x4(_mm512_castsi256_si512(low), _mm256_loadu_si256(reinterpret_cast<const __m256i*>(second)), 1);
}

HEADRACE_INLINE void keep(Kept* to, F16 rounded) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), (__m256i)_mm512_cvtneps_pbh(rounded.v));
}
HEADRACE_INLINE F16 factor_of(Kept number) {
    return {_mm512_castsi512_ps(_mm512_set1_epi32(static_cast<std::int32_t>(static_cast<std::uint32_t>(number) << 16)))};
}
HEADRACE_INLINE Factor factor(const Kept* pair, int) {
    std::int32_t both;
    std::memcpy(&both, pair, 4);
    return {(__m512bh)_mm512_set1_epi32(both)};
}
HEADRACE_INLINE F16 add_product(Factor x, Lane y, F16 sum) { return {_mm512_dpbf16_ps(sum.v, y.v, x.v)}; }

// Keys [dimension][16 tokens] as they lie in a page, or made ready: a word for each dimension pair and token.
HEADRACE_INLINE Lane load_key(const std::uint16_t* keys, int d, int) {
    return {(__m512bh)interleaved(_mm512_loadu_si512(keys + d * kPageTokens))};
}
HEADRACE_INLINE Lane load_key(const Wide* keys, int d, int) { return {(__m512bh)_mm512_loadu_si512(keys + d / 2 * kPageTokens)}; }
HEADRACE_INLINE void widen_keys(const std::uint16_t* keys, int width, Wide* to) {
    for (int d = 0; d < width; d += 2) _mm512_storeu_si512(to + d / 2 * kPageTokens, interleaved(_mm512_loadu_si512(keys + d * kPageTokens)));
}

// Values [16 tokens][dimension], or made ready: a word for each token pair and dimension.
HEADRACE_INLINE Lane load_value(const std::uint16_t* values, int token, int column, int width, int) {
    const std::uint16_t* at = values + token * width + column;
    return {(__m512bh)interleaved(two_rows(at, at + width))};
}
HEADRACE_INLINE Lane load_value(const Wide* values, int token, int column, int width, int) {
    return {(__m512bh)_mm512_loadu_si512(values + token / 2 * width + column)};
}
HEADRACE_INLINE void widen_values(const std::uint16_t* values, int width, Wide* to) {
    for (int token = 0; token < kPageTokens; token += 2, values += 2 * width, to += width)
        for (int i = 0; i < width; i += 16) _mm512_storeu_si512(to + i, interleaved(two_rows(values + i, values + width + i)));
}
// Of one token alone.
HEADRACE_INLINE F16 value_of(const std::uint16_t* values, int token, int column, int width) { return load_bf16(values + token * width + column); }
HEADRACE_INLINE F16 value_of(const Wide* values, int token, int column, int width) {
    const I16 both = {_mm512_loadu_si512(values + token / 2 * width + column)};
    return as_float(token % 2 == 0 ? shift_left<16>(both) : both & splat_int(static_cast<std::int32_t>(0xffff0000u)));
}

#else

inline constexpr int kPairParts = 2;
using Kept = float;
using Wide = float;
using Lane = F16;
using Factor = F16;

HEADRACE_INLINE F16 load_lanes(const float* p) { return load(p); }
HEADRACE_INLINE F16 load_lanes(const std::uint16_t* p) { return load_bf16(p); }

HEADRACE_INLINE void keep(Kept* to, F16 rounded) { store(to, rounded); }
HEADRACE_INLINE F16 factor_of(Kept number) { return splat(number); }
HEADRACE_INLINE Factor factor(const Kept* pair, int part) { return splat(pair[1 - part]); }
HEADRACE_INLINE F16 add_product(Factor x, Lane y, F16 sum) { return fma(x, y, sum); }

template <class T>
HEADRACE_INLINE Lane load_key(const T* keys, int d, int part) {
    return load_lanes(keys + (d + 1 - part) * kPageTokens);
}
template <class T>
HEADRACE_INLINE F16 value_of(const T* values, int token, int column, int width) {
    return load_lanes(values + token * width + column);
}
template <class T>
HEADRACE_INLINE Lane load_value(const T* values, int token, int column, int width, int part) {
    return value_of(values, token + 1 - part, column, width);
}
HEADRACE_INLINE void widen_keys(const std::uint16_t* keys, int width, Wide* to) {
    for (int i = 0; i < kPageTokens * width; i += 16) store(to + i, load_bf16(keys + i));
}
HEADRACE_INLINE void widen_values(const std::uint16_t* values, int width, Wide* to) { widen_keys(values, width, to); }

#endif

}  // namespace headrace::HEADRACE_ISA
