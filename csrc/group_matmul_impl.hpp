// Products with rows of 8 bits that have a scale every 32 inputs (GroupRows in formats.hpp), for the records of matmul_impl.hpp.
//
// Per (row, output) the float steps are the same for every row count, tile and ISA:
//   acc = 0; for each group g in order: acc = fma(d_g, float(dot_g) * scale_g, acc); acc = fma(m_g, weighted_g, acc)
// dot_g is an exact integer: one byte product per weight, where two planes take two. The scale of a row's group costs one
// multiplication more, the last one by the row's scale goes.
// Included behind matmul_impl.hpp.
#pragma once

namespace headrace::HEADRACE_ISA {
namespace {

// Byte products of R rows and one group. Few rows alone would wait for each other's latency: they have several sums each.
template <Format format, int R>
HEADRACE_INLINE void group_byte_dots(const Codes* w, const std::int8_t* x, std::size_t stride, const std::int32_t* offsets,
                                     std::size_t offset_stride, I16* dots) {
    constexpr FormatTraits traits = kFormatTraits[static_cast<int>(format)];
    constexpr int operands = traits.group / 4, chains = R <= 2 ? 4 : R <= 4 ? 2 : 1;
    I16 sums[chains * R];
    for (int i = 0; i < chains * R; ++i) sums[i] = splat_int(0);
    if constexpr (traits.bits == 8)  // codes are stored as q + 128: the sums begin with what that adds too much
        for (int r = 0; r < R; ++r) sums[r] = splat_int(offsets[r * offset_stride]);
    for (int i = 0; i < operands; ++i)
        for (int r = 0; r < R; ++r) {
            I16& sum = sums[i % chains * R + r];
            sum = dot<format>(sum, w[i], x + r * stride + 4 * i);
        }
    for (int r = 0; r < R; ++r) {
        dots[r] = sums[r];
        for (int chain = 1; chain < chains; ++chain) dots[r] = dots[r] + sums[chain * R + r];
    }
}

template <Format format, int R>
void grouped_rows(const PanelProduct& p, int row) {
    constexpr FormatTraits traits = kFormatTraits[static_cast<int>(format)];
    constexpr int operands = traits.group / 4, code_bytes = traits.record_bytes - (traits.has_min ? 64 : 32);
    const std::uint8_t* record = p.panel;
    const std::int8_t* x = p.planes + row * p.plane_stride;
    const std::int32_t* offsets = p.sums + row * p.sum_stride;
    const float* scales = p.group_scales + row * p.group_scale_stride;
    const float* weighted = p.group_weighted + row * p.group_scale_stride;
    F16 acc[R];
    for (int r = 0; r < R; ++r) acc[r] = splat(0.0f);
    for (int g = 0; g < p.groups; ++g, record += traits.record_bytes, x += traits.group) {
        Codes w[operands];
        I16 dots[R];
        if constexpr (R >= kLeastRowsAhead)
            for (int line = 0; line < traits.record_bytes; line += 64)
                __builtin_prefetch(record + kRecordsAhead * traits.record_bytes + line);
        unpack<format>(record, w);
        group_byte_dots<format, R>(w, x, p.plane_stride, offsets + g, p.sum_stride, dots);
        const F16 d = load_half(record + code_bytes);
        const int place = g * traits.group / kGroup;
        for (int r = 0; r < R; ++r) acc[r] = fma(d, to_float(dots[r]) * splat(scales[r * p.group_scale_stride + place]), acc[r]);
        if constexpr (traits.has_min) {
            const F16 m = load_half(record + code_bytes + 32);
            for (int r = 0; r < R; ++r) acc[r] = fma(m, splat(weighted[r * p.group_scale_stride + place]), acc[r]);
        }
    }
    for (int r = 0; r < R; ++r) store(p.out + (row + r) * p.out_stride, acc[r]);
}

template <Format format, int R>
void last_grouped_rows(const PanelProduct& p, int row) {
    if constexpr (R > 0) {
        if (p.rows - row == R) grouped_rows<format, R>(p, row);
        else last_grouped_rows<format, R - 1>(p, row);
    }
}

template <Format format>
void grouped_product(const PanelProduct& p) {
    int row = 0;
    for (; row + kMaxRows <= p.rows; row += kMaxRows) grouped_rows<format, kMaxRows>(p, row);
    last_grouped_rows<format, kMaxRows - 1>(p, row);
}

}  // namespace

void fill_groups(KernelTable& table) {
    table.panel[static_cast<int>(Format::w4a8)] = grouped_product<Format::w4a8>;
    table.panel[static_cast<int>(Format::w8a8)] = grouped_product<Format::w8a8>;
    table.panel[static_cast<int>(Format::w8ma8)] = grouped_product<Format::w8ma8>;
    table.panel[static_cast<int>(Format::w8g16a8)] = grouped_product<Format::w8g16a8>;
}

}  // namespace headrace::HEADRACE_ISA
