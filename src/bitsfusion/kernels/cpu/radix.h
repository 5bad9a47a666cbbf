// Radix bytes and the three dtypes, one weight at a time, and what the vector forms share (docs/format.md).
#pragma once

#include <cstdint>
#include <cstring>

namespace bitsfusion {
namespace {

enum Dtype { FLOAT32 = 0, BFLOAT16 = 1, FLOAT16 = 2 };
enum Isa { SCALAR = 0, AVX2 = 1, AVX512 = 2, NEON = 3 };

constexpr int half_levels(int bits) { return 1 << (bits - 1); }
constexpr int level_count(int bits) { return 2 * half_levels(bits) + 1; }
constexpr int per_byte(int bits) { return bits == 1 ? 5 : bits == 2 ? 3 : bits == 3 ? 2 : 1; }
constexpr int power(int base, int exponent) { return exponent == 0 ? 1 : base * power(base, exponent - 1); }

// One layer: `codes` are its radix bytes up to `end`, `plane` the ninth bits of b = 8.
struct Layer {
    const uint8_t* codes;
    const uint8_t* end;
    const uint8_t* plane;
    const float* scales;
    int64_t width;  // weights a row
};

// One weight at a time.

inline uint32_t float_bits(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}

inline uint16_t to_bfloat16(float value) {
    const uint32_t bits = float_bits(value);
    if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fc0;
    return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline uint16_t to_float16(float value) {
    const uint32_t bits = float_bits(value);
    const uint32_t sign = (bits >> 16) & 0x8000;
    uint32_t magnitude = bits & 0x7fffffff;
    if (magnitude >= 0x47800000) return static_cast<uint16_t>(sign | (magnitude > 0x7f800000 ? 0x7e00 : 0x7c00));
    if (magnitude < 0x38800000) {  // subnormal: the unit in the last place of 0.5 is float16's smallest step
        float shifted;
        std::memcpy(&shifted, &magnitude, 4);
        return static_cast<uint16_t>(sign | (float_bits(shifted + 0.5f) - 0x3f000000));
    }
    magnitude += 0xfff + ((magnitude >> 13) & 1);
    return static_cast<uint16_t>(sign | ((magnitude - 0x38000000) >> 13));
}

template <int DTYPE>
struct Element {
    using Type = uint16_t;
    static Type of(float value) { return DTYPE == BFLOAT16 ? to_bfloat16(value) : to_float16(value); }
};
template <>
struct Element<FLOAT32> {
    using Type = float;
    static Type of(float value) { return value; }
};

// Weight i of the layer, counted through all rows, as a level.
template <int BITS>
inline int level(const Layer& layer, int64_t i) {
    if constexpr (BITS == 8) {
        return layer.codes[i] + (((layer.plane[i >> 3] >> (i & 7)) & 1) << 8) - half_levels(BITS);
    } else {
        constexpr int K = per_byte(BITS), L = level_count(BITS);
        int byte = layer.codes[i / K];
        if constexpr (K == 1) return byte - half_levels(BITS);
        for (int64_t digit = i % K; digit > 0; --digit) byte /= L;
        return byte % L - half_levels(BITS);
    }
}

// The ninth bits of weights i .. i + 31 (b = 8), the first lowest; those of 8 weights more are read.
inline uint32_t ninth_bits(const Layer& layer, int64_t i) {
    const uint8_t* bytes = layer.plane + (i >> 3);
    uint32_t low;
    std::memcpy(&low, bytes, 4);
    return static_cast<uint32_t>((low | static_cast<uint64_t>(bytes[4]) << 32) >> (i & 7));
}

// Weights first .. last of the layer, all of the row with this scale.
template <int BITS, int DTYPE>
void scalar_part(const Layer& layer, float scale, int64_t first, int64_t last, typename Element<DTYPE>::Type* weight) {
    for (int64_t i = first; i < last; ++i) {
        *weight++ = Element<DTYPE>::of(static_cast<float>(level<BITS>(layer, i)) * scale);
    }
}

// A whole row, by a table of the weights that its symbols stand for where the row is longer than that.
template <int BITS, int DTYPE>
void scalar_row(const Layer& layer, int64_t row, typename Element<DTYPE>::Type* weight) {
    constexpr int K = per_byte(BITS), L = level_count(BITS);
    constexpr int SIZE = K > 1 ? L : BITS == 8 ? 512 : 256;  // a symbol may be larger than any that is packed
    const float scale = layer.scales[row];
    int64_t i = row * layer.width;
    const int64_t last = i + layer.width;
    if (layer.width > SIZE) {
        typename Element<DTYPE>::Type table[SIZE];
        for (int symbol = 0; symbol < SIZE; ++symbol) {
            table[symbol] = Element<DTYPE>::of(static_cast<float>(symbol - half_levels(BITS)) * scale);
        }
        const int64_t whole = (i + K - 1) / K * K;  // where the first byte begins that is the row's alone
        scalar_part<BITS, DTYPE>(layer, scale, i, whole, weight);
        weight += whole - i;
        for (i = whole; last - i >= K; i += K) {
            int byte = layer.codes[i / K];
            if constexpr (BITS == 8) byte += ((layer.plane[i >> 3] >> (i & 7)) & 1) << 8;
            for (int digit = 0; digit < K; ++digit, byte /= L) *weight++ = table[K > 1 ? byte % L : byte];
        }
    }
    scalar_part<BITS, DTYPE>(layer, scale, i, last, weight);
}

// How one vector of W 16-bit lanes gets its digits when its first weight is digit `phase` of its first byte: the byte of
// every lane (zero-extended by index 0x80) and the multiplier that brings its digit to the top.
template <int BITS, int W>
struct Digits {
    static constexpr int K = per_byte(BITS);
    alignas(64) uint8_t shuffle[K][2 * W];
    alignas(64) uint16_t multiplier[K][W];
    constexpr Digits() : shuffle(), multiplier() {
        for (int phase = 0; phase < K; ++phase) {
            for (int lane = 0; lane < W; ++lane) {
                const int place = phase + lane;
                const int below = power(level_count(BITS), place % K + 1);
                shuffle[phase][2 * lane] = static_cast<uint8_t>(place / K);
                shuffle[phase][2 * lane + 1] = 0x80;
                multiplier[phase][lane] = static_cast<uint16_t>((65536 + below - 1) / below);
            }
        }
    }
};
template <int BITS, int W>
inline constexpr Digits<BITS, W> DIGITS{};

// One row by vectors of W weights that read 16 bytes each. `Vectors<BITS, DTYPE>` keeps what a row needs in registers:
// its constructor takes the scale, store(bytes, phase, weight) does one vector.
// (A macro, since a function that is inlined must name the instruction set of the one it is inlined in.)
#define BITSFUSION_RADIX_ROW(TARGET)                                                                                   \
    template <int BITS, int DTYPE>                                                                                     \
    TARGET void radix_row(const Layer& layer, int64_t row, typename Element<DTYPE>::Type* weight) {                    \
        constexpr int K = per_byte(BITS);                                                                              \
        constexpr int W = WIDTH;                                                                                       \
        const float scale = layer.scales[row];                                                                         \
        int64_t i = row * layer.width;                                                                                 \
        const int64_t last = i + layer.width;                                                                          \
        if (K == 2 && i % 2 != 0) { /* 2 digits a byte: from phase 1 a vector would need one byte more */              \
            scalar_part<BITS, DTYPE>(layer, scale, i, i + 1, weight);                                                  \
            ++i, ++weight;                                                                                             \
        }                                                                                                              \
        const Vectors<BITS, DTYPE> vectors(scale, static_cast<int>(i % K));                                            \
        const uint8_t* bytes = layer.codes + i / K;                                                                    \
        /* K vectors take W bytes, and the last of them may read 16 more */                                            \
        for (; last - i >= K * W && layer.end - bytes >= W + 16; i += K * W, bytes += W, weight += K * W) {            \
            vectors.store_period(bytes, weight);                                                                       \
        }                                                                                                              \
        const int left = layer.end - bytes >= W + 16 ? static_cast<int>((last - i) / W) : 0;                           \
        for (int turn = 0; turn < left && turn < K; ++turn, i += W, weight += W) {                                     \
            vectors.store_one(bytes, turn, weight);                                                                    \
        }                                                                                                              \
        scalar_part<BITS, DTYPE>(layer, scale, i, last, weight);                                                       \
    }

}  // namespace
}  // namespace bitsfusion
