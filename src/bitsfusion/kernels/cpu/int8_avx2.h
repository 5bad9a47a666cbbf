// What products on int8 activations need, by AVX2 and F16C.
//
// vpmaddubsw adds two products of a byte and a signed byte in 16 bits: 2 * 2^b * 127 at most, which fits up to b = 7, and
// 64 / 2^(b-1) of them are added up before they have to be widened.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>

#include <cmath>

#include "radix.h"
#include "unpack_avx2.h"

namespace bitsfusion {
namespace {

#define BF_TARGET __attribute__((target("avx2,f16c")))
#define BF_INLINE BF_TARGET inline __attribute__((always_inline))

struct Int8Avx2 {
    static constexpr int LANES = 16, ROWS = 6;

    // Symbols of the layer's weights from `first` on as far as whole blocks go, below `last`; returns how many.
    template <int BITS>
    BF_TARGET static int64_t blocks(const Layer& layer, int64_t first, int64_t last, uint8_t* out) {
        constexpr int K = per_byte(BITS);
        int64_t i = first;
        for (; last - i >= 16 && layer.end - (layer.codes + i / K) >= 16; i += 16, out += 16) {
            const __m128i loaded = _mm_loadu_si128(reinterpret_cast<const __m128i*>(layer.codes + i / K));
            const auto& digits = DIGITS<BITS, 16>;
            const __m256i shuffle = _mm256_load_si256(reinterpret_cast<const __m256i*>(digits.shuffle[i % K]));
            const __m256i multiplier = _mm256_load_si256(reinterpret_cast<const __m256i*>(digits.multiplier[i % K]));
            const __m256i lanes = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(loaded), shuffle);
            const __m256i fraction = _mm256_mullo_epi16(lanes, multiplier);
            const __m256i digit = _mm256_mulhi_epu16(fraction, _mm256_set1_epi16(level_count(BITS)));
            const __m128i high = _mm256_extracti128_si256(digit, 1);
            _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm_packus_epi16(_mm256_castsi256_si128(digit), high));
        }
        return i - first;
    }

    // LANES rows, `stride` bytes apart -> [stride / 4][LANES][4]; stride a multiple of 64.
    BF_TARGET static void panel(const uint8_t* rows, int64_t stride, uint8_t* out) {
        for (int64_t at = 0; at < stride; at += 32) {
            transpose(rows + at, stride, out + LANES * at);
            transpose(rows + 8 * stride + at, stride, out + LANES * at + 32);
        }
    }

    // sums[ROWS][LANES] += panel [steps][LANES][4] times rows [steps][ROWS][4].
    template <bool WEIGHTS_IN_LANES>
    BF_TARGET static void product(const uint8_t* panel, const uint8_t* rows, int64_t steps, int bits, int32_t* sums) {
        const __m256i ones = _mm256_set1_epi16(1);
        for (int64_t group = 128 >> bits; steps > 0; steps -= group) {
            if (group > steps) group = steps;
            __m256i low[ROWS], high[ROWS];
#pragma GCC unroll 6
            for (int r = 0; r < ROWS; ++r) low[r] = high[r] = _mm256_setzero_si256();
            for (int64_t step = 0; step < group; ++step, panel += 4 * LANES, rows += 4 * ROWS) {
                const __m256i first = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(panel));
                const __m256i second = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(panel + 32));
#pragma GCC unroll 6
                for (int r = 0; r < ROWS; ++r) add<WEIGHTS_IN_LANES>(first, second, rows + 4 * r, low[r], high[r]);
            }
#pragma GCC unroll 6
            for (int r = 0; r < ROWS; ++r) {
                widen(low[r], ones, sums + r * LANES);
                widen(high[r], ones, sums + r * LANES + 8);
            }
        }
    }

    // Values of a dtype as floats.
    template <int DTYPE>
    BF_TARGET static void floats(const typename Element<DTYPE>::Type* from, int64_t count, float* to) {
        int64_t i = 0;
        for (; count - i >= 8; i += 8) _mm256_storeu_ps(to + i, loaded<DTYPE>(from + i));
        if (i < count) {
            alignas(32) typename Element<DTYPE>::Type rest[8] = {};
            alignas(32) float values[8];
            std::memcpy(rest, from + i, (count - i) * sizeof *from);
            _mm256_store_ps(values, loaded<DTYPE>(rest));
            std::memcpy(to + i, values, (count - i) * sizeof *to);
        }
    }

    // maxima[i] = max(maxima[i], |values[i]|).
    BF_TARGET static void maxima(const float* values, int64_t count, float* maxima) {
        const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
        int64_t i = 0;
        for (; count - i >= 8; i += 8) {
            const __m256 value = _mm256_and_ps(_mm256_loadu_ps(values + i), magnitude);
            _mm256_storeu_ps(maxima + i, _mm256_max_ps(_mm256_loadu_ps(maxima + i), value));
        }
        for (; i < count; ++i) maxima[i] = std::fabs(values[i]) > maxima[i] ? std::fabs(values[i]) : maxima[i];
    }

    // The largest magnitude of `count` values, a multiple of 32.
    BF_TARGET static float largest(const float* values, int64_t count) {
        const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
        __m256 largest[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
        for (int64_t i = 0; i < count; i += 16) {
            largest[0] = _mm256_max_ps(largest[0], _mm256_and_ps(_mm256_loadu_ps(values + i), magnitude));
            largest[1] = _mm256_max_ps(largest[1], _mm256_and_ps(_mm256_loadu_ps(values + i + 8), magnitude));
        }
        alignas(32) float lanes[8];
        _mm256_store_ps(lanes, _mm256_max_ps(largest[0], largest[1]));
        float found = 0;
        for (float lane : lanes) found = lane > found ? lane : found;
        return found;
    }

    // `count` values, a multiple of 32 -> bytes round(value inverse); returns their sum.
    BF_TARGET static int32_t round(const float* values, int64_t count, float inverse, uint8_t* out) {
        const __m256 factor = _mm256_set1_ps(inverse);
        const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        __m256i total = _mm256_setzero_si256();
        for (int64_t i = 0; i < count; i += 32) {
            __m256i value[4];
            for (int j = 0; j < 4; ++j) value[j] = rounded(_mm256_loadu_ps(values + i + 8 * j), factor);
            const __m256i bytes = narrow(value[0], value[1], value[2], value[3]);
            total = _mm256_add_epi32(total, fours(bytes));
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i), _mm256_permutevar8x32_epi32(bytes, order));
        }
        alignas(32) int32_t sums[8];
        _mm256_store_si256(reinterpret_cast<__m256i*>(sums), total);
        int32_t sum = 0;
        for (int32_t one : sums) sum += one;
        return sum;
    }

    // One panel [steps][LANES][4] of values that lie 4 lanes together: lanes 4 g .. 4 g + 3 of value k begin at
    // planes[g] + (k / period) * advance + offsets[k % period]; period a multiple of 4. sums: each lane's values added up.
    BF_TARGET static void patches(const float* const* planes, const int64_t* offsets, int64_t period, int64_t advance,
                                  int64_t steps, const float* inverses, uint8_t* panel, int32_t* sums) {
        const __m256i order = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
        for (int group = 0; group < LANES / 8; ++group) {
            const __m256 factor = _mm256_loadu_ps(inverses + 8 * group);
            const float *plane = planes[2 * group], *other = planes[2 * group + 1];
            uint8_t* out = panel + 32 * group;
            __m256i total = _mm256_setzero_si256();
            for (int64_t step = 0; step < steps; plane += advance, other += advance) {
                for (int64_t at = 0; at < period && step < steps; at += 4, ++step, out += 4 * LANES) {
                    __m256i value[4];
                    for (int j = 0; j < 4; ++j) {
                        value[j] = rounded(_mm256_loadu2_m128(other + offsets[at + j], plane + offsets[at + j]), factor);
                    }
                    const __m256i lanes = _mm256_shuffle_epi8(narrow(value[0], value[1], value[2], value[3]), order);
                    total = _mm256_add_epi32(total, fours(lanes));
                    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), lanes);
                }
            }
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums + 8 * group), total);
        }
    }

    // out[lane] = (sums[lane] - middles[lane] - middle) (factors[lane] factor) + (offsets[lane] + offset), first `count` lanes.
    template <int DTYPE>
    BF_TARGET static void finish(const int32_t* sums, const int32_t* middles, int32_t middle, const float* factors,
                                 float factor, const float* offsets, float offset, int64_t count,
                                 typename Element<DTYPE>::Type* out) {
        for (int lane = 0; lane < count && lane < LANES; lane += 8) {
            const auto* at = reinterpret_cast<const __m256i*>(sums + lane);
            const __m256i below = _mm256_add_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(middles + lane)),
                                                   _mm256_set1_epi32(middle));
            const __m256 exact = _mm256_cvtepi32_ps(_mm256_sub_epi32(_mm256_loadu_si256(at), below));
            const __m256 scale = _mm256_mul_ps(_mm256_loadu_ps(factors + lane), _mm256_set1_ps(factor));
            const __m256 bias = _mm256_add_ps(_mm256_loadu_ps(offsets + lane), _mm256_set1_ps(offset));
            const __m256 value = _mm256_add_ps(_mm256_mul_ps(exact, scale), bias);
            if (count - lane >= 8) {
                avx2::store8<DTYPE>(value, out + lane);
            } else {
                alignas(32) typename Element<DTYPE>::Type some[8];
                avx2::store8<DTYPE>(value, some);
                std::memcpy(out + lane, some, (count - lane) * sizeof *out);
            }
        }
    }

  private:
    // In assembler and in this order, since compilers load so far ahead that they run out of registers.
    template <bool WEIGHTS_IN_LANES>
    BF_INLINE static void add(__m256i first, __m256i second, const uint8_t* row, __m256i& low, __m256i& high) {
        __m256i four, product;
        const auto* at = reinterpret_cast<const int32_t*>(row);
        if constexpr (WEIGHTS_IN_LANES) {
            asm volatile(
                "vpbroadcastd %[at], %[four]\n\t"
                "vpmaddubsw %[four], %[first], %[product]\n\t"
                "vpaddw %[product], %[low], %[low]\n\t"
                "vpmaddubsw %[four], %[second], %[four]\n\t"
                "vpaddw %[four], %[high], %[high]"
                : [low] "+x"(low), [high] "+x"(high), [four] "=&x"(four), [product] "=&x"(product)
                : [first] "x"(first), [second] "x"(second), [at] "m"(*at));
        } else {
            asm volatile(
                "vpbroadcastd %[at], %[four]\n\t"
                "vpmaddubsw %[first], %[four], %[product]\n\t"
                "vpaddw %[product], %[low], %[low]\n\t"
                "vpmaddubsw %[second], %[four], %[four]\n\t"
                "vpaddw %[four], %[high], %[high]"
                : [low] "+x"(low), [high] "+x"(high), [four] "=&x"(four), [product] "=&x"(product)
                : [first] "x"(first), [second] "x"(second), [at] "m"(*at));
        }
    }

    // 8 sums more.
    BF_INLINE static void widen(__m256i& pairs, __m256i ones, int32_t* sums) {
        asm volatile(
            "vpmaddwd %[ones], %[pairs], %[pairs]\n\t"
            "vpaddd %[sums], %[pairs], %[pairs]\n\t"
            "vmovdqu %[pairs], %[sums]"
            : [pairs] "+x"(pairs), [sums] "+m"(*reinterpret_cast<__m256i*>(sums))
            : [ones] "x"(ones));
    }

    template <int DTYPE>
    BF_INLINE static __m256 loaded(const typename Element<DTYPE>::Type* from) {
        if constexpr (DTYPE == FLOAT32) {
            return _mm256_loadu_ps(from);
        } else {
            const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
            if constexpr (DTYPE == FLOAT16) return _mm256_cvtph_ps(half);
            return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
        }
    }

    BF_INLINE static __m256i rounded(__m256 values, __m256 factor) {
        return _mm256_cvtps_epi32(_mm256_mul_ps(values, factor));
    }

    // Bytes a0-3 b0-3 c0-3 d0-3, then a4-7 b4-7 c4-7 d4-7.
    BF_INLINE static __m256i narrow(__m256i a, __m256i b, __m256i c, __m256i d) {
        return _mm256_packs_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
    }

    // The sums of signed bytes, four by four.
    BF_INLINE static __m256i fours(__m256i bytes) {
        return _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_set1_epi8(1), bytes), _mm256_set1_epi16(1));
    }

    // 8 rows of 8 dwords, `stride` bytes apart -> 8 columns, 4 LANES bytes apart.
    BF_TARGET static void transpose(const uint8_t* rows, int64_t stride, uint8_t* columns) {
        __m256i a[8], b[8];
        for (int i = 0; i < 8; ++i) a[i] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(rows + i * stride));
        for (int i = 0; i < 8; i += 2) {
            b[i] = _mm256_unpacklo_epi32(a[i], a[i + 1]);
            b[i + 1] = _mm256_unpackhi_epi32(a[i], a[i + 1]);
        }
        // a[4 g + c]: dwords c, c + 4 of rows 4 g .. 4 g + 3, one 128-bit lane each.
        for (int i = 0; i < 8; i += 4) {
            for (int j = 0; j < 2; ++j) {
                a[i + 2 * j] = _mm256_unpacklo_epi64(b[i + j], b[i + 2 + j]);
                a[i + 2 * j + 1] = _mm256_unpackhi_epi64(b[i + j], b[i + 2 + j]);
            }
        }
        for (int c = 0; c < 4; ++c) {
            auto* near = reinterpret_cast<__m256i*>(columns + 4 * LANES * c);
            auto* far = reinterpret_cast<__m256i*>(columns + 4 * LANES * (c + 4));
            _mm256_storeu_si256(near, _mm256_permute2x128_si256(a[c], a[4 + c], 0x20));
            _mm256_storeu_si256(far, _mm256_permute2x128_si256(a[c], a[4 + c], 0x31));
        }
    }
};

#undef BF_INLINE
#undef BF_TARGET

}  // namespace
}  // namespace bitsfusion
#endif
