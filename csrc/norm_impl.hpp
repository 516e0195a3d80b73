// Row kernels on lanes: norms, quantisation, activations. Included once per ISA.
#pragma once

#include "math.hpp"
#include "row_kernels.hpp"
#include "formats.hpp"

namespace headrace::HEADRACE_ISA {

// Squares are summed in four accumulators of sixteen lanes (vector i goes to accumulator i mod 4), then by a fixed tree.
HEADRACE_INLINE float square_sum(const float* x, int n) {
    F16 part[4] = {splat(0.0f), splat(0.0f), splat(0.0f), splat(0.0f)};
    int i = 0;
    for (; i + 64 <= n; i += 64)
        for (int j = 0; j < 4; ++j) {
            const F16 value = load(x + i + 16 * j);
            part[j] = fma(value, value, part[j]);
        }
    for (int j = 0; i < n; i += 16, ++j) {
        const F16 value = load(x + i);
        part[j] = fma(value, value, part[j]);
    }
    return sum((part[0] + part[1]) + (part[2] + part[3]));
}

HEADRACE_INLINE void norm_row(const float* x, const float* gain, float eps, int n, float* out) {
    const F16 inverse = splat(1.0f / __builtin_sqrtf(square_sum(x, n) / static_cast<float>(n) + eps));
    for (int i = 0; i < n; i += 16) store(out + i, load(x + i) * inverse * load(gain + i));
}

struct RowScale {
    float scale;  // value of one code
    F16 inverse;
};

// The scale at which a row's largest value gets the code `top`. A row with a NaN or an infinity gets a NaN scale: every
// product of it is NaN then, which the end of the chain can see.
HEADRACE_INLINE RowScale row_scale(const float* x, int n, float top) {
    F16 peak_a = splat(0.0f), peak_b = splat(0.0f), broken = splat(0.0f);
    for (int i = 0; i < n; i += 32) {
        const F16 a = load(x + i), b = load(x + i + 16);
        peak_a = max(abs(a), peak_a);
        peak_b = max(abs(b), peak_b);
        broken = fma(a, splat(0.0f), fma(b, splat(0.0f), broken));
    }
    const float peak = maximum(max(peak_a, peak_b));
    const bool live = peak > 1e-30f;  // below, the inverse could overflow: the row counts as zero
    return {(live ? peak / top : 0.0f) + sum(broken), splat(live ? top / peak : 0.0f)};
}

HEADRACE_INLINE void quantise_row(const float* x, int n, const QuantisedRow& to) {
    const RowScale found = row_scale(x, n, static_cast<float>(kActivationPeak));
    const F16 inverse = found.inverse;
    *to.scale = found.scale;
    for (int i = 0; i < n; i += 32) {
        int32_t sums[2];
        for (int j = 0; j < 2; ++j) {
            const I16 code = to_int(load(x + i + 16 * j) * inverse);
            const I16 high = shift_right<8>(code + splat_int(128));
            store_bytes(to.planes + 2 * i + 16 * j, high);
            store_bytes(to.planes + 2 * i + 32 + 16 * j, code - shift_left<8>(high));
            sums[j] = sum(code);
            to.sums16[i / 16 + j] = sums[j];
        }
        // a NaN's code is INT32_MIN: the sum wraps, and the row's scale says that it means nothing
        to.sums32[i / 32] = static_cast<std::int32_t>(static_cast<std::uint32_t>(sums[0]) + static_cast<std::uint32_t>(sums[1]));
    }
}

// Sums over 64 and 128 inputs of sums over 32; `sums` holds those at its start. See SumLayout.
inline void sum_wider_groups(int inputs, std::int16_t* sums) {
    int count = inputs / 32;
    for (int level = 0; level < 2; ++level) {
        const int padded = count + count % 2, wider = padded / 2;
        if (count < padded) sums[count] = 0;
        for (int i = 0; i < wider; ++i) sums[padded + i] = static_cast<std::int16_t>(sums[2 * i] + sums[2 * i + 1]);
        sums += padded;
        count = wider;
    }
    if (count % 2) sums[count] = 0;
}

HEADRACE_INLINE void quantise_bytes_row(const float* x, int n, const ByteRow& to) {
    const RowScale found = row_scale(x, n, static_cast<float>(kBytePeak));
    const F16 inverse = found.inverse;
    *to.scale = found.scale;
    std::uint32_t total = 0;  // wraps where a NaN's code is in it
    for (int i = 0; i < n; i += 32) {
        const I16 a = to_int(load(x + i) * inverse), b = to_int(load(x + i + 16) * inverse);
        store_bytes(to.bytes + i, a);
        store_bytes(to.bytes + i + 16, b);
        const int32_t both = sum(a + b);
        to.sums[i / 32] = static_cast<std::int16_t>(both);
        total += static_cast<std::uint32_t>(both);
    }
    *to.total = static_cast<std::int32_t>(total);
    sum_wider_groups(n, to.sums);
}

// Codes of each 32 inputs by their own largest value. What is wrong anywhere in the row shows in its first scale.
HEADRACE_INLINE void quantise_groups_row(const float* x, int n, const GroupedRow& to) {
    F16 broken = splat(0.0f);
    for (int i = 0; i < n; i += 32) {
        const F16 a = load(x + i), b = load(x + i + 16);
        const float peak = maximum(max(abs(a), abs(b)));
        const bool live = peak > 1e-30f;
        const F16 inverse = splat(live ? kBytePeak / peak : 0.0f);
        const I16 first = to_int(a * inverse), second = to_int(b * inverse);
        const float scale = live ? peak / kBytePeak : 0.0f;
        const auto low = static_cast<std::uint32_t>(sum(first)), high = static_cast<std::uint32_t>(sum(second));
        store_bytes(to.bytes + i, first);
        store_bytes(to.bytes + i + 16, second);
        to.scales[i / 32] = scale;
        to.weighted[i / 32] = scale * static_cast<float>(static_cast<std::int32_t>(low + high));
        to.offsets16[i / 16] = static_cast<std::int32_t>(0u - 128u * low);
        to.offsets16[i / 16 + 1] = static_cast<std::int32_t>(0u - 128u * high);
        to.offsets32[i / 32] = static_cast<std::int32_t>(0u - 128u * (low + high));
        broken = fma(a, splat(0.0f), fma(b, splat(0.0f), broken));
    }
    to.scales[0] += sum(broken);
}

inline void sum_plane_groups(const std::int8_t* planes, int n, std::int16_t* sums, std::int32_t* totals) {
    const int length = sum_layout(n).length;
    for (int plane = 0; plane < 2; ++plane, sums += length) {
        totals[plane] = 0;
        for (int i = 0; i < n / 32; ++i) {
            std::int32_t part = 0;
            for (int k = 0; k < 32; ++k) part += planes[64 * i + 32 * plane + k];
            sums[i] = static_cast<std::int16_t>(part);
            totals[plane] += part;
        }
        sum_wider_groups(n, sums);
    }
}

HEADRACE_INLINE void add_row(const float* x, int n, float* to) {
    for (int i = 0; i < n; i += 16) store(to + i, load(to + i) + load(x + i));
}

HEADRACE_INLINE void scale_row(float factor, int n, float* x) {
    for (int i = 0; i < n; i += 16) store(x + i, load(x + i) * splat(factor));
}

HEADRACE_INLINE void gate_row(ActivationKind kind, const float* pairs, int panels, float* out) {
    for (int i = 0; i < panels; ++i) {
        const F16 gate = load(pairs + 32 * i), up = load(pairs + 32 * i + 16);
        store(out + 16 * i, (kind == ActivationKind::silu ? silu(gate) : gelu_tanh(gate)) * up);
    }
}

inline int arg_max_row(const float* x, int n) {
    F16 top = splat(-__builtin_inff());
    int i = 0;
    for (; i + 16 <= n; i += 16) top = max(load(x + i), top);
    float best = maximum(top);
    for (; i < n; ++i) best = x[i] > best ? x[i] : best;
    for (i = 0; i < n; ++i)
        if (x[i] == best) return i;
    return 0;
}

HEADRACE_INLINE void map_row(int function, const float* x, int n, float* out) {
    for (int i = 0; i < n; i += 16) {
        const F16 value = load(x + i);
        store(out + i, function == 0   ? exp(value)
                       : function == 1 ? silu(value)
                       : function == 2 ? gelu_tanh(value)
                                       : power_of_two(value));
    }
}

}  // namespace headrace::HEADRACE_ISA
