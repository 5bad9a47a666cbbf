// Rows of weights by AVX-512 (F, BW, VL, DQ).
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>

#include "radix.h"

namespace bitsfusion {
namespace {
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
}  // namespace
}  // namespace bitsfusion
#endif
