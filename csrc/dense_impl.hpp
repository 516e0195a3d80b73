// Products in fp32 with packed weights: see dense_kernels.hpp. Weights are expanded into a tile that stays in the caches and
// meets all rows, so that what is kept of them is their codes alone.
#pragma once

#include "codes.hpp"
#include "kernel_table.hpp"

namespace headrace::HEADRACE_ISA {
namespace {

HEADRACE_INLINE I16 load_words(const std::uint8_t* p) {
    std::int32_t words[16];
    std::memcpy(words, p, sizeof words);
    return load(words);
}

template <int shift>
HEADRACE_INLINE I16 field(I16 words, int mask) {
    if constexpr (shift == 0) return words & splat_int(mask);
    else return shift_right<shift>(words) & splat_int(mask);
}

// Four inputs of a line of codes: byte (or nibble) j of a channel's word is the code of input j.
template <Format format, int nibble>
HEADRACE_INLINE void expand_line(I16 words, F16 d, F16 m, float* to, std::size_t stride) {
    constexpr FormatTraits traits = kFormatTraits[static_cast<int>(format)];
    constexpr int mask = traits.bits == 4 ? 15 : 255;
    const I16 codes[4] = {field<nibble>(words, mask), field<8 + nibble>(words, mask), field<16 + nibble>(words, mask),
                          field<24 + nibble>(words, mask)};
    for (int j = 0; j < 4; ++j) {
        F16 value = d * to_float(traits.bits == 4 ? codes[j] : codes[j] - splat_int(128));
        if constexpr (traits.has_min) value = value + m;
        store(to + static_cast<std::size_t>(j) * stride, value);
    }
}

template <Format format>
void expand_codes(const std::uint8_t* panel, int k, int, float* to, std::size_t stride) {
    constexpr FormatTraits traits = kFormatTraits[static_cast<int>(format)];
    constexpr int code_bytes = traits.record_bytes - (traits.has_min ? 64 : 32);
    const std::uint8_t* record = panel + static_cast<std::size_t>(k / traits.group) * traits.record_bytes;
    const bool second = k % traits.group != 0;
    const F16 d = load_half(record + code_bytes), m = traits.has_min ? load_half(record + code_bytes + 32) : splat(0.0f);
    for (int line = 0; line < 4; ++line, to += 4 * stride) {
        if constexpr (traits.bits == 4) {
            const I16 words = load_words(record + 64 * line);
            if (second) expand_line<format, 4>(words, d, m, to, stride);
            else expand_line<format, 0>(words, d, m, to, stride);
        } else {
            expand_line<format, 0>(load_words(record + 64 * (line + (second ? 4 : 0))), d, m, to, stride);
        }
    }
}

template <Format format>
void expand_values(const std::uint8_t* panel, int k, int count, float* to, std::size_t stride) {
    constexpr int record_bytes = kFormatTraits[static_cast<int>(format)].record_bytes;
    const std::uint8_t* from = panel + static_cast<std::size_t>(k) * record_bytes;
    for (int i = 0; i < count; ++i, from += record_bytes, to += stride) {
        if constexpr (format == Format::bf16) {
            std::uint16_t words[16];
            std::memcpy(words, from, sizeof words);
            store(to, load_bf16(words));
        } else if constexpr (format == Format::f16) {
            store(to, load_half(from));
        } else {
            float values[16];
            std::memcpy(values, from, sizeof values);
            store(to, load(values));
        }
    }
}

#if defined(HEADRACE_LANES_512)

void turn(const float* from, float* to, std::size_t stride) {
    __m512 a[16], b[16];
    for (int i = 0; i < 16; ++i) a[i] = _mm512_loadu_ps(from + 16 * i);
    for (int i = 0; i < 16; i += 2) {  // pairs of rows: 2 x 2 turned
        b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)  // 4 x 4 turned inside each quarter of a register
        for (int h = 0; h < 2; ++h) {
            const __m512d low = _mm512_castps_pd(b[i + h]), high = _mm512_castps_pd(b[i + 2 + h]);
            a[i + 2 * h] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
            a[i + 2 * h + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
        }
    for (int j = 0; j < 4; ++j) {  // quarters: register i + j holds columns j, 4 + j, 8 + j, 12 + j of rows i … i + 3
        const __m512 even = _mm512_shuffle_f32x4(a[j], a[4 + j], 0x88), odd = _mm512_shuffle_f32x4(a[j], a[4 + j], 0xdd);
        const __m512 even2 = _mm512_shuffle_f32x4(a[8 + j], a[12 + j], 0x88), odd2 = _mm512_shuffle_f32x4(a[8 + j], a[12 + j], 0xdd);
        _mm512_storeu_ps(to + static_cast<std::size_t>(j) * stride, _mm512_shuffle_f32x4(even, even2, 0x88));
        _mm512_storeu_ps(to + static_cast<std::size_t>(4 + j) * stride, _mm512_shuffle_f32x4(odd, odd2, 0x88));
        _mm512_storeu_ps(to + static_cast<std::size_t>(8 + j) * stride, _mm512_shuffle_f32x4(even, even2, 0xdd));
        _mm512_storeu_ps(to + static_cast<std::size_t>(12 + j) * stride, _mm512_shuffle_f32x4(odd, odd2, 0xdd));
    }
}

constexpr int kDenseRows = 8;

#else

void turn(const float* from, float* to, std::size_t stride) {
    for (int j = 0; j < 16; ++j)
        for (int i = 0; i < 16; ++i) to[static_cast<std::size_t>(j) * stride + static_cast<std::size_t>(i)] = from[16 * i + j];
}

constexpr int kDenseRows = 2;

#endif

HEADRACE_INLINE void join(const DenseProduct& p, float* to, F16 sum, int width) {
    if (width >= 16) {
        store(to, p.add ? load(to) + sum : sum);
        return;
    }
    float values[16];
    store(values, sum);
    for (int i = 0; i < width; ++i) to[i] = p.add ? to[i] + values[i] : values[i];
}

template <int R, int C>
void dense_rows(const DenseProduct& p, int row) {
    const float* x = p.x + static_cast<std::size_t>(row) * p.x_stride;
    const float* w = p.tile;
    F16 acc[R][C];
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < C; ++c) acc[r][c] = splat(0.0f);
    for (int k = 0; k < p.depth; ++k, w += kDenseWidth) {
        F16 values[C];
        for (int c = 0; c < C; ++c) values[c] = load(w + 16 * c);
        for (int r = 0; r < R; ++r) {
            const F16 one = splat(x[static_cast<std::size_t>(r) * p.x_stride + static_cast<std::size_t>(k)]);
            for (int c = 0; c < C; ++c) acc[r][c] = fma(one, values[c], acc[r][c]);
        }
    }
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < C; ++c)
            join(p, p.out + static_cast<std::size_t>(row + r) * p.out_stride + 16 * c, acc[r][c], p.width - 16 * c);
}

// Blocks of R rows, then what is left in halves of it.
template <int R, int C>
void dense_from(const DenseProduct& p, int row) {
    for (; row + R <= p.rows; row += R) dense_rows<R, C>(p, row);
    if constexpr (R > 1)
        if (row < p.rows) dense_from<R / 2, C>(p, row);
}

void multiply(const DenseProduct& p) {
    if (p.vectors == 3) dense_from<kDenseRows, 3>(p, 0);
    else if (p.vectors == 2) dense_from<kDenseRows, 2>(p, 0);
    else dense_from<kDenseRows, 1>(p, 0);
}

}  // namespace

void fill_dense(KernelTable& table) {
    auto& expand = table.dense.expand;
    for (const Format format : {Format::w4, Format::w4a8}) expand[static_cast<int>(format)] = expand_codes<Format::w4>;
    for (const Format format : {Format::w8, Format::w8a8}) expand[static_cast<int>(format)] = expand_codes<Format::w8>;
    for (const Format format : {Format::w8m, Format::w8ma8}) expand[static_cast<int>(format)] = expand_codes<Format::w8m>;
    for (const Format format : {Format::w8g16, Format::w8g16a8}) expand[static_cast<int>(format)] = expand_codes<Format::w8g16>;
    expand[static_cast<int>(Format::bf16)] = expand_values<Format::bf16>;
    expand[static_cast<int>(Format::f16)] = expand_values<Format::f16>;
    expand[static_cast<int>(Format::f32)] = expand_values<Format::f32>;
    table.dense.turn = turn;
    table.dense.multiply = multiply;
}

}  // namespace headrace::HEADRACE_ISA
