// Radix bytes -> weights in float32, bfloat16 or float16 (docs/format.md, "Radix bytes"; docs/kernels.md).
//
// weight = round(float32(level) * scale), level = digit - 2^(b-1): one float32 product and one rounding to nearest even,
// the same in every implementation below. Each handles one row (output channel) at a time; rows are shared out to threads.
//
// A digit without division: byte * ceil(65536 / L^(d+1)) modulo 65536 is the byte's remainder below L^(d+1) as a 16-bit
// fraction, and the high half of that fraction times L is digit d. Exact for all bytes, since the rounding of the
// constant adds less than 256 to the fraction, and the next digit is at least 65536 / 243 away.
//
// A row has one scale, so at most L different weights: where they fit a register in 16 bits, they are made once a row
// and looked up.

#include <cstdint>
#include <cstring>

#include "parallel.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

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

// ---- one weight at a time -------------------------------------------------------------------------------------------

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

template <int BITS, int DTYPE>
void scalar_row(const Layer& layer, int64_t row, typename Element<DTYPE>::Type* weight) {
    const int64_t first = row * layer.width;
    scalar_part<BITS, DTYPE>(layer, layer.scales[row], first, first + layer.width, weight);
}

// ---- what the vector forms share ------------------------------------------------------------------------------------

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

// ---- AVX-512 --------------------------------------------------------------------------------------------------------

#if defined(__x86_64__)
namespace avx512 {

#define BF_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq")))
#define BF_INLINE BF_TARGET inline __attribute__((always_inline))

constexpr int WIDTH = 32;

template <int DTYPE>
BF_INLINE __m256i narrow(__m512 value) {
    if constexpr (DTYPE == FLOAT16) {
        return _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    } else {  // by integers: the instruction for it flushes subnormals
        const __m512i bits = _mm512_castps_si512(value);
        const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
        const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
        return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
    }
}

template <int DTYPE>
BF_INLINE void store16(__m512 value, typename Element<DTYPE>::Type* weight) {
    if constexpr (DTYPE == FLOAT32) {
        _mm512_storeu_ps(weight, value);
    } else {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(weight), narrow<DTYPE>(value));
    }
}

// A row's weights at levels first .. first + 31.
template <int DTYPE>
BF_INLINE __m512i row_table(__m512 scale, int first) {
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i low = _mm512_add_epi32(lane, _mm512_set1_epi32(first));
    const __m512i high = _mm512_add_epi32(lane, _mm512_set1_epi32(first + 16));
    const __m256i low_weights = narrow<DTYPE>(_mm512_mul_ps(_mm512_cvtepi32_ps(low), scale));
    const __m256i high_weights = narrow<DTYPE>(_mm512_mul_ps(_mm512_cvtepi32_ps(high), scale));
    return _mm512_inserti64x4(_mm512_castsi256_si512(low_weights), high_weights, 1);
}

template <int BITS, int DTYPE>
struct Vectors {
    static constexpr int K = per_byte(BITS);
    __m512i shuffle[K], multiplier[K], table;
    __m512 scale;
    int offset[K];

    BF_INLINE Vectors(float row_scale, int phase) {
        for (int turn = 0; turn < K; ++turn) {
            const int place = phase + turn * WIDTH;
            shuffle[turn] = _mm512_load_si512(DIGITS<BITS, WIDTH>.shuffle[place % K]);
            multiplier[turn] = _mm512_load_si512(DIGITS<BITS, WIDTH>.multiplier[place % K]);
            offset[turn] = place / K;
        }
        scale = _mm512_set1_ps(row_scale);
        if constexpr (DTYPE != FLOAT32) table = row_table<DTYPE>(scale, -half_levels(BITS));
    }

    BF_INLINE void store_one(const uint8_t* bytes, int turn, typename Element<DTYPE>::Type* weight) const {
        const __m128i loaded = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes + offset[turn]));
        const __m512i lanes = _mm512_shuffle_epi8(_mm512_broadcast_i32x4(loaded), shuffle[turn]);
        const __m512i fraction = _mm512_mullo_epi16(lanes, multiplier[turn]);
        const __m512i digit = _mm512_mulhi_epu16(fraction, _mm512_set1_epi16(level_count(BITS)));
        if constexpr (DTYPE == FLOAT32) {
            const __m512i middle = _mm512_set1_epi32(half_levels(BITS));
            const __m512i low = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(digit));
            const __m512i high = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(digit, 1));
            store16<DTYPE>(_mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(low, middle)), scale), weight);
            store16<DTYPE>(_mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(high, middle)), scale), weight + 16);
        } else {
            _mm512_storeu_si512(weight, _mm512_permutexvar_epi16(digit, table));
        }
    }

    BF_INLINE void store_period(const uint8_t* bytes, typename Element<DTYPE>::Type* weight) const {
#pragma GCC unroll 5
        for (int turn = 0; turn < K; ++turn) store_one(bytes, turn, weight + turn * WIDTH);
    }
};

BITSFUSION_RADIX_ROW(BF_TARGET)

// 32 weights of 16 bits from their levels, for more levels than a register holds: a table of the weights at levels
// 1 .. 2^(b-1) gives the magnitude, the level its sign.
template <int BITS, int DTYPE>
struct Magnitudes {
    static constexpr int SIZE = half_levels(BITS) / 32 > 0 ? half_levels(BITS) / 32 : 1;
    __m512i table[SIZE], zero;

    BF_INLINE explicit Magnitudes(__m512 scale) {
        for (int part = 0; part < SIZE; ++part) table[part] = row_table<DTYPE>(scale, 32 * part + 1);
        const __m256i zeros = narrow<DTYPE>(_mm512_mul_ps(_mm512_setzero_ps(), scale));  // of the scale's sign
        zero = _mm512_inserti64x4(_mm512_castsi256_si512(zeros), zeros, 1);
    }

    BF_INLINE __m512i of(__m512i level) const {
        const __m512i place = _mm512_sub_epi16(_mm512_abs_epi16(level), _mm512_set1_epi16(1));
        __m512i weight;
        if constexpr (SIZE == 1) {
            weight = _mm512_permutexvar_epi16(place, table[0]);
        } else {
            weight = _mm512_permutex2var_epi16(table[0], place, table[1]);
        }
        if constexpr (SIZE == 4) {
            const __mmask32 upper = _mm512_test_epi16_mask(place, _mm512_set1_epi16(64));
            weight = _mm512_mask_mov_epi16(weight, upper, _mm512_permutex2var_epi16(table[2], place, table[3]));
        }
        const __m512i sign = _mm512_and_si512(level, _mm512_set1_epi16(static_cast<int16_t>(0x8000)));
        const __mmask32 any = _mm512_test_epi16_mask(level, level);
        return _mm512_mask_mov_epi16(zero, any, _mm512_xor_si512(weight, sign));
    }
};

// b = 4 to 8: a byte a weight.
template <int BITS, int DTYPE>
BF_TARGET void byte_row(const Layer& layer, int64_t row, typename Element<DTYPE>::Type* weight) {
    const __m512 scale = _mm512_set1_ps(layer.scales[row]);
    int64_t i = row * layer.width;
    const int64_t last = i + layer.width;
    constexpr int W = DTYPE == FLOAT32 ? 16 : 32;
    // 32 ninth bits from any place lie in the plane's bytes of 40 weights.
    const int64_t plane_end = layer.end - layer.codes - 40;
    const int64_t vectors_end = BITS == 8 && plane_end < last - W ? plane_end : last - W;
    if constexpr (DTYPE == FLOAT32) {
        const __m512i middle = _mm512_set1_epi32(half_levels(BITS));
        for (; i <= vectors_end; i += W, weight += W) {
            const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(layer.codes + i));
            __m512i symbol = _mm512_cvtepu8_epi32(bytes);
            if constexpr (BITS == 8) {
                const auto lanes = static_cast<__mmask16>(ninth_bits(layer, i));
                symbol = _mm512_mask_add_epi32(symbol, lanes, symbol, _mm512_set1_epi32(256));
            }
            store16<DTYPE>(_mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(symbol, middle)), scale), weight);
        }
    } else {
        const __m512i middle = _mm512_set1_epi16(half_levels(BITS));
        const __m512i table = row_table<DTYPE>(scale, -half_levels(BITS));
        const Magnitudes<BITS, DTYPE> magnitudes(scale);
        for (; i <= vectors_end; i += W, weight += W) {
            const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(layer.codes + i));
            __m512i symbol = _mm512_cvtepu8_epi16(bytes);
            if constexpr (BITS == 8) {
                const auto lanes = static_cast<__mmask32>(ninth_bits(layer, i));
                symbol = _mm512_mask_add_epi16(symbol, lanes, symbol, _mm512_set1_epi16(256));
            }
            if constexpr (BITS == 4) {
                _mm512_storeu_si512(weight, _mm512_permutexvar_epi16(symbol, table));
            } else {
                _mm512_storeu_si512(weight, magnitudes.of(_mm512_sub_epi16(symbol, middle)));
            }
        }
    }
    scalar_part<BITS, DTYPE>(layer, layer.scales[row], i, last, weight);
}

#undef BF_INLINE
#undef BF_TARGET

}  // namespace avx512

// ---- AVX2 -----------------------------------------------------------------------------------------------------------

namespace avx2 {

#define BF_TARGET __attribute__((target("avx2,f16c")))
#define BF_INLINE BF_TARGET inline __attribute__((always_inline))

constexpr int WIDTH = 16;

template <int DTYPE>
BF_INLINE __m128i narrow(__m256 value) {
    if constexpr (DTYPE == FLOAT16) {
        return _mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    } else {
        const __m256i bits = _mm256_castps_si256(value);
        const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
        const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
        const __m256i words = _mm256_srli_epi32(rounded, 16);
        return _mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    }
}

template <int DTYPE>
BF_INLINE void store8(__m256 value, typename Element<DTYPE>::Type* weight) {
    if constexpr (DTYPE == FLOAT32) {
        _mm256_storeu_ps(weight, value);
    } else {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(weight), narrow<DTYPE>(value));
    }
}

template <int BITS, int DTYPE>
struct Vectors {
    static constexpr int K = per_byte(BITS);
    __m256i shuffle[K], multiplier[K], low_bytes, high_bytes;
    __m256 scale;
    int offset[K];

    BF_INLINE Vectors(float row_scale, int phase) {
        for (int turn = 0; turn < K; ++turn) {
            const int place = phase + turn * WIDTH;
            const auto& digits = DIGITS<BITS, WIDTH>;
            shuffle[turn] = _mm256_load_si256(reinterpret_cast<const __m256i*>(digits.shuffle[place % K]));
            multiplier[turn] = _mm256_load_si256(reinterpret_cast<const __m256i*>(digits.multiplier[place % K]));
            offset[turn] = place / K;
        }
        scale = _mm256_set1_ps(row_scale);
        if constexpr (DTYPE != FLOAT32) {  // the low and the high bytes of at most 16 weights, looked up apart
            const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            const __m256i level = _mm256_sub_epi32(lane, _mm256_set1_epi32(half_levels(BITS)));
            const __m256i next = _mm256_add_epi32(level, _mm256_set1_epi32(8));
            const __m128i first = narrow<DTYPE>(_mm256_mul_ps(_mm256_cvtepi32_ps(level), scale));
            const __m128i second = narrow<DTYPE>(_mm256_mul_ps(_mm256_cvtepi32_ps(next), scale));
            const __m128i byte = _mm_set1_epi16(0x00ff);
            low_bytes = _mm256_broadcastsi128_si256(
                _mm_packus_epi16(_mm_and_si128(first, byte), _mm_and_si128(second, byte)));
            high_bytes = _mm256_broadcastsi128_si256(
                _mm_packus_epi16(_mm_srli_epi16(first, 8), _mm_srli_epi16(second, 8)));
        }
    }

    BF_INLINE void store_one(const uint8_t* bytes, int turn, typename Element<DTYPE>::Type* weight) const {
        const __m128i loaded = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes + offset[turn]));
        const __m256i lanes = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(loaded), shuffle[turn]);
        const __m256i fraction = _mm256_mullo_epi16(lanes, multiplier[turn]);
        const __m256i digit = _mm256_mulhi_epu16(fraction, _mm256_set1_epi16(level_count(BITS)));
        if constexpr (DTYPE == FLOAT32) {
            const __m256i middle = _mm256_set1_epi32(half_levels(BITS));
            const __m256i low = _mm256_cvtepu16_epi32(_mm256_castsi256_si128(digit));
            const __m256i high = _mm256_cvtepu16_epi32(_mm256_extracti128_si256(digit, 1));
            store8<DTYPE>(_mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_sub_epi32(low, middle)), scale), weight);
            store8<DTYPE>(_mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_sub_epi32(high, middle)), scale), weight + 8);
        } else {
            const __m256i low_index = _mm256_or_si256(digit, _mm256_set1_epi16(static_cast<int16_t>(0x8000)));
            const __m256i high_index = _mm256_or_si256(_mm256_slli_epi16(digit, 8), _mm256_set1_epi16(0x0080));
            const __m256i low = _mm256_shuffle_epi8(low_bytes, low_index);
            const __m256i high = _mm256_shuffle_epi8(high_bytes, high_index);
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(weight), _mm256_or_si256(low, high));
        }
    }

    BF_INLINE void store_period(const uint8_t* bytes, typename Element<DTYPE>::Type* weight) const {
#pragma GCC unroll 5
        for (int turn = 0; turn < K; ++turn) store_one(bytes, turn, weight + turn * WIDTH);
    }
};

BITSFUSION_RADIX_ROW(BF_TARGET)

template <int BITS, int DTYPE>
BF_TARGET void byte_row(const Layer& layer, int64_t row, typename Element<DTYPE>::Type* weight) {
    const __m256 scale = _mm256_set1_ps(layer.scales[row]);
    const __m256i middle = _mm256_set1_epi32(half_levels(BITS));
    const __m256i place = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    int64_t i = row * layer.width;
    const int64_t last = i + layer.width;
    const int64_t vectors_end = BITS == 8 ? last - 8 : last;  // 8 ninth bits from any place lie in 2 bytes
    for (; vectors_end - i >= 8; i += 8, weight += 8) {
        const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(layer.codes + i));
        __m256i symbol = _mm256_cvtepu8_epi32(bytes);
        if constexpr (BITS == 8) {
            const uint8_t* plane = layer.plane + (i >> 3);
            const __m256i ninth = _mm256_set1_epi32((plane[0] | plane[1] << 8) >> (i & 7));
            const __m256i lanes = _mm256_cmpeq_epi32(_mm256_and_si256(ninth, place), place);
            symbol = _mm256_add_epi32(symbol, _mm256_and_si256(lanes, _mm256_set1_epi32(256)));
        }
        store8<DTYPE>(_mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_sub_epi32(symbol, middle)), scale), weight);
    }
    scalar_part<BITS, DTYPE>(layer, layer.scales[row], i, last, weight);
}

#undef BF_INLINE
#undef BF_TARGET

}  // namespace avx2
#endif

// ---- NEON -----------------------------------------------------------------------------------------------------------

#if defined(__aarch64__)
namespace neon {

#define BF_TARGET
#define BF_INLINE inline __attribute__((always_inline))

constexpr int WIDTH = 8;

template <int DTYPE>
BF_INLINE void store4(float32x4_t value, typename Element<DTYPE>::Type* weight) {
    if constexpr (DTYPE == FLOAT32) {
        vst1q_f32(weight, value);
    } else if constexpr (DTYPE == FLOAT16) {
        vst1_u16(weight, vreinterpret_u16_f16(vcvt_f16_f32(value)));
    } else {
        const uint32x4_t bits = vreinterpretq_u32_f32(value);
        const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
        vst1_u16(weight, vshrn_n_u32(vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7fff)), odd), 16));
    }
}

template <int DTYPE>
BF_INLINE void store8(int16x8_t level, float32x4_t scale, typename Element<DTYPE>::Type* weight) {
    store4<DTYPE>(vmulq_f32(vcvtq_f32_s32(vmovl_s16(vget_low_s16(level))), scale), weight);
    store4<DTYPE>(vmulq_f32(vcvtq_f32_s32(vmovl_s16(vget_high_s16(level))), scale), weight + 4);
}

template <int BITS, int DTYPE>
struct Vectors {
    static constexpr int K = per_byte(BITS);
    uint8x16_t shuffle[K];
    uint16x8_t multiplier[K];
    uint8x16x2_t table;
    float32x4_t scale;
    int offset[K];

    BF_INLINE Vectors(float row_scale, int phase) {
        for (int turn = 0; turn < K; ++turn) {
            const int place = phase + turn * WIDTH;
            shuffle[turn] = vld1q_u8(DIGITS<BITS, WIDTH>.shuffle[place % K]);
            multiplier[turn] = vld1q_u16(DIGITS<BITS, WIDTH>.multiplier[place % K]);
            offset[turn] = place / K;
        }
        scale = vdupq_n_f32(row_scale);
        if constexpr (DTYPE != FLOAT32) {
            uint16_t weights[16] = {};
            for (int symbol = 0; symbol < level_count(BITS); ++symbol) {
                weights[symbol] = Element<DTYPE>::of(static_cast<float>(symbol - half_levels(BITS)) * row_scale);
            }
            table.val[0] = vreinterpretq_u8_u16(vld1q_u16(weights));
            table.val[1] = vreinterpretq_u8_u16(vld1q_u16(weights + 8));
        }
    }

    BF_INLINE void store_one(const uint8_t* bytes, int turn, typename Element<DTYPE>::Type* weight) const {
        const uint8x16_t lanes = vqtbl1q_u8(vld1q_u8(bytes + offset[turn]), shuffle[turn]);
        const uint16x8_t fraction = vmulq_u16(vreinterpretq_u16_u8(lanes), multiplier[turn]);
        const uint16x4_t low = vshrn_n_u32(vmull_n_u16(vget_low_u16(fraction), level_count(BITS)), 16);
        const uint16x4_t high = vshrn_n_u32(vmull_n_u16(vget_high_u16(fraction), level_count(BITS)), 16);
        const uint16x8_t digit = vcombine_u16(low, high);
        if constexpr (DTYPE == FLOAT32) {
            store8<DTYPE>(vsubq_s16(vreinterpretq_s16_u16(digit), vdupq_n_s16(half_levels(BITS))), scale, weight);
        } else {  // byte indices 2 d and 2 d + 1
            const uint16x8_t index = vmlaq_n_u16(vdupq_n_u16(0x0100), digit, 0x0202);
            vst1q_u16(weight, vreinterpretq_u16_u8(vqtbl2q_u8(table, vreinterpretq_u8_u16(index))));
        }
    }

    BF_INLINE void store_period(const uint8_t* bytes, typename Element<DTYPE>::Type* weight) const {
#pragma GCC unroll 5
        for (int turn = 0; turn < K; ++turn) store_one(bytes, turn, weight + turn * WIDTH);
    }
};

BITSFUSION_RADIX_ROW(BF_TARGET)

template <int BITS, int DTYPE>
void byte_row(const Layer& layer, int64_t row, typename Element<DTYPE>::Type* weight) {
    const float32x4_t scale = vdupq_n_f32(layer.scales[row]);
    const int16x8_t middle = vdupq_n_s16(half_levels(BITS));
    const uint16_t powers[8] = {1, 2, 4, 8, 16, 32, 64, 128};
    const uint16x8_t place = vld1q_u16(powers);
    int64_t i = row * layer.width;
    const int64_t last = i + layer.width;
    const int64_t vectors_end = BITS == 8 ? last - 8 : last;  // 8 ninth bits from any place lie in 2 bytes
    for (; vectors_end - i >= 8; i += 8, weight += 8) {
        int16x8_t symbol = vreinterpretq_s16_u16(vmovl_u8(vld1_u8(layer.codes + i)));
        if constexpr (BITS == 8) {
            const uint8_t* plane = layer.plane + (i >> 3);
            const auto ninth = static_cast<uint16_t>((plane[0] | plane[1] << 8) >> (i & 7));
            const uint16x8_t lanes = vandq_u16(vtstq_u16(vdupq_n_u16(ninth), place), vdupq_n_u16(256));
            symbol = vaddq_s16(symbol, vreinterpretq_s16_u16(lanes));
        }
        store8<DTYPE>(vsubq_s16(symbol, middle), scale, weight);
    }
    scalar_part<BITS, DTYPE>(layer, layer.scales[row], i, last, weight);
}

#undef BF_INLINE
#undef BF_TARGET

}  // namespace neon
#endif

// ---- choice ---------------------------------------------------------------------------------------------------------

template <int BITS, int DTYPE>
using Row = void (*)(const Layer&, int64_t, typename Element<DTYPE>::Type*);

template <int BITS, int DTYPE>
Row<BITS, DTYPE> row_function(int isa) {
#if defined(__x86_64__)
    if constexpr (BITS <= 3) {
        if (isa == AVX512) return avx512::radix_row<BITS, DTYPE>;
        if (isa == AVX2) return avx2::radix_row<BITS, DTYPE>;
    } else {
        if (isa == AVX512) return avx512::byte_row<BITS, DTYPE>;
        if (isa == AVX2) return avx2::byte_row<BITS, DTYPE>;
    }
#elif defined(__aarch64__)
    if constexpr (BITS <= 3) {
        if (isa == NEON) return neon::radix_row<BITS, DTYPE>;
    } else {
        if (isa == NEON) return neon::byte_row<BITS, DTYPE>;
    }
#endif
    return scalar_row<BITS, DTYPE>;
}

constexpr int64_t PART = 1 << 15;  // weights that one thread takes at a time, about

template <int BITS, int DTYPE>
void unpack_rows(const Layer& layer, int64_t rows, void* out, int isa, int threads) {
    auto* weights = static_cast<typename Element<DTYPE>::Type*>(out);
    const auto row_of = row_function<BITS, DTYPE>(isa);
    const int64_t step = PART / layer.width + 1;
    parallel((rows + step - 1) / step, threads, [&](int64_t part) {
        const int64_t last = part * step + step < rows ? part * step + step : rows;
        for (int64_t row = part * step; row < last; ++row) row_of(layer, row, weights + row * layer.width);
    });
}

template <int BITS>
void unpack_bits(const Layer& layer, int64_t rows, void* out, int dtype, int isa, int threads) {
    if (dtype == FLOAT32) unpack_rows<BITS, FLOAT32>(layer, rows, out, isa, threads);
    if (dtype == BFLOAT16) unpack_rows<BITS, BFLOAT16>(layer, rows, out, isa, threads);
    if (dtype == FLOAT16) unpack_rows<BITS, FLOAT16>(layer, rows, out, isa, threads);
}

}  // namespace
}  // namespace bitsfusion

extern "C" {

// Raised with every change of a signature below or in the other sources; the loader refuses another one.
int bitsfusion_interface() { return 1; }

// Whether this processor and this build have an instruction set (enum Isa).
int bitsfusion_has_isa(int isa) {
    using namespace bitsfusion;
    if (isa == SCALAR) return 1;
#if defined(__x86_64__)
    if (isa == AVX2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c");
    if (isa == AVX512) {
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    }
#elif defined(__aarch64__)
    if (isa == NEON) return 1;
#endif
    return 0;
}

// packed: a layer's buffer of `size` bytes, scales first; out: rows * width weights. 0, or 1 if the sizes do not fit.
int bitsfusion_unpack(const uint8_t* packed, int64_t size, int64_t rows, int64_t width, int bits, int dtype, void* out,
                      int isa, int threads) {
    using namespace bitsfusion;
    if (bits < 1 || bits > 8 || dtype < FLOAT32 || dtype > FLOAT16 || rows < 0 || width < 0) return 1;
    const int64_t numel = rows * width, k = per_byte(bits);
    const int64_t low = (numel + k - 1) / k;
    if (size != 4 * rows + low + (bits == 8 ? (numel + 7) / 8 : 0) || !bitsfusion_has_isa(isa)) return 1;
    const uint8_t* codes = packed + 4 * rows;
    const Layer layer{codes, codes + low, codes + low, reinterpret_cast<const float*>(packed), width};
    if (numel == 0) return 0;
    switch (bits) {
        case 1: unpack_bits<1>(layer, rows, out, dtype, isa, threads); break;
        case 2: unpack_bits<2>(layer, rows, out, dtype, isa, threads); break;
        case 3: unpack_bits<3>(layer, rows, out, dtype, isa, threads); break;
        case 4: unpack_bits<4>(layer, rows, out, dtype, isa, threads); break;
        case 5: unpack_bits<5>(layer, rows, out, dtype, isa, threads); break;
        case 6: unpack_bits<6>(layer, rows, out, dtype, isa, threads); break;
        case 7: unpack_bits<7>(layer, rows, out, dtype, isa, threads); break;
        case 8: unpack_bits<8>(layer, rows, out, dtype, isa, threads); break;
    }
    return 0;
}

}  // extern "C"
