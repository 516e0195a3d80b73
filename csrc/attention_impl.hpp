// Paged attention on lanes: one arithmetic for prompt chunks and decode rows. Included once per ISA.
//
// A row's result is a function of its query and of the keys it sees, never of the rows beside it:
//   - keys are visited in spans of 512 at absolute positions (32 pages), ascending; scores of 16 keys share one vector (K is
//     stored transposed), each a chain over the head's dimensions in order, in powers of two;
//   - a span's weights are relative to its largest score; 16 partial sums of weights, and the sums of values, go over the
//     keys in order;
//   - spans are folded into the row's total in order (online softmax, as in FlashAttention), so that a long context may be
//     cut at their borders, computed by several threads and merged in the same order;
//   - keys outside the causal range or the window take no part at all: what their slots hold never enters a sum.
// A whole span rather than a small tile knows its largest score because then nothing is ever rescaled inside it.
// How scores and sums are computed is the format's: pairs of bf16 (bf16_pairs.hpp; queries and weights are rounded to bf16
// as well) or integers (kv_codes_impl.hpp).
#pragma once

#include <type_traits>

#include "attention_steps_impl.hpp"
#include "kv_codes_impl.hpp"

namespace headrace::HEADRACE_ISA {

// ---- formats: where keys and values are in a page, and a form of them for many queries ---------------------------------------

struct Bf16Pages {
    static void prepare(Query& query, int width) {
        for (int i = 0; i < width; i += 16) keep(reinterpret_cast<Kept*>(query.own) + i, round_bf16(load(query.q + i) * splat(kLog2E)));
    }

    static void score(Query* const* queries, int count, const SpanPages& span, int width, float* buffer) {
        if (count <= kQueries) {
            const std::uint16_t* keys[kSpanPages];
            for (int page = span.from; page < span.to; ++page) keys[page] = keys_of(span, page);
            const ComingPages coming(span, kAhead, 0, values_at(width));
            last_block<kQueries>(queries, count, [&]<int R>(Query* const* block) {
                score_block<R>(block, keys + span.from, coming.at + span.from, span.from, span.to, width);
            });
            return;
        }
        const Wide* keys[kWidePages];
        for (int page = span.from; page < span.to; page += kWidePages) {
            const int end = smaller(page + kWidePages, span.to);
            for (int p = page; p < end; ++p) {
                Wide* to = wide(buffer, p - page, width);
                widen_keys(keys_of(span, p), width, to);
                keys[p - page] = to;
            }
            in_blocks<kQueries>(queries, count, [&]<int R>(Query* const* block) { score_block<R>(block, keys, nullptr, page, end, width); });
        }
    }

    static void soften_span(Query& query, const SpanPages&, int width) {
        auto* weights = reinterpret_cast<Kept*>(query.scores);  // behind the scores that are still to be read
        soften(query, [](F16 weight) { return round_bf16(weight); }, [&](int page, F16 weight, bool) { keep(weights + 16 * page, weight); });
        for (int i = 0; i < width; i += 16) store(query.sums + i, splat(0.0f));
    }

    static void weigh(Query* const* queries, int count, const SpanPages& span, int width, float* buffer) {
        if (count <= kQueries) {
            const std::uint16_t* values[kSpanPages];
            for (int page = span.from; page < span.to; ++page) values[page] = values_of(span, page, width);
            const ComingPages coming(span, kAhead, values_at(width), span.behind);
            last_block<kQueries>(queries, count, [&]<int R>(Query* const* block) {
                weigh_block<R>(block, values + span.from, coming.at + span.from, span.from, span.to, width);
            });
            return;
        }
        const Wide* values[kWidePages];
        for (int page = span.from; page < span.to; page += kWidePages) {
            const int end = smaller(page + kWidePages, span.to);
            for (int p = page; p < end; ++p) {
                Wide* to = wide(buffer, p - page, width);
                widen_values(values_of(span, p, width), width, to);
                values[p - page] = to;
            }
            in_blocks<kQueries>(queries, count, [&]<int R>(Query* const* block) { weigh_block<R>(block, values, nullptr, page, end, width); });
        }
    }

    static void turn_back(float*, int) {}

    static constexpr int kAhead = 4;

  private:
    static std::size_t values_at(int width) { return kv_code_bytes(KvFormat::bf16, width); }
    static const std::uint16_t* keys_of(const SpanPages& span, int page) {
        return reinterpret_cast<const std::uint16_t*>(span.head[page]);
    }
    static const std::uint16_t* values_of(const SpanPages& span, int page, int width) {
        return keys_of(span, page) + kPageTokens * width;
    }
    // Where page number `place` of those made ready begins.
    static Wide* wide(float* buffer, int place, int width) {
        return reinterpret_cast<Wide*>(buffer) + place * kPageTokens * width / (sizeof(Wide) == sizeof(Kept) ? 1 : 2);
    }
};

template <int bits>
struct CodedPages {
    static void prepare(Query& query, int width) {
        query.coded = code_query(query.q, width, reinterpret_cast<std::int8_t*>(query.own));
    }

    static void score(Query* const* queries, int count, const SpanPages& span, int width, float* buffer) {
        const std::uint8_t* codes[kSpanPages];
        for (int page = span.from; page < span.to; ++page) codes[page] = span.head[page];
        const ComingPages coming(span, kAhead, 0, values_at(width));
        const auto blocks = [&]<int kept>() {
            in_blocks<kCodedQueries>(queries, count, [&]<int R>(Query* const* block) {
                score_coded_block<R, bits, kept>(block, codes, coming, span, width);
            });
        };
        if (bits == 8 || count <= kCodedQueries) return blocks.template operator()<bits>();
        unpack(codes, span, width, buffer);
        blocks.template operator()<8>();
    }

    static void soften_span(Query& query, const SpanPages& span, int width) { code_weights<bits>(query, span, width); }

    static void weigh(Query* const* queries, int count, const SpanPages& span, int width, float* buffer) {
        const std::uint8_t* codes[kSpanPages];
        for (int page = span.from; page < span.to; ++page) codes[page] = span.head[page] + values_at(width);
        const ComingPages coming(span, kAhead, values_at(width), span.behind);
        const auto blocks = [&]<int kept>() {
            in_blocks<kCodedQueries>(queries, count, [&]<int R>(Query* const* block) {
                weigh_coded_block<R, bits, kept>(block, codes, coming, span, width);
            });
        };
        if (bits == 8 || count <= kCodedQueries) return blocks.template operator()<bits>();
        unpack(codes, span, width, buffer);
        blocks.template operator()<8>();
    }

    static void turn_back(float* out, int width) { turn(out, width); }

    static constexpr int kAhead = 8;

  private:
    static std::size_t values_at(int width) { return static_cast<std::size_t>(2 * bits) * width; }

    // 4-bit codes to bytes, once when many queries use them.
    static void unpack(const std::uint8_t** codes, const SpanPages& span, int width, float* buffer) {
        auto* to = reinterpret_cast<std::uint8_t*>(buffer);
        for (int page = span.from; page < span.to; ++page) {
            const std::uint8_t* packed = codes[page];
            codes[page] = to;
            for (int pair = 0; pair < width / 8; ++pair, to += 128) {
                store(reinterpret_cast<std::int32_t*>(to), code_line<bits, 0>(packed, pair));
                store(reinterpret_cast<std::int32_t*>(to + 64), code_line<bits, 1>(packed, pair));
            }
        }
    }
};

// The keys first_key … first_key + 511, for the queries that see any of them: their sums, peaks and weights.
template <class Format>
int visit_span(const AttentionTile& work, Query* queries, int count, int first_key, Query** active) {
    int seeing = 0;
    SpanPages span;
    span.from = kSpanPages;
    span.to = 0;
    for (int i = 0; i < count; ++i) {
        Query& query = queries[i];
        query.from = larger(query.first - first_key, 0);
        query.to = smaller(query.last - first_key, kSpanKeys);
        if (query.from >= query.to) continue;
        active[seeing++] = &query;
        span.from = smaller(span.from, query.from_page());
        span.to = larger(span.to, query.to_page());
    }
    for (int page = span.from; page < span.to; ++page) span.head[page] = work.pages(first_key / kPageTokens + page) + work.head_offset;
    float* buffer = work.scratch + static_cast<std::size_t>(kMaxQueries) * (2 * work.head_dim + kSpanKeys);
    const std::size_t head_bytes = kv_head_bytes(work.format, work.head_dim), keys_bytes = kv_code_bytes(work.format, work.head_dim);
    span.behind = work.another ? head_bytes : keys_bytes;
    if (!work.asked)
        for (int page = span.from; page < smaller(span.from + Format::kAhead, span.to); ++page)
            for (std::size_t i = 0; i < keys_bytes; i += 64) prefetch(span.head[page] + i);
    Format::score(active, seeing, span, work.head_dim, buffer);
    for (int i = 0; i < seeing; ++i) Format::soften_span(*active[i], span, work.head_dim);
    Format::weigh(active, seeing, span, work.head_dim, buffer);
    return seeing;
}

inline int first_seen(const AttentionTile& work, int row) {
    return work.window > 0 ? larger(0, work.position + row - work.window + 1) : 0;
}

template <class Format>
Query make_query(const AttentionTile& work, int row, int head) {
    Query query;
    const int index = row * work.group + head;
    query.q = work.q + row * work.q_stride + head * work.head_dim;
    query.total = work.out + row * work.out_stride + head * work.head_dim;
    query.sums = work.scratch + index * static_cast<std::size_t>(2 * work.head_dim);
    query.own = query.sums + work.head_dim;
    query.scores = work.scratch + static_cast<std::size_t>(kMaxQueries) * 2 * work.head_dim + index * static_cast<std::size_t>(kSpanKeys);
    query.first = first_seen(work, row);
    query.last = work.position + row + 1;
    Format::prepare(query, work.head_dim);
    return query;
}

template <class Format>
void finish_query(Query& query, int width) {
    for (int i = 0; i < width; i += 16) store(query.total + i, load(query.total + i) / splat(query.total_weight));
    Format::turn_back(query.total, width);
}

template <class Format>
[[gnu::noinline]] void attend_rows_of(const AttentionTile& work) {
    Query queries[kMaxQueries], *active[kMaxQueries];
    const int count = work.rows * work.group, last = work.position + work.rows;
    for (int i = 0; i < count; ++i) queries[i] = make_query<Format>(work, i / work.group, i % work.group);
    for (int key = first_seen(work, 0) / kSpanKeys * kSpanKeys; key < last; key += kSpanKeys) {
        const int seeing = visit_span<Format>(work, queries, count, key, active);
        for (int i = 0; i < seeing; ++i) {
            Query& query = *active[i];
            fold_span(query.sums, query.peak, query.weight, work.head_dim, query);
        }
    }
    for (int i = 0; i < count; ++i) finish_query<Format>(queries[i], work.head_dim);
}

template <class Format>
[[gnu::noinline]] void attend_span_of(const AttentionSpan& span) {
    Query queries[kMaxQueries], *active[kMaxQueries];
    const AttentionTile& work = span.tile;
    for (int head = 0; head < work.group; ++head) queries[head] = make_query<Format>(work, 0, head);
    visit_span<Format>(work, queries, work.group, span.first_key, active);
    for (int head = 0; head < work.group; ++head) {
        float* out = work.out + head * (work.head_dim + 2);
        for (int i = 0; i < work.head_dim; i += 16) store(out + i, load(queries[head].sums + i));
        out[work.head_dim] = queries[head].peak;
        out[work.head_dim + 1] = queries[head].weight;
    }
}

template <class Format>
[[gnu::noinline]] void merge_spans_of(const SpanMerge& merge) {
    const int width = merge.head_dim;
    for (int head = 0; head < merge.heads; ++head) {
        Query query;
        query.total = merge.out + head * width;
        for (int i = 0; i < merge.spans; ++i) {
            const float* part = merge.partial + (i * merge.heads + head) * (width + 2);
            fold_span(part, part[width], part[width + 1], width, query);
        }
        finish_query<Format>(query, width);
    }
}

// Calls body with the format's class.
template <class Body>
HEADRACE_INLINE void with_format(KvFormat format, Body&& body) {
    switch (format) {
        case KvFormat::bf16: return body(Bf16Pages{});
        case KvFormat::kv8: return body(CodedPages<8>{});
        case KvFormat::kv4: return body(CodedPages<4>{});
    }
}

// The state of tiny numbers is set around the whole of bf16 attention.
template <class Format, class Work>
[[gnu::noinline]] void run_alone(void (*kernel)(const Work&), const Work& work) {
    if constexpr (std::is_same_v<Format, Bf16Pages>) {
        const FlushTiny flush;
        kernel(work);
    } else {
        kernel(work);
    }
}

inline void attend_rows(const AttentionTile& work) {
    with_format(work.format, [&](auto format) { run_alone<decltype(format)>(attend_rows_of<decltype(format)>, work); });
}

inline void attend_one_span(const AttentionSpan& span) {
    with_format(span.tile.format, [&](auto format) { run_alone<decltype(format)>(attend_span_of<decltype(format)>, span); });
}

inline void merge_partial_spans(const SpanMerge& merge) {
    with_format(merge.format, [&](auto format) { run_alone<decltype(format)>(merge_spans_of<decltype(format)>, merge); });
}

}  // namespace headrace::HEADRACE_ISA
