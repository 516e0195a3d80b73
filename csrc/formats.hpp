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
// A 64 B line of codes is "16n x 4k": dword c holds channel c, its byte j the input 4*line + j. In w4 the low nibble
// belongs to input 4*line + j and the high nibble to input 16 + 4*line + j, so one `and` and one shift give two byte
// operands for vpdpbusd, and one line is also one row of an int8 matrix tile.
#pragma once

#include <cstddef>
#include <cstdint>

namespace headrace {

enum class Format : std::uint8_t { w4, w8, w8m, w8g16, bf16, f16, f32 };

inline constexpr int kFormats = 7;
inline constexpr int kPanelWidth = 16;   // output channels of one panel
inline constexpr int kGroup = 32;        // inputs of quantised rows are padded to this
inline constexpr int kRowBlock = 8;      // rows that share one pass over a panel
inline constexpr int kActivationPeak = 32512;  // 127 * 256: both planes stay inside int8

struct FormatTraits {
    const char* name;
    int bits;           // of one code or value
    int group;          // inputs sharing one scale (1: none)
    int record_bytes;   // of one panel and one group
    bool has_min;
    bool quantised;     // takes planes of int8 activations; otherwise fp32 activations
};

inline constexpr FormatTraits kFormatTraits[kFormats] = {
    {"w4", 4, 32, 320, true, true},     {"w8", 8, 32, 544, false, true},   {"w8m", 8, 32, 576, true, true},
    {"w8g16", 8, 16, 288, false, true}, {"bf16", 16, 1, 32, false, false}, {"f16", 16, 1, 32, false, false},
    {"f32", 32, 1, 64, false, false},
};

// Activation rows of one product, in whichever forms the matrix's panels need (see PackedMatrix::needs_*).
//
// Quantised form (x = scale * q, q = 256*hi + lo, |q| <= 32512, scale = amax/32512, an all-zero row has scale 0):
//   planes  [rows][padded/32][2][32] int8: per 32 inputs their hi bytes, then their lo bytes (each 32 are one row of an int8
//           matrix tile, and any 4 of them a vpdpbusd operand); zero beyond `inputs`
//   sums32  [rows][padded/32] int32: sums of q over 32 inputs; sums16 the same over 16 inputs
// where padded = inputs rounded up to 32.
struct Rows {
    int count = 0;
    int inputs = 0;
    const std::int8_t* planes = nullptr;
    const float* scale = nullptr;
    const std::int32_t* sums32 = nullptr;
    const std::int32_t* sums16 = nullptr;
    const float* values = nullptr;  // fp32 form, row stride `value_stride` floats
    std::size_t value_stride = 0;
};

// One panel times a block of rows: what a matmul kernel is asked.
struct PanelProduct {
    const std::uint8_t* panel;
    int groups;                    // records in the panel
    int rows;
    const std::int8_t* planes;     // first row
    std::size_t plane_stride;      // bytes from row to row
    const std::int32_t* sums;      // sums16 or sums32 by the format's group
    std::size_t sum_stride;
    const float* scale;
    const float* values;
    std::size_t value_stride;
    float* out;                    // 16 floats a row
    std::size_t out_stride;        // floats from row to row
};

}  // namespace headrace
