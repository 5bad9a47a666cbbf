// Linear layers and convolutions on activations rounded to int8 while they run (docs/concepts/kernels.md, "int8 activations").
//
// An activation vector (a token; for a convolution the patch under its window) is q = round(x / t), t = max |x| / 127.
// A weight enters as its symbol, level + 2^(b-1), which is a byte for b <= 7: sum(level q) = sum(symbol q) - 2^(b-1) sum(q),
// exactly, in int32. The result is that, times t, times the row's scale, plus the bias, in float32.

#include "int8.h"

#include "int8_avx2.h"
#include "int8_avx512.h"

namespace bitsfusion {
namespace {

bool has_int8(int isa) {
#if defined(__x86_64__)
    if (isa == AVX2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c");
    return isa == AVX512 && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
#else
    return false;
#endif
}

bool fits(int64_t size, int64_t channels, int64_t width, int bits, int dtype) {
    if (bits < 1 || bits > 7 || dtype < FLOAT32 || dtype > FLOAT16 || channels < 1 || width < 1) return false;
    const int64_t k = per_byte(bits);
    return size == 4 * channels + (channels * width + k - 1) / k;
}

// Calls body(instructions, dtype) with both as types.
template <class Body>
void dispatch(int isa, int dtype, const Body& body) {
#if defined(__x86_64__)
    const auto typed = [&](auto instructions) {
        if (dtype == FLOAT32) body(instructions, std::integral_constant<int, FLOAT32>{});
        if (dtype == BFLOAT16) body(instructions, std::integral_constant<int, BFLOAT16>{});
        if (dtype == FLOAT16) body(instructions, std::integral_constant<int, FLOAT16>{});
    };
    if (isa == AVX512) typed(Int8Avx512{});
    if (isa == AVX2) typed(Int8Avx2{});
#endif
}

}  // namespace
}  // namespace bitsfusion

extern "C" {

// Whether this processor and this build have the instructions for the two functions below.
int bitsfusion_has_int8(int isa) { return bitsfusion::has_int8(isa); }

// x: tokens * width of dtype; out: tokens * channels of dtype; bias: channels floats or null. 0, or 1 if sizes do not fit.
int bitsfusion_int8_linear(const uint8_t* packed, int64_t size, int64_t channels, int64_t width, int bits, const void* x,
                           int64_t tokens, int dtype, const float* bias, void* out, int isa, int threads) {
    using namespace bitsfusion;
    if (!fits(size, channels, width, bits, dtype) || !has_int8(isa)) return 1;
    const uint8_t* codes = packed + 4 * channels;
    const Layer layer{codes, packed + size, nullptr, reinterpret_cast<const float*>(packed), width};
    dispatch(isa, dtype, [&](auto instructions, auto type) {
        linear<decltype(instructions), decltype(type)::value>(layer, bits, channels, x, tokens, bias, out, threads);
    });
    return 0;
}

// A convolution with zero padding. x: [images, in, height, width] of dtype; out likewise, with `channels`.
// 0, or 1 if sizes do not fit, the kernel has more than 9 taps, or the output's width is no multiple of 4.
int bitsfusion_int8_convolution(const uint8_t* packed, int64_t size, int64_t channels, int bits, const void* x,
                                int64_t images, int64_t in, int64_t height, int64_t width, int64_t kernel_height,
                                int64_t kernel_width, int64_t pad_height, int64_t pad_width, int64_t stride, int dtype,
                                const float* bias, void* out, int isa, int threads) {
    using namespace bitsfusion;
    const int64_t taps = kernel_height * kernel_width;
    if (!fits(size, channels, in * taps, bits, dtype) || !has_int8(isa)) return 1;
    const Geometry shape{images, in, height, width, kernel_height, kernel_width, pad_height, pad_width, stride};
    if (taps > MAX_TAPS || stride < 1 || shape.out_height() < 1 || shape.out_width() < 1 || shape.out_width() % 4) return 1;
    const uint8_t* codes = packed + 4 * channels;
    const Layer layer{codes, packed + size, nullptr, reinterpret_cast<const float*>(packed), in * taps};
    dispatch(isa, dtype, [&](auto instructions, auto type) {
        convolution<decltype(instructions), decltype(type)::value>(layer, bits, channels, x, shape, bias, out, threads);
    });
    return 0;
}

}  // extern "C"
