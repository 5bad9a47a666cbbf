// Rows of weights by NEON.
#pragma once

#if defined(__aarch64__)
#include <arm_neon.h>

#include "radix.h"

namespace bitsfusion {
namespace {
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
}  // namespace
}  // namespace bitsfusion
#endif
