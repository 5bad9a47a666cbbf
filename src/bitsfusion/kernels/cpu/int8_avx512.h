// What products on int8 activations need, by AVX-512 with VNNI; see int8_avx2.h for what each function does.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>

#include "radix.h"
#include "unpack_avx512.h"

namespace bitsfusion {
namespace {

#define BF_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")))
#define BF_INLINE BF_TARGET inline __attribute__((always_inline))

struct Int8Avx512 {
    static constexpr int LANES = 32, ROWS = 12;  // 24 sums in registers

    template <int BITS>
    BF_TARGET static int64_t blocks(const Layer& layer, int64_t first, int64_t last, uint8_t* out) {
        constexpr int K = per_byte(BITS);
        int64_t i = first;
        for (; last - i >= 32 && layer.end - (layer.codes + i / K) >= 16; i += 32, out += 32) {
            const __m128i loaded = _mm_loadu_si128(reinterpret_cast<const __m128i*>(layer.codes + i / K));
            const __m512i shuffle = _mm512_load_si512(DIGITS<BITS, 32>.shuffle[i % K]);
            const __m512i multiplier = _mm512_load_si512(DIGITS<BITS, 32>.multiplier[i % K]);
            const __m512i lanes = _mm512_shuffle_epi8(_mm512_broadcast_i32x4(loaded), shuffle);
            const __m512i fraction = _mm512_mullo_epi16(lanes, multiplier);
            const __m512i digit = _mm512_mulhi_epu16(fraction, _mm512_set1_epi16(level_count(BITS)));
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm512_cvtepi16_epi8(digit));
        }
        return i - first;
    }

    BF_TARGET static void panel(const uint8_t* rows, int64_t stride, uint8_t* out) {
        for (int64_t at = 0; at < stride; at += 64) {
            transpose(rows + at, stride, out + LANES * at);
            transpose(rows + 16 * stride + at, stride, out + LANES * at + 64);
        }
    }

    template <bool WEIGHTS_IN_LANES>
    BF_TARGET static void product(const uint8_t* panel, const uint8_t* rows, int64_t steps, int /* bits */, int32_t* sums) {
        __m512i low[ROWS], high[ROWS];
#pragma GCC unroll 12
        for (int r = 0; r < ROWS; ++r) {
            low[r] = _mm512_loadu_si512(sums + r * LANES);
            high[r] = _mm512_loadu_si512(sums + r * LANES + 16);
        }
        for (int64_t step = 0; step < steps; ++step, panel += 4 * LANES, rows += 4 * ROWS) {
            const __m512i first = _mm512_loadu_si512(panel);
            const __m512i second = _mm512_loadu_si512(panel + 64);
#pragma GCC unroll 12
            for (int r = 0; r < ROWS; ++r) {
                int32_t four;
                std::memcpy(&four, rows + 4 * r, 4);
                const __m512i all = _mm512_set1_epi32(four);
                low[r] = WEIGHTS_IN_LANES ? _mm512_dpbusd_epi32(low[r], first, all) : _mm512_dpbusd_epi32(low[r], all, first);
                high[r] =
                    WEIGHTS_IN_LANES ? _mm512_dpbusd_epi32(high[r], second, all) : _mm512_dpbusd_epi32(high[r], all, second);
            }
        }
#pragma GCC unroll 12
        for (int r = 0; r < ROWS; ++r) {
            _mm512_storeu_si512(sums + r * LANES, low[r]);
            _mm512_storeu_si512(sums + r * LANES + 16, high[r]);
        }
    }

    template <int DTYPE>
    BF_TARGET static void floats(const typename Element<DTYPE>::Type* from, int64_t count, float* to) {
        for (int64_t i = 0; i < count; i += 16) {
            const __mmask16 mask = first_lanes(count - i);
            __m512 value;
            if constexpr (DTYPE == FLOAT32) {
                value = _mm512_maskz_loadu_ps(mask, from + i);
            } else {
                const __m256i half = _mm256_maskz_loadu_epi16(mask, from + i);
                if constexpr (DTYPE == FLOAT16) {
                    value = _mm512_cvtph_ps(half);
                } else {
                    value = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
                }
            }
            _mm512_mask_storeu_ps(to + i, mask, value);
        }
    }

    BF_TARGET static void maxima(const float* values, int64_t count, float* maxima) {
        for (int64_t i = 0; i < count; i += 16) {
            const __mmask16 mask = first_lanes(count - i);
            const __m512 value = _mm512_abs_ps(_mm512_maskz_loadu_ps(mask, values + i));
            _mm512_mask_storeu_ps(maxima + i, mask, _mm512_max_ps(_mm512_maskz_loadu_ps(mask, maxima + i), value));
        }
    }

    BF_TARGET static float largest(const float* values, int64_t count) {
        __m512 largest = _mm512_setzero_ps();
        for (int64_t i = 0; i < count; i += 16) largest = _mm512_max_ps(largest, _mm512_abs_ps(_mm512_loadu_ps(values + i)));
        return _mm512_reduce_max_ps(largest);
    }

    BF_TARGET static int32_t round(const float* values, int64_t count, float inverse, uint8_t* out) {
        const __m512 factor = _mm512_set1_ps(inverse);
        __m512i total = _mm512_setzero_si512();
        for (int64_t i = 0; i < count; i += 16) {
            const __m512i rounded = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(values + i), factor));
            total = _mm512_add_epi32(total, rounded);
            _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), _mm512_cvtsepi32_epi8(rounded));
        }
        return _mm512_reduce_add_epi32(total);
    }

    BF_TARGET static void patches(const float* const* planes, const int64_t* offsets, int64_t period, int64_t advance,
                                  int64_t steps, const float* inverses, uint8_t* panel, int32_t* sums) {
        const __m512i order = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
        for (int half = 0; half < 2; ++half) {
            const __m512 factor = _mm512_loadu_ps(inverses + 16 * half);
            const float* const* from = planes + 4 * half;
            uint8_t* out = panel + 64 * half;
            __m512i total = _mm512_setzero_si512();
            for (int64_t step = 0, turn = 0; step < steps; turn += advance) {
                for (int64_t at = 0; at < period && step < steps; at += 4, ++step, out += 4 * LANES) {
                    __m512i value[4];
                    for (int j = 0; j < 4; ++j) {
                        const int64_t offset = turn + offsets[at + j];
                        const __m256 low = _mm256_loadu2_m128(from[1] + offset, from[0] + offset);
                        const __m256 high = _mm256_loadu2_m128(from[3] + offset, from[2] + offset);
                        const __m512 both = _mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1);
                        value[j] = _mm512_cvtps_epi32(_mm512_mul_ps(both, factor));
                    }
                    const __m512i bytes = _mm512_packs_epi16(_mm512_packs_epi32(value[0], value[1]),
                                                             _mm512_packs_epi32(value[2], value[3]));
                    const __m512i lanes = _mm512_shuffle_epi8(bytes, order);
                    total = _mm512_dpbusd_epi32(total, _mm512_set1_epi8(1), lanes);
                    _mm512_storeu_si512(out, lanes);
                }
            }
            _mm512_storeu_si512(sums + 16 * half, total);
        }
    }

    template <int DTYPE>
    BF_TARGET static void finish(const int32_t* sums, const int32_t* middles, int32_t middle, const float* factors,
                                 float factor, const float* offsets, float offset, int64_t count,
                                 typename Element<DTYPE>::Type* out) {
        for (int lane = 0; lane < count && lane < LANES; lane += 16) {
            const __m512i below = _mm512_add_epi32(_mm512_loadu_si512(middles + lane), _mm512_set1_epi32(middle));
            const __m512 exact = _mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_loadu_si512(sums + lane), below));
            const __m512 scale = _mm512_mul_ps(_mm512_loadu_ps(factors + lane), _mm512_set1_ps(factor));
            const __m512 bias = _mm512_add_ps(_mm512_loadu_ps(offsets + lane), _mm512_set1_ps(offset));
            const __m512 value = _mm512_add_ps(_mm512_mul_ps(exact, scale), bias);
            const __mmask16 mask = first_lanes(count - lane);
            if constexpr (DTYPE == FLOAT32) {
                _mm512_mask_storeu_ps(out + lane, mask, value);
            } else {
                _mm256_mask_storeu_epi16(out + lane, mask, avx512::narrow<DTYPE>(value));
            }
        }
    }

  private:
    BF_INLINE static __mmask16 first_lanes(int64_t count) {
        return static_cast<__mmask16>(count >= 16 ? 0xffff : (1 << count) - 1);
    }

    // 16 rows of 16 dwords, `stride` bytes apart -> 16 columns, 128 bytes apart.
    BF_TARGET static void transpose(const uint8_t* rows, int64_t stride, uint8_t* columns) {
        __m512i a[16], b[16];
        for (int i = 0; i < 16; ++i) a[i] = _mm512_loadu_si512(rows + i * stride);
        for (int i = 0; i < 16; i += 2) {
            b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
            b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
        }
        for (int i = 0; i < 16; i += 4) {
            for (int j = 0; j < 2; ++j) {
                a[i + 2 * j] = _mm512_unpacklo_epi64(b[i + j], b[i + 2 + j]);
                a[i + 2 * j + 1] = _mm512_unpackhi_epi64(b[i + j], b[i + 2 + j]);
            }
        }
        // a[4 g + c]: dwords c, c + 4, c + 8, c + 12 of rows 4 g .. 4 g + 3, one 128-bit lane each.
        for (int c = 0; c < 4; ++c) {
            const __m512i even_low = _mm512_shuffle_i32x4(a[c], a[4 + c], 0x88);
            const __m512i odd_low = _mm512_shuffle_i32x4(a[c], a[4 + c], 0xdd);
            const __m512i even_high = _mm512_shuffle_i32x4(a[8 + c], a[12 + c], 0x88);
            const __m512i odd_high = _mm512_shuffle_i32x4(a[8 + c], a[12 + c], 0xdd);
            _mm512_storeu_si512(columns + 128 * c, _mm512_shuffle_i32x4(even_low, even_high, 0x88));
            _mm512_storeu_si512(columns + 128 * (c + 8), _mm512_shuffle_i32x4(even_low, even_high, 0xdd));
            _mm512_storeu_si512(columns + 128 * (c + 4), _mm512_shuffle_i32x4(odd_low, odd_high, 0x88));
            _mm512_storeu_si512(columns + 128 * (c + 12), _mm512_shuffle_i32x4(odd_low, odd_high, 0xdd));
        }
    }
};

#undef BF_INLINE
#undef BF_TARGET

}  // namespace
}  // namespace bitsfusion
#endif
