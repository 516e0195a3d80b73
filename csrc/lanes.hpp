// Sixteen float lanes with one meaning on every ISA.
//
// Kernels are written once against F16/I16 and compiled per ISA (csrc/isa/<isa>/*.cpp). Each operation below gives the
// same bits in all three implementations: one zmm (avx512), two ymm (avx2), an array (portable, std::fma). So a kernel
// made of them gives the same bits too, whatever CPU it runs on.
//
// Everything lives in a namespace named after the ISA: the linker would otherwise merge inline functions of different
// translation units and run, say, AVX-512 code on a machine that has none.
#pragma once

#include <cstdint>
#include <cstring>

#ifndef HEADRACE_ISA
#define HEADRACE_ISA portable
#endif

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
#define HEADRACE_LANES_512 1
#include <immintrin.h>
#elif defined(__AVX2__) && defined(__FMA__)
#define HEADRACE_LANES_256 1
#include <immintrin.h>
#else
#include <cmath>
#include <limits>
#endif

#define HEADRACE_INLINE inline __attribute__((always_inline))

namespace headrace::HEADRACE_ISA {

inline constexpr int kLanes = 16;

#if defined(HEADRACE_LANES_512)

struct F16 { __m512 v; };
struct I16 { __m512i v; };

HEADRACE_INLINE F16 splat(float x) { return {_mm512_set1_ps(x)}; }
HEADRACE_INLINE F16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
HEADRACE_INLINE void store(float* p, F16 a) { _mm512_storeu_ps(p, a.v); }
HEADRACE_INLINE F16 operator+(F16 a, F16 b) { return {_mm512_add_ps(a.v, b.v)}; }
HEADRACE_INLINE F16 operator-(F16 a, F16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
HEADRACE_INLINE F16 operator*(F16 a, F16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
HEADRACE_INLINE F16 operator/(F16 a, F16 b) { return {_mm512_div_ps(a.v, b.v)}; }
// a·b + c and c − a·b, rounded once.
HEADRACE_INLINE F16 fma(F16 a, F16 b, F16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
HEADRACE_INLINE F16 fnma(F16 a, F16 b, F16 c) { return {_mm512_fnmadd_ps(a.v, b.v, c.v)}; }
// a > b ? a : b (b when either is NaN), and the mirror image.
HEADRACE_INLINE F16 max(F16 a, F16 b) { return {_mm512_max_ps(a.v, b.v)}; }
HEADRACE_INLINE F16 min(F16 a, F16 b) { return {_mm512_min_ps(a.v, b.v)}; }
HEADRACE_INLINE F16 sqrt(F16 a) { return {_mm512_sqrt_ps(a.v)}; }

HEADRACE_INLINE I16 splat_int(int32_t x) { return {_mm512_set1_epi32(x)}; }
HEADRACE_INLINE I16 load(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
HEADRACE_INLINE void store(int32_t* p, I16 a) { _mm512_storeu_si512(p, a.v); }
HEADRACE_INLINE I16 operator+(I16 a, I16 b) { return {_mm512_add_epi32(a.v, b.v)}; }
HEADRACE_INLINE I16 operator-(I16 a, I16 b) { return {_mm512_sub_epi32(a.v, b.v)}; }
HEADRACE_INLINE I16 operator*(I16 a, I16 b) { return {_mm512_mullo_epi32(a.v, b.v)}; }
HEADRACE_INLINE I16 operator&(I16 a, I16 b) { return {_mm512_and_si512(a.v, b.v)}; }
HEADRACE_INLINE I16 operator|(I16 a, I16 b) { return {_mm512_or_si512(a.v, b.v)}; }
template <int n> HEADRACE_INLINE I16 shift_left(I16 a) { return {_mm512_slli_epi32(a.v, n)}; }
template <int n> HEADRACE_INLINE I16 shift_right(I16 a) { return {_mm512_srai_epi32(a.v, n)}; }
// Round to nearest even; out of range or NaN gives INT32_MIN.
HEADRACE_INLINE I16 to_int(F16 a) { return {_mm512_cvtps_epi32(a.v)}; }
HEADRACE_INLINE F16 to_float(I16 a) { return {_mm512_cvtepi32_ps(a.v)}; }
HEADRACE_INLINE F16 as_float(I16 a) { return {_mm512_castsi512_ps(a.v)}; }
HEADRACE_INLINE I16 as_int(F16 a) { return {_mm512_castps_si512(a.v)}; }
// The low byte of each lane.
HEADRACE_INLINE __m128i low_bytes(I16 a) { return _mm512_cvtepi32_epi8(a.v); }
HEADRACE_INLINE void store_bytes(void* p, I16 a) { _mm_storeu_si128(static_cast<__m128i*>(p), low_bytes(a)); }

// Lanes first ≤ i < last keep a, the others take b.
HEADRACE_INLINE F16 keep_range(F16 a, int first, int last, F16 b) {
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __mmask16 after = _mm512_cmpge_epi32_mask(lane, _mm512_set1_epi32(first));
    return {_mm512_mask_blend_ps(_mm512_mask_cmplt_epi32_mask(after, lane, _mm512_set1_epi32(last)), b.v, a.v)};
}

HEADRACE_INLINE F16 load_bf16(const uint16_t* p) {
    const __m512i codes = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(codes, 16))};
}
HEADRACE_INLINE void store_bf16(uint16_t* p, F16 a) {
    const __m512i bits = _mm512_castps_si512(a.v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(rounded));
}

struct Half8 { __m256 v; };
HEADRACE_INLINE Half8 low_half(F16 a) { return {_mm512_castps512_ps256(a.v)}; }
HEADRACE_INLINE Half8 high_half(F16 a) { return {_mm512_extractf32x8_ps(a.v, 1)}; }

#elif defined(HEADRACE_LANES_256)

struct F16 { __m256 a, b; };
struct I16 { __m256i a, b; };

HEADRACE_INLINE F16 splat(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
HEADRACE_INLINE F16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
HEADRACE_INLINE void store(float* p, F16 x) { _mm256_storeu_ps(p, x.a); _mm256_storeu_ps(p + 8, x.b); }
HEADRACE_INLINE F16 operator+(F16 x, F16 y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
HEADRACE_INLINE F16 operator-(F16 x, F16 y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
HEADRACE_INLINE F16 operator*(F16 x, F16 y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
HEADRACE_INLINE F16 operator/(F16 x, F16 y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
HEADRACE_INLINE F16 fma(F16 x, F16 y, F16 z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
HEADRACE_INLINE F16 fnma(F16 x, F16 y, F16 z) { return {_mm256_fnmadd_ps(x.a, y.a, z.a), _mm256_fnmadd_ps(x.b, y.b, z.b)}; }
HEADRACE_INLINE F16 max(F16 x, F16 y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
HEADRACE_INLINE F16 min(F16 x, F16 y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
HEADRACE_INLINE F16 sqrt(F16 x) { return {_mm256_sqrt_ps(x.a), _mm256_sqrt_ps(x.b)}; }

HEADRACE_INLINE I16 splat_int(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
HEADRACE_INLINE I16 load(const int32_t* p) {
    return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 8))};
}
HEADRACE_INLINE void store(int32_t* p, I16 x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x.a);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 8), x.b);
}
HEADRACE_INLINE I16 operator+(I16 x, I16 y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
HEADRACE_INLINE I16 operator-(I16 x, I16 y) { return {_mm256_sub_epi32(x.a, y.a), _mm256_sub_epi32(x.b, y.b)}; }
HEADRACE_INLINE I16 operator*(I16 x, I16 y) { return {_mm256_mullo_epi32(x.a, y.a), _mm256_mullo_epi32(x.b, y.b)}; }
HEADRACE_INLINE I16 operator&(I16 x, I16 y) { return {_mm256_and_si256(x.a, y.a), _mm256_and_si256(x.b, y.b)}; }
HEADRACE_INLINE I16 operator|(I16 x, I16 y) { return {_mm256_or_si256(x.a, y.a), _mm256_or_si256(x.b, y.b)}; }
template <int n> HEADRACE_INLINE I16 shift_left(I16 x) { return {_mm256_slli_epi32(x.a, n), _mm256_slli_epi32(x.b, n)}; }
template <int n> HEADRACE_INLINE I16 shift_right(I16 x) { return {_mm256_srai_epi32(x.a, n), _mm256_srai_epi32(x.b, n)}; }
HEADRACE_INLINE I16 to_int(F16 x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
HEADRACE_INLINE F16 to_float(I16 x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
HEADRACE_INLINE F16 as_float(I16 x) { return {_mm256_castsi256_ps(x.a), _mm256_castsi256_ps(x.b)}; }
HEADRACE_INLINE I16 as_int(F16 x) { return {_mm256_castps_si256(x.a), _mm256_castps_si256(x.b)}; }
HEADRACE_INLINE __m128i low_bytes(I16 x) {
    const __m256i low = _mm256_set1_epi32(0xff);
    const __m256i mixed = _mm256_packus_epi32(_mm256_and_si256(x.a, low), _mm256_and_si256(x.b, low));
    const __m256i words = _mm256_permute4x64_epi64(mixed, 0xd8);
    return _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
}
HEADRACE_INLINE void store_bytes(void* p, I16 x) { _mm_storeu_si128(static_cast<__m128i*>(p), low_bytes(x)); }

HEADRACE_INLINE F16 keep_range(F16 x, int first, int last, F16 y) {
    const __m256i low = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), high = _mm256_add_epi32(low, _mm256_set1_epi32(8));
    const __m256i from = _mm256_set1_epi32(first), to = _mm256_set1_epi32(last);
    const __m256i a = _mm256_andnot_si256(_mm256_cmpgt_epi32(from, low), _mm256_cmpgt_epi32(to, low));
    const __m256i b = _mm256_andnot_si256(_mm256_cmpgt_epi32(from, high), _mm256_cmpgt_epi32(to, high));
    return {_mm256_blendv_ps(y.a, x.a, _mm256_castsi256_ps(a)), _mm256_blendv_ps(y.b, x.b, _mm256_castsi256_ps(b))};
}

HEADRACE_INLINE F16 load_bf16(const uint16_t* p) {
    const __m128i* q = reinterpret_cast<const __m128i*>(p);
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(q)), 16)),
            _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(q + 1)), 16))};
}
HEADRACE_INLINE __m256i round_bf16(__m256 x) {
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    return _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
}
HEADRACE_INLINE void store_bf16(uint16_t* p, F16 x) {
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packus_epi32(round_bf16(x.a), round_bf16(x.b)), 0xd8);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), words);
}

struct Half8 { __m256 v; };
HEADRACE_INLINE Half8 low_half(F16 x) { return {x.a}; }
HEADRACE_INLINE Half8 high_half(F16 x) { return {x.b}; }

#else

struct F16 { float v[16]; };
struct I16 { int32_t v[16]; };

#define HEADRACE_EACH(T, expression) T r; for (int i = 0; i < 16; ++i) r.v[i] = (expression); return r
HEADRACE_INLINE float clone_bits(int32_t x) { float y; std::memcpy(&y, &x, 4); return y; }
HEADRACE_INLINE int32_t clone_bits(float x) { int32_t y; std::memcpy(&y, &x, 4); return y; }
HEADRACE_INLINE int32_t wrap(uint32_t x) { return static_cast<int32_t>(x); }
HEADRACE_INLINE uint32_t raw(int32_t x) { return static_cast<uint32_t>(x); }

HEADRACE_INLINE F16 splat(float x) { HEADRACE_EACH(F16, x); }
HEADRACE_INLINE F16 load(const float* p) { HEADRACE_EACH(F16, p[i]); }
HEADRACE_INLINE void store(float* p, F16 a) { std::memcpy(p, a.v, sizeof a.v); }
HEADRACE_INLINE F16 operator+(F16 a, F16 b) { HEADRACE_EACH(F16, a.v[i] + b.v[i]); }
HEADRACE_INLINE F16 operator-(F16 a, F16 b) { HEADRACE_EACH(F16, a.v[i] - b.v[i]); }
HEADRACE_INLINE F16 operator*(F16 a, F16 b) { HEADRACE_EACH(F16, a.v[i] * b.v[i]); }
HEADRACE_INLINE F16 operator/(F16 a, F16 b) { HEADRACE_EACH(F16, a.v[i] / b.v[i]); }
HEADRACE_INLINE F16 fma(F16 a, F16 b, F16 c) { HEADRACE_EACH(F16, std::fma(a.v[i], b.v[i], c.v[i])); }
HEADRACE_INLINE F16 fnma(F16 a, F16 b, F16 c) { HEADRACE_EACH(F16, std::fma(-a.v[i], b.v[i], c.v[i])); }
HEADRACE_INLINE F16 max(F16 a, F16 b) { HEADRACE_EACH(F16, a.v[i] > b.v[i] ? a.v[i] : b.v[i]); }
HEADRACE_INLINE F16 min(F16 a, F16 b) { HEADRACE_EACH(F16, a.v[i] < b.v[i] ? a.v[i] : b.v[i]); }
HEADRACE_INLINE F16 sqrt(F16 a) { HEADRACE_EACH(F16, std::sqrt(a.v[i])); }

HEADRACE_INLINE I16 splat_int(int32_t x) { HEADRACE_EACH(I16, x); }
HEADRACE_INLINE I16 load(const int32_t* p) { HEADRACE_EACH(I16, p[i]); }
HEADRACE_INLINE void store(int32_t* p, I16 a) { std::memcpy(p, a.v, sizeof a.v); }
HEADRACE_INLINE I16 operator+(I16 a, I16 b) { HEADRACE_EACH(I16, wrap(raw(a.v[i]) + raw(b.v[i]))); }
HEADRACE_INLINE I16 operator-(I16 a, I16 b) { HEADRACE_EACH(I16, wrap(raw(a.v[i]) - raw(b.v[i]))); }
HEADRACE_INLINE I16 operator*(I16 a, I16 b) { HEADRACE_EACH(I16, wrap(raw(a.v[i]) * raw(b.v[i]))); }
HEADRACE_INLINE I16 operator&(I16 a, I16 b) { HEADRACE_EACH(I16, a.v[i] & b.v[i]); }
HEADRACE_INLINE I16 operator|(I16 a, I16 b) { HEADRACE_EACH(I16, a.v[i] | b.v[i]); }
template <int n> HEADRACE_INLINE I16 shift_left(I16 a) { HEADRACE_EACH(I16, wrap(raw(a.v[i]) << n)); }
template <int n> HEADRACE_INLINE I16 shift_right(I16 a) { HEADRACE_EACH(I16, a.v[i] >> n); }
HEADRACE_INLINE int32_t round_even(float x) {
    return x >= -2147483648.0f && x < 2147483648.0f ? static_cast<int32_t>(std::nearbyintf(x)) : std::numeric_limits<int32_t>::min();
}
HEADRACE_INLINE I16 to_int(F16 a) { HEADRACE_EACH(I16, round_even(a.v[i])); }
HEADRACE_INLINE F16 to_float(I16 a) { HEADRACE_EACH(F16, static_cast<float>(a.v[i])); }
HEADRACE_INLINE F16 as_float(I16 a) { HEADRACE_EACH(F16, clone_bits(a.v[i])); }
HEADRACE_INLINE I16 as_int(F16 a) { HEADRACE_EACH(I16, clone_bits(a.v[i])); }
HEADRACE_INLINE void store_bytes(void* p, I16 a) {
    for (int i = 0; i < 16; ++i) static_cast<uint8_t*>(p)[i] = static_cast<uint8_t>(a.v[i]);
}

HEADRACE_INLINE F16 keep_range(F16 a, int first, int last, F16 b) { HEADRACE_EACH(F16, i >= first && i < last ? a.v[i] : b.v[i]); }

HEADRACE_INLINE F16 load_bf16(const uint16_t* p) { HEADRACE_EACH(F16, clone_bits(wrap(static_cast<uint32_t>(p[i]) << 16))); }
HEADRACE_INLINE void store_bf16(uint16_t* p, F16 a) {
    for (int i = 0; i < 16; ++i) {
        const uint32_t bits = raw(clone_bits(a.v[i]));
        p[i] = static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
    }
}
#undef HEADRACE_EACH

#endif

HEADRACE_INLINE F16 operator-(F16 a) { return as_float(as_int(a) + splat_int(INT32_MIN)); }
HEADRACE_INLINE F16 abs(F16 a) { return as_float(as_int(a) & splat_int(INT32_MAX)); }

// acc + the sum of a lane's four products: unsigned bytes of `a` times signed bytes of `b`, which lie in −64 … 63, so that
// two products fit int16.
#if defined(HEADRACE_LANES_512)
HEADRACE_INLINE I16 dot_quads(I16 acc, I16 a, I16 b) { return {_mm512_dpbusd_epi32(acc.v, a.v, b.v)}; }
#elif defined(HEADRACE_LANES_256)
HEADRACE_INLINE I16 dot_quads(I16 acc, I16 x, I16 y) {
    const __m256i ones = _mm256_set1_epi16(1);
    return {_mm256_add_epi32(acc.a, _mm256_madd_epi16(_mm256_maddubs_epi16(x.a, y.a), ones)),
            _mm256_add_epi32(acc.b, _mm256_madd_epi16(_mm256_maddubs_epi16(x.b, y.b), ones))};
}
#else
HEADRACE_INLINE I16 dot_quads(I16 acc, I16 a, I16 b) {
    uint8_t left[64];
    int8_t right[64];
    std::memcpy(left, a.v, 64);
    std::memcpy(right, b.v, 64);
    for (int i = 0; i < 64; ++i) acc.v[i / 4] += left[i] * right[i];
    return acc;
}
#endif

// Lane i takes lane i ^ k.
template <int k>
HEADRACE_INLINE F16 exchange(F16 a) {
    static_assert(k == 1 || k == 2 || k == 4 || k == 8);
#if defined(HEADRACE_LANES_512)
    if constexpr (k < 4)
        return {_mm512_permute_ps(a.v, k == 1 ? 0xb1 : 0x4e)};
    else
        return {_mm512_shuffle_f32x4(a.v, a.v, k == 4 ? 0xb1 : 0x4e)};
#elif defined(HEADRACE_LANES_256)
    if constexpr (k < 4)
        return {_mm256_permute_ps(a.a, k == 1 ? 0xb1 : 0x4e), _mm256_permute_ps(a.b, k == 1 ? 0xb1 : 0x4e)};
    else if constexpr (k == 4)
        return {_mm256_permute2f128_ps(a.a, a.a, 1), _mm256_permute2f128_ps(a.b, a.b, 1)};
    else
        return {a.b, a.a};
#else
    F16 r;
    for (int i = 0; i < 16; ++i) r.v[i] = a.v[i ^ k];
    return r;
#endif
}

// The exact sum of the lanes.
#if defined(HEADRACE_LANES_512) || defined(HEADRACE_LANES_256)
HEADRACE_INLINE int32_t sum(I16 a) {
#if defined(HEADRACE_LANES_512)
    const __m256i eight = _mm256_add_epi32(_mm512_castsi512_si256(a.v), _mm512_extracti64x4_epi64(a.v, 1));
#else
    const __m256i eight = _mm256_add_epi32(a.a, a.b);
#endif
    const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    const __m128i two = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 0xb1)));
}
#else
HEADRACE_INLINE int32_t sum(I16 a) {
    uint32_t total = 0;
    for (int i = 0; i < 16; ++i) total += raw(a.v[i]);
    return wrap(total);
}
#endif

// Fixed trees: lane i meets i + 8, then i + 4, i + 2, i + 1.
#if defined(HEADRACE_LANES_512) || defined(HEADRACE_LANES_256)
HEADRACE_INLINE float sum(F16 a) {
    const __m256 eight = _mm256_add_ps(low_half(a).v, high_half(a).v);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
HEADRACE_INLINE float maximum(F16 a) {
    const __m256 eight = _mm256_max_ps(low_half(a).v, high_half(a).v);
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
HEADRACE_INLINE float fma1(float a, float b, float c) { return _mm_cvtss_f32(_mm_fmadd_ss(_mm_set_ss(a), _mm_set_ss(b), _mm_set_ss(c))); }
#else
HEADRACE_INLINE float sum(F16 a) {
    for (int width = 8; width > 0; width /= 2)
        for (int i = 0; i < width; ++i) a.v[i] = a.v[i] + a.v[i + width];
    return a.v[0];
}
HEADRACE_INLINE float maximum(F16 a) {
    for (int width = 8; width > 0; width /= 2)
        for (int i = 0; i < width; ++i) a.v[i] = a.v[i] > a.v[i + width] ? a.v[i] : a.v[i + width];
    return a.v[0];
}
HEADRACE_INLINE float fma1(float a, float b, float c) { return std::fma(a, b, c); }
#endif

}  // namespace headrace::HEADRACE_ISA
