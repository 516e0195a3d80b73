// Attention on coded keys and values (int8 or 4-bit, see kv_format.hpp) in integer products, and how such codes are made.
//
// Both products have a side that is quantised here to 14 bits in two planes of 7 (hi · 128 + lo): the query, once a row, and
// the weights of a tile of 64 keys times the values' steps. Then every product is a sum of unsigned codes times signed bytes,
// exact in any order on every ISA; the planes are 7 bits wide so that pairs of products never saturate the int16 sums that
// AVX2 makes of them (2 · 255 · 64 < 2^15), and whole sums stay inside int32 up to 1024 dimensions (255 · 8127 · 1024 < 2^31).
// Measured on real text (SmolLM2-135M), this side of the arithmetic costs 4e-7 nats; with 7 bits it would cost 1e-3.
#pragma once

#include "math.hpp"
#include "row_kernels.hpp"

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

// The four pages of a tile. `half` is the code that stands for the middle: unpacked 4-bit codes keep theirs.
template <int bits_>
struct CodedTile {
    static constexpr int bits = bits_;
    const std::uint8_t* keys[kTilePages];
    const std::uint8_t* values[kTilePages];
    const std::uint16_t* parameters[kTilePages];
    int first;  // absolute position of the tile's first key
    int half;
};

// What a query has beside its sums when keys and values are coded.
struct CodedQuery {
    const std::int8_t* planes;
    float scale;        // of the planes
    float total;        // scale · sum of the codes
    std::int32_t sum;   // of the codes
};

inline CodedQuery code_query(const float* raw, int width, std::int8_t* planes) {
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
        store_narrow_planes(planes + i, width, code);
        sums = sums + code;
    }
    CodedQuery query;
    query.planes = planes;
    query.scale = (live ? peak / kPlanePeak : 0.0f) + sum(broken);
    query.sum = sum(sums);
    query.total = query.scale * static_cast<float>(query.sum);
    return query;
}

// acc[r][lane] += line · dword of row r, in both planes.
template <int R, int N>
HEADRACE_INLINE void add_lines(I16 (*high)[N], I16 (*low)[N], const I16* lines, const std::int8_t* const* rows, int group, int low_at) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
        const I16 h = splat_int(plane_word(rows[r] + 4 * group)), l = splat_int(plane_word(rows[r] + low_at + 4 * group));
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) {
            high[r][n] = dot_quads(high[r][n], lines[n], h);
            low[r][n] = dot_quads(low[r][n], lines[n], l);
        }
    }
}

template <int R, int N>
HEADRACE_INLINE void clear_sums(I16 (*high)[N], I16 (*low)[N]) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) high[r][n] = low[r][n] = splat_int(0);
}

// Scores of 64 keys for R queries: step · scale · (sum of products − half · sum of codes) + middle · total.
template <int R, int P, class Tile>
HEADRACE_INLINE void coded_scores(const CodedQuery* const* queries, const Tile& tile, int width, float (*out)[kTileKeys]) {
    const std::int8_t* rows[R];
    for (int r = 0; r < R; ++r) rows[r] = queries[r]->planes;
    for (int page = 0; page < kTilePages; page += P) {
        I16 high[R][P], low[R][P];
        clear_sums<R, P>(high, low);
        for (int pair = 0; pair < width / 8; ++pair) {
            I16 lines[P];
#pragma GCC unroll 8
            for (int p = 0; p < P; ++p) lines[p] = code_line<Tile::bits, 0>(tile.keys[page + p], pair);
            add_lines<R, P>(high, low, lines, rows, 2 * pair, width);
#pragma GCC unroll 8
            for (int p = 0; p < P; ++p) lines[p] = code_line<Tile::bits, 1>(tile.keys[page + p], pair);
            add_lines<R, P>(high, low, lines, rows, 2 * pair + 1, width);
        }
#pragma GCC unroll 8
        for (int p = 0; p < P; ++p) {
            const F16 step = load_bf16(tile.parameters[page + p]), middle = load_bf16(tile.parameters[page + p] + kPageTokens);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
                const I16 whole = shift_left<7>(high[r][p]) + low[r][p] - splat_int(tile.half * queries[r]->sum);
                store(out[r] + 16 * (page + p), fma(to_float(whole), step * splat(queries[r]->scale), middle * splat(queries[r]->total)));
            }
        }
    }
}

// The weights of one query in a tile, times the values' steps, in two planes.
struct CodedWeights {
    alignas(64) std::int8_t planes[2 * kTileKeys];
    float scale;       // of the planes
    float shrink;      // for the older sums
    std::int32_t sum;  // of the codes
};

// sums = sums · shrink + scale · (sum of products − half · sum of codes), for R queries; `pages` from … to are visited.
template <int R, int N, class Tile>
HEADRACE_INLINE void weigh_codes(float* const* sums, const CodedWeights* weights, const Tile& tile, int width, int from, int to) {
    const std::int8_t* rows[R];
    for (int r = 0; r < R; ++r) rows[r] = weights[r].planes;
    const int pairs = width / 32;
    for (int column = 0; column < pairs; column += N / 2) {
        I16 high[R][N], low[R][N];
        clear_sums<R, N>(high, low);
        for (int page = from; page < to; ++page)
            for (int quad = 0; quad < kPageTokens / 4; ++quad) {
                I16 lines[N];
#pragma GCC unroll 8
                for (int n = 0; n < N; n += 2) {
                    lines[n] = code_line<Tile::bits, 0>(tile.values[page], quad * pairs + column + n / 2);
                    lines[n + 1] = code_line<Tile::bits, 1>(tile.values[page], quad * pairs + column + n / 2);
                }
                add_lines<R, N>(high, low, lines, rows, page * (kPageTokens / 4) + quad, kTileKeys);
            }
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            const I16 offset = splat_int(tile.half * weights[r].sum);
#pragma GCC unroll 8
            for (int n = 0; n < N; ++n) {
                float* to_sums = sums[r] + 32 * column + 16 * n;
                const I16 whole = shift_left<7>(high[r][n]) + low[r][n] - offset;
                store(to_sums, fma(to_float(whole), splat(weights[r].scale), load(to_sums) * splat(weights[r].shrink)));
            }
        }
    }
}

}  // namespace headrace::HEADRACE_ISA
