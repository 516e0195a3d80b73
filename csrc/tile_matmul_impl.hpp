// Panel products on a tile unit: blocks of up to 16 rows, with the bits of matmul_impl.hpp.
//
// A line of codes ("16n x 4k") is a row of the second operand as it is, 32 bytes of a plane a row of the first, so a
// group is one product for hi and one for lo. The sums leave the unit after every group, because the scales do: folding
// them on the vector units costs more than the products, so the steps of three groups overlap:
//
//   group g      tile products (asynchronous), sums stored
//   group g+1    its nibbles are unpacked between them
//   group g-1    its sums are folded
//
// A product uses half of the unit's depth of 64; filling it would add two groups before their scales are known.
#pragma once

#include <utility>

#include "codes.hpp"
#include "kernel_table.hpp"

namespace headrace::HEADRACE_ISA {
namespace {

inline constexpr TileConfigs kConfigs32 = tile_configs(32);
inline constexpr TileConfigs kConfigs16 = tile_configs(16);

constexpr int kMostPlanes = 2;  // hi, lo; rows of groups of 8 bits have one
template <Format format>
constexpr int kPlaneCount = kFormatTraits[static_cast<int>(format)].activation_bits / 8;
constexpr std::size_t kSumsStride = kPanelWidth * sizeof(std::int32_t);

struct alignas(64) TileScratch {
    std::int32_t sums[2][kMostPlanes][kTileRowLimit * kPanelWidth];  // of groups g and g-1
    std::uint8_t codes[2][kGroup * kPanelWidth];                     // of groups g and g+1, for packed formats
};

template <Format format>
HEADRACE_INLINE void unpack_lines(const std::uint8_t* record, std::uint8_t* lines) {
    if constexpr (kFormatTraits[static_cast<int>(format)].bits == 4) {
        Codes w[kGroup / 4];
        unpack<format>(record, w);
        for (int i = 0; i < kGroup / 4; ++i) std::memcpy(lines + 64 * i, &w[i], 64);
    }
}

// Starts the products of one group; `odd` of its number picks registers and scratch.
template <Format format, int odd>
HEADRACE_INLINE void multiply(const std::uint8_t* record, const std::int8_t* planes, std::size_t stride, TileScratch& scratch) {
    constexpr bool packed = kFormatTraits[static_cast<int>(format)].bits == 4;
    tile_load<kCodeLines + odd>(packed ? scratch.codes[odd] : record, 64);
    tile_load<kRowPlanes>(planes, stride);
    tile_zero<kSums + 2 * odd>();
    tile_dot<kSums + 2 * odd, kRowPlanes, kCodeLines + odd>();
    if constexpr (kPlaneCount<format> == 2) {
        tile_load<kRowPlanes + 1>(planes + kGroup, stride);
        tile_zero<kSums + 2 * odd + 1>();
        tile_dot<kSums + 2 * odd + 1, kRowPlanes + 1, kCodeLines + odd>();
    }
    tile_store<kSums + 2 * odd>(scratch.sums[odd][0], kSumsStride);
    if constexpr (kPlaneCount<format> == 2) tile_store<kSums + 2 * odd + 1>(scratch.sums[odd][1], kSumsStride);
}

// body(r) for every row: written out when their number is known here, so that what it indexes by r stays in registers.
template <int Rows, class Body>
HEADRACE_INLINE void each_row(int rows, Body&& body) {
    if constexpr (Rows > 0) {
        [&]<int... r>(std::integer_sequence<int, r...>) __attribute__((always_inline)) { (body(r), ...); }
        (std::make_integer_sequence<int, Rows>{});
    } else {
        for (int r = 0; r < rows; ++r) body(r);
    }
}

// The float steps of group g, as in quantised_rows and grouped_rows.
template <Format format, int Rows>
HEADRACE_INLINE void fold_group(const std::int32_t (*dots)[kTileRowLimit * kPanelWidth], const std::uint8_t* record, const PanelProduct& p,
                                int g, int rows, F16* acc) {
    constexpr FormatTraits traits = kFormatTraits[static_cast<int>(format)];
    constexpr int code_bytes = traits.record_bytes - (traits.has_min ? 64 : 32);
    const F16 d = load_half(record + code_bytes);
    F16 m = d;
    if constexpr (traits.has_min) m = load_half(record + code_bytes + 32);
    each_row<Rows>(rows, [&](int r) __attribute__((always_inline)) {
        I16 dot = load(dots[0] + r * kPanelWidth);
        const I16 sum = splat_int(p.sums[static_cast<std::size_t>(r) * p.sum_stride + static_cast<std::size_t>(g)]);
        if constexpr (kPlaneCount<format> == 2) {
            dot = shift_left<8>(dot) + load(dots[1] + r * kPanelWidth);
            if constexpr (traits.bits == 8) dot = dot - shift_left<7>(sum);
            acc[r] = fma(d, to_float(dot), acc[r]);
            if constexpr (traits.has_min) acc[r] = fma(m, to_float(sum), acc[r]);
        } else {
            const std::size_t at = static_cast<std::size_t>(r) * p.group_scale_stride + static_cast<std::size_t>(g * traits.group / kGroup);
            if constexpr (traits.bits == 8) dot = dot + sum;
            acc[r] = fma(d, to_float(dot) * splat(p.group_scales[at]), acc[r]);
            if constexpr (traits.has_min) acc[r] = fma(m, splat(p.group_weighted[at]), acc[r]);
        }
    });
}

template <Format format>
HEADRACE_INLINE std::size_t tile_offset(int g) {
    if constexpr (kPlaneCount<format> == 2) return plane_offset<format>(g);
    else return static_cast<std::size_t>(g) * kFormatTraits[static_cast<int>(format)].group;
}

// `Rows` is the number of rows when it is known here (the accumulators then stay in registers), otherwise 0.
template <Format format, int Rows>
HEADRACE_INLINE void tile_rows(const PanelProduct& p) {
    constexpr int record_bytes = kFormatTraits[static_cast<int>(format)].record_bytes;
    const int rows = Rows > 0 ? Rows : p.rows;
    TileScratch scratch;
    F16 acc[kTileRowLimit];
    each_row<Rows>(rows, [&](int r) __attribute__((always_inline)) { acc[r] = splat(0.0f); });
    const std::uint8_t* record = p.panel;
    unpack_lines<format>(record, scratch.codes[0]);
    for (int g = 0; g < p.groups; ++g, record += record_bytes) {
        const std::int8_t* planes = p.planes + tile_offset<format>(g);
        if (g % 2 == 0) multiply<format, 0>(record, planes, p.plane_stride, scratch);
        else multiply<format, 1>(record, planes, p.plane_stride, scratch);
        if (g + 1 < p.groups) unpack_lines<format>(record + record_bytes, scratch.codes[(g + 1) % 2]);
        if (g > 0) fold_group<format, Rows>(scratch.sums[(g - 1) % 2], record - record_bytes, p, g - 1, rows, acc);
    }
    const int last = p.groups - 1;
    fold_group<format, Rows>(scratch.sums[last % 2], record - record_bytes, p, last, rows, acc);
    each_row<Rows>(rows, [&](int r) __attribute__((always_inline)) {
        F16 whole = acc[r];
        if constexpr (kPlaneCount<format> == 2) whole = whole * splat(p.scale[r]);
        store(p.out + static_cast<std::size_t>(r) * p.out_stride, whole);
    });
}

template <Format format>
void tile_product(const PanelProduct& p) noexcept {
    if (p.rows == kTileRowLimit) tile_rows<format, kTileRowLimit>(p);
    else tile_rows<format, 0>(p);
}

void configure_tiles(Format format, int rows) noexcept {
    const bool small = kFormatTraits[static_cast<int>(format)].group == 16;
    tile_configure((small ? kConfigs16 : kConfigs32).of[rows - 1]);
}

void release_tiles() noexcept { tile_release(); }

inline constexpr TileConfigs kConfigs64 = tile_configs(64);

// Full tiles, on four accumulators: the unit's own limit, which products over groups of 32 can reach half of.
long multiply_tiles(long rounds) {
    tile_configure(kConfigs64.of[kTileRowLimit - 1]);
    for (long i = 0; i < rounds; ++i) {
        tile_dot<kSums, kRowPlanes, kCodeLines>();
        tile_dot<kSums + 1, kRowPlanes + 1, kCodeLines>();
        tile_dot<kSums + 2, kRowPlanes, kCodeLines + 1>();
        tile_dot<kSums + 3, kRowPlanes + 1, kCodeLines + 1>();
    }
    tile_release();
    return 4L * kTileRowLimit * kPanelWidth * 64 * rounds;
}

}  // namespace

void fill_tiles(KernelTable& table) {
    table.peaks.bytes = multiply_tiles;
    table.tiles.rows = kTileRowLimit;
    table.tiles.least = kLeastTileRows;
    table.tiles.configure = configure_tiles;
    table.tiles.release = release_tiles;
    table.tiles.panel[static_cast<int>(Format::w4)] = tile_product<Format::w4>;
    table.tiles.panel[static_cast<int>(Format::w8)] = tile_product<Format::w8>;
    table.tiles.panel[static_cast<int>(Format::w8m)] = tile_product<Format::w8m>;
    table.tiles.panel[static_cast<int>(Format::w8g16)] = tile_product<Format::w8g16>;
    table.tiles.panel[static_cast<int>(Format::w4a8)] = tile_product<Format::w4a8>;
    table.tiles.panel[static_cast<int>(Format::w8a8)] = tile_product<Format::w8a8>;
    table.tiles.panel[static_cast<int>(Format::w8ma8)] = tile_product<Format::w8ma8>;
    table.tiles.panel[static_cast<int>(Format::w8g16a8)] = tile_product<Format::w8g16a8>;
}

}  // namespace headrace::HEADRACE_ISA
