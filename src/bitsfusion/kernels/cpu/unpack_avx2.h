// Rows of weights by AVX2 and F16C.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>

#include "radix.h"

namespace bitsfusion {
namespace {
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
}  // namespace
}  // namespace bitsfusion
#endif
