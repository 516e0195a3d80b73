// Attention over one span of keys, step by step: scores, softening, sums of values, folding. Part of attention_impl.hpp,
// which says why the bits hold; what differs for coded pages is in kv_codes_impl.hpp.
#pragma once

#include "bf16_pairs.hpp"
#include "math.hpp"
#include "row_kernels.hpp"

namespace headrace::HEADRACE_ISA {

// How many queries share a pass over keys, how many pages of keys and vectors of values are in flight: register budgets,
// without influence on the result.
#if defined(HEADRACE_LANES_512)
inline constexpr int kQueries = 6, kPagesAtOnce = 4, kVectorsAtOnce = 4;
#elif defined(HEADRACE_LANES_256)
inline constexpr int kQueries = 3, kPagesAtOnce = 1, kVectorsAtOnce = 2;
#else
inline constexpr int kQueries = 1, kPagesAtOnce = 1, kVectorsAtOnce = 2;
#endif

HEADRACE_INLINE int smaller(int a, int b) { return a < b ? a : b; }
HEADRACE_INLINE int larger(int a, int b) { return a > b ? a : b; }

inline constexpr float kLog2E = 1.44269504089f;  // scores are kept in powers of two

// A query's codes (coded pages only): planes of bytes, what they are multiples of, and their sum.
struct CodedQuery {
    const std::int8_t* planes;
    float scale;        // of the planes
    float total;        // scale · sum of the codes
    std::int32_t sum;   // of the codes
};

// Codes of a span's weights (coded pages only).
struct CodedWeights {
    float scale;        // of the planes
    float middle;       // the values' middles, weighted; belongs to every sum of the span
    std::int32_t sum;   // of the codes
};

struct Query {
    const float* q;
    float* own;        // scratch for the form of q that the format takes: head_dim floats
    float* sums;       // of the present span, [head_dim]
    float* total;      // of the finished spans: the output row itself
    float* scores;     // of the present span, then its weights, [kSpanKeys]; of coded pages their codes in the end
    int first, last;   // keys first ≤ j < last
    int from, to;      // the part of the present span among them, counted from its beginning
    float peak, weight;  // of the present span
    float total_peak = 0.0f;
    float total_weight = 0.0f;
    bool has_total = false;
    CodedQuery coded;
    CodedWeights weights;

    int from_page() const { return from / kPageTokens; }
    int to_page() const { return (to + kPageTokens - 1) / kPageTokens; }
};

// The pages of a span's keys from the first to the last that any query sees; other entries mean nothing.
struct SpanPages {
    const std::uint8_t* head[kSpanPages];
    int from, to;
    std::size_t behind;  // where in a page the pass after this span's values begins
};

// What a pass over a span will read some pages later: asked for early, because a part of a page is too short for the
// prefetchers of a CPU to follow, and pages lie anywhere. Behind a span's keys come its values.
struct ComingPages {
    const std::uint8_t* at[kSpanPages];

    // `part`: where the present pass begins in a page, `next`: where the one behind it does.
    ComingPages(const SpanPages& span, int ahead, std::size_t part, std::size_t next) {
        for (int page = span.from; page < span.to; ++page) {
            const int later = page + ahead;
            at[page] = later < span.to ? span.head[later] + part : span.head[smaller(later - span.to + span.from, span.to - 1)] + next;
        }
    }
};

// Into the second cache: on Zen 4 scattered parts of pages arrive at 18 GB/s so, at 14 GB/s into the first, at 10 GB/s unasked.
HEADRACE_INLINE void prefetch(const std::uint8_t* line) { __builtin_prefetch(line, 0, 2); }

// total = total · 2^(its peak − new peak) + span · 2^(its peak − new peak); the first span is taken as it is.
inline void fold_span(const float* sums, float peak, float weight, int width, Query& into) {
    if (!into.has_total) {
        for (int i = 0; i < width; i += 16) store(into.total + i, load(sums + i));
        into.total_peak = peak;
        into.total_weight = weight;
        into.has_total = true;
        return;
    }
    const float joint = peak > into.total_peak ? peak : into.total_peak;
    const F16 old_part = power_of_two(splat(into.total_peak - joint)), new_part = power_of_two(splat(peak - joint));
    for (int i = 0; i < width; i += 16) store(into.total + i, fma(load(into.total + i), old_part, load(sums + i) * new_part));
    float lanes[16];
    store(lanes, fma(splat(into.total_weight), old_part, splat(weight) * new_part));
    into.total_weight = lanes[0];
    into.total_peak = joint;
}

// Calls body.operator()<R>(queries + start) for blocks of at most R queries.
template <int R, class Body>
HEADRACE_INLINE void last_block(Query* const* queries, int count, Body&& body) {
    if (count == R) {
        body.template operator()<R>(queries);
    } else if constexpr (R > 1) {
        last_block<R - 1>(queries, count, body);
    }
}

template <int R, class Body>
HEADRACE_INLINE void in_blocks(Query* const* queries, int count, Body&& body) {
    int start = 0;
    for (; start + R <= count; start += R) body.template operator()<R>(queries + start);
    if constexpr (R > 1) last_block<R - 1>(queries + start, count - start, body);
}

// Pages that any query of a block sees.
template <int R>
struct BlockPages {
    int from, to;
    BlockPages(Query* const* queries, int least, int most) : from(most), to(least) {
        for (int r = 0; r < R; ++r) {
            from = smaller(from, queries[r]->from_page());
            to = larger(to, queries[r]->to_page());
        }
        from = larger(from, least);
        to = smaller(to, most);
    }
};

// ---- softening --------------------------------------------------------------------------------------------------------

// Which lanes of a page a query sees.
HEADRACE_INLINE bool sees_whole(const Query& query, int page) { return 16 * page >= query.from && 16 * page + 16 <= query.to; }
HEADRACE_INLINE F16 keep_seen(const Query& query, int page, F16 x, float otherwise) {
    return keep_range(x, query.from - 16 * page, query.to - 16 * page, splat(otherwise));
}

// The largest score that a query sees in the span.
HEADRACE_INLINE float highest_score(const Query& query) {
    F16 top = splat(-__builtin_inff());
    for (int page = query.from_page(); page < query.to_page(); ++page) {
        const F16 score = load(query.scores + 16 * page);
        top = max(sees_whole(query, page) ? score : keep_seen(query, page, score, -__builtin_inff()), top);
    }
    return maximum(top);
}

// Turns scores into weights relative to the largest, rounded as `round` says; use(page, weights, whole) gets those of 16 keys,
// unseen ones as zeros.
template <class Round, class Use>
HEADRACE_INLINE void soften(Query& query, Round&& round, Use&& use) {
    query.peak = highest_score(query);
    const F16 peak = splat(query.peak);
    F16 total = splat(0.0f);
    for (int page = query.from_page(); page < query.to_page(); ++page) {
        F16 weight = round(power_of_two(load(query.scores + 16 * page) - peak));
        const bool whole = sees_whole(query, page);
        if (!whole) weight = keep_seen(query, page, weight, 0.0f);
        total = total + weight;
        use(page, weight, whole);
    }
    query.weight = sum(total);
}

// ---- keys and values in bf16 -------------------------------------------------------------------------------------------

HEADRACE_INLINE const Kept* kept_query(const Query& query) { return reinterpret_cast<const Kept*>(query.own); }
HEADRACE_INLINE const Kept* kept_weights(const Query& query) { return reinterpret_cast<const Kept*>(query.scores); }

// Scores of 16·P keys for R queries: chains over the pairs of dimensions in order. `coming`: what to ask for meanwhile, if
// keys come from their pages.
template <int R, int P, class T>
HEADRACE_INLINE void score_pages(Query* const* queries, const T* const* keys, const std::uint8_t* const* coming, int page, int width) {
    const Kept* rows[R];
    for (int r = 0; r < R; ++r) rows[r] = kept_query(*queries[r]);
    F16 score[R][P];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int p = 0; p < P; ++p) score[r][p] = splat(0.0f);
    for (int d = 0; d < width; d += 2) {
        if constexpr (sizeof(T) == 2)
#pragma GCC unroll 8
            for (int p = 0; p < P; ++p) prefetch(coming[p] + d * kPageTokens * sizeof(T));
#pragma GCC unroll 2
        for (int part = 0; part < kPairParts; ++part) {
            Lane key[P];
#pragma GCC unroll 8
            for (int p = 0; p < P; ++p) key[p] = load_key(keys[p], d, part);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
                const Factor q = factor(rows[r] + d, part);
#pragma GCC unroll 8
                for (int p = 0; p < P; ++p) score[r][p] = add_product(q, key[p], score[r][p]);
            }
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int p = 0; p < P; ++p) store(queries[r]->scores + (page + p) * 16, score[r][p]);
}

// Scores of the keys of pages from … to − 1; keys[0] and coming[0] belong to page `from`.
template <int R, class T>
inline void score_block(Query* const* queries, const T* const* keys, const std::uint8_t* const* coming, int from, int to, int width) {
    const BlockPages<R> seen(queries, from, to);
    int page = seen.from;
    for (; page + kPagesAtOnce <= seen.to; page += kPagesAtOnce)
        score_pages<R, kPagesAtOnce>(queries, keys + page - from, coming + page - from, page, width);
    if constexpr (kPagesAtOnce > 1)
        for (; page < seen.to; ++page) score_pages<R, 1>(queries, keys + page - from, coming + page - from, page, width);
}

// sums += weight · value over keys from … to − 1, both even, in pairs in order; values[0] and coming[0] belong to page `base`.
template <int R, int V, class T>
HEADRACE_INLINE void weigh_pairs(Query* const* queries, const T* const* values, const std::uint8_t* const* coming, int base, int width,
                                 int from, int to) {
    const Kept* weights[R];
    for (int r = 0; r < R; ++r) weights[r] = kept_weights(*queries[r]);
    for (int column = 0; column < width; column += 16 * V) {
        F16 sum[R][V];
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
            for (int v = 0; v < V; ++v) sum[r][v] = load(queries[r]->sums + column + 16 * v);
        for (int key = from; key < to;) {
            const int page = key / kPageTokens, end = smaller(to, (page + 1) * kPageTokens);
            const T* rows = values[page - base];
            const std::uint8_t* later = sizeof(T) == 2 ? coming[page - base] + 2 * column : nullptr;
            for (; key < end; key += 2) {
                const int token = key % kPageTokens;
                if constexpr (sizeof(T) == 2)
#pragma GCC unroll 8
                    for (int v = 0; v < V; v += 2) {
                        prefetch(later + 2 * token * width + 32 * v);
                        prefetch(later + 2 * (token + 1) * width + 32 * v);
                    }
#pragma GCC unroll 2
                for (int part = 0; part < kPairParts; ++part) {
                    Lane value[V];
#pragma GCC unroll 8
                    for (int v = 0; v < V; ++v) value[v] = load_value(rows, token, column + 16 * v, width, part);
#pragma GCC unroll 8
                    for (int r = 0; r < R; ++r) {
                        const Factor weight = factor(weights[r] + key, part);
#pragma GCC unroll 8
                        for (int v = 0; v < V; ++v) sum[r][v] = add_product(weight, value[v], sum[r][v]);
                    }
                }
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
            for (int v = 0; v < V; ++v) store(queries[r]->sums + column + 16 * v, sum[r][v]);
    }
}

template <int R, class T>
HEADRACE_INLINE void weigh(Query* const* queries, const T* const* values, const std::uint8_t* const* coming, int base, int width, int from,
                           int to) {
    if (from >= to) return;
    if (width % (16 * kVectorsAtOnce) == 0)
        weigh_pairs<R, kVectorsAtOnce>(queries, values, coming, base, width, from, to);
    else
        weigh_pairs<R, 2>(queries, values, coming, base, width, from, to);
}

// One key whose neighbour the query does not see.
template <class T>
HEADRACE_INLINE void weigh_key(Query& query, const T* const* values, int base, int width, int key) {
    const F16 weight = factor_of(kept_weights(query)[key]);
    const T* page = values[key / kPageTokens - base];
    for (int i = 0; i < width; i += 16) {
        const F16 value = value_of(page, key % kPageTokens, i, width);
        store(query.sums + i, fma(weight, value, load(query.sums + i)));
    }
}

// Keys from … to − 1 for one query: where they begin or end inside a pair, its other key is not read.
template <class T>
HEADRACE_INLINE void weigh_one(Query* const* query, const T* const* values, const std::uint8_t* const* coming, int base, int width,
                               int from, int to) {
    if (from >= to) return;
    if (from % 2 != 0) weigh_key(**query, values, base, width, from++);
    weigh<1>(query, values, coming, base, width, from, to - to % 2);
    if (to % 2 != 0 && from < to) weigh_key(**query, values, base, width, to - 1);
}

// Keys of pages base … end − 1 that the queries see. What only some of them see is added on its own, in its place: the other
// queries' slots may hold anything there, even something that is no number.
template <int R, class T>
inline void weigh_block(Query* const* queries, const T* const* values, const std::uint8_t* const* coming, int base, int end, int width) {
    const int first = base * kPageTokens, last = end * kPageTokens;
    if constexpr (R == 1) {
        weigh_one(queries, values, coming, base, width, larger(queries[0]->from, first), smaller(queries[0]->to, last));
    } else {
        int from = first, to = last;
        for (int r = 0; r < R; ++r) {
            from = larger(from, queries[r]->from);
            to = smaller(to, queries[r]->to);
        }
        from += from % 2;
        to = larger(to - to % 2, from);
        for (int r = 0; r < R; ++r)
            weigh_one(queries + r, values, coming, base, width, larger(queries[r]->from, first), smaller(smaller(from, queries[r]->to), last));
        weigh<R>(queries, values, coming, base, width, from, to);
        for (int r = 0; r < R; ++r)
            weigh_one(queries + r, values, coming, base, width, larger(to, queries[r]->from), smaller(queries[r]->to, last));
    }
}

}  // namespace headrace::HEADRACE_ISA
