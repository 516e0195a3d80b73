// Runtime weight formats, packed matrices and quantised rows: the nouns every kernel shares. Plain data only, so that
// translation units compiled for different ISAs may include it (no inline function that the linker could merge).
//
// A packed matrix is a list of panels. A panel is 16 output channels over all inputs, one record per group of inputs:
//
//   w4    [4 x 64 B codes][16 fp16 d][16 fp16 m]       group 32   value = d*q + m           320 B
//   w8    [8 x 64 B codes][16 fp16 d]                  group 32   value = d*(q-128)         544 B
//   w8m   [8 x 64 B codes][16 fp16 d][16 fp16 m]       group 32   value = d*(q-128) + m     576 B
//   w8g16 [4 x 64 B codes][16 fp16 d]                  group 16   value = d*(q-128)         288 B
//   bf16, f16, f32  [16 values]                        group 1                              32, 32, 64 B
//
// w4a8, w8a8, w8ma8, w8g16a8 are the same records for rows of 8 bits with a scale every 32 inputs.
//
// Integer formats have one float a channel and integer groups (QServe's progressive group quantisation), so that a product
// is integer arithmetic up to one float step at its end:
//
//   q8a8, q8a16       [16 f32 s0][inputs/4 lines of 64 B]                                    value = s0*(q-128)
//   q4g<g>a8, …a16    [16 f32 s0] then per 4 groups [4 x 16 u8 s1][2 lines of zeros][4 x g/8 lines of 64 B]
//                                                                                            value = s0*(q*s1 - z)
//   a line of zeros is 16 channels x the int16 zeros of two groups: one operand of vpdpwssd
//
// Everything stands in the order in which a product reads it: with the scales in a run of their own, streaming a matrix of
// groups of 32 was three times slower.
// a8 takes rows of 8 bits in one plane, a16 the two planes of the other formats. The last group may be short. int32 holds
// every sum because packing refuses a channel whose |q*s1 - z| add up to more than 2^31 / 128.
//
// A 64 B line of codes is "16n x 4k": dword c holds channel c, its byte j the input 4*line + j. In w4 the low nibble
// belongs to input 4*line + j and the high nibble to input 16 + 4*line + j, so one `and` and one shift give two byte
// operands for vpdpbusd, and one line is also one row of an int8 matrix tile.
#pragma once

#include <cstddef>
#include <cstdint>

namespace headrace {

enum class Format : std::uint8_t {
    w4, w8, w8m, w8g16, bf16, f16, f32, q8a8, q8a16, q4g32a8, q4g64a8, q4g128a8, q4g32a16, q4g64a16, q4g128a16,
    w4a8, w8a8, w8ma8, w8g16a8
};

inline constexpr int kFormats = 19;
inline constexpr int kPanelWidth = 16;   // output channels of one panel
inline constexpr int kGroup = 32;        // inputs of quantised rows are padded to this
inline constexpr int kRowBlock = 8;      // rows that share one pass over a panel
inline constexpr int kBytePeak = 127;          // of activations in 8 bits
inline constexpr int kActivationPeak = 32512;  // 127 * 256: both planes stay inside int8

struct FormatTraits {
    const char* name;
    int bits;           // of one code or value
    int group;          // inputs sharing one scale (1: none)
    int record_bytes;   // of one panel and one group
    bool has_min;
    bool quantised;     // takes integer activations; otherwise fp32 activations
    int activation_bits = 16;  // of integer activations
    bool integer = false;      // integer groups, one float a channel; record_bytes then counts what a group takes in all
};

inline constexpr FormatTraits kFormatTraits[kFormats] = {
    {"w4", 4, 32, 320, true, true},     {"w8", 8, 32, 544, false, true},   {"w8m", 8, 32, 576, true, true},
    {"w8g16", 8, 16, 288, false, true}, {"bf16", 16, 1, 32, false, false}, {"f16", 16, 1, 32, false, false},
    {"f32", 32, 1, 64, false, false},
    {"q8a8", 8, 32, 512, false, true, 8, true},
    {"q8a16", 8, 32, 512, false, true, 16, true},
    {"q4g32a8", 4, 32, 304, true, true, 8, true},
    {"q4g64a8", 4, 64, 560, true, true, 8, true},
    {"q4g128a8", 4, 128, 1072, true, true, 8, true},
    {"q4g32a16", 4, 32, 304, true, true, 16, true},
    {"q4g64a16", 4, 64, 560, true, true, 16, true},
    {"q4g128a16", 4, 128, 1072, true, true, 16, true},
    {"w4a8", 4, 32, 320, true, true, 8},  {"w8a8", 8, 32, 544, false, true, 8}, {"w8ma8", 8, 32, 576, true, true, 8},
    {"w8g16a8", 8, 16, 288, false, true, 8},
};

// Activation rows of one product, in whichever forms the matrix's panels need (see PackedMatrix::needs_*).
//
// Quantised form (x = scale * q, q = 256*hi + lo, |q| <= 32512, scale = amax/32512, an all-zero row has scale 0):
//   planes  [rows][padded/32][2][32] int8: per 32 inputs their hi bytes, then their lo bytes (each 32 are one row of an int8
//           matrix tile, and any 4 of them a vpdpbusd operand); zero beyond `inputs`
//   sums32  [rows][padded/32] int32: sums of q over 32 inputs; sums16 the same over 16 inputs
// where padded = inputs rounded up to 32.
//
// Integer formats take bytes [rows][padded] (x = byte_scale * q, |q| <= 127) or the planes, and of either the sums of each
// plane over groups: int16, first of all groups of 32, then of 64, then of 128, each run padded to an even count (SumLayout),
// and over the whole row: int32. Planes have two such runs a row, hi then lo.
//
// Formats w…a8 take groups: x = scale * q for 32 inputs at a time, scale = amax/127 of these, |q| <= 127 (a row with a NaN
// or an infinity has a NaN in its first scale):
//   bytes    [rows][padded] int8
//   scales   [rows][padded/32] float; weighted: each times the sum of its q
//   offsets  -128 times the sums of q over 32 (offsets32) or 16 inputs (offsets16): int32
struct GroupRows {
    const std::int8_t* bytes = nullptr;
    const float* scales = nullptr;
    const float* weighted = nullptr;
    const std::int32_t* offsets32 = nullptr;
    const std::int32_t* offsets16 = nullptr;
};

struct Rows {
    int count = 0;
    int inputs = 0;
    const std::int8_t* planes = nullptr;
    const float* scale = nullptr;
    const std::int32_t* sums32 = nullptr;
    const std::int32_t* sums16 = nullptr;
    const float* values = nullptr;  // fp32 form, row stride `value_stride` floats
    std::size_t value_stride = 0;
    const std::int8_t* bytes = nullptr;
    const float* byte_scale = nullptr;
    const std::int16_t* byte_sums = nullptr;
    const std::int32_t* byte_totals = nullptr;   // [rows]
    const std::int16_t* plane_sums = nullptr;
    const std::int32_t* plane_totals = nullptr;  // [rows][2]
    GroupRows groups = {};
};

// Where the sums over groups of 32, 64 and 128 inputs begin in a run, and its length.
struct SumLayout {
    int start[3];
    int length;
};

// Defined once, in integer_panel.cpp, for all instruction sets.
SumLayout sum_layout(int inputs);

// One panel times a block of rows: what a matmul kernel is asked.
struct PanelProduct {
    const std::uint8_t* panel;
    int groups;                    // records in the panel
    int rows;
    const std::int8_t* planes;     // first row
    std::size_t plane_stride;      // bytes from row to row
    const std::int32_t* sums;      // sums16 or sums32 (of groups of 8 bits: the offsets) by the format's group
    std::size_t sum_stride;
    const float* scale;
    const float* values;
    std::size_t value_stride;
    float* out;                    // 16 floats a row
    std::size_t out_stride;        // floats from row to row
    int inputs;                    // of integer formats, as everything below
    const std::int16_t* group_sums;  // of the format's group; `lo` sums lie group_sum_length behind `hi` sums
    std::size_t group_sum_stride;
    std::size_t group_sum_length;
    const std::int32_t* totals;    // one a plane
    const float* group_scales;     // of groups of 8 bits, one every 32 inputs
    const float* group_weighted;
    std::size_t group_scale_stride;
};

// Places in a panel of 4-bit codes and integer groups.
struct IntegerPanel {
    int group, groups;
    std::size_t bytes;
};

inline constexpr int kBlockGroups = 4;
inline constexpr std::size_t kBlockHead = 192;  // scales and zeros of four groups

IntegerPanel integer_panel(Format format, int inputs);

}  // namespace headrace
