// Passes over a row of logits (sampler_scans.hpp), written once on vectors of sixteen and compiled per instruction set.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>

#include "kernel_table.hpp"

#pragma GCC diagnostic ignored "-Wpsabi"  // vectors of 64 bytes never cross a call: everything that takes them is inlined

namespace headrace::HEADRACE_ISA {
namespace {

constexpr int kBlock = kScanBlock;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

typedef float V16 __attribute__((vector_size(64)));
typedef std::int32_t W16 __attribute__((vector_size(64)));

#define ALWAYS inline __attribute__((always_inline))

ALWAYS V16 load(const float* p) { V16 v; std::memcpy(&v, p, sizeof v); return v; }
ALWAYS void store(float* p, const V16& v) { std::memcpy(p, &v, sizeof v); }
ALWAYS V16 splat(float x) { return V16{} + x; }

// Fixed tree: lane i meets i + 8, then i + 4, i + 2, i + 1.
ALWAYS float lane_sum(const V16& v) {
    float a[16];
    std::memcpy(a, &v, sizeof a);
    for (int width = 8; width > 0; width /= 2)
        for (int i = 0; i < width; ++i) a[i] += a[i + width];
    return a[0];
}

// e^x for x <= 0, exactly 1 at 0, 0 below -87. Only products and sums (the build never fuses them), so that every instruction
// set gives the same bits.
ALWAYS void exp_nonpositive(const V16& x, V16& result) {
    const V16 low = splat(-87.0f);
    const V16 clamped = x > low ? x : low;
    const V16 magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer in the low mantissa bits
    const V16 shifted = clamped * 1.44269504088896341f + magic;
    const V16 whole = shifted - magic;
    const V16 r = (clamped - whole * 0.693359375f) + whole * 2.12194440e-4f;
    V16 p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    W16 bits, exponent;
    std::memcpy(&bits, &p, sizeof bits);
    std::memcpy(&exponent, &shifted, sizeof exponent);
    bits += exponent << 23;  // the magic's own bits leave at the top
    V16 scaled;
    std::memcpy(&scaled, &bits, sizeof scaled);
    result = x > low ? scaled : V16{};
}

// The last, incomplete block as a whole one padded with -inf; other blocks as they are.
ALWAYS const float* whole_block(const float* z, int n, int first, float* padded) {
    if (first + kBlock <= n) return z + first;
    for (int i = 0; i < kBlock; ++i) padded[i] = -kInfinity;
    std::memcpy(padded, z + first, sizeof(float) * static_cast<std::size_t>(n - first));
    return padded;
}

bool block_maxima(const float* z, int n, float* maxima) {
    float padded[kBlock];
    W16 magnitude = {};  // largest bits without sign: only NaN is beyond infinity (gcc takes other comparisons apart)
    for (int first = 0; first < n; first += kBlock) {
        const float* block = whole_block(z, n, first, padded);
        V16 most = splat(-kInfinity);
        for (int i = 0; i < kBlock; i += 16) {
            const V16 v = load(block + i);
            most = v > most ? v : most;
            W16 bits;
            std::memcpy(&bits, &v, sizeof bits);
            bits &= 0x7fffffff;
            magnitude = bits > magnitude ? bits : magnitude;
        }
        float best = -kInfinity;
        for (int i = 0; i < 16; ++i) best = most[i] > best ? most[i] : best;
        maxima[first / kBlock] = best;
    }
    std::int32_t largest = 0;
    for (int i = 0; i < 16; ++i) largest = magnitude[i] > largest ? magnitude[i] : largest;
    return largest <= 0x7f800000;
}

void weigh(const float* z, int n, float top, float inverse, float* w, float* sums) {
    float padded[kBlock];
    for (int first = 0; first < n; first += kBlock) {
        const float* block = whole_block(z, n, first, padded);
        V16 total = {};
        for (int i = 0; i < kBlock; i += 16) {
            V16 e;
            exp_nonpositive((load(block + i) - top) * inverse, e);
            store(w + first + i, e);
            total += e;
        }
        sums[first / kBlock] = lane_sum(total);
    }
}

void exp_sums(const float* z, int n, float top, float* sums) {
    float padded[kBlock];
    for (int first = 0; first < n; first += kBlock) {
        const float* block = whole_block(z, n, first, padded);
        V16 total = {};
        for (int i = 0; i < kBlock; i += 16) {
            V16 e;
            exp_nonpositive(load(block + i) - top, e);
            total += e;
        }
        sums[first / kBlock] = lane_sum(total);
    }
}

void cut(float* w, int padded, float least, int last, float* sums) {
    for (int first = 0; first < padded; first += kBlock) {
        if (first <= last && last < first + kBlock) {  // ties with `least` are kept up to `last`, which lies in this block
            for (int i = first; i < first + kBlock; ++i)
                if (w[i] < least || (w[i] == least && i > last)) w[i] = 0.0f;
        }
        const bool ties = first <= last;
        V16 total = {};
        for (int i = first; i < first + kBlock; i += 16) {
            const V16 v = load(w + i);
            const V16 above = v > splat(least) ? v : V16{};
            const V16 level = v >= splat(least) ? v : V16{};
            const V16 kept = ties ? level : above;
            store(w + i, kept);
            total += kept;
        }
        sums[first / kBlock] = lane_sum(total);
    }
}

}  // namespace

void fill_scans(KernelTable& table) { table.scans = {block_maxima, weigh, exp_sums, cut}; }

}  // namespace headrace::HEADRACE_ISA
