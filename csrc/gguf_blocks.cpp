#include "gguf_blocks.hpp"

#include <cstring>

namespace headrace {
namespace {

std::uint16_t word_at(const std::uint8_t* p) {
    std::uint16_t word;
    std::memcpy(&word, p, 2);
    return word;
}

bool finite(std::uint16_t half) { return (half & 0x7c00) != 0x7c00; }

// Low nibbles are inputs 0 … 15, high nibbles 16 … 31.
void split_nibbles(const std::uint8_t* packed, std::uint8_t* q) {
    for (int i = 0; i < 16; ++i) {
        q[i] = packed[i] & 15;
        q[i + 16] = packed[i] >> 4;
    }
}

// The fifth bit of input i is bit i of a little-endian word.
void split_five_bits(const std::uint8_t* high, const std::uint8_t* packed, std::uint8_t offset, std::uint8_t* q) {
    std::uint32_t bits;
    std::memcpy(&bits, high, 4);
    split_nibbles(packed, q);
    for (int i = 0; i < 32; ++i) q[i] = static_cast<std::uint8_t>((q[i] | (bits >> i & 1) << 4) + offset);
}

struct SubScale {
    int scale, min;
};

// Eight 6-bit scales and eight 6-bit minimums share twelve bytes: four of each whole, the rest split in 4 + 2 bits.
SubScale sub_scale(const std::uint8_t* s, int i) {
    if (i < 4) return {s[i] & 63, s[i + 4] & 63};
    return {(s[i + 4] & 15) | (s[i - 4] >> 6) << 4, s[i + 4] >> 4 | (s[i] >> 6) << 4};
}

}  // namespace

float float_of_half(std::uint16_t half) {
    _Float16 value;
    std::memcpy(&value, &half, 2);
    return static_cast<float>(value);
}

std::uint16_t half_of_float(float value) {
    const _Float16 rounded = static_cast<_Float16>(value);
    return word_at(reinterpret_cast<const std::uint8_t*>(&rounded));
}

bool decode_q8_0(const std::uint8_t* row, int group, GroupCodes& out) {
    const std::uint8_t* block = row + 34 * static_cast<std::int64_t>(group);
    out.d = word_at(block);
    for (int i = 0; i < 32; ++i) out.q[i] = block[2 + i] ^ 0x80;
    return finite(out.d);
}

bool decode_q4_0(const std::uint8_t* row, int group, GroupCodes& out) {
    const std::uint8_t* block = row + 18 * static_cast<std::int64_t>(group);
    out.d = word_at(block);
    out.m = half_of_float(-8.0f * float_of_half(out.d));
    split_nibbles(block + 2, out.q);
    return finite(out.d) && finite(out.m);
}

bool decode_q4_1(const std::uint8_t* row, int group, GroupCodes& out) {
    const std::uint8_t* block = row + 20 * static_cast<std::int64_t>(group);
    out.d = word_at(block);
    out.m = word_at(block + 2);
    split_nibbles(block + 4, out.q);
    return finite(out.d) && finite(out.m);
}

bool decode_q5_0(const std::uint8_t* row, int group, GroupCodes& out) {
    const std::uint8_t* block = row + 22 * static_cast<std::int64_t>(group);
    out.d = word_at(block);
    split_five_bits(block + 2, block + 6, 128 - 16, out.q);
    return finite(out.d);
}

bool decode_q5_1(const std::uint8_t* row, int group, GroupCodes& out) {
    const std::uint8_t* block = row + 24 * static_cast<std::int64_t>(group);
    out.d = word_at(block);
    out.m = word_at(block + 2);
    split_five_bits(block + 4, block + 8, 128, out.q);
    return finite(out.d) && finite(out.m);
}

// A block is [fp16 d][fp16 dmin][12 B scales][128 B nibbles]; 32 bytes of nibbles hold two groups, low and high.
bool decode_q4_k(const std::uint8_t* row, int group, GroupCodes& out) {
    const std::uint8_t* block = row + 144 * static_cast<std::int64_t>(group / 8);
    const int sub = group % 8, shift = sub % 2 * 4;
    const SubScale s = sub_scale(block + 4, sub);
    out.d = half_of_float(float_of_half(word_at(block)) * static_cast<float>(s.scale));
    out.m = half_of_float(-(float_of_half(word_at(block + 2)) * static_cast<float>(s.min)));
    const std::uint8_t* packed = block + 16 + 32 * (sub / 2);
    for (int i = 0; i < 32; ++i) out.q[i] = packed[i] >> shift & 15;
    return finite(out.d) && finite(out.m);
}

// A block is [128 B low nibbles][64 B high bit pairs][16 int8 scales][fp16 d], in two halves of 128 inputs. In a half, input
// 32*part + i takes low nibbles from byte 32*(part%2) + i (upper nibble for part ≥ 2) and bits 2*part of high byte i.
bool decode_q6_k(const std::uint8_t* row, int group, GroupCodes& out) {
    const std::uint8_t* block = row + 210 * static_cast<std::int64_t>(group / 16);
    const int sub = group % 16, half = sub / 8, part = sub % 8 / 2, start = sub % 2 * 16;
    const std::uint8_t* low = block + 64 * half + 32 * (part % 2) + start;
    const std::uint8_t* high = block + 128 + 32 * half + start;
    const auto scale = static_cast<std::int8_t>(block[192 + sub]);
    out.d = half_of_float(float_of_half(word_at(block + 208)) * static_cast<float>(scale));
    for (int i = 0; i < 16; ++i)
        out.q[i] = static_cast<std::uint8_t>(((low[i] >> (part / 2 * 4) & 15) | (high[i] >> (2 * part) & 3) << 4) + (128 - 32));
    return finite(out.d);
}

}  // namespace headrace
