// Codes of a group as operands of a product, per ISA: loading, splitting nibbles, byte products, fp16 scales.
#pragma once

#include "formats.hpp"
#include "lanes.hpp"

namespace headrace::HEADRACE_ISA {
namespace {

#if defined(HEADRACE_LANES_512)

struct Codes { __m512i v; };  // 16 channels x 4 inputs, unsigned bytes

HEADRACE_INLINE Codes load_codes(const std::uint8_t* p) { return {_mm512_loadu_si512(p)}; }
HEADRACE_INLINE Codes low_nibbles(Codes a) { return {_mm512_and_si512(a.v, _mm512_set1_epi8(15))}; }
HEADRACE_INLINE Codes high_nibbles(Codes a) { return {_mm512_and_si512(_mm512_srli_epi16(a.v, 4), _mm512_set1_epi8(15))}; }

HEADRACE_INLINE I16 dot_bytes(I16 acc, Codes w, const std::int8_t* x) {
    std::int32_t four;
    std::memcpy(&four, x, 4);
    return {_mm512_dpbusd_epi32(acc.v, w.v, _mm512_set1_epi32(four))};
}
HEADRACE_INLINE I16 dot_nibbles(I16 acc, Codes w, const std::int8_t* x) { return dot_bytes(acc, w, x); }

HEADRACE_INLINE F16 load_half(const std::uint8_t* p) {
    // maskz: gcc 12 takes the unmasked form for a use of an uninitialised vector
    return {_mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}

#elif defined(HEADRACE_LANES_256)

struct Codes { __m256i a, b; };

HEADRACE_INLINE Codes load_codes(const std::uint8_t* p) {
    return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32))};
}
HEADRACE_INLINE Codes low_nibbles(Codes w) {
    const __m256i mask = _mm256_set1_epi8(15);
    return {_mm256_and_si256(w.a, mask), _mm256_and_si256(w.b, mask)};
}
HEADRACE_INLINE Codes high_nibbles(Codes w) {
    const __m256i mask = _mm256_set1_epi8(15);
    return {_mm256_and_si256(_mm256_srli_epi16(w.a, 4), mask), _mm256_and_si256(_mm256_srli_epi16(w.b, 4), mask)};
}

HEADRACE_INLINE __m256i four_inputs(const std::int8_t* x) {
    std::int32_t four;
    std::memcpy(&four, x, 4);
    return _mm256_set1_epi32(four);
}

// Nibbles: pairs reach 2 * 15 * 128 and stay inside int16.
HEADRACE_INLINE I16 dot_nibbles(I16 acc, Codes w, const std::int8_t* x) {
    const __m256i four = four_inputs(x), ones = _mm256_set1_epi16(1);
    return {_mm256_add_epi32(acc.a, _mm256_madd_epi16(_mm256_maddubs_epi16(w.a, four), ones)),
            _mm256_add_epi32(acc.b, _mm256_madd_epi16(_mm256_maddubs_epi16(w.b, four), ones))};
}

// Full bytes would saturate maddubs (2 * 255 * 127), so even and odd bytes are multiplied as int16 pairs.
HEADRACE_INLINE __m256i madd_bytes(__m256i w, __m256i even, __m256i odd) {
    const __m256i low = _mm256_and_si256(w, _mm256_set1_epi16(255));
    return _mm256_add_epi32(_mm256_madd_epi16(low, even), _mm256_madd_epi16(_mm256_srli_epi16(w, 8), odd));
}
HEADRACE_INLINE I16 dot_bytes(I16 acc, Codes w, const std::int8_t* x) {
    const __m256i four = four_inputs(x);
    const __m256i even = _mm256_srai_epi16(_mm256_slli_epi16(four, 8), 8), odd = _mm256_srai_epi16(four, 8);
    return {_mm256_add_epi32(acc.a, madd_bytes(w.a, even, odd)), _mm256_add_epi32(acc.b, madd_bytes(w.b, even, odd))};
}

HEADRACE_INLINE F16 load_half(const std::uint8_t* p) {
    const __m128i* half = reinterpret_cast<const __m128i*>(p);
    return {_mm256_cvtph_ps(_mm_loadu_si128(half)), _mm256_cvtph_ps(_mm_loadu_si128(half + 1))};
}

#else

struct Codes { std::uint8_t v[64]; };

HEADRACE_INLINE Codes load_codes(const std::uint8_t* p) {
    Codes w;
    std::memcpy(w.v, p, 64);
    return w;
}
HEADRACE_INLINE Codes low_nibbles(Codes w) {
    for (auto& code : w.v) code &= 15;
    return w;
}
HEADRACE_INLINE Codes high_nibbles(Codes w) {
    for (auto& code : w.v) code >>= 4;
    return w;
}
HEADRACE_INLINE I16 dot_bytes(I16 acc, const Codes& w, const std::int8_t* x) {
    for (int n = 0; n < 16; ++n)
        acc.v[n] = wrap(raw(acc.v[n]) + raw(w.v[4 * n] * x[0] + w.v[4 * n + 1] * x[1] + w.v[4 * n + 2] * x[2] + w.v[4 * n + 3] * x[3]));
    return acc;
}
HEADRACE_INLINE I16 dot_nibbles(I16 acc, const Codes& w, const std::int8_t* x) { return dot_bytes(acc, w, x); }

HEADRACE_INLINE float half_to_float(std::uint16_t half) {
    const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000u) << 16, magnitude = half & 0x7fffu;
    if (magnitude >= 0x0400u) return clone_bits(wrap(sign | ((magnitude << 13) + 0x38000000u)));
    const float tiny = static_cast<float>(magnitude) * 0x1p-24f;  // subnormal or zero, exact
    return clone_bits(wrap(sign | raw(clone_bits(tiny))));
}
HEADRACE_INLINE F16 load_half(const std::uint8_t* p) {
    F16 r;
    std::uint16_t half[16];
    std::memcpy(half, p, sizeof half);
    for (int n = 0; n < 16; ++n) r.v[n] = half_to_float(half[n]);
    return r;
}

#endif

template <Format format>
HEADRACE_INLINE void unpack(const std::uint8_t* record, Codes* w) {
    constexpr int operands = kFormatTraits[static_cast<int>(format)].group / 4;
    if constexpr (kFormatTraits[static_cast<int>(format)].bits == 4) {
        for (int line = 0; line < 4; ++line) {
            const Codes both = load_codes(record + 64 * line);
            w[line] = low_nibbles(both);
            w[line + 4] = high_nibbles(both);
        }
    } else {
        for (int line = 0; line < operands; ++line) w[line] = load_codes(record + 64 * line);
    }
}

template <Format format>
HEADRACE_INLINE I16 dot(I16 acc, const Codes& w, const std::int8_t* x) {
    if constexpr (kFormatTraits[static_cast<int>(format)].bits == 4) return dot_nibbles(acc, w, x);
    else return dot_bytes(acc, w, x);
}

// Where group g begins among a row's planes: 32 hi bytes, then 32 lo bytes, of every 32 inputs.
template <Format format>
HEADRACE_INLINE std::size_t plane_offset(int g) {
    if constexpr (kFormatTraits[static_cast<int>(format)].group == kGroup) return static_cast<std::size_t>(g) * 2 * kGroup;
    else return static_cast<std::size_t>(g / 2) * 2 * kGroup + static_cast<std::size_t>(g % 2) * (kGroup / 2);
}

}  // namespace
}  // namespace headrace::HEADRACE_ISA
