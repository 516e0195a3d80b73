// Attention on coded keys and values (int8 or 4-bit, see kv_format.hpp) in integer products, and how such codes are made.
//
// Both products have a side that is quantised here to 14 bits in two planes of 7 (hi · 128 + lo): the query, once a row, and
// the weights of a span of keys times the values' steps. Then every product is a sum of unsigned codes times signed bytes,
// exact in any order on every ISA; the planes are 7 bits wide so that pairs of products never saturate the int16 sums that
// AVX2 makes of them (2 · 255 · 64 < 2^15), and whole sums stay inside int32 up to 1024 terms (255 · 8127 · 1024 < 2^31).
// Queries in 8 bits would save a quarter of the products and cost 4-bit keys 0.004 nats of 0.057 (SmolLM2-135M, real text).
#pragma once

#include "attention_steps_impl.hpp"

namespace headrace::HEADRACE_ISA {

inline constexpr float kPlanePeak = 8127.0f;  // 63 · 128 + 63
inline constexpr float kLeastPeak = 1e-30f;   // below, an inverse could overflow: the vector counts as zero

// Codes of sixteen values |code| ≤ 8127: their high bytes, and `low_at` bytes further their low bytes.
HEADRACE_INLINE void store_narrow_planes(std::int8_t* to, int low_at, I16 code) {
    const I16 high = shift_right<7>(code + splat_int(64));
    store_bytes(to, high);
    store_bytes(to + low_at, code - shift_left<7>(high));
}

HEADRACE_INLINE std::int32_t plane_word(const std::int8_t* p) {
    std::int32_t four;
    std::memcpy(&four, p, 4);
    return four;
}

// ---- turning vectors --------------------------------------------------------------------------------------------------

// Lanes i and i ^ k become their sum and their difference.
template <int k>
HEADRACE_INLINE F16 butterfly(F16 x) {
    alignas(64) static constexpr auto signs = [] {
        struct { float v[16]; } table{};
        for (int i = 0; i < 16; ++i) table.v[i] = i & k ? -1.0f : 1.0f;
        return table;
    }();
    return fma(x, load(signs.v), exchange<k>(x));
}

// x = H·x in place, H the orthonormal Hadamard matrix, its own inverse, over blocks of the largest power of two that divides
// `width`. A few channels of keys are ten times as large as the others, always the same ones; turned so, they are spread over
// all channels and 4 or 8 bits resolve a vector better (as in QuaRot). Products of turned queries and turned keys are those of
// the originals, and a sum of turned values is turned back at its end. Needs no calibration.
inline void turn(float* x, int width) {
    const int block = width & -width;
    const F16 scale = splat(1.0f / __builtin_sqrtf(static_cast<float>(block)));
    for (int i = 0; i < width; i += 16)
        store(x + i, butterfly<8>(butterfly<4>(butterfly<2>(butterfly<1>(load(x + i))))) * scale);
    for (int stride = 16; stride < block; stride *= 2)
        for (int i = 0; i < width; i += 16) {
            if (i & stride) continue;
            const F16 a = load(x + i), b = load(x + i + stride);
            store(x + i, a + b);
            store(x + i + stride, a - b);
        }
}

inline const float* turned(const float* x, int width, float* to) {
    std::memcpy(to, x, static_cast<std::size_t>(width) * sizeof(float));
    turn(to, width);
    return to;
}

// ---- making codes -----------------------------------------------------------------------------------------------------

struct CodedVector {
    std::uint16_t step, middle;  // bf16
};

HEADRACE_INLINE float rounded_bf16(float x, std::uint16_t* code) {
    std::uint16_t codes[16];
    store_bf16(codes, splat(x));
    *code = codes[0];
    float lanes[16];
    store(lanes, load_bf16(codes));
    return lanes[0];
}

// Codes 0 … 2^bits − 1 of one head's vector. A vector with a NaN or an infinity gets NaN for its parameters, as rows do.
template <int bits>
HEADRACE_INLINE CodedVector code_vector(const float* x, int width, std::uint8_t* codes) {
    constexpr float half = static_cast<float>(1 << (bits - 1)), levels = static_cast<float>((1 << bits) - 1);
    F16 top = splat(-__builtin_inff()), low = splat(__builtin_inff()), broken = splat(0.0f);
    for (int i = 0; i < width; i += 16) {
        const F16 v = load(x + i);
        top = max(v, top);
        low = min(v, low);
        broken = fma(v, splat(0.0f), broken);
    }
    const float least = -maximum(-low), nan = sum(broken);
    CodedVector out;
    const float range = (maximum(top) - least) / levels;
    const float step = rounded_bf16(range > kLeastPeak ? range + nan : nan, &out.step);
    const float middle = rounded_bf16(fma1(half, step, least) + nan, &out.middle);
    const F16 inverse = splat(step > 0.0f ? 1.0f / step : 0.0f);
    for (int i = 0; i < width; i += 16) {
        const F16 scaled = (load(x + i) - splat(middle)) * inverse;
        store_bytes(codes + i, to_int(min(max(scaled, splat(-half)), splat(half - 1.0f))) + splat_int(1 << (bits - 1)));
    }
    return out;
}

// Keys and values of one token and head into their places; `head` is the head's part of the page.
template <int bits>
inline void store_coded(const float* key, const float* value, int width, std::uint8_t* head, int slot) {
    float vector[kMaxHeadDim];
    std::uint8_t codes[kMaxHeadDim];
    std::uint8_t* keys = head;
    std::uint8_t* values = head + static_cast<std::size_t>(2 * bits) * width;
    auto* parameters = reinterpret_cast<std::uint16_t*>(values + static_cast<std::size_t>(2 * bits) * width);
    const CodedVector k = code_vector<bits>(turned(key, width, vector), width, codes);
    for (int line = 0; line < width / 4; line += 8 / bits) {
        std::uint8_t four[4];
        for (int i = 0; i < 4; ++i) {
            four[i] = codes[4 * line + i];
            if constexpr (bits == 4) four[i] = static_cast<std::uint8_t>(four[i] | codes[4 * line + 4 + i] << 4);
        }
        std::memcpy(keys + 64 * (line * bits / 8) + 4 * slot, four, 4);
    }
    const CodedVector v = code_vector<bits>(turned(value, width, vector), width, codes);
    std::uint8_t* lines = values + static_cast<std::size_t>(slot / 4) * 4 * width * bits / 8 + slot % 4;
    for (int line = 0; line < width / 16; line += 8 / bits)
        for (int lane = 0; lane < 16; ++lane) {
            std::uint8_t code = codes[16 * line + lane];
            if constexpr (bits == 4) code = static_cast<std::uint8_t>(code | codes[16 * line + 16 + lane] << 4);
            lines[64 * (line * bits / 8) + 4 * lane] = code;
        }
    parameters[slot] = k.step;
    parameters[kPageTokens + slot] = k.middle;
    parameters[2 * kPageTokens + slot] = v.step;
    parameters[3 * kPageTokens + slot] = v.middle;
}

// ---- using them -------------------------------------------------------------------------------------------------------

// Line `2·pair + odd` of an array of codes.
template <int bits, int odd>
HEADRACE_INLINE I16 code_line(const std::uint8_t* codes, int pair) {
    if constexpr (bits == 8) {
        return load(reinterpret_cast<const std::int32_t*>(codes + 64 * (2 * pair + odd)));
    } else {
        const I16 both = load(reinterpret_cast<const std::int32_t*>(codes + 64 * pair));
        if constexpr (odd)
            return shift_right<4>(both) & splat_int(0x0f0f0f0f);
        else
            return both & splat_int(0x0f0f0f0f);
    }
}

inline constexpr int kCodedQueries =
#if defined(HEADRACE_LANES_512)
    3;
#else
    1;
#endif

inline CodedQuery code_query(const float* raw, int width, std::int8_t* to) {
    float vector[kMaxHeadDim];
    const float* q = turned(raw, width, vector);
    F16 peak_lanes = splat(0.0f), broken = splat(0.0f);
    for (int i = 0; i < width; i += 16) {
        peak_lanes = max(abs(load(q + i)), peak_lanes);
        broken = fma(load(q + i), splat(0.0f), broken);
    }
    const float peak = maximum(peak_lanes);
    const bool live = peak > kLeastPeak;
    const F16 inverse = splat(live ? kPlanePeak / peak : 0.0f);
    I16 sums = splat_int(0);
    for (int i = 0; i < width; i += 16) {
        const I16 code = to_int(load(q + i) * inverse);
        store_narrow_planes(to + i, width, code);
        sums = sums + code;
    }
    CodedQuery query;
    query.planes = to;
    query.scale = (live ? peak / kPlanePeak : 0.0f) * kLog2E + sum(broken);
    query.sum = sum(sums);
    query.total = query.scale * static_cast<float>(query.sum);
    return query;
}

// acc[r][plane][n] += lines[n] · dword of row r and plane, whose planes lie `low_at` bytes apart.
template <int R, int N>
HEADRACE_INLINE void add_lines(I16 (*acc)[2][N], const I16* lines, const std::int8_t* const* rows, int at, int low_at) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
        for (int plane = 0; plane < 2; ++plane) {
            const I16 four = splat_int(plane_word(rows[r] + plane * low_at + at));
#pragma GCC unroll 8
            for (int n = 0; n < N; ++n) acc[r][plane][n] = dot_quads(acc[r][plane][n], lines[n], four);
        }
}

template <int R, int N>
HEADRACE_INLINE void clear_sums(I16 (*acc)[2][N]) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
        for (int plane = 0; plane < 2; ++plane)
#pragma GCC unroll 8
            for (int n = 0; n < N; ++n) acc[r][plane][n] = splat_int(0);
}

template <int N>
HEADRACE_INLINE I16 whole_sum(const I16 (*acc)[N], int n) {
    return shift_left<7>(acc[0][n]) + acc[1][n];
}

inline const std::uint16_t* parameters_of(const std::uint8_t* head, KvFormat format, int width) {
    return reinterpret_cast<const std::uint16_t*>(head + 2 * kv_code_bytes(format, width));
}

// Asks for line pair `pair` of an array of codes.
template <int bits>
HEADRACE_INLINE void prefetch_lines(const std::uint8_t* codes, int pair) {
    prefetch(codes + 16 * bits * pair);
    if constexpr (bits == 8) prefetch(codes + 16 * bits * pair + 64);
}

// Where `head` begins keys, the parameters of keys and values are two lines behind both.
template <KvFormat format>
HEADRACE_INLINE void prefetch_parameters(const std::uint8_t* head, int width) {
    const std::uint8_t* parameters = head + 2 * kv_code_bytes(format, width);
    prefetch(parameters);
    prefetch(parameters + 64);
}

// Scores of 16·P keys for R queries: step · scale · (sum of products − half · sum of codes) + middle · total. `codes` are
// the pages' keys, of `bits` bits as they stand there; the pages themselves are of the format with `kept` bits.
template <int R, int P, int kept, int bits>
HEADRACE_INLINE void score_coded_pages(Query* const* queries, const std::uint8_t* const* codes, const ComingPages& coming,
                                       const SpanPages& span, int page, int width) {
    constexpr KvFormat format = kept == 8 ? KvFormat::kv8 : KvFormat::kv4;
    const std::int8_t* rows[R];
    for (int r = 0; r < R; ++r) rows[r] = queries[r]->coded.planes;
    for (int p = 0; p < P; ++p) prefetch_parameters<format>(coming.at[page + p], width);
    I16 acc[R][2][P];
    clear_sums<R, P>(acc);
    for (int pair = 0; pair < width / 8; ++pair) {
#pragma GCC unroll 8
        for (int p = 0; p < P; ++p) prefetch_lines<kept>(coming.at[page + p], pair);
        I16 lines[P];
#pragma GCC unroll 8
        for (int p = 0; p < P; ++p) lines[p] = code_line<bits, 0>(codes[page + p], pair);
        add_lines<R, P>(acc, lines, rows, 8 * pair, width);
#pragma GCC unroll 8
        for (int p = 0; p < P; ++p) lines[p] = code_line<bits, 1>(codes[page + p], pair);
        add_lines<R, P>(acc, lines, rows, 8 * pair + 4, width);
    }
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) {
        const std::uint16_t* parameters = parameters_of(span.head[page + p], format, width);
        const F16 step = load_bf16(parameters), middle = load_bf16(parameters + kPageTokens);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            const CodedQuery& query = queries[r]->coded;
            const I16 whole = whole_sum(acc[r], p) - splat_int(query.sum * (1 << (kept - 1)));
            store(queries[r]->scores + 16 * (page + p), fma(to_float(whole), step * splat(query.scale), middle * splat(query.total)));
        }
    }
}

template <int R, int kept, int bits>
inline void score_coded_block(Query* const* queries, const std::uint8_t* const* codes, const ComingPages& coming, const SpanPages& span,
                              int width) {
    const BlockPages<R> seen(queries, span.from, span.to);
    int page = seen.from;
    for (; page + kPagesAtOnce <= seen.to; page += kPagesAtOnce)
        score_coded_pages<R, kPagesAtOnce, kept, bits>(queries, codes, coming, span, page, width);
    if constexpr (kPagesAtOnce > 1)
        for (; page < seen.to; ++page) score_coded_pages<R, 1, kept, bits>(queries, codes, coming, span, page, width);
}

// A span's weights as integers relative to the largest, the values' steps taken in: 16 high and 16 low bytes for each page
// of the span, zeros where the query sees none of it. They take the place of the scores.
template <int kept>
HEADRACE_INLINE void code_weights(Query& query, const SpanPages& span, int width) {
    constexpr KvFormat format = kept == 8 ? KvFormat::kv8 : KvFormat::kv4;
    F16 top = splat(0.0f), middles = splat(0.0f);
    soften(query, [](F16 weight) { return weight; }, [&](int page, F16 weight, bool whole) {
        const std::uint16_t* parameters = parameters_of(span.head[page], format, width) + 2 * kPageTokens;
        F16 step = load_bf16(parameters), middle = load_bf16(parameters + kPageTokens);
        if (!whole) {  // slots that are not seen may hold anything
            step = keep_seen(query, page, step, 0.0f);
            middle = keep_seen(query, page, middle, 0.0f);
        }
        middles = fma(weight, middle, middles);
        weight = weight * step;
        top = max(weight, top);
        store(query.scores + 16 * page, weight);
    });
    const float peak = maximum(top);
    const bool live = peak > kLeastPeak;
    const F16 inverse = splat(live ? kPlanePeak / peak : 0.0f);
    auto* planes = reinterpret_cast<std::int8_t*>(query.scores);
    I16 sums = splat_int(0);
    const int before = query.from_page(), behind = query.to_page();
    for (int page = before; page < behind; ++page) {
        const I16 code = to_int(load(query.scores + 16 * page) * inverse);
        store_narrow_planes(planes + 32 * page, 16, code);
        sums = sums + code;
    }
    for (int page = span.from; page < before; ++page) std::memset(planes + 32 * page, 0, 32);
    for (int page = behind; page < span.to; ++page) std::memset(planes + 32 * page, 0, 32);
    query.weights = {live ? peak / kPlanePeak : 0.0f, sum(middles), sum(sums)};
}

// sums = scale · (sum of products − half · sum of codes) + the weighted middles, for R queries over the pages of a span.
template <int R, int N, int kept, int bits>
HEADRACE_INLINE void weigh_codes(Query* const* queries, const std::uint8_t* const* codes, const ComingPages& coming,
                                 const BlockPages<R>& seen, int width) {
    const std::int8_t* rows[R];
    for (int r = 0; r < R; ++r) rows[r] = reinterpret_cast<const std::int8_t*>(queries[r]->scores);
    const int pairs = width / 32;
    for (int column = 0; column < pairs; column += N / 2) {
        I16 acc[R][2][N];
        clear_sums<R, N>(acc);
        for (int page = seen.from; page < seen.to; ++page)
            for (int quad = 0; quad < kPageTokens / 4; ++quad) {
                I16 lines[N];
#pragma GCC unroll 8
                for (int n = 0; n < N; n += 2) {
                    prefetch_lines<kept>(coming.at[page], quad * pairs + column + n / 2);
                    lines[n] = code_line<bits, 0>(codes[page], quad * pairs + column + n / 2);
                    lines[n + 1] = code_line<bits, 1>(codes[page], quad * pairs + column + n / 2);
                }
                add_lines<R, N>(acc, lines, rows, 32 * page + 4 * quad, 16);
            }
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            const CodedWeights& weights = queries[r]->weights;
            const I16 offset = splat_int(weights.sum * (1 << (kept - 1)));
#pragma GCC unroll 8
            for (int n = 0; n < N; ++n)
                store(queries[r]->sums + 32 * column + 16 * n,
                      fma(to_float(whole_sum(acc[r], n) - offset), splat(weights.scale), splat(weights.middle)));
        }
    }
}

template <int R, int kept, int bits>
inline void weigh_coded_block(Query* const* queries, const std::uint8_t* const* codes, const ComingPages& coming, const SpanPages& span,
                              int width) {
    const BlockPages<R> seen(queries, span.from, span.to);
    if (width % (16 * kVectorsAtOnce) == 0)
        weigh_codes<R, kVectorsAtOnce, kept, bits>(queries, codes, coming, seen, width);
    else
        weigh_codes<R, 2, kept, bits>(queries, codes, coming, seen, width);
}

}  // namespace headrace::HEADRACE_ISA
