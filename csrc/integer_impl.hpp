// Products with integer formats (formats.hpp), written on the operands of matmul_impl.hpp and compiled per ISA.
//
// Per (row, output) everything but the last line is exact in int32, so any order and any of the ways below is the same:
//   acc = sum of (q*s1 - z)*x over the inputs      (8 bits: of (q-128)*x)
//   out = (float(acc) * s0) * scale                (two planes: acc = 256*hi + lo, added in double, which holds it exactly)
//
// Three ways to get acc, after QServe (Lin et al., "W4A8KV4 quantization and system co-design"):
// - few rows: raw nibbles go into the byte products, s1 multiplies the sum of a group (nothing is unpacked per weight);
// - many rows, where s1 is small enough (q*s1 <= 255): the panel is expanded to bytes once, then all rows use it;
// - zeros are a product of their own with the rows' group sums: one instruction for two groups.
// Included behind matmul_impl.hpp.
#pragma once

#include "integer_codes.hpp"

namespace headrace::HEADRACE_ISA {
namespace {

constexpr int kExpandRows = 64;    // rows that share an expanded panel
constexpr int kExpandInputs = 1024;  // of a panel expanded at a time: 16 KiB
constexpr int kWorthExpanding = 24;    // rows from which expanding a panel first pays

// A row's planes: 32 bytes of hi and 32 of lo in turn, or (one plane) bytes only.
template <int planes>
constexpr int kChunkBytes = 32 * planes;

// Independent sums a row and plane: the byte product takes several cycles, so few rows alone would wait for each other.
template <int R>
constexpr int kChains = R <= 2 ? 4 : R <= 4 ? 2 : 1;

template <int planes, int R>
HEADRACE_INLINE void clear(I16* sums) {
    for (int i = 0; i < planes * R * kChains<R>; ++i) sums[i] = splat_int(0);
}
// sums[i] becomes the sum of all chains of row and plane i.
template <int planes, int R>
HEADRACE_INLINE void join_chains(I16* sums) {
    constexpr int n = planes * R;
    for (int width = kChains<R> / 2; width > 0; width /= 2)
        for (int i = 0; i < n * width; ++i) sums[i] = sums[i] + sums[n * width + i];
}

// dots[plane*R + r] += the nibbles of 32 inputs (4 lines) times each row.
#if defined(HEADRACE_LANES_256)
// Eight products of pairs stay inside int16: 8 * 2 * 15 * 128 = 30720.
template <int planes, int R>
HEADRACE_INLINE void nibble_chunk(const std::uint8_t* lines, const std::int8_t* x, std::size_t stride, I16* dots) {  // first chain only
    const __m256i zero = _mm256_setzero_si256(), ones = _mm256_set1_epi16(1);
    __m256i a[planes * R], b[planes * R];
    for (int i = 0; i < planes * R; ++i) a[i] = b[i] = zero;
    for (int line = 0; line < 4; ++line) {
        const Codes both = load_codes(lines + 64 * line), low = low_nibbles(both), high = high_nibbles(both);
        for (int plane = 0; plane < planes; ++plane)
            for (int r = 0; r < R; ++r) {
                const std::int8_t* from = x + r * stride + 32 * plane + 4 * line;
                const __m256i first = four_inputs(from), second = four_inputs(from + 16);
                __m256i &sum_a = a[plane * R + r], &sum_b = b[plane * R + r];
                sum_a = _mm256_add_epi16(sum_a, _mm256_add_epi16(_mm256_maddubs_epi16(low.a, first), _mm256_maddubs_epi16(high.a, second)));
                sum_b = _mm256_add_epi16(sum_b, _mm256_add_epi16(_mm256_maddubs_epi16(low.b, first), _mm256_maddubs_epi16(high.b, second)));
            }
    }
    for (int i = 0; i < planes * R; ++i)
        dots[i] = dots[i] + I16{_mm256_madd_epi16(a[i], ones), _mm256_madd_epi16(b[i], ones)};
}
#else
template <int planes, int R>
HEADRACE_INLINE void nibble_chunk(const std::uint8_t* lines, const std::int8_t* x, std::size_t stride, I16* dots) {
    for (int line = 0; line < 4; ++line) {
        const Codes both = load_codes(lines + 64 * line), low = low_nibbles(both), high = high_nibbles(both);
        I16* first = dots + 2 * line % kChains<R> * planes * R;
        I16* second = dots + (2 * line + 1) % kChains<R> * planes * R;
        for (int plane = 0; plane < planes; ++plane)
            for (int r = 0; r < R; ++r)
                first[plane * R + r] = dot_nibbles(first[plane * R + r], low, x + r * stride + 32 * plane + 4 * line);
        for (int plane = 0; plane < planes; ++plane)
            for (int r = 0; r < R; ++r)
                second[plane * R + r] = dot_nibbles(second[plane * R + r], high, x + r * stride + 32 * plane + 4 * line + 16);
    }
}
#endif

template <int planes, int R>
HEADRACE_INLINE void byte_chunk(const std::uint8_t* lines, const std::int8_t* x, std::size_t stride, I16* dots) {
    for (int line = 0; line < 8; ++line) {
        const Codes w = load_codes(lines + 64 * line);
        for (int plane = 0; plane < planes; ++plane)
            for (int r = 0; r < R; ++r) {
                I16& sum = dots[line % kChains<R> * planes * R + plane * R + r];
                sum = dot_bytes(sum, w, x + r * stride + 32 * plane + 4 * line);
            }
    }
}

// zeros[…] += the zeros of the groups from `first` on (at most kBlockGroups, two lines) times their sums.
template <int planes, int R>
HEADRACE_INLINE void add_zeros(const PanelProduct& p, const std::uint8_t* lines, int first, int groups, int row, I16* zeros) {
    const std::int16_t* sums = p.group_sums + row * p.group_sum_stride;
    for (int g = first; g < groups && g < first + kBlockGroups; g += 2, lines += 64)
        for (int plane = 0; plane < planes; ++plane)
            for (int r = 0; r < R; ++r)
                zeros[plane * R + r] =
                    dot_pairs(zeros[plane * R + r], lines, sums + r * p.group_sum_stride + plane * p.group_sum_length + g);
}

template <int planes, int R>
HEADRACE_INLINE void finish_rows(const PanelProduct& p, int row, const I16* acc) {
    const F16 channel = load(reinterpret_cast<const float*>(p.panel));
    for (int r = 0; r < R; ++r) {
        F16 whole;
        if constexpr (planes == 1) whole = to_float(acc[r]) * channel;
        else whole = scaled_planes(acc[r], acc[R + r], channel);
        store(p.out + (row + r) * p.out_stride, whole * splat(p.scale[row + r]));
    }
}

template <Format format, int R>
HEADRACE_INLINE void byte_rows(const PanelProduct& p, int row, I16* acc) {
    constexpr int planes = kFormatTraits[static_cast<int>(format)].activation_bits / 8;
    const std::uint8_t* lines = p.panel + 64;
    const std::int8_t* x = p.planes + row * p.plane_stride;
    for (int k = 0; k < p.inputs; k += 32, lines += 512, x += kChunkBytes<planes>) byte_chunk<planes, R>(lines, x, p.plane_stride, acc);
    join_chains<planes, R>(acc);
    for (int plane = 0; plane < planes; ++plane)
        for (int r = 0; r < R; ++r)
            acc[plane * R + r] = acc[plane * R + r] - shift_left<7>(splat_int(p.totals[(row + r) * planes + plane]));
}

// With a few rows a chunk of 32 inputs takes longer to compute on than the prefetchers of the CPU look ahead (as in
// matmul_impl.hpp): asked for early, 8 rows of streamed codes gain a quarter to a half. One or two rows only lose by it.
constexpr int kBytesAhead = 1536;

template <int R>
HEADRACE_INLINE void ask_ahead(const std::uint8_t* lines) {
    if constexpr (R >= kLeastRowsAhead)
        for (int i = 0; i < 256; i += 64) __builtin_prefetch(lines + kBytesAhead + i);
}

template <Format format, int R>
HEADRACE_INLINE void nibble_rows(const PanelProduct& p, int row, I16* acc) {
    constexpr FormatTraits traits = kFormatTraits[static_cast<int>(format)];
    constexpr int planes = traits.activation_bits / 8, group_chunks = traits.group / 32;
    const int groups = (p.inputs + traits.group - 1) / traits.group;
    const std::uint8_t* lines = p.panel + 64;
    const std::uint8_t* scales = lines;
    const std::int8_t* x = p.planes + row * p.plane_stride;
    I16 zeros[planes * R];
    for (int i = 0; i < planes * R; ++i) zeros[i] = splat_int(0);
    int chunks = p.inputs / 32;
    for (int g = 0; g < groups; ++g, chunks -= group_chunks) {
        if (g % kBlockGroups == 0) {
            add_zeros<planes, R>(p, lines + 64, g, groups, row, zeros);
            scales = lines;
            lines += kBlockHead;
        }
        I16 dots[planes * R * kChains<R>];
        clear<planes, R>(dots);
        if (chunks >= group_chunks) {
            for (int chunk = 0; chunk < group_chunks; ++chunk, lines += 256, x += kChunkBytes<planes>) {
                ask_ahead<R>(lines);
                nibble_chunk<planes, R>(lines, x, p.plane_stride, dots);
            }
        } else {
            for (int chunk = 0; chunk < chunks; ++chunk, lines += 256, x += kChunkBytes<planes>)
                nibble_chunk<planes, R>(lines, x, p.plane_stride, dots);
        }
        join_chains<planes, R>(dots);
        const I16 scale = load_scales(scales + kPanelWidth * (g % kBlockGroups));
        for (int i = 0; i < planes * R; ++i) acc[i] = acc[i] + scale * dots[i];
    }
    for (int i = 0; i < planes * R; ++i) acc[i] = acc[i] - zeros[i];
}

template <Format format, int R>
void integer_rows(const PanelProduct& p, int row) {
    constexpr FormatTraits traits = kFormatTraits[static_cast<int>(format)];
    constexpr int planes = traits.activation_bits / 8;
    I16 acc[planes * R * kChains<R>];
    clear<planes, R>(acc);
    if constexpr (traits.bits == 8) byte_rows<format, R>(p, row, acc);
    else nibble_rows<format, R>(p, row, acc);
    finish_rows<planes, R>(p, row, acc);
}

#if defined(HEADRACE_LANES_512)

// q * s1 of the groups of one block, as lines of bytes.
template <Format format>
HEADRACE_INLINE void expand(const std::uint8_t* block, int inputs, std::uint8_t* bytes) {
    constexpr int group = kFormatTraits[static_cast<int>(format)].group;
    const std::uint8_t* lines = block + kBlockHead;
    for (int k = 0; k < inputs; k += 32, bytes += 512, lines += 256) {
        const I16 scales = load_scales(block + kPanelWidth * (k / group));
        ask_ahead<kExpandRows>(lines);
        for (int line = 0; line < 4; ++line) {
            const Codes both = load_codes(lines + 64 * line);
            store_scaled(bytes + 64 * line, low_nibbles(both), scales);
            store_scaled(bytes + 64 * line + 256, high_nibbles(both), scales);
        }
    }
}

// Some blocks of a panel, expanded: inputs first … first+inputs-1.
struct Expanded {
    const std::uint8_t* bytes;
    int first, inputs;
};

template <Format format, int R>
HEADRACE_INLINE void expanded_rows(const PanelProduct& p, const Expanded& part, int row, std::int32_t* kept) {
    constexpr FormatTraits traits = kFormatTraits[static_cast<int>(format)];
    constexpr int planes = traits.activation_bits / 8;
    const std::int8_t* x = p.planes + row * p.plane_stride + static_cast<std::size_t>(part.first) * planes;
    const std::uint8_t* bytes = part.bytes;
    I16 acc[planes * R * kChains<R>];
    clear<planes, R>(acc);
    for (int i = 0; part.first > 0 && i < planes * R; ++i) acc[i] = load(kept + 16 * i);
    for (int k = 0; k < part.inputs; k += 32, bytes += 512, x += kChunkBytes<planes>) byte_chunk<planes, R>(bytes, x, p.plane_stride, acc);
    join_chains<planes, R>(acc);
    if (part.first + part.inputs < p.inputs) {
        for (int i = 0; i < planes * R; ++i) store(kept + 16 * i, acc[i]);
        return;
    }
    const int groups = (p.inputs + traits.group - 1) / traits.group;
    I16 zeros[planes * R];
    for (int i = 0; i < planes * R; ++i) zeros[i] = splat_int(0);
    for (int block = 0; block < block_count<format>(p); ++block)
        add_zeros<planes, R>(p, block_at<format>(p, block) + 64, block * kBlockGroups, groups, row, zeros);
    for (int i = 0; i < planes * R; ++i) acc[i] = acc[i] - zeros[i];
    finish_rows<planes, R>(p, row, acc);
}

template <Format format, int R>
void last_expanded_rows(const PanelProduct& p, const Expanded& part, int row, int end, std::int32_t* kept) {
    if constexpr (R > 0) {
        if (end - row == R) expanded_rows<format, R>(p, part, row, kept);
        else last_expanded_rows<format, R - 1>(p, part, row, end, kept);
    }
}

template <Format format>
void expanded_product(const PanelProduct& p) {
    constexpr FormatTraits traits = kFormatTraits[static_cast<int>(format)];
    constexpr int planes = traits.activation_bits / 8, R = 16 / planes, block_inputs = traits.group * kBlockGroups;
    alignas(64) std::uint8_t bytes[kExpandInputs * kPanelWidth];
    alignas(64) std::int32_t kept[kExpandRows * planes * kPanelWidth];
    for (int start = 0; start < p.rows; start += kExpandRows) {
        const int end = p.rows - start < kExpandRows ? p.rows : start + kExpandRows;
        for (int first = 0; first < p.inputs; first += kExpandInputs) {
            const int inputs = p.inputs - first < kExpandInputs ? p.inputs - first : kExpandInputs;
            for (int k = 0; k < inputs; k += block_inputs)
                expand<format>(block_at<format>(p, (first + k) / block_inputs), inputs - k < block_inputs ? inputs - k : block_inputs,
                               bytes + static_cast<std::size_t>(k) * kPanelWidth);
            const Expanded part{bytes, first, inputs};
            int row = start;
            for (; row + R <= end; row += R) expanded_rows<format, R>(p, part, row, kept + (row - start) * planes * kPanelWidth);
            last_expanded_rows<format, R - 1>(p, part, row, end, kept + (row - start) * planes * kPanelWidth);
        }
    }
}

#endif

// What is left after the full blocks.
template <Format format, int R>
void last_integer_rows(const PanelProduct& p, int row) {
    if constexpr (R > 0) {
        if (p.rows - row == R) integer_rows<format, R>(p, row);
        else last_integer_rows<format, R - 1>(p, row);
    }
}

template <Format format>
void integer_product(const PanelProduct& p) {
    constexpr FormatTraits traits = kFormatTraits[static_cast<int>(format)];
    constexpr int planes = traits.activation_bits / 8;
#if defined(HEADRACE_LANES_512)
    constexpr int R = traits.bits == 8 ? 16 / planes : 8 / planes;
    if constexpr (traits.bits == 4) {
        if (p.rows >= kWorthExpanding && fits_byte_products<format>(p)) {
            expanded_product<format>(p);
            return;
        }
    }
#elif defined(HEADRACE_LANES_256)
    constexpr int R = planes == 1 ? 2 : 1;
#else
    constexpr int R = 4 / planes;
#endif
    int row = 0;
    for (; row + R <= p.rows; row += R) integer_rows<format, R>(p, row);
    last_integer_rows<format, R - 1>(p, row);
}

}  // namespace

void fill_integer(KernelTable& table) {
    table.panel[static_cast<int>(Format::q8a8)] = integer_product<Format::q8a8>;
    table.panel[static_cast<int>(Format::q8a16)] = integer_product<Format::q8a16>;
    table.panel[static_cast<int>(Format::q4g32a8)] = integer_product<Format::q4g32a8>;
    table.panel[static_cast<int>(Format::q4g64a8)] = integer_product<Format::q4g64a8>;
    table.panel[static_cast<int>(Format::q4g128a8)] = integer_product<Format::q4g128a8>;
    table.panel[static_cast<int>(Format::q4g32a16)] = integer_product<Format::q4g32a16>;
    table.panel[static_cast<int>(Format::q4g64a16)] = integer_product<Format::q4g64a16>;
    table.panel[static_cast<int>(Format::q4g128a16)] = integer_product<Format::q4g128a16>;
}

}  // namespace headrace::HEADRACE_ISA
