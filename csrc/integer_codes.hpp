// Zeros, scales and joined planes of integer formats as operands, per ISA: what codes.hpp is for the codes.
#pragma once

#include "codes.hpp"

namespace headrace::HEADRACE_ISA {
namespace {

constexpr int kByteProductScale = 17;  // 15 * 17 = 255: larger group scales don't fit the byte products

#if defined(HEADRACE_LANES_512)

HEADRACE_INLINE I16 dot_pairs(I16 acc, const std::uint8_t* pairs, const std::int16_t* x) {
    std::int32_t two;
    std::memcpy(&two, x, 4);
    return {_mm512_dpwssd_epi32(acc.v, _mm512_loadu_si512(pairs), _mm512_set1_epi32(two))};
}
HEADRACE_INLINE I16 load_scales(const std::uint8_t* p) {
    return {_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
// q * s1 of 16 channels: two bytes share a 16-bit product, and no byte carries into the next.
HEADRACE_INLINE void store_scaled(std::uint8_t* to, Codes nibbles, I16 scales) {
    const __m512i both = _mm512_or_si512(scales.v, _mm512_slli_epi32(scales.v, 16));
    _mm512_storeu_si512(to, _mm512_mullo_epi16(nibbles.v, both));
}
HEADRACE_INLINE F16 scaled_planes(I16 high, I16 low, F16 scale) {
    const __m512d b = _mm512_set1_pd(256.0);
    const __m512d first = _mm512_fmadd_pd(_mm512_cvtepi32_pd(_mm512_castsi512_si256(high.v)), b,
                                          _mm512_cvtepi32_pd(_mm512_castsi512_si256(low.v)));
    const __m512d second = _mm512_fmadd_pd(_mm512_cvtepi32_pd(_mm512_extracti64x4_epi64(high.v, 1)), b,
                                           _mm512_cvtepi32_pd(_mm512_extracti64x4_epi64(low.v, 1)));
    const __m512 whole = _mm512_insertf32x8(_mm512_castps256_ps512(_mm512_cvtpd_ps(first)), _mm512_cvtpd_ps(second), 1);
    return F16{whole} * scale;
}

template <Format format>
HEADRACE_INLINE const std::uint8_t* block_at(const PanelProduct& p, int block) {
    constexpr std::size_t lines = kFormatTraits[static_cast<int>(format)].group * kBlockGroups * kPanelWidth / 2;
    return p.panel + 64 + static_cast<std::size_t>(block) * (kBlockHead + lines);
}

template <Format format>
HEADRACE_INLINE int block_count(const PanelProduct& p) {
    constexpr int inputs = kFormatTraits[static_cast<int>(format)].group * kBlockGroups;
    return (p.inputs + inputs - 1) / inputs;
}

// Whether every q*s1 is a byte (scales of groups and channels that don't exist are zero).
template <Format format>
HEADRACE_INLINE bool fits_byte_products(const PanelProduct& p) {
    __m512i top = _mm512_setzero_si512();
    for (int block = 0; block < block_count<format>(p); ++block)
        top = _mm512_max_epu8(top, _mm512_loadu_si512(block_at<format>(p, block)));
    return _mm512_cmpgt_epu8_mask(top, _mm512_set1_epi8(kByteProductScale)) == 0;
}

#elif defined(HEADRACE_LANES_256)

HEADRACE_INLINE I16 dot_pairs(I16 acc, const std::uint8_t* pairs, const std::int16_t* x) {
    std::int32_t two;
    std::memcpy(&two, x, 4);
    const __m256i both = _mm256_set1_epi32(two);
    const Codes w = load_codes(pairs);
    return {_mm256_add_epi32(acc.a, _mm256_madd_epi16(w.a, both)), _mm256_add_epi32(acc.b, _mm256_madd_epi16(w.b, both))};
}
HEADRACE_INLINE I16 load_scales(const std::uint8_t* p) {
    const __m128i all = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return {_mm256_cvtepu8_epi32(all), _mm256_cvtepu8_epi32(_mm_srli_si128(all, 8))};
}
HEADRACE_INLINE __m256 planes_to_float(__m256i high, __m256i low) {
    const __m256d b = _mm256_set1_pd(256.0);
    const __m256d first = _mm256_fmadd_pd(_mm256_cvtepi32_pd(_mm256_castsi256_si128(high)), b,
                                          _mm256_cvtepi32_pd(_mm256_castsi256_si128(low)));
    const __m256d second = _mm256_fmadd_pd(_mm256_cvtepi32_pd(_mm256_extracti128_si256(high, 1)), b,
                                           _mm256_cvtepi32_pd(_mm256_extracti128_si256(low, 1)));
    return _mm256_set_m128(_mm256_cvtpd_ps(second), _mm256_cvtpd_ps(first));
}
HEADRACE_INLINE F16 scaled_planes(I16 high, I16 low, F16 scale) {
    return F16{planes_to_float(high.a, low.a), planes_to_float(high.b, low.b)} * scale;
}

#else

HEADRACE_INLINE I16 dot_pairs(I16 acc, const std::uint8_t* pairs, const std::int16_t* x) {
    for (int n = 0; n < 16; ++n) {
        std::int16_t zeros[2];
        std::memcpy(zeros, pairs + 4 * n, 4);
        acc.v[n] = wrap(raw(acc.v[n]) + raw(zeros[0] * x[0]) + raw(zeros[1] * x[1]));
    }
    return acc;
}
HEADRACE_INLINE I16 load_scales(const std::uint8_t* p) {
    I16 r;
    for (int n = 0; n < 16; ++n) r.v[n] = p[n];
    return r;
}
HEADRACE_INLINE F16 scaled_planes(I16 high, I16 low, F16 scale) {
    F16 r;
    for (int n = 0; n < 16; ++n) r.v[n] = static_cast<float>(256.0 * high.v[n] + low.v[n]) * scale.v[n];
    return r;
}

#endif

}  // namespace
}  // namespace headrace::HEADRACE_ISA
