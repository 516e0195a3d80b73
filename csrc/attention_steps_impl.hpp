// One tile of keys for the queries that see it: scores, softening, sums. Part of attention_impl.hpp, which says why the bits hold.
#pragma once

#include "kv_codes_impl.hpp"

namespace headrace::HEADRACE_ISA {

// How many queries share a pass over a tile, how many pages of keys and vectors of values are in flight: register budgets,
// without influence on the result.
#if defined(HEADRACE_LANES_512)
inline constexpr int kQueries = 6, kPagesAtOnce = 4, kVectorsAtOnce = 4;
inline constexpr int kCodedQueries = 3;
#elif defined(HEADRACE_LANES_256)
inline constexpr int kQueries = 3, kPagesAtOnce = 1, kVectorsAtOnce = 2;
inline constexpr int kCodedQueries = 1;
#else
inline constexpr int kQueries = 1, kPagesAtOnce = 1, kVectorsAtOnce = 2;
inline constexpr int kCodedQueries = 1;
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
    float total_peak = 0.0f;
    float total_weight = 0.0f;
    bool has_total = false;
    alignas(64) float weight[16];
    alignas(64) float middle[16];  // coded formats: the values' middles, weighted; belongs to every sum of the span
    CodedQuery coded;
};

HEADRACE_INLINE int smaller(int a, int b) { return a < b ? a : b; }
HEADRACE_INLINE int larger(int a, int b) { return a > b ? a : b; }

inline void begin_span(Query& query, int width) {
    query.peak = -__builtin_inff();
    store(query.weight, splat(0.0f));
    store(query.middle, splat(0.0f));
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

template <class Format>
void finish_query(Query& query, int width) {
    for (int i = 0; i < width; i += 16) store(query.total + i, load(query.total + i) / splat(query.total_weight));
    Format::turn_back(query.total, width);
}

template <int R, class T>
HEADRACE_INLINE void tile_scores(Query* const* queries, const TileView<T>& tile, int width, float (*out)[kTileKeys]) {
    const float* rows[R];
    for (int r = 0; r < R; ++r) rows[r] = queries[r]->q;
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
                const F16 q = splat(rows[r][d]);
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

// Which of a tile's keys a query sees: from ≤ key < to.
struct Seen {
    int from, to;
    Seen(const Query& query, int first)
        : from(larger(query.first - first, 0)), to(smaller(query.last - first, kTileKeys)) {}
    bool partial() const { return from > 0 || to < kTileKeys; }
    F16 keep(F16 x, int page, float otherwise) const { return keep_range(x, from - 16 * page, to - 16 * page, splat(otherwise)); }
};

// The weights of a tile relative to the new maximum, and by what the older sums shrink.
HEADRACE_INLINE F16 soften(Query& query, const Seen& seen, const float* scores, F16 (&part)[kTilePages]) {
    F16 top = splat(-__builtin_inff());
#pragma GCC unroll 8
    for (int p = 0; p < kTilePages; ++p) {
        part[p] = load(scores + 16 * p);
        if (seen.partial()) part[p] = seen.keep(part[p], p, -__builtin_inff());
        top = max(part[p], top);
    }
    const float highest = maximum(top);
    const float peak = highest > query.peak ? highest : query.peak;
    const F16 shrink = exp(splat(query.peak - peak));
    F16 weight = load(query.weight) * shrink;
#pragma GCC unroll 8
    for (int p = 0; p < kTilePages; ++p) {
        part[p] = exp(part[p] - splat(peak));
        if (seen.partial()) part[p] = seen.keep(part[p], p, 0.0f);
        weight = weight + part[p];
    }
    store(query.weight, weight);
    query.peak = peak;
    return shrink;
}

template <int R, int V, class T>
HEADRACE_INLINE void weigh_vectors(Query* const* queries, const TileView<T>& tile, int width, const float (*weights)[kTileKeys],
                                   int from, int to) {
    for (int column = 0; column < width; column += 16 * V) {
        F16 sum[R][V];
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
            for (int v = 0; v < V; ++v) sum[r][v] = load(queries[r]->sums + column + 16 * v);
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
            for (int v = 0; v < V; ++v) store(queries[r]->sums + column + 16 * v, sum[r][v]);
    }
}

template <int R, class T>
HEADRACE_INLINE void weigh(Query* const* queries, const TileView<T>& tile, int width, const float (*weights)[kTileKeys], int from,
                           int to) {
    if (from >= to) return;
    if (width % (16 * kVectorsAtOnce) == 0)
        weigh_vectors<R, kVectorsAtOnce>(queries, tile, width, weights, from, to);
    else
        weigh_vectors<R, 2>(queries, tile, width, weights, from, to);
}

// One tile for R queries that all see some of it. Keys that only some see are added on their own, in their place.
template <int R, class T>
void tile_step(Query* const* queries, const TileView<T>& tile, int width) {
    alignas(64) float weights[R][kTileKeys];
    tile_scores<R>(queries, tile, width, weights);
    int common_from = 0, common_to = kTileKeys;
    for (int r = 0; r < R; ++r) {
        Query& query = *queries[r];
        const Seen seen(query, tile.first);
        F16 part[kTilePages];
        const F16 shrink = soften(query, seen, weights[r], part);
        for (int p = 0; p < kTilePages; ++p) store(weights[r] + 16 * p, part[p]);
        for (int i = 0; i < width; i += 16) store(query.sums + i, load(query.sums + i) * shrink);
        common_from = larger(common_from, seen.from);
        common_to = smaller(common_to, seen.to);
    }
    if constexpr (R == 1) {
        weigh<1>(queries, tile, width, weights, common_from, common_to);
    } else {
        common_to = larger(common_to, common_from);
        for (int r = 0; r < R; ++r) {
            const Seen seen(*queries[r], tile.first);
            weigh<1>(queries + r, tile, width, weights + r, seen.from, smaller(common_from, seen.to));
        }
        weigh<R>(queries, tile, width, weights, common_from, common_to);
        for (int r = 0; r < R; ++r)
            weigh<1>(queries + r, tile, width, weights + r, common_to, Seen(*queries[r], tile.first).to);
    }
}

// The weights of one query as integers relative to their largest, the values' steps taken in.
template <class Tile>
HEADRACE_INLINE void code_weights(Query& query, const Tile& tile, const float* scores, CodedWeights& out) {
    const Seen seen(query, tile.first);
    F16 part[kTilePages];
    const F16 shrink = soften(query, seen, scores, part);
    F16 top = splat(0.0f), middle = load(query.middle) * shrink;
#pragma GCC unroll 8
    for (int p = 0; p < kTilePages; ++p) {
        const std::uint16_t* parameters = tile.parameters[p] + 2 * kPageTokens;
        F16 offset = part[p] * load_bf16(parameters + kPageTokens);
        part[p] = part[p] * load_bf16(parameters);
        if (seen.partial()) {  // slots that are not seen may hold anything
            offset = seen.keep(offset, p, 0.0f);
            part[p] = seen.keep(part[p], p, 0.0f);
        }
        middle = middle + offset;
        top = max(part[p], top);
    }
    store(query.middle, middle);
    const float peak = maximum(top);
    const bool live = peak > kLeastPeak;
    const F16 inverse = splat(live ? kPlanePeak / peak : 0.0f);
    I16 sums = splat_int(0);
#pragma GCC unroll 8
    for (int p = 0; p < kTilePages; ++p) {
        const I16 code = to_int(part[p] * inverse);
        store_narrow_planes(out.planes + 16 * p, kTileKeys, code);
        sums = sums + code;
    }
    out.sum = sum(sums);
    out.scale = live ? peak / kPlanePeak : 0.0f;
    float lanes[16];
    store(lanes, shrink);
    out.shrink = lanes[0];
}

template <int R, int bits>
void tile_step(Query* const* queries, const CodedTile<bits>& tile, int width) {
    alignas(64) float scores[R][kTileKeys];
    CodedWeights weights[R];
    const CodedQuery* coded[R];
    float* sums[R];
    int from = kTilePages, to = 0;
    for (int r = 0; r < R; ++r) {
        coded[r] = &queries[r]->coded;
        sums[r] = queries[r]->sums;
        const Seen seen(*queries[r], tile.first);
        from = smaller(from, seen.from / kPageTokens);
        to = larger(to, (seen.to + kPageTokens - 1) / kPageTokens);
    }
    coded_scores<R, kPagesAtOnce>(coded, tile, width, scores);
    for (int r = 0; r < R; ++r) code_weights(*queries[r], tile, scores[r], weights[r]);
    if (width % (16 * kVectorsAtOnce) == 0)
        weigh_codes<R, kVectorsAtOnce>(sums, weights, tile, width, from, to);
    else
        weigh_codes<R, 2>(sums, weights, tile, width, from, to);
}

template <int R, class Tile>
void step_group(int count, Query* const* queries, const Tile& tile, int width) {
    if (count == R) {
        tile_step<R>(queries, tile, width);
    } else if constexpr (R > 1) {
        step_group<R - 1>(count, queries, tile, width);
    }
}

template <int R, class Tile>
void tile_queries(Query* const* queries, int count, const Tile& tile, int width) {
    for (int start = 0; start < count; start += R) step_group<R>(smaller(R, count - start), queries + start, tile, width);
}

}  // namespace headrace::HEADRACE_ISA
