// Vectors of floats as wide as the CPU's, by the vector extensions of GCC and Clang.

#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int WIDTH = 16;          // floats in a vector
constexpr int NUM_REGISTERS = 32;  // vectors that the CPU holds at once
#elif defined(__AVX__)
constexpr int WIDTH = 8;
constexpr int NUM_REGISTERS = 16;
#else
constexpr int WIDTH = 4;
constexpr int NUM_REGISTERS = 32;
#endif

typedef float Vec __attribute__((vector_size(WIDTH * 4)));
typedef int32_t IntVec __attribute__((vector_size(WIDTH * 4)));
typedef uint32_t BitsVec __attribute__((vector_size(WIDTH * 4)));
typedef uint16_t HalfVec __attribute__((vector_size(WIDTH * 2)));

struct BFloat16 {
    uint16_t bits;
};

inline Vec broadcast(float x) { return x - Vec{}; }

inline float as_float(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

inline BitsVec load_bits(const uint32_t* from) {
    BitsVec vec;
    std::memcpy(&vec, from, sizeof vec);
    return vec;
}

inline Vec load(const float* from) {
    Vec vec;
    std::memcpy(&vec, from, sizeof vec);
    return vec;
}

inline Vec load(const BFloat16* from) {
    HalfVec half;
    std::memcpy(&half, from, sizeof half);
    return (Vec)(__builtin_convertvector(half, BitsVec) << 16);
}

inline void store(float* to, Vec vec) { std::memcpy(to, &vec, sizeof vec); }

inline void store(BFloat16* to, Vec vec) {
    BitsVec bits = (BitsVec)vec;
    BitsVec rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;  // to the nearest, ties to even
    BitsVec quiet = (bits >> 16) | 0x40;                           // a NaN stays one
    HalfVec half = __builtin_convertvector(vec == vec ? rounded : quiet, HalfVec);
    std::memcpy(to, &half, sizeof half);
}

// Returns `sums` plus the products of one word and each of a vector of words. A word is one float32
// or two bfloat16, whose two products are both added. The last argument tells which.
inline Vec add_products(Vec sums, uint32_t word, BitsVec words, float) {
    return sums + broadcast(as_float(word)) * (Vec)words;
}

inline Vec add_products(Vec sums, uint32_t word, BitsVec words, BFloat16) {
#if defined(__AVX512BF16__)
    BitsVec same = word - BitsVec{};
    return (Vec)_mm512_dpbf16_ps((__m512)sums, (__m512bh)same, (__m512bh)words);
#else
    sums += broadcast(as_float(word << 16)) * (Vec)(words << 16);
    return sums + broadcast(as_float(word & 0xffff0000)) * (Vec)(words & 0xffff0000);
#endif
}

inline float sum(Vec vec) {
    float parts[WIDTH];
    store(parts, vec);
    for (int n = WIDTH / 2; n > 0; n /= 2)
        for (int i = 0; i < n; i++) parts[i] += parts[i + n];
    return parts[0];
}

}  // namespace
