// The encoded blocks of GGUF files, one group of inputs at a time, with their codes kept exactly.
//
// Each decoder takes a row of blocks and a group index and gives codes in the runtime convention (formats.hpp): 4-bit codes
// mean d*q + m, 8-bit codes mean d*(q-128) [+ m]. It returns false when a scale is not finite: such a file is damaged.
#pragma once

#include <cstdint>

namespace headrace {

struct GroupCodes {
    std::uint8_t q[32];
    std::uint16_t d;  // fp16 bits
    std::uint16_t m;
};

bool decode_q8_0(const std::uint8_t* row, int group, GroupCodes& out);
bool decode_q4_0(const std::uint8_t* row, int group, GroupCodes& out);
bool decode_q4_1(const std::uint8_t* row, int group, GroupCodes& out);
bool decode_q5_0(const std::uint8_t* row, int group, GroupCodes& out);
bool decode_q5_1(const std::uint8_t* row, int group, GroupCodes& out);
bool decode_q4_k(const std::uint8_t* row, int group, GroupCodes& out);
bool decode_q6_k(const std::uint8_t* row, int group, GroupCodes& out);  // groups of 16

float float_of_half(std::uint16_t half);
std::uint16_t half_of_float(float value);  // rounds to nearest even; too large becomes infinite

}  // namespace headrace
