// Between the Q/K/V product and attention: biases, per-head norms, rotary positions, K and V into their page.
#pragma once

#include "norm_impl.hpp"

namespace headrace::HEADRACE_ISA {

// Pairs are (i, i + half). y1 = x1·cos − x2·sin, y2 = x2·cos + x1·sin.
HEADRACE_INLINE void rotate_head(float* x, const float* cosine, const float* sine, int half) {
    for (int i = 0; i < half; i += 16) {
        const F16 c = load(cosine + i), s = load(sine + i), a = load(x + i), b = load(x + half + i);
        store(x + i, fnma(b, s, a * c));
        store(x + half + i, fma(a, s, b * c));
    }
}

HEADRACE_INLINE void finish_heads(float* x, const float* bias, const float* gain, int heads, const QkvRow& row) {
    const int width = row.head_dim;
    if (bias) add_row(bias, heads * width, x);
    for (int head = 0; head < heads; ++head) {
        float* values = x + head * width;
        if (gain) norm_row(values, gain, row.eps, width, values);
        rotate_head(values, row.cosine, row.sine, width / 2);
    }
}

inline void finish_qkv_row(const QkvRow& row) {
    const int width = row.head_dim;
    finish_heads(row.q, row.q_bias, row.q_norm, row.heads, row);
    finish_heads(row.k, row.k_bias, row.k_norm, row.kv_heads, row);
    if (row.v_bias) add_row(row.v_bias, row.kv_heads * width, row.v);
    scale_row(row.scale, row.heads * width, row.q);
    for (int head = 0; head < row.kv_heads; ++head) {
        std::uint16_t* keys = row.page + static_cast<std::size_t>(head) * 2 * kPageTokens * width;
        std::uint16_t* values = keys + static_cast<std::size_t>(kPageTokens) * width + static_cast<std::size_t>(row.slot) * width;
        for (int i = 0; i < width; i += 16) {
            std::uint16_t codes[16];
            store_bf16(codes, load(row.k + head * width + i));
            for (int j = 0; j < 16; ++j) keys[(i + j) * kPageTokens + row.slot] = codes[j];
            store_bf16(values + i, load(row.v + head * width + i));
        }
    }
}

}  // namespace headrace::HEADRACE_ISA
