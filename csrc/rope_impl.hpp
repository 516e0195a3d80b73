// Between the Q/K/V product and attention: biases, per-head norms, rotary positions, K and V into their page.
#pragma once

#include "kv_codes_impl.hpp"
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

// Key and value of one token and head as bf16: a column and a row.
inline void store_floats(const float* key, const float* value, int width, std::uint8_t* head, int slot) {
    auto* keys = reinterpret_cast<std::uint16_t*>(head);
    std::uint16_t* values = keys + static_cast<std::size_t>(kPageTokens + slot) * width;
    for (int i = 0; i < width; i += 16) {
        std::uint16_t codes[16];
        store_bf16(codes, load(key + i));
        for (int j = 0; j < 16; ++j) keys[(i + j) * kPageTokens + slot] = codes[j];
        store_bf16(values + i, load(value + i));
    }
}

inline void store_kv_row(const KvRow& row) {
    std::uint8_t* head = row.page;
    for (int i = 0; i < row.kv_heads; ++i, head += kv_head_bytes(row.format, row.head_dim)) {
        const float *key = row.keys + i * row.head_dim, *value = row.values + i * row.head_dim;
        switch (row.format) {
            case KvFormat::bf16: store_floats(key, value, row.head_dim, head, row.slot); break;
            case KvFormat::kv8: store_coded<8>(key, value, row.head_dim, head, row.slot); break;
            case KvFormat::kv4: store_coded<4>(key, value, row.head_dim, head, row.slot); break;
        }
    }
}

// Keys become (key + shift) · factor, and queries take the inverse factor: see AttentionBlock.
HEADRACE_INLINE void balance_heads(const QkvRow& row) {
    const int width = row.head_dim, group = row.heads / row.kv_heads;
    for (int i = 0; i < row.kv_heads * width; i += 16)
        store(row.k + i, (load(row.k + i) + load(row.k_shift + i)) * load(row.k_factor + i));
    for (int head = 0; head < row.heads; ++head) {
        float* q = row.q + head * width;
        const float* factor = row.q_factor + head / group * width;
        for (int i = 0; i < width; i += 16) store(q + i, load(q + i) * load(factor + i));
    }
}

inline void finish_qkv_row(const QkvRow& row) {
    const int width = row.head_dim;
    finish_heads(row.q, row.q_bias, row.q_norm, row.heads, row);
    finish_heads(row.k, row.k_bias, row.k_norm, row.kv_heads, row);
    if (row.v_bias) add_row(row.v_bias, row.kv_heads * width, row.v);
    scale_row(row.scale, row.heads * width, row.q);
    if (row.k_shift) balance_heads(row);
    store_kv_row({row.format, row.kv_heads, width, row.k, row.v, row.page, row.slot});
}

}  // namespace headrace::HEADRACE_ISA
