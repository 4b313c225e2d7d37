// Vectors of floats as wide as the CPU's, by the vector extensions of GCC and Clang.

#pragma once

#include <cstdint>
#include <cstring>

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

inline float sum(Vec vec) {
    float parts[WIDTH];
    store(parts, vec);
    for (int n = WIDTH / 2; n > 0; n /= 2)
        for (int i = 0; i < n; i++) parts[i] += parts[i + n];
    return parts[0];
}

}  // namespace
