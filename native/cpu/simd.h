// Vectors of floats, as wide as the machine compiled for, and the few operations the kernels are written in.
//
// Every sum in these kernels is taken in an order that follows from the length of the sum alone: lane l adds the
// elements l, l + LANES, ... one after another, then the lanes are added pairwise at distances LANES/2 .. 1. Neither the
// number of rows, nor the tile a row falls into, nor the number of threads changes a bit of a result. Contraction is off
// (-ffp-contract=off); where a fused multiply-add is meant it is written as madd().

#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__AVX512F__) || defined(__FMA__)
#include <immintrin.h>
#endif

#define UNROLL _Pragma("GCC unroll 32")
#define INLINE inline __attribute__((always_inline))

#if defined(__AVX512F__)
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif

typedef float vec __attribute__((vector_size(LANES * 4)));
typedef float unaligned_vec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(LANES * 4)));
typedef uint32_t uvec __attribute__((vector_size(LANES * 4)));
typedef uint16_t unaligned_half_vec __attribute__((vector_size(LANES * 2), aligned(2), may_alias));

// Storage type of bfloat16: the upper half of a float.
struct bf16 {
    uint16_t bits;
};

INLINE vec splat(float x) { return vec{} + x; }

INLINE vec madd(vec a, vec b, vec c) {
#if defined(__AVX512F__)
    return (vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
    return (vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

INLINE vec max(vec a, vec b) { return a > b ? a : b; }
INLINE vec min(vec a, vec b) { return a < b ? a : b; }

INLINE vec load(const float* p) { return *(const unaligned_vec*)p; }

INLINE vec load(const bf16* p) {
    unaligned_half_vec half = *(const unaligned_half_vec*)p;
    return (vec)(__builtin_convertvector(half, uvec) << 16);
}

INLINE void store(float* p, vec v) { *(unaligned_vec*)p = v; }

INLINE void store(bf16* p, vec v) {  // round to nearest even, as torch does
    uvec bits = (uvec)v;
    bits += 0x7fff + ((bits >> 16) & 1);
    *(unaligned_half_vec*)p = __builtin_convertvector(bits >> 16, unaligned_half_vec);
}

// The first `count` < LANES elements, the others 0.
template <class T>
INLINE vec load_some(const T* p, int count) {
    T buffer[LANES] = {};
    memcpy(buffer, p, count * sizeof(T));
    return load(buffer);
}

template <class T>
INLINE void store_some(T* p, vec v, int count) {
    T buffer[LANES];
    store(buffer, v);
    memcpy(p, buffer, count * sizeof(T));
}

template <class T>
INLINE vec load_upto(const T* p, int count) {
    return count >= LANES ? load(p) : load_some(p, count);
}

template <class T>
INLINE void store_upto(T* p, vec v, int count) {
    if (count >= LANES) store(p, v);
    else store_some(p, v, count);
}

// Lanes of (a, b) in segments of 2 * H: the first half of each segment plus its second half.
template <int H, int... I>
INLINE vec fold(vec a, vec b, std::integer_sequence<int, I...>) {
    return __builtin_shufflevector(a, b, ((I / H) * 2 * H + I % H)...) +
           __builtin_shufflevector(a, b, ((I / H) * 2 * H + I % H + H)...);
}

template <int H>
INLINE vec fold(vec a, vec b) {
    return fold<H>(a, b, std::make_integer_sequence<int, LANES>{});
}

// Sums of `N` vectors (a power of two up to LANES): lane i of the result is the sum of v[i]; lanes repeat with period N.
template <int N, int H = LANES / 2>
INLINE vec sums(const vec* v) {
    if constexpr (H == 0) {
        return v[0];
    } else if constexpr (N == 1) {
        vec once[1] = {fold<H>(v[0], v[0])};
        return sums<1, H / 2>(once);
    } else {
        vec half[N / 2];
        UNROLL for (int i = 0; i < N / 2; i++) half[i] = fold<H>(v[2 * i], v[2 * i + 1]);
        return sums<N / 2, H / 2>(half);
    }
}

INLINE float sum(vec v) { return sums<1>(&v)[0]; }

INLINE float largest(vec v) {
    float best = v[0];
    UNROLL for (int i = 1; i < LANES; i++) best = v[i] > best ? v[i] : best;
    return best;
}

// e^x to within 2 units in the last place. Below -87 the result is e^-87, which a softmax may take for 0.
// x = n ln 2 + r with |r| <= ln 2 / 2; e^r by its Taylor series to r^7 (the rest is below 6e-9); 2^n by its exponent.
INLINE vec exponential(vec x) {
    x = min(max(x, splat(-87.0f)), splat(88.0f));
    const vec shift = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
    vec n = (x * 1.44269504f + shift) - shift;
    vec r = madd(n, splat(-0.693359375f), x);  // ln 2 in two parts, the first exact in products with n
    r = madd(n, splat(2.12194440e-4f), r);
    vec p = splat(1.0f / 5040);
    p = madd(p, r, splat(1.0f / 720));
    p = madd(p, r, splat(1.0f / 120));
    p = madd(p, r, splat(1.0f / 24));
    p = madd(p, r, splat(1.0f / 6));
    p = madd(p, r, splat(0.5f));
    p = madd(p, r, splat(1.0f));
    p = madd(p, r, splat(1.0f));
    ivec exponent = (__builtin_convertvector(n, ivec) + 127) << 23;
    return p * (vec)exponent;
}
