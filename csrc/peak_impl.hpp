// What an instruction set can do at most: its product instructions on registers alone, the limit that measured products
// are held against. Never part of a computation.
#pragma once

#include <utility>

#include "codes.hpp"
#include "kernel_table.hpp"

namespace headrace::HEADRACE_ISA {
namespace {

// Independent chains: more than latency times issue width, and no more than the registers hold.
#if defined(HEADRACE_LANES_512)
constexpr int kPeakChains = 16;
#else
constexpr int kPeakChains = 4;
#endif

// The chains are written out, so that their sums stay in registers.
template <int... chain>
HEADRACE_INLINE long byte_rounds(long rounds, std::integer_sequence<int, chain...>) {
    alignas(64) std::uint8_t codes[sizeof...(chain)][64] = {};
    alignas(64) std::int8_t inputs[4] = {1, 2, 3, 4};
    asm volatile("" : : "r"(codes), "r"(inputs) : "memory");
    I16 acc[] = {splat_int(chain)...};
    for (long i = 0; i < rounds; ++i) {
#if defined(HEADRACE_LANES_512)
        ((acc[chain] = dot_nibbles(acc[chain], load_codes(codes[0]), inputs)), ...);
#else  // no single instruction: its multiplications would be done once for all rounds
        asm volatile("" : : "r"(codes) : "memory");
        ((acc[chain] = dot_nibbles(acc[chain], load_codes(codes[chain]), inputs)), ...);
#endif
    }
    const std::int32_t total = (sum(acc[chain]) + ...);
    asm volatile("" : : "r"(total));
    return 64L * static_cast<long>(sizeof...(chain)) * rounds;
}

template <int... chain>
HEADRACE_INLINE long float_rounds(long rounds, std::integer_sequence<int, chain...>) {
    F16 acc[] = {splat(static_cast<float>(chain))...};
    F16 w = splat(0.5f);
    asm volatile("" : : "r"(&w) : "memory");
    for (long i = 0; i < rounds; ++i) ((acc[chain] = fma(w, w, acc[chain])), ...);
    const float total = (sum(acc[chain]) + ...);
    asm volatile("" : : "m"(total));
    return 16L * static_cast<long>(sizeof...(chain)) * rounds;
}

long multiply_bytes(long rounds) { return byte_rounds(rounds, std::make_integer_sequence<int, kPeakChains>{}); }

long multiply_floats(long rounds) { return float_rounds(rounds, std::make_integer_sequence<int, kPeakChains>{}); }

// Only reads: the widest loads there are, nothing kept. `length` is a multiple of 64.
void read_bytes(const std::uint8_t* from, std::size_t length) {
    I16 parts[4] = {splat_int(0), splat_int(0), splat_int(0), splat_int(0)};
    std::size_t at = 0;
    for (; at + 256 <= length; at += 256)
        for (int i = 0; i < 4; ++i) parts[i] = parts[i] | load(reinterpret_cast<const std::int32_t*>(from + at + 64 * i));
    for (; at < length; at += 64) parts[0] = parts[0] | load(reinterpret_cast<const std::int32_t*>(from + at));
    const std::int32_t all = sum((parts[0] | parts[1]) | (parts[2] | parts[3]));
    asm volatile("" : : "r"(all));
}

}  // namespace

void fill_peaks(KernelTable& table) { table.peaks = {multiply_bytes, multiply_floats, read_bytes}; }

}  // namespace headrace::HEADRACE_ISA
