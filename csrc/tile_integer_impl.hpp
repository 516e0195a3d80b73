// Products of integer formats on a tile unit: blocks of up to 16 rows, with the bits of integer_impl.hpp.
//
// Sums stay in the unit over all inputs, since integer groups need no float step between them; only the end leaves it. Codes of
// 8 bits are operands as they stand. Codes of 4 bits are multiplied by the scale of their group on the way (q*s1 is a byte up to
// s1 = 17); a panel with a larger scale takes two passes, one for each hexadecimal digit of it, whose sums meet at the end.
// Included behind tile_matmul_impl.hpp.
#pragma once

#include "integer_codes.hpp"

namespace headrace::HEADRACE_ISA {
namespace {

struct alignas(64) IntegerScratch {
    std::int32_t sums[2 * kMostPlanes][kTileRowLimit * kPanelWidth];
    std::uint8_t lines[2][kGroup * kPanelWidth];  // q * s1 of two chunks of 32 inputs, or of one by the digits of s1
};

// Adds the products of 32 inputs; `which` of two operands and of two sets of sums.
template <int planes, int which>
HEADRACE_INLINE void add_chunk(const std::uint8_t* lines, const std::int8_t* x, std::size_t stride) {
    tile_load<kCodeLines + which>(lines, 64);
    tile_load<kRowPlanes>(x, stride);
    tile_dot<kSums + 2 * which, kRowPlanes, kCodeLines + which>();
    if constexpr (planes == 2) {
        tile_load<kRowPlanes + 1>(x + kGroup, stride);
        tile_dot<kSums + 2 * which + 1, kRowPlanes + 1, kCodeLines + which>();
    }
}

template <int planes>
HEADRACE_INLINE void add_chunk(int which, const std::uint8_t* lines, const std::int8_t* x, std::size_t stride) {
    if (which == 0) add_chunk<planes, 0>(lines, x, stride);
    else add_chunk<planes, 1>(lines, x, stride);
}

template <int planes>
HEADRACE_INLINE void add_bytes(const PanelProduct& p) {
    const std::uint8_t* lines = p.panel + 64;
    for (int chunk = 0; chunk < p.inputs / kGroup; ++chunk, lines += kGroup * kPanelWidth)
        add_chunk<planes>(chunk % 2, lines, p.planes + static_cast<std::size_t>(chunk) * kGroup * planes, p.plane_stride);
}

HEADRACE_INLINE void scale_chunk(const std::uint8_t* lines, I16 scales, std::uint8_t* to) {
    for (int line = 0; line < 4; ++line) {
        const Codes both = load_codes(lines + 64 * line);
        store_scaled(to + 64 * line, low_nibbles(both), scales);
        store_scaled(to + 64 * line + 256, high_nibbles(both), scales);
    }
}

template <Format format>
HEADRACE_INLINE void add_nibbles(const PanelProduct& p, bool narrow, IntegerScratch& scratch) {
    constexpr FormatTraits traits = kFormatTraits[static_cast<int>(format)];
    constexpr int planes = traits.activation_bits / 8;
    for (int k = 0; k < p.inputs; k += kGroup) {
        const int g = k / traits.group;
        const std::uint8_t* block = block_at<format>(p, g / kBlockGroups);
        const std::uint8_t* lines = block + kBlockHead + static_cast<std::size_t>(k - g / kBlockGroups * kBlockGroups * traits.group) * kPanelWidth / 2;
        const std::int8_t* x = p.planes + static_cast<std::size_t>(k) * planes;
        const I16 scales = load_scales(block + kPanelWidth * (g % kBlockGroups));
        if (narrow) {
            std::uint8_t* to = scratch.lines[k / kGroup % 2];
            scale_chunk(lines, scales, to);
            add_chunk<planes>(k / kGroup % 2, to, x, p.plane_stride);
        } else {
            scale_chunk(lines, scales & splat_int(15), scratch.lines[0]);
            scale_chunk(lines, shift_right<4>(scales), scratch.lines[1]);
            add_chunk<planes, 0>(scratch.lines[0], x, p.plane_stride);
            add_chunk<planes, 1>(scratch.lines[1], x, p.plane_stride);
        }
    }
}

// What a row's sums hold too much: the product zeros of all groups, or the 128 that is added to codes of 8 bits.
template <Format format>
HEADRACE_INLINE I16 excess(const PanelProduct& p, int row, int plane) {
    constexpr FormatTraits traits = kFormatTraits[static_cast<int>(format)];
    if constexpr (traits.bits == 8) {
        return shift_left<7>(splat_int(p.totals[row * (traits.activation_bits / 8) + plane]));
    } else {
        const std::int16_t* sums = p.group_sums + static_cast<std::size_t>(row) * p.group_sum_stride + static_cast<std::size_t>(plane) * p.group_sum_length;
        I16 zeros = splat_int(0);
        for (int g = 0; g * traits.group < p.inputs; g += 2)
            zeros = dot_pairs(zeros, block_at<format>(p, g / kBlockGroups) + 64 + g % kBlockGroups / 2 * 64, sums + g);
        return zeros;
    }
}

template <Format format>
void tile_integer_product(const PanelProduct& p) {
    constexpr FormatTraits traits = kFormatTraits[static_cast<int>(format)];
    constexpr int planes = traits.activation_bits / 8;
    IntegerScratch scratch;
    tile_zero<kSums>();
    tile_zero<kSums + 1>();
    tile_zero<kSums + 2>();
    tile_zero<kSums + 3>();
    bool narrow = true;
    if constexpr (traits.bits == 8) {
        add_bytes<planes>(p);
    } else {
        narrow = fits_byte_products<format>(p);
        add_nibbles<format>(p, narrow, scratch);
    }
    tile_store<kSums>(scratch.sums[0], kSumsStride);
    tile_store<kSums + 1>(scratch.sums[1], kSumsStride);
    tile_store<kSums + 2>(scratch.sums[2], kSumsStride);
    tile_store<kSums + 3>(scratch.sums[3], kSumsStride);
    const F16 channel = load(reinterpret_cast<const float*>(p.panel));
    for (int r = 0; r < p.rows; ++r) {
        I16 acc[planes];
        for (int plane = 0; plane < planes; ++plane) {
            const I16 second = load(scratch.sums[2 + plane] + r * kPanelWidth);
            acc[plane] = load(scratch.sums[plane] + r * kPanelWidth) + (narrow ? second : shift_left<4>(second));
            acc[plane] = acc[plane] - excess<format>(p, r, plane);
        }
        F16 whole;
        if constexpr (planes == 1) whole = to_float(acc[0]) * channel;
        else whole = scaled_planes(acc[0], acc[1], channel);
        store(p.out + static_cast<std::size_t>(r) * p.out_stride, whole * splat(p.scale[r]));
    }
}

}  // namespace

void fill_integer_tiles(KernelTable& table) {
    table.tiles.panel[static_cast<int>(Format::q8a8)] = tile_integer_product<Format::q8a8>;
    table.tiles.panel[static_cast<int>(Format::q8a16)] = tile_integer_product<Format::q8a16>;
    table.tiles.panel[static_cast<int>(Format::q4g32a8)] = tile_integer_product<Format::q4g32a8>;
    table.tiles.panel[static_cast<int>(Format::q4g64a8)] = tile_integer_product<Format::q4g64a8>;
    table.tiles.panel[static_cast<int>(Format::q4g128a8)] = tile_integer_product<Format::q4g128a8>;
    table.tiles.panel[static_cast<int>(Format::q4g32a16)] = tile_integer_product<Format::q4g32a16>;
    table.tiles.panel[static_cast<int>(Format::q4g64a16)] = tile_integer_product<Format::q4g64a16>;
    table.tiles.panel[static_cast<int>(Format::q4g128a16)] = tile_integer_product<Format::q4g128a16>;
}

}  // namespace headrace::HEADRACE_ISA
