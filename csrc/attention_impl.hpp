// Paged attention on lanes: one arithmetic for prompt chunks and decode rows. Included once per ISA.
//
// A row's result is a function of its query and of the keys it sees, never of the rows beside it:
//   - keys are visited in tiles of 64 at absolute positions (four pages), ascending; scores of 16 keys share one vector
//     (K is stored transposed), each an fma chain over the head's dimensions in order;
//   - a tile updates a running maximum, 16 partial weights and the sums of values, key by key in order (online softmax, as
//     in FlashAttention);
//   - every 512 keys (again absolute) the running state is folded into the row's total, so that a long context may be cut
//     at those borders, computed by several threads and merged in the same order;
//   - keys outside the causal range or the window take no part at all: they are skipped, not multiplied by zero.
#pragma once

#include "math.hpp"
#include "row_kernels.hpp"

namespace headrace::HEADRACE_ISA {

inline constexpr int kTileKeys = 64;
inline constexpr int kTilePages = kTileKeys / kPageTokens;

// How many queries share a pass over a tile, how many pages of keys and vectors of values are in flight: register budgets,
// without influence on the result.
#if defined(HEADRACE_LANES_512)
inline constexpr int kQueries = 6, kPagesAtOnce = 4, kVectorsAtOnce = 4;
#elif defined(HEADRACE_LANES_256)
inline constexpr int kQueries = 3, kPagesAtOnce = 1, kVectorsAtOnce = 2;
#else
inline constexpr int kQueries = 1, kPagesAtOnce = 1, kVectorsAtOnce = 2;
#endif

HEADRACE_INLINE F16 load_lanes(const float* p) { return load(p); }
HEADRACE_INLINE F16 load_lanes(const std::uint16_t* p) { return load_bf16(p); }

// The four pages of a tile, as stored (bf16) or already widened.
template <class T>
struct TileView {
    const T* keys[kTilePages];    // [head_dim][16]
    const T* values[kTilePages];  // [16][head_dim]
    int first;                    // absolute position of the tile's first key
};

struct Query {
    const float* q;
    float* sums;       // of the running span, [head_dim]
    float* total;      // of the finished spans: the output row itself
    int first, last;   // keys first ≤ j < last
    float peak;        // running maximum of the span
    float total_peak;
    float total_weight;
    bool has_total;
    alignas(64) float weight[16];
};

HEADRACE_INLINE int smaller(int a, int b) { return a < b ? a : b; }
HEADRACE_INLINE int larger(int a, int b) { return a > b ? a : b; }

inline void begin_span(Query& query, int width) {
    query.peak = -__builtin_inff();
    store(query.weight, splat(0.0f));
    for (int i = 0; i < width; i += 16) store(query.sums + i, splat(0.0f));
}

// total = total · e^(its peak − new peak) + span · e^(its peak − new peak); the first span is taken as it is.
inline void fold_span(const float* sums, float peak, float weight, int width, Query& into) {
    if (!into.has_total) {
        for (int i = 0; i < width; i += 16) store(into.total + i, load(sums + i));
        into.total_peak = peak;
        into.total_weight = weight;
        into.has_total = true;
        return;
    }
    const float joint = peak > into.total_peak ? peak : into.total_peak;
    const F16 old_part = exp(splat(into.total_peak - joint)), new_part = exp(splat(peak - joint));
    for (int i = 0; i < width; i += 16) store(into.total + i, fma(load(into.total + i), old_part, load(sums + i) * new_part));
    float lanes[16];
    store(lanes, fma(splat(into.total_weight), old_part, splat(weight) * new_part));
    into.total_weight = lanes[0];
    into.total_peak = joint;
}

inline void finish_query(Query& query, int width) {
    for (int i = 0; i < width; i += 16) store(query.total + i, load(query.total + i) / splat(query.total_weight));
}

template <int R, class T>
HEADRACE_INLINE void tile_scores(const Query* queries, const TileView<T>& tile, int width, float (*out)[kTileKeys]) {
    for (int page = 0; page < kTilePages; page += kPagesAtOnce) {
        F16 score[R][kPagesAtOnce];
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
            for (int p = 0; p < kPagesAtOnce; ++p) score[r][p] = splat(0.0f);
        for (int d = 0; d < width; ++d) {
            F16 key[kPagesAtOnce];
#pragma GCC unroll 8
            for (int p = 0; p < kPagesAtOnce; ++p) key[p] = load_lanes(tile.keys[page + p] + d * kPageTokens);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
                const F16 q = splat(queries[r].q[d]);
#pragma GCC unroll 8
                for (int p = 0; p < kPagesAtOnce; ++p) score[r][p] = fma(q, key[p], score[r][p]);
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
            for (int p = 0; p < kPagesAtOnce; ++p) store(out[r] + (page + p) * 16, score[r][p]);
    }
}

// Scores become weights relative to the new maximum; the older sums shrink by the same factor.
inline void soften(Query& query, int first, int width, float* scores) {
    const int from = larger(query.first - first, 0), to = smaller(query.last - first, kTileKeys);
    const bool partial = from > 0 || to < kTileKeys;
    F16 score[kTilePages];
    F16 top = splat(-__builtin_inff());
    for (int p = 0; p < kTilePages; ++p) {
        score[p] = load(scores + 16 * p);
        if (partial) score[p] = keep_range(score[p], from - 16 * p, to - 16 * p, splat(-__builtin_inff()));
        top = max(score[p], top);
    }
    const float highest = maximum(top);
    const float peak = highest > query.peak ? highest : query.peak;
    const F16 shrink = exp(splat(query.peak - peak));
    F16 weight = load(query.weight) * shrink;
    for (int p = 0; p < kTilePages; ++p) {
        F16 part = exp(score[p] - splat(peak));
        if (partial) part = keep_range(part, from - 16 * p, to - 16 * p, splat(0.0f));
        weight = weight + part;
        store(scores + 16 * p, part);
    }
    store(query.weight, weight);
    query.peak = peak;
    for (int i = 0; i < width; i += 16) store(query.sums + i, load(query.sums + i) * shrink);
}

template <int R, int V, class T>
HEADRACE_INLINE void weigh_vectors(Query* queries, const TileView<T>& tile, int width, const float (*weights)[kTileKeys], int from,
                                   int to) {
    for (int column = 0; column < width; column += 16 * V) {
        F16 sum[R][V];
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
            for (int v = 0; v < V; ++v) sum[r][v] = load(queries[r].sums + column + 16 * v);
        for (int key = from; key < to; ++key) {
            const T* row = tile.values[key / kPageTokens] + (key % kPageTokens) * width + column;
            F16 value[V];
#pragma GCC unroll 8
            for (int v = 0; v < V; ++v) value[v] = load_lanes(row + 16 * v);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
                const F16 weight = splat(weights[r][key]);
#pragma GCC unroll 8
                for (int v = 0; v < V; ++v) sum[r][v] = fma(weight, value[v], sum[r][v]);
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
            for (int v = 0; v < V; ++v) store(queries[r].sums + column + 16 * v, sum[r][v]);
    }
}

template <int R, class T>
HEADRACE_INLINE void weigh(Query* queries, const TileView<T>& tile, int width, const float (*weights)[kTileKeys], int from,
                           int to) {
    if (from >= to) return;
    if (width % (16 * kVectorsAtOnce) == 0)
        weigh_vectors<R, kVectorsAtOnce>(queries, tile, width, weights, from, to);
    else
        weigh_vectors<R, 2>(queries, tile, width, weights, from, to);
}

// One tile for R queries that all see some of it. Keys that only some see are added on their own, in their place.
template <int R, class T>
void tile_step(Query* queries, const TileView<T>& tile, int width) {
    alignas(64) float weights[R][kTileKeys];
    tile_scores<R>(queries, tile, width, weights);
    int common_from = 0, common_to = kTileKeys;
    for (int r = 0; r < R; ++r) {
        soften(queries[r], tile.first, width, weights[r]);
        common_from = larger(common_from, queries[r].first - tile.first);
        common_to = smaller(common_to, queries[r].last - tile.first);
    }
    if constexpr (R == 1) {
        weigh<1>(queries, tile, width, weights, common_from, common_to);
    } else {
        common_to = larger(common_to, common_from);
        for (int r = 0; r < R; ++r)
            weigh<1>(queries + r, tile, width, weights + r, larger(queries[r].first - tile.first, 0),
                     smaller(common_from, smaller(queries[r].last - tile.first, kTileKeys)));
        weigh<R>(queries, tile, width, weights, common_from, common_to);
        for (int r = 0; r < R; ++r)
            weigh<1>(queries + r, tile, width, weights + r, common_to, smaller(queries[r].last - tile.first, kTileKeys));
    }
}

template <int R, class T>
void step_group(int count, Query* queries, const TileView<T>& tile, int width) {
    if (count == R) {
        tile_step<R>(queries, tile, width);
    } else if constexpr (R > 1) {
        step_group<R - 1>(count, queries, tile, width);
    }
}

HEADRACE_INLINE bool sees(const Query& query, int first_key) {
    return query.first < first_key + kTileKeys && query.last > first_key;
}

template <class T>
void tile_queries(Query* queries, int count, const TileView<T>& tile, int width) {
    for (int start = 0; start < count; start += kQueries) {
        const int batch = smaller(kQueries, count - start);
        int active = 0;
        for (int i = 0; i < batch; ++i) active += sees(queries[start + i], tile.first);
        if (active == batch) {
            step_group<kQueries>(batch, queries + start, tile, width);
        } else if (active > 0) {
            for (int i = 0; i < batch; ++i)
                if (sees(queries[start + i], tile.first)) tile_step<1>(queries + start + i, tile, width);
        }
    }
}

// Widens a tile once when many queries use it.
inline TileView<float> widen(const TileView<std::uint16_t>& tile, int width, float* buffer) {
    TileView<float> wide;
    wide.first = tile.first;
    for (int p = 0; p < kTilePages; ++p) {
        float* keys = buffer + p * 2 * kPageTokens * width;
        float* values = keys + kPageTokens * width;
        for (int i = 0; i < kPageTokens * width; i += 16) {
            store(keys + i, load_bf16(tile.keys[p] + i));
            store(values + i, load_bf16(tile.values[p] + i));
        }
        wide.keys[p] = keys;
        wide.values[p] = values;
    }
    return wide;
}

// Visits the tiles between the first and the last key that any query sees.
inline void visit_tiles(const AttentionTile& work, Query* queries, int count) {
    int first = queries[0].first, last = queries[0].last;
    for (int i = 1; i < count; ++i) {
        first = smaller(first, queries[i].first);
        last = larger(last, queries[i].last);
    }
    const int width = work.head_dim, last_page = (last - 1) / kPageTokens;
    float* buffer = work.scratch + static_cast<std::size_t>(kMaxQueries) * width;
    for (int key = first / kTileKeys * kTileKeys; key < last; key += kTileKeys) {
        TileView<std::uint16_t> tile;
        tile.first = key;
        for (int p = 0; p < kTilePages; ++p) {  // pages that nobody sees are replaced by one that exists
            const int page = larger(smaller(key / kPageTokens + p, last_page), first / kPageTokens);
            const std::uint8_t* head = work.pool + work.pages[page] * work.page_bytes + work.head_offset;
            tile.keys[p] = reinterpret_cast<const std::uint16_t*>(head);
            tile.values[p] = tile.keys[p] + kPageTokens * width;
        }
        for (int i = 0; i < count; ++i) {
            Query& query = queries[i];
            if (!sees(query, key)) continue;
            if (query.first >= key) {
                begin_span(query, width);
            } else if (key % kSpanKeys == 0) {
                fold_span(query.sums, query.peak, sum(load(query.weight)), width, query);
                begin_span(query, width);
            }
        }
        if (count > kQueries)
            tile_queries(queries, count, widen(tile, width, buffer), width);
        else
            tile_queries(queries, count, tile, width);
    }
}

inline Query make_query(const AttentionTile& work, int row, int head) {
    Query query;
    const int position = work.position + row;
    query.q = work.q + row * work.q_stride + head * work.head_dim;
    query.total = work.out + row * work.out_stride + head * work.head_dim;
    query.sums = work.scratch + (row * work.group + head) * static_cast<std::size_t>(work.head_dim);
    query.first = work.window > 0 ? larger(0, position - work.window + 1) : 0;
    query.last = position + 1;
    query.has_total = false;
    return query;
}

inline void attend_rows(const AttentionTile& work) {
    Query queries[kMaxQueries];
    const int count = work.rows * work.group;
    for (int i = 0; i < count; ++i) queries[i] = make_query(work, i / work.group, i % work.group);
    visit_tiles(work, queries, count);
    for (int i = 0; i < count; ++i) {
        fold_span(queries[i].sums, queries[i].peak, sum(load(queries[i].weight)), work.head_dim, queries[i]);
        finish_query(queries[i], work.head_dim);
    }
}

inline void attend_one_span(const AttentionSpan& span) {
    Query queries[kMaxQueries];
    const AttentionTile& work = span.tile;
    for (int head = 0; head < work.group; ++head) {
        queries[head] = make_query(work, 0, head);
        queries[head].first = larger(queries[head].first, span.first_key);
        queries[head].last = smaller(queries[head].last, span.first_key + kSpanKeys);
    }
    visit_tiles(work, queries, work.group);
    for (int head = 0; head < work.group; ++head) {
        float* out = work.out + head * (work.head_dim + 2);
        for (int i = 0; i < work.head_dim; i += 16) store(out + i, load(queries[head].sums + i));
        out[work.head_dim] = queries[head].peak;
        out[work.head_dim + 1] = sum(load(queries[head].weight));
    }
}

inline void merge_partial_spans(const float* partial, int spans, int group, int width, float* out) {
    for (int head = 0; head < group; ++head) {
        Query query;
        query.total = out + head * width;
        query.has_total = false;
        for (int i = 0; i < spans; ++i) {
            const float* part = partial + (i * group + head) * (width + 2);
            fold_span(part, part[width], part[width + 1], width, query);
        }
        finish_query(query, width);
    }
}

}  // namespace headrace::HEADRACE_ISA
