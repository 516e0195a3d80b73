// Paged attention on lanes: one arithmetic for prompt chunks and decode rows. Included once per ISA.
//
// A row's result is a function of its query and of the keys it sees, never of the rows beside it:
//   - keys are visited in tiles of 64 at absolute positions (four pages), ascending; scores of 16 keys share one vector
//     (K is stored transposed), each an fma chain over the head's dimensions in order;
//   - a tile updates a running maximum, 16 partial weights and the sums of values, key by key in order (online softmax, as
//     in FlashAttention);
//   - every 512 keys (again absolute) the running state is folded into the row's total, so that a long context may be cut
//     at those borders, computed by several threads and merged in the same order;
//   - keys outside the causal range or the window take no part at all: what their slots hold never enters a sum.
// How a tile's scores and sums are computed is the format's: fp32 chains here for bf16, integers in kv_codes_impl.hpp.
#pragma once

#include "attention_steps_impl.hpp"

namespace headrace::HEADRACE_ISA {

// ---- formats: where a head's keys and values are in a page, and a form of them for many queries -----------------------------

struct Bf16Pages {
    static constexpr int queries = kQueries;
    using Tile = TileView<std::uint16_t>;

    static void place(Tile& tile, int page, const std::uint8_t* head, int width) {
        tile.keys[page] = reinterpret_cast<const std::uint16_t*>(head);
        tile.values[page] = tile.keys[page] + kPageTokens * width;
    }
    static void prepare(Query&, int, std::int8_t*) {}
    static void close_span(Query&, int) {}
    static void turn_back(float*, int) {}

    // Widens a tile once when many queries use it.
    static TileView<float> spread(const Tile& tile, int width, float* buffer) {
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
};

template <int bits>
struct CodedPages {
    static constexpr int queries = kCodedQueries;
    using Tile = CodedTile<bits>;

    static void place(Tile& tile, int page, const std::uint8_t* head, int width) {
        const std::size_t bytes = static_cast<std::size_t>(2 * bits) * width;
        tile.half = 1 << (bits - 1);
        tile.keys[page] = head;
        tile.values[page] = head + bytes;
        tile.parameters[page] = reinterpret_cast<const std::uint16_t*>(head + 2 * bytes);
    }
    static void prepare(Query& query, int width, std::int8_t* planes) { query.coded = code_query(query.q, width, planes); }
    static void close_span(Query& query, int width) {
        const F16 middle = splat(sum(load(query.middle)));
        for (int i = 0; i < width; i += 16) store(query.sums + i, load(query.sums + i) + middle);
    }

    static void turn_back(float* out, int width) { turn(out, width); }

    // Unpacks 4-bit codes once when many queries use them.
    static CodedTile<8> spread(const Tile& tile, int width, float* buffer) {
        CodedTile<8> bytes;
        bytes.first = tile.first;
        bytes.half = tile.half;
        auto* to = reinterpret_cast<std::uint8_t*>(buffer);
        for (int p = 0; p < kTilePages; ++p) {
            bytes.parameters[p] = tile.parameters[p];
            bytes.keys[p] = unpack(tile.keys[p], width, to);
            bytes.values[p] = unpack(tile.values[p], width, to);
        }
        return bytes;
    }

  private:
    static const std::uint8_t* unpack(const std::uint8_t* codes, int width, std::uint8_t*& to) {
        if constexpr (bits == 8) return codes;
        const std::uint8_t* start = to;
        for (int pair = 0; pair < width / 8; ++pair, to += 128) {
            store(reinterpret_cast<std::int32_t*>(to), code_line<bits, 0>(codes, pair));
            store(reinterpret_cast<std::int32_t*>(to + 64), code_line<bits, 1>(codes, pair));
        }
        return start;
    }
};

template <class Format>
void end_span(Query& query, int width) {
    Format::close_span(query, width);
    fold_span(query.sums, query.peak, sum(load(query.weight)), width, query);
}

// Visits the tiles between the first and the last key that any query sees.
template <class Format>
void visit_tiles(const AttentionTile& work, Query* queries, int count) {
    int first = queries[0].first, last = queries[0].last;
    for (int i = 1; i < count; ++i) {
        first = smaller(first, queries[i].first);
        last = larger(last, queries[i].last);
    }
    const int width = work.head_dim, last_page = (last - 1) / kPageTokens;
    float* buffer = work.scratch + static_cast<std::size_t>(kMaxQueries) * width * 3 / 2;
    for (int i = 0; i < count; ++i)
        Format::prepare(queries[i], width,
                        reinterpret_cast<std::int8_t*>(work.scratch + static_cast<std::size_t>(kMaxQueries) * width) + i * 2 * width);
    for (int key = first / kTileKeys * kTileKeys; key < last; key += kTileKeys) {
        typename Format::Tile tile;
        tile.first = key;
        for (int p = 0; p < kTilePages; ++p) {  // pages that nobody sees are replaced by one that exists
            const int page = larger(smaller(key / kPageTokens + p, last_page), first / kPageTokens);
            Format::place(tile, p, work.pages(page) + work.head_offset, width);
        }
        Query* active[kMaxQueries];
        int seeing = 0;
        for (int i = 0; i < count; ++i) {
            Query& query = queries[i];
            if (query.first >= key + kTileKeys || query.last <= key) continue;
            active[seeing++] = &query;
            if (query.first >= key) {
                begin_span(query, width);
            } else if (key % kSpanKeys == 0) {
                end_span<Format>(query, width);
                begin_span(query, width);
            }
        }
        if (seeing > Format::queries)
            tile_queries<Format::queries>(active, seeing, Format::spread(tile, width, buffer), width);
        else
            tile_queries<Format::queries>(active, seeing, tile, width);
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
    return query;
}

template <class Format>
void attend_rows_of(const AttentionTile& work) {
    Query queries[kMaxQueries];
    const int count = work.rows * work.group;
    for (int i = 0; i < count; ++i) queries[i] = make_query(work, i / work.group, i % work.group);
    visit_tiles<Format>(work, queries, count);
    for (int i = 0; i < count; ++i) {
        end_span<Format>(queries[i], work.head_dim);
        finish_query<Format>(queries[i], work.head_dim);
    }
}

template <class Format>
void attend_span_of(const AttentionSpan& span) {
    Query queries[kMaxQueries];
    const AttentionTile& work = span.tile;
    for (int head = 0; head < work.group; ++head) {
        queries[head] = make_query(work, 0, head);
        queries[head].first = larger(queries[head].first, span.first_key);
        queries[head].last = smaller(queries[head].last, span.first_key + kSpanKeys);
    }
    visit_tiles<Format>(work, queries, work.group);
    for (int head = 0; head < work.group; ++head) {
        Format::close_span(queries[head], work.head_dim);
        float* out = work.out + head * (work.head_dim + 2);
        for (int i = 0; i < work.head_dim; i += 16) store(out + i, load(queries[head].sums + i));
        out[work.head_dim] = queries[head].peak;
        out[work.head_dim + 1] = sum(load(queries[head].weight));
    }
}

template <class Format>
void merge_spans_of(const SpanMerge& merge) {
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

inline void attend_rows(const AttentionTile& work) {
    with_format(work.format, [&](auto format) { attend_rows_of<decltype(format)>(work); });
}

inline void attend_one_span(const AttentionSpan& span) {
    with_format(span.tile.format, [&](auto format) { attend_span_of<decltype(format)>(span); });
}

inline void merge_partial_spans(const SpanMerge& merge) {
    with_format(merge.format, [&](auto format) { merge_spans_of<decltype(format)>(merge); });
}

}  // namespace headrace::HEADRACE_ISA
