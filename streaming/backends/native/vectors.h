// Vectors of float32 as wide as the CPU's registers, and what the kernels do with them: loads and
// stores that convert bfloat16, dot products, reductions and exp. Written in the vector extensions
// of GCC and Clang; arithmetic and comparisons of vectors work element by element.

#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

namespace {

// WIDTH is the number of floats in a vector, NUM_REGISTERS the number of vector registers. The last
// case is for ARM's NEON; SSE, with 16 registers, would spill some of them to the stack.
#if defined(__AVX512F__)
constexpr int WIDTH = 16;
constexpr int NUM_REGISTERS = 32;
#elif defined(__AVX__)
constexpr int WIDTH = 8;
constexpr int NUM_REGISTERS = 16;
#else
constexpr int WIDTH = 4;
constexpr int NUM_REGISTERS = 32;
#endif

// Of the same width in elements: float32, integers and bits of float32, and bits of bfloat16.
typedef float Vec __attribute__((vector_size(WIDTH * 4)));
typedef int32_t IntVec __attribute__((vector_size(WIDTH * 4)));
typedef uint32_t BitsVec __attribute__((vector_size(WIDTH * 4)));
typedef uint16_t HalfVec __attribute__((vector_size(WIDTH * 2)));

// The upper 16 bits of a float32: 1 sign, 8 exponent and 7 mantissa bits.
struct BFloat16 {
    uint16_t bits;
};

// Returns a vector of equal elements. x - 0 is x for all x, -0 included.
inline Vec broadcast(float x) { return x - Vec{}; }

inline float as_float(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

// Loads and stores take any address, aligned or not; memcpy compiles to one instruction.
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

// Widens to float32, which is exact.
inline Vec load(const BFloat16* from) {
    HalfVec half;
    std::memcpy(&half, from, sizeof half);
    return (Vec)(__builtin_convertvector(half, BitsVec) << 16);
}

inline void store(float* to, Vec vec) { std::memcpy(to, &vec, sizeof vec); }

// Returns the bits of the nearest bfloat16, ties to even, in the lower half of each element.
// Adding 0x7fff, and 1 more if the last kept bit is set, carries into the upper half exactly where
// rounding goes up. That could turn a NaN into infinity or zero, so a NaN is made quiet instead.
inline BitsVec to_bfloat16(Vec vec) {
    BitsVec bits = (BitsVec)vec;
    BitsVec nearest = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    BitsVec quiet = (bits >> 16) | 0x40;
    return vec == vec ? nearest : quiet;
}

inline void store(BFloat16* to, Vec vec) {
    HalfVec half = __builtin_convertvector(to_bfloat16(vec), HalfVec);
    std::memcpy(to, &half, sizeof half);
}

// Returns the numbers rounded to the type of the last argument, as float32.
inline Vec round_to(Vec vec, float) { return vec; }

inline Vec round_to(Vec vec, BFloat16) { return (Vec)(to_bfloat16(vec) << 16); }

// Returns `sums` plus the products of one word and each of WIDTH words. The last argument is the
// type of a word's numbers: one float32, or two bfloat16, whose two products go to the same sum.
inline Vec add_products(Vec sums, uint32_t word, BitsVec words, float) {
    return sums + broadcast(as_float(word)) * (Vec)words;
}

inline Vec add_products(Vec sums, uint32_t word, BitsVec words, BFloat16) {
#if defined(__AVX512BF16__)
    // One instruction multiplies both halves and adds both products, in float32.
    BitsVec same = word - BitsVec{};
    return (Vec)_mm512_dpbf16_ps((__m512)sums, (__m512bh)same, (__m512bh)words);
#else
    // Shift the lower half up, mask the upper half: each is then a float32.
    sums += broadcast(as_float(word << 16)) * (Vec)(words << 16);
    return sums + broadcast(as_float(word & 0xffff0000)) * (Vec)(words & 0xffff0000);
#endif
}

// Returns the sum of the elements, added pairwise in a fixed order.
inline float sum(Vec vec) {
    float parts[WIDTH];
    store(parts, vec);
    for (int n = WIDTH / 2; n > 0; n /= 2)
        for (int i = 0; i < n; i++) parts[i] += parts[i + n];
    return parts[0];
}

// Returns the largest element.
inline float largest(Vec vec) {
    float best = vec[0];
    for (int i = 1; i < WIDTH; i++) best = vec[i] > best ? vec[i] : best;
    return best;
}

// Returns exp(x) for x <= 0, to two units in the last place; 0 below -87 and for -inf, and NaN for
// NaN. exp(x) = 2^n * exp(r), where n is x / ln(2) rounded to an integer and r = x - n * ln(2).
inline Vec exp_of(Vec x) {
    const Vec magic = broadcast(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
    Vec clamped = x < broadcast(-87.0f) ? broadcast(-87.0f) : x;
    Vec shifted = clamped * broadcast(1.44269504f) + magic;
    IntVec exponent = (IntVec)shifted << 23;  // n in the place of a float's exponent
    Vec n = shifted - magic;
    // ln(2) in two parts: the first has few bits, so that n times it is exact.
    Vec r = clamped - n * broadcast(0.693359375f);
    r = r - n * broadcast(-2.12194440e-4f);
    // exp(r) for |r| <= ln(2) / 2, coefficients as in Cephes' expf (Moshier 1992).
    Vec p = broadcast(1.9875691500e-4f);
    p = p * r + broadcast(1.3981999507e-3f);
    p = p * r + broadcast(8.3334519073e-3f);
    p = p * r + broadcast(4.1665795894e-2f);
    p = p * r + broadcast(1.6666665459e-1f);
    p = p * r + broadcast(5.0000001201e-1f);
    p = p * (r * r) + r + broadcast(1.0f);
    // Multiply by 2^n: add n to the exponent. At -87 the result is still a normal number.
    Vec result = (Vec)((IntVec)p + exponent);
    result = x < broadcast(-87.0f) ? broadcast(0.0f) : result;
    return x == x ? result : x;
}

inline float exp_of(float x) { return exp_of(broadcast(x))[0]; }

}  // namespace
