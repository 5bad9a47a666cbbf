// Fake quantization, forward and (in place) backward, in one pass over the weights each: numerics/quantizer.py without temporaries.
//
// level = round(clamp(w / s, -half, half)), half to even; one float32 division, one float32 product. Clamping first
// gives the same level, since half is whole, and keeps the argument small enough to round by adding 1.5 * 2^23.
// Sums run in 16 lanes whatever the instruction set and the threads, so that results do not depend on them.

#include <cmath>
#include <cstdint>
#include <limits>

#include "parallel.h"

namespace bitsfusion {
namespace {

constexpr int LANES = 16;
constexpr float ROUNDER = 12582912.0f;  // 1.5 * 2^23
constexpr int64_t PART = 1 << 15;       // weights that one thread takes at a time, about

struct Range {
    float divisor, half;

    Range(float scale, int levels_half)
        : divisor(scale == 0 ? std::numeric_limits<float>::infinity() : scale), half(static_cast<float>(levels_half)) {}
};

#define BF_INLINE inline __attribute__((always_inline))

BF_INLINE float clamped(float ratio, float half) {  // NaN stays NaN
    ratio = ratio < -half ? -half : ratio;
    return ratio > half ? half : ratio;
}

BF_INLINE void forward_loop(const float* __restrict weight, float* __restrict out, int64_t width, float scale, int half) {
    const Range range(scale, half);
    for (int64_t i = 0; i < width; ++i) {
        out[i] = (clamped(weight[i] / range.divisor, range.half) + ROUNDER - ROUNDER) * scale;
    }
}

// Turns the gradient of a rounded weight into the weight's own; the slope d(level * s) / ds.
BF_INLINE float slope(float weight, float* grad, const Range& range) {
    const float ratio = weight / range.divisor, kept = clamped(ratio, range.half);
    const bool inside = kept == ratio;
    *grad = inside ? *grad : 0.0f * *grad;
    return kept + ROUNDER - ROUNDER - (inside ? ratio : 0.0f);
}

BF_INLINE float backward_loop(const float* __restrict weight, float* __restrict grad, int64_t width, float scale,
                              int half) {
    const Range range(scale, half);
    float sums[LANES] = {};
    int64_t i = 0;
    for (; i + LANES <= width; i += LANES) {
        for (int lane = 0; lane < LANES; ++lane) {
            const float before = grad[i + lane];
            sums[lane] += before * slope(weight[i + lane], grad + i + lane, range);
        }
    }
    double sum = 0;
    for (; i < width; ++i) {
        const float before = grad[i];
        sum += static_cast<double>(before * slope(weight[i], grad + i, range));
    }
    for (const float lane : sums) sum += static_cast<double>(lane);
    return static_cast<float>(sum);
}

#define BITSFUSION_ROWS(NAME, TARGET)                                                                   \
    TARGET void NAME##_forward(const float* weight, float* out, int64_t width, float scale, int half) { \
        forward_loop(weight, out, width, scale, half);                                                  \
    }                                                                                                   \
    TARGET float NAME##_backward(const float* weight, float* grad, int64_t width, float scale, int half) { \
        return backward_loop(weight, grad, width, scale, half);                                         \
    }

BITSFUSION_ROWS(plain, )
#if defined(__x86_64__)
BITSFUSION_ROWS(avx2, __attribute__((target("avx2"))))
BITSFUSION_ROWS(avx512, __attribute__((target("avx512f,avx512vl,avx512dq,avx512bw"))))
#endif

struct Rows {
    decltype(&plain_forward) forward = plain_forward;
    decltype(&plain_backward) backward = plain_backward;
};

Rows best_rows() {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512bw")) {
        return {avx512_forward, avx512_backward};
    }
    if (__builtin_cpu_supports("avx2")) return {avx2_forward, avx2_backward};
#endif
    return {};
}

template <class Body>
void each_row(int64_t rows, int64_t width, int threads, const Body& body) {
    const int64_t step = PART / (width + 1) + 1;
    parallel((rows + step - 1) / step, threads, [&](int64_t part) {
        const int64_t last = part * step + step < rows ? part * step + step : rows;
        for (int64_t row = part * step; row < last; ++row) body(row);
    });
}

}  // namespace
}  // namespace bitsfusion

extern "C" {

// weight, out: rows * width floats; scale: rows floats.
void bitsfusion_fake_quantize(const float* weight, const float* scale, int64_t rows, int64_t width, int half, float* out,
                              int threads) {
    using namespace bitsfusion;
    const Rows best = best_rows();
    each_row(rows, width, threads,
             [&](int64_t row) { best.forward(weight + row * width, out + row * width, width, scale[row], half); });
}

// grad: rows * width floats, the rounded weight's gradient, which becomes the weight's; grad_scale: rows floats, each the
// plain sum times `factor`.
void bitsfusion_fake_quantize_gradients(const float* weight, const float* scale, int64_t rows, int64_t width, int half,
                                       float factor, float* grad, float* grad_scale, int threads) {
    using namespace bitsfusion;
    const Rows best = best_rows();
    each_row(rows, width, threads, [&](int64_t row) {
        const int64_t first = row * width;
        grad_scale[row] = best.backward(weight + first, grad + first, width, scale[row], half) * factor;
    });
}

}  // extern "C"
