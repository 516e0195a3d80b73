// Panel products, written once over lanes.hpp and compiled per ISA.
//
// Per (row, output) the float steps are the same for every row count, tile and ISA:
//   acc = 0; for each group g in order: acc = fma(d_g, float(dot_g), acc); acc = fma(m_g, float(sum_g), acc)
//   out = acc * scale
// dot_g is an exact integer: sum of w*hi shifted left by 8 plus sum of w*lo (two byte products per weight, because 8-bit
// activations lose 3 % of top-1 agreement and 16-bit ones nothing). It fits 28 bits, so any order of adding it is the same.
//
// Scheduling: a block of R rows shares the unpacked operands of one group (QServe's order of work: unpack once, use R times).
// With many rows one integer accumulator a row runs hi, shift, lo: that leaves registers for all operands, 8 independent
// chains hide the latency. With few rows hi and lo have their own chains.
#pragma once

#include "kernel_table.hpp"
#include "lanes.hpp"

namespace headrace::HEADRACE_ISA {
namespace {

#if defined(HEADRACE_LANES_512)

constexpr int kMaxRows = 8;

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

constexpr int kMaxRows = 2;

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

constexpr int kMaxRows = 4;

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
        acc.v[n] += w.v[4 * n] * x[0] + w.v[4 * n + 1] * x[1] + w.v[4 * n + 2] * x[2] + w.v[4 * n + 3] * x[3];
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
    if constexpr (format == Format::w4) {
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
    if constexpr (format == Format::w4) return dot_nibbles(acc, w, x);
    else return dot_bytes(acc, w, x);
}

// Where group g begins among a row's planes: 32 hi bytes, then 32 lo bytes, of every 32 inputs.
template <Format format>
HEADRACE_INLINE std::size_t plane_offset(int g) {
    if constexpr (kFormatTraits[static_cast<int>(format)].group == kGroup) return static_cast<std::size_t>(g) * 2 * kGroup;
    else return static_cast<std::size_t>(g / 2) * 2 * kGroup + static_cast<std::size_t>(g % 2) * (kGroup / 2);
}

// dots[r] = sum over the group of code * q, for R rows that start at x and lie `stride` bytes apart.
template <Format format, int R>
HEADRACE_INLINE void group_dots(const Codes* w, const std::int8_t* x, std::size_t stride, I16* dots) {
    constexpr int operands = kFormatTraits[static_cast<int>(format)].group / 4;
    for (int r = 0; r < R; ++r) dots[r] = splat_int(0);
    if constexpr (R > 4) {
        for (int i = 0; i < operands; ++i)
            for (int r = 0; r < R; ++r) dots[r] = dot<format>(dots[r], w[i], x + r * stride + 4 * i);
        for (int r = 0; r < R; ++r) dots[r] = shift_left<8>(dots[r]);
        for (int i = 0; i < operands; ++i)
            for (int r = 0; r < R; ++r) dots[r] = dot<format>(dots[r], w[i], x + r * stride + 4 * i + 32);
    } else {
        I16 low[R];
        for (int r = 0; r < R; ++r) low[r] = splat_int(0);
        for (int i = 0; i < operands; ++i)
            for (int r = 0; r < R; ++r) {
                dots[r] = dot<format>(dots[r], w[i], x + r * stride + 4 * i);
                low[r] = dot<format>(low[r], w[i], x + r * stride + 4 * i + 32);
            }
        for (int r = 0; r < R; ++r) dots[r] = shift_left<8>(dots[r]) + low[r];
    }
}

template <Format format, int R>
void quantised_rows(const PanelProduct& p, int row) {
    constexpr FormatTraits traits = kFormatTraits[static_cast<int>(format)];
    constexpr int operands = traits.group / 4, code_bytes = traits.record_bytes - (traits.has_min ? 64 : 32);
    const std::uint8_t* record = p.panel;
    const std::int8_t* x = p.planes + row * p.plane_stride;
    const std::int32_t* sums = p.sums + row * p.sum_stride;
    F16 acc[R];
    for (int r = 0; r < R; ++r) acc[r] = splat(0.0f);
    for (int g = 0; g < p.groups; ++g) {
        Codes w[operands];
        I16 dots[R];
        unpack<format>(record, w);
        group_dots<format, R>(w, x + plane_offset<format>(g), p.plane_stride, dots);
        const F16 d = load_half(record + code_bytes);
        if constexpr (format != Format::w4)  // codes are stored as q + 128; taken off as an integer, before any rounding
            for (int r = 0; r < R; ++r) dots[r] = dots[r] - shift_left<7>(splat_int(sums[r * p.sum_stride + g]));
        for (int r = 0; r < R; ++r) acc[r] = fma(d, to_float(dots[r]), acc[r]);
        if constexpr (traits.has_min) {
            const F16 m = load_half(record + code_bytes + 32);
            for (int r = 0; r < R; ++r) acc[r] = fma(m, to_float(splat_int(sums[r * p.sum_stride + g])), acc[r]);
        }
        record += traits.record_bytes;
    }
    for (int r = 0; r < R; ++r) store(p.out + (row + r) * p.out_stride, acc[r] * splat(p.scale[row + r]));
}

template <Format format>
HEADRACE_INLINE F16 load_values(const std::uint8_t* p) {
    if constexpr (format == Format::bf16) return load_bf16(reinterpret_cast<const std::uint16_t*>(p));
    else if constexpr (format == Format::f16) return load_half(p);
    else return load(reinterpret_cast<const float*>(p));
}

template <Format format, int R>
void float_rows(const PanelProduct& p, int row) {
    constexpr int record_bytes = kFormatTraits[static_cast<int>(format)].record_bytes;
    const float* x = p.values + row * p.value_stride;
    F16 acc[R];
    for (int r = 0; r < R; ++r) acc[r] = splat(0.0f);
    for (int k = 0; k < p.groups; ++k) {
        const F16 w = load_values<format>(p.panel + static_cast<std::size_t>(k) * record_bytes);
        for (int r = 0; r < R; ++r) acc[r] = fma(w, splat(x[r * p.value_stride + k]), acc[r]);
    }
    for (int r = 0; r < R; ++r) store(p.out + (row + r) * p.out_stride, acc[r]);
}

template <Format format, int R>
HEADRACE_INLINE void rows_of(const PanelProduct& p, int row) {
    if constexpr (kFormatTraits[static_cast<int>(format)].quantised) quantised_rows<format, R>(p, row);
    else float_rows<format, R>(p, row);
}

// What is left after the full blocks: fewer rows, the same steps per row.
template <Format format, int R>
void last_rows(const PanelProduct& p, int row) {
    if constexpr (R > 0) {
        if (p.rows - row == R) rows_of<format, R>(p, row);
        else last_rows<format, R - 1>(p, row);
    }
}

template <Format format>
void panel_product(const PanelProduct& p) {
    int row = 0;
    for (; row + kMaxRows <= p.rows; row += kMaxRows) rows_of<format, kMaxRows>(p, row);
    last_rows<format, kMaxRows - 1>(p, row);
}

}  // namespace

void fill_matmul(KernelTable& table) {
    table.panel[static_cast<int>(Format::w4)] = panel_product<Format::w4>;
    table.panel[static_cast<int>(Format::w8)] = panel_product<Format::w8>;
    table.panel[static_cast<int>(Format::w8m)] = panel_product<Format::w8m>;
    table.panel[static_cast<int>(Format::w8g16)] = panel_product<Format::w8g16>;
    table.panel[static_cast<int>(Format::bf16)] = panel_product<Format::bf16>;
    table.panel[static_cast<int>(Format::f16)] = panel_product<Format::f16>;
    table.panel[static_cast<int>(Format::f32)] = panel_product<Format::f32>;
}

}  // namespace headrace::HEADRACE_ISA
