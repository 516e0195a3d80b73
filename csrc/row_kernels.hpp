// Kernels on single rows (norms, quantisation, rotary positions, activations) and attention, as entries of the kernel
// table. Plain data only: included by translation units of every ISA.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kv_format.hpp"

namespace headrace {

inline constexpr int kMaxQueries = 48;      // query vectors (rows × heads of a group) of one attention tile
inline constexpr int kSpanKeys = 512;       // keys whose scores are known together and whose sums are folded on their own, at absolute multiples
inline constexpr int kSpanPages = kSpanKeys / kPageTokens;
inline constexpr int kWidePages = 4;        // pages made ready together when many queries use them
inline constexpr int kMaxHeadDim = 1024;

// Row quantisation as formats.hpp defines it. `inputs` is a multiple of 32.
struct QuantisedRow {
    std::int8_t* planes;
    float* scale;
    std::int32_t* sums32;
    std::int32_t* sums16;
};

// The same in 8 bits: codes |q| <= 127, scale amax/127, sums as SumLayout says.
struct ByteRow {
    std::int8_t* bytes;
    float* scale;
    std::int16_t* sums;
    std::int32_t* total;
};

// The same with a scale every 32 inputs; see GroupRows.
struct GroupedRow {
    std::int8_t* bytes;
    float* scales;
    float* weighted;
    std::int32_t* offsets32;
    std::int32_t* offsets16;
};

// What follows the Q/K/V product of one row: biases, per-head norms, rotation, and K and V going into their page.
struct QkvRow {
    float* q;             // [heads][head_dim], finished in place (and multiplied by `scale`)
    float* k;             // [kv_heads][head_dim], finished in place
    float* v;
    const float* q_bias;  // each may be null
    const float* k_bias;
    const float* v_bias;
    const float* q_norm;
    const float* k_norm;
    const float* k_shift;   // [kv_heads][head_dim] each, or null: see AttentionBlock
    const float* k_factor;
    const float* q_factor;
    const float* cosine;  // [head_dim/2] at the row's position
    const float* sine;
    float eps;
    float scale;
    int heads;
    int kv_heads;
    int head_dim;
    KvFormat format;
    std::uint8_t* page;   // this layer's part of the page
    int slot;             // position % 16
};

// Finished keys and values of one token, [kv_heads][head_dim], on their way into a slot of a page.
struct KvRow {
    KvFormat format;
    int kv_heads;
    int head_dim;
    const float* keys;
    const float* values;
    std::uint8_t* page;  // this layer's part
    int slot;
};

// Where a slice's pages are: by its table, or (table null) one behind the other.
struct PagePlaces {
    const std::uint8_t* first;
    std::size_t page_bytes;
    const std::int32_t* table;

    const std::uint8_t* operator()(int page) const {
        return first + static_cast<std::size_t>(table ? table[page] : page) * page_bytes;
    }
};

// Attention of `rows` consecutive positions of one slice by the query heads that share one KV head.
struct AttentionTile {
    const float* q;        // first row, first head of the group
    std::size_t q_stride;  // floats from row to row
    float* out;
    std::size_t out_stride;
    int rows;
    int group;             // query heads per KV head; rows·group ≤ kMaxQueries
    int head_dim;
    int position;          // of the first row
    int window;            // keys a row sees, itself included; 0: all
    KvFormat format;
    PagePlaces pages;         // of the slice
    std::size_t head_offset;  // bytes from a page's start to this layer's and head's part
    bool asked;               // the first keys were asked for before, as those of the next head
    bool another;             // the next head of the same pages follows
    float* scratch;           // attention_scratch(head_dim) floats
};

// One span of keys of one row, for long contexts split over threads: partial sums instead of the finished row.
struct AttentionSpan {
    AttentionTile tile;  // rows == 1; `out` takes group × (head_dim + 2): sums, then maximum and weight
    int first_key;       // a multiple of kSpanKeys
};

// The spans of one row, to be folded in order: partial [spans][heads][head_dim + 2].
struct SpanMerge {
    KvFormat format;
    const float* partial;
    int spans;
    int heads;
    int head_dim;
    float* out;
};

// Sums and own forms of the queries, their scores in a span, and the keys or values that were made ready for many queries:
// four pages of floats or a whole span of bytes.
constexpr std::size_t attention_scratch(int head_dim) {
    return static_cast<std::size_t>(kMaxQueries) * (2 * static_cast<std::size_t>(head_dim) + kSpanKeys) +
           static_cast<std::size_t>(kSpanKeys / 4) * static_cast<std::size_t>(head_dim);
}

enum class ActivationKind : std::uint8_t { silu, gelu_tanh };

struct RowKernels {
    // out = x / rms(x) · gain; x may be out.
    void (*norm)(const float* x, const float* gain, float eps, int n, float* out);
    void (*quantise)(const float* x, int n, const QuantisedRow& to);
    void (*quantise_bytes)(const float* x, int n, const ByteRow& to);
    void (*quantise_groups)(const float* x, int n, const GroupedRow& to);
    // Group sums and totals of the two planes of a quantised row: sums [2][SumLayout], totals [2].
    void (*sum_planes)(const std::int8_t* planes, int n, std::int16_t* sums, std::int32_t* totals);
    void (*add)(const float* x, int n, float* to);  // to += x
    void (*scale)(float factor, int n, float* x);
    // out[16·i …] = activation(gate)·up of a row of interleaved panels: 16 gates, 16 ups, …
    void (*gate)(ActivationKind kind, const float* pairs, int panels, float* out);
    void (*finish_qkv)(const QkvRow& row);
    void (*store_kv)(const KvRow& row);
    void (*attend)(const AttentionTile& tile);
    void (*attend_span)(const AttentionSpan& span);
    void (*merge_spans)(const SpanMerge& merge);
    int (*arg_max)(const float* x, int n);  // index of the largest, the lowest of equals; NaN is never the largest
    void (*map)(int function, const float* x, int n, float* out);  // 0 exp, 1 silu, 2 gelu_tanh, 3 power_of_two: for tests
};

}  // namespace headrace
