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

#include "codes.hpp"
#include "kernel_table.hpp"

namespace headrace::HEADRACE_ISA {
namespace {

// Rows whose accumulators fit the registers together.
#if defined(HEADRACE_LANES_512)
constexpr int kMaxRows = 8;
#elif defined(HEADRACE_LANES_256)
constexpr int kMaxRows = 2;
#else
constexpr int kMaxRows = 4;
#endif

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

// With a few rows a record takes longer to compute on than the prefetchers of the CPU look ahead, and its lines come late:
// asked for four records early, 8 rows of streamed 4-bit weights go from 58 % of the limit to 75 %. One and two rows run at
// the speed of memory anyway.
constexpr int kRecordsAhead = 4, kLeastRowsAhead = 3;

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
        if constexpr (R >= kLeastRowsAhead)
            for (int line = 0; line < traits.record_bytes; line += 64)
                __builtin_prefetch(record + kRecordsAhead * traits.record_bytes + line);
        unpack<format>(record, w);
        group_dots<format, R>(w, x + plane_offset<format>(g), p.plane_stride, dots);
        const F16 d = load_half(record + code_bytes);
        if constexpr (traits.bits == 8)  // codes are stored as q + 128; taken off as an integer, before any rounding
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
