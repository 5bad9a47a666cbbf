// Linear layers and convolutions on activations rounded to int8 while they run (docs/concepts/kernels.md, "int8 activations").
//
// An activation vector (a token; for a convolution the patch under its window) is q = round(x / t), t = max |x| / 127.
// A weight enters as its symbol, level + 2^(b-1), which is a byte for b <= 7: sum(level q) = sum(symbol q) - 2^(b-1) sum(q),
// exactly, in int32. The result is that, times t, times the row's scale, plus the bias, in float32.
//
// The product takes a panel of 32 lanes, 4 values deep, against rows of bytes. Lanes are output channels of a linear
// layer and pixels of a convolution, so that either stores what lies side by side in its output; the other operand is
// broadcast. Weights are unpacked in pieces that fit the second-level cache and never exist as a whole.

#include <cstdint>

#include "parallel.h"
#include "radix.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include "unpack_avx512.h"

namespace bitsfusion {
namespace {

#define BF_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")))
#define BF_INLINE BF_TARGET inline __attribute__((always_inline))

constexpr int LANES = 32;
constexpr int ROWS = 12;                // rows of bytes that a panel meets at a time: 24 sums in registers
constexpr int64_t PIECE = 1 << 18;      // bytes of unpacked weights that a thread works on
constexpr int64_t ACTIVATIONS = 1 << 22;  // bytes of a convolution's panels that exist at once

int64_t rounded_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// Memory of one thread that only grows.
template <class T>
class Memory {
  public:
    T* of(int64_t size) {
        if (static_cast<int64_t>(held.size()) < size) held.resize(size);
        return held.data();
    }

  private:
    std::vector<T> held;
};

// ---- symbols --------------------------------------------------------------------------------------------------------

template <int BITS>
BF_TARGET void symbols(const Layer& layer, int64_t first, int64_t count, uint8_t* out) {
    constexpr int K = per_byte(BITS);
    if constexpr (K == 1) {
        std::memcpy(out, layer.codes + first, count);
    } else {
        int64_t i = first;
        const int64_t last = first + count;
        if (K == 2 && i % 2 != 0 && count > 0) *out++ = static_cast<uint8_t>(level<BITS>(layer, i++) + half_levels(BITS));
        for (; last - i >= 32 && layer.end - (layer.codes + i / K) >= 16; i += 32, out += 32) {
            const __m128i loaded = _mm_loadu_si128(reinterpret_cast<const __m128i*>(layer.codes + i / K));
            const __m512i shuffle = _mm512_load_si512(DIGITS<BITS, 32>.shuffle[i % K]);
            const __m512i multiplier = _mm512_load_si512(DIGITS<BITS, 32>.multiplier[i % K]);
            const __m512i lanes = _mm512_shuffle_epi8(_mm512_broadcast_i32x4(loaded), shuffle);
            const __m512i fraction = _mm512_mullo_epi16(lanes, multiplier);
            const __m512i digit = _mm512_mulhi_epu16(fraction, _mm512_set1_epi16(level_count(BITS)));
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm512_cvtepi16_epi8(digit));
        }
        for (; i < last; ++i) *out++ = static_cast<uint8_t>(level<BITS>(layer, i) + half_levels(BITS));
    }
}

// `count` rows from `row` on, each `stride` bytes from the last and filled up with zeros.
void symbol_rows(const Layer& layer, int bits, int64_t row, int64_t count, int64_t stride, uint8_t* out) {
    for (int64_t end = row + count; row < end; ++row, out += stride) {
        const int64_t first = row * layer.width;
        switch (bits) {
            case 1: symbols<1>(layer, first, layer.width, out); break;
            case 2: symbols<2>(layer, first, layer.width, out); break;
            case 3: symbols<3>(layer, first, layer.width, out); break;
            default: symbols<4>(layer, first, layer.width, out); break;
        }
        std::memset(out + layer.width, 0, stride - layer.width);
    }
}

// ---- the product ----------------------------------------------------------------------------------------------------

// sums[r][lane] over `depth` steps of 4 values: panel [depth][32 lanes][4], rows `stride` bytes apart.
template <int R, bool WEIGHTS_IN_LANES>
BF_TARGET void product(const uint8_t* panel, const uint8_t* rows, int64_t stride, int64_t depth, int32_t* sums) {
    __m512i low[R], high[R];
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) low[r] = high[r] = _mm512_setzero_si512();
    const uint8_t *row0 = rows, *row3 = rows + 3 * stride, *row6 = rows + 6 * stride, *row9 = rows + 9 * stride;
    for (int64_t step = 0; step < depth; ++step) {
        const __m512i first = _mm512_loadu_si512(panel + step * 128);
        const __m512i second = _mm512_loadu_si512(panel + step * 128 + 64);
#pragma GCC unroll 12
        for (int r = 0; r < R; ++r) {
            const uint8_t* row = (r < 3 ? row0 : r < 6 ? row3 : r < 9 ? row6 : row9) + (r % 3) * stride;
            int32_t four;
            std::memcpy(&four, row + step * 4, 4);
            const __m512i all = _mm512_set1_epi32(four);
            low[r] = WEIGHTS_IN_LANES ? _mm512_dpbusd_epi32(low[r], first, all) : _mm512_dpbusd_epi32(low[r], all, first);
            high[r] =
                WEIGHTS_IN_LANES ? _mm512_dpbusd_epi32(high[r], second, all) : _mm512_dpbusd_epi32(high[r], all, second);
        }
    }
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
        _mm512_storeu_si512(sums + r * LANES, low[r]);
        _mm512_storeu_si512(sums + r * LANES + 16, high[r]);
    }
}

// The same for any number of rows; done(row, sums) takes each row's 32 sums.
template <bool WEIGHTS_IN_LANES, class Done>
BF_INLINE void products(const uint8_t* panel, const uint8_t* rows, int64_t count, int64_t stride, int64_t depth,
                        const Done& done) {
    alignas(64) int32_t sums[ROWS * LANES];
    for (int64_t row = 0; row < count;) {
        const int64_t left = count - row;
        const int taken = left >= ROWS ? ROWS : left >= 4 ? 4 : 1;
        const uint8_t* from = rows + row * stride;
        if (taken == ROWS) {
            product<ROWS, WEIGHTS_IN_LANES>(panel, from, stride, depth, sums);
        } else if (taken == 4) {
            product<4, WEIGHTS_IN_LANES>(panel, from, stride, depth, sums);
        } else {
            product<1, WEIGHTS_IN_LANES>(panel, from, stride, depth, sums);
        }
        for (int r = 0; r < taken; ++r) done(row + r, sums + r * LANES);
        row += taken;
    }
}

// ---- values of a dtype, 16 at a time, those that the mask leaves out being zero or not written ----------------------

template <int DTYPE>
BF_INLINE __m512 loaded(const typename Element<DTYPE>::Type* from, __mmask16 mask) {
    if constexpr (DTYPE == FLOAT32) {
        return _mm512_maskz_loadu_ps(mask, from);
    } else {
        const __m256i half = _mm256_maskz_loadu_epi16(mask, from);
        if constexpr (DTYPE == FLOAT16) return _mm512_cvtph_ps(half);
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
    }
}

template <int DTYPE>
BF_INLINE void stored(typename Element<DTYPE>::Type* to, __mmask16 mask, __m512 value) {
    if constexpr (DTYPE == FLOAT32) {
        _mm512_mask_storeu_ps(to, mask, value);
    } else {
        _mm256_mask_storeu_epi16(to, mask, avx512::narrow<DTYPE>(value));
    }
}

BF_INLINE __mmask16 first_lanes(int64_t count) {
    return static_cast<__mmask16>(count >= 16 ? 0xffff : count <= 0 ? 0 : (1 << count) - 1);
}

// t, and 1 / t or 0, from the largest magnitude.
BF_INLINE float step_of(float largest, float* inverse) {
    *inverse = largest > 0 ? 127.0f / largest : 0.0f;
    return largest / 127.0f;
}

// ---- linear ---------------------------------------------------------------------------------------------------------

// Tokens [count, width] -> bytes, `stride` apart and filled up with zeros; their steps t and sums.
template <int DTYPE>
BF_TARGET void quantize_token(const typename Element<DTYPE>::Type* token, int64_t width, int64_t stride, int8_t* out,
                              float* step, int32_t* sum) {
    __m512 largest = _mm512_setzero_ps();
    for (int64_t i = 0; i < width; i += 16) {
        largest = _mm512_max_ps(largest, _mm512_abs_ps(loaded<DTYPE>(token + i, first_lanes(width - i))));
    }
    float inverse;
    *step = step_of(_mm512_reduce_max_ps(largest), &inverse);
    __m512i total = _mm512_setzero_si512();
    for (int64_t i = 0; i < stride; i += 16) {
        const __m512 value = loaded<DTYPE>(token + i, first_lanes(width - i));
        const __m512i rounded = _mm512_cvtps_epi32(_mm512_mul_ps(value, _mm512_set1_ps(inverse)));
        total = _mm512_add_epi32(total, rounded);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), _mm512_cvtsepi32_epi8(rounded));
    }
    *sum = _mm512_reduce_add_epi32(total);
}

// 16 rows of 16 dwords, `stride` bytes apart -> 16 columns, 128 bytes apart.
BF_TARGET void transpose(const uint8_t* rows, int64_t stride, uint8_t* columns) {
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

template <int DTYPE>
struct Linear {
    using Type = typename Element<DTYPE>::Type;
    const Layer& layer;
    int bits;
    int64_t tokens, channels;
    const float* bias;
    Type* out;

    BF_TARGET void panel(int64_t number, const int8_t* values, const float* steps, const int32_t* sums) const {
        const int64_t stride = rounded_up(layer.width, 64), first = number * LANES;
        const int64_t lanes = channels - first < LANES ? channels - first : LANES;
        static thread_local Memory<uint8_t> row_memory, panel_memory;
        uint8_t* rows = row_memory.of(LANES * stride);
        uint8_t* weights = panel_memory.of(LANES * stride);
        symbol_rows(layer, bits, first, lanes, stride, rows);
        for (int64_t at = 0; at < stride; at += 64) {
            transpose(rows + at, stride, weights + LANES * at);
            transpose(rows + 16 * stride + at, stride, weights + LANES * at + 64);
        }
        const __mmask16 masks[2] = {first_lanes(lanes), first_lanes(lanes - 16)};
        __m512 scale[2], offset[2];
        for (int part = 0; part < 2; ++part) {
            scale[part] = _mm512_maskz_loadu_ps(masks[part], layer.scales + first + 16 * part);
            offset[part] = bias ? _mm512_maskz_loadu_ps(masks[part], bias + first + 16 * part) : _mm512_setzero_ps();
        }
        const auto* bytes = reinterpret_cast<const uint8_t*>(values);
        products<true>(weights, bytes, tokens, stride, (layer.width + 3) / 4, [&](int64_t token, const int32_t* sum) BF_TARGET {
            const __m512i middle = _mm512_set1_epi32(half_levels(bits) * sums[token]);
            for (int part = 0; part < 2; ++part) {
                const __m512i exact = _mm512_sub_epi32(_mm512_load_si512(sum + 16 * part), middle);
                const __m512 factor = _mm512_mul_ps(scale[part], _mm512_set1_ps(steps[token]));
                const __m512 value = _mm512_add_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(exact), factor), offset[part]);
                stored<DTYPE>(out + token * channels + first + 16 * part, masks[part], value);
            }
        });
    }
};

template <int DTYPE>
void linear(const Layer& layer, int bits, int64_t channels, const void* x, int64_t tokens, const float* bias, void* out,
            int threads) {
    using Type = typename Element<DTYPE>::Type;
    const int64_t stride = rounded_up(layer.width, 64);
    static thread_local Memory<int8_t> value_memory;
    static thread_local Memory<float> step_memory;
    static thread_local Memory<int32_t> sum_memory;
    int8_t* values = value_memory.of(tokens * stride);
    float* steps = step_memory.of(tokens);
    int32_t* sums = sum_memory.of(tokens);
    const int64_t batch = PIECE / 8 / stride + 1;
    parallel((tokens + batch - 1) / batch, threads, [&](int64_t part) {
        const int64_t last = part * batch + batch < tokens ? part * batch + batch : tokens;
        for (int64_t token = part * batch; token < last; ++token) {
            quantize_token<DTYPE>(static_cast<const Type*>(x) + token * layer.width, layer.width, stride,
                                  values + token * stride, steps + token, sums + token);
        }
    });
    const Linear<DTYPE> work{layer, bits, tokens, channels, bias, static_cast<Type*>(out)};
    parallel((channels + LANES - 1) / LANES, threads, [&](int64_t number) { work.panel(number, values, steps, sums); });
}

// ---- convolution ----------------------------------------------------------------------------------------------------

// Stride 1, zero padding, rows of outputs a multiple of 8 wide. Panels do not cross images.
struct Geometry {
    int64_t images, channels, height, width;  // of the input
    int64_t kernel_height, kernel_width, pad_height, pad_width;

    int64_t out_height() const { return height + 2 * pad_height - kernel_height + 1; }
    int64_t out_width() const { return width + 2 * pad_width - kernel_width + 1; }
    int64_t pixels() const { return out_height() * out_width(); }
    int64_t taps() const { return kernel_height * kernel_width; }
    int64_t panels_an_image() const { return (pixels() + LANES - 1) / LANES; }
};

constexpr int MAX_TAPS = 9;

// Where a panel's lanes find their inputs in a channel's plane, for every tap: 4 groups of 8 pixels side by side.
struct Lanes {
    int64_t offset[MAX_TAPS][4];
    uint8_t mask[MAX_TAPS][4];

    Lanes(const Geometry& shape, int64_t first_pixel) {
        for (int group = 0; group < 4; ++group) {
            const int64_t pixel = first_pixel + 8 * group;
            const int64_t y0 = pixel / shape.out_width() - shape.pad_height;
            const int64_t x0 = pixel % shape.out_width() - shape.pad_width;
            for (int64_t tap = 0; tap < shape.taps(); ++tap) {
                const int64_t y = y0 + tap / shape.kernel_width, x = x0 + tap % shape.kernel_width;
                int inside = 0;
                for (int lane = 0; lane < 8; ++lane) inside |= (x + lane >= 0 && x + lane < shape.width) << lane;
                const bool row = pixel < shape.pixels() && y >= 0 && y < shape.height;
                offset[tap][group] = y * shape.width + x;
                mask[tap][group] = static_cast<uint8_t>(row ? inside : 0);
            }
        }
    }

    // Lanes 16 half .. 16 half + 15 of a plane under a tap.
    template <int DTYPE>
    BF_INLINE __m512 of(const typename Element<DTYPE>::Type* plane, int64_t tap, int half) const {
        const int64_t at = offset[tap][2 * half], next = offset[tap][2 * half + 1];
        const int low = mask[tap][2 * half], high = mask[tap][2 * half + 1];
        if (next == at + 8) return loaded<DTYPE>(plane + at, static_cast<__mmask16>(low | high << 8));
        const __m512 upper = loaded<DTYPE>(plane + next - 8, static_cast<__mmask16>(high << 8));
        return _mm512_or_ps(loaded<DTYPE>(plane + at, static_cast<__mmask16>(low)), upper);
    }
};

// The largest magnitude over all channels, for pixels first .. last of one image.
template <int DTYPE>
BF_TARGET void pixel_maxima(const typename Element<DTYPE>::Type* image, const Geometry& shape, int64_t first, int64_t last,
                            float* maxima) {
    const int64_t plane = shape.height * shape.width;
    for (int64_t pixel = first; pixel < last; pixel += 64) {
        __m512 largest[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
        for (int64_t channel = 0; channel < shape.channels; ++channel) {
            for (int part = 0; part < 4; ++part) {
                const int64_t at = pixel + 16 * part;
                const __m512 value = loaded<DTYPE>(image + channel * plane + at, first_lanes(last - at));
                largest[part] = _mm512_max_ps(largest[part], _mm512_abs_ps(value));
            }
        }
        for (int part = 0; part < 4; ++part) {
            const int64_t at = pixel + 16 * part;
            _mm512_mask_storeu_ps(maxima + at, first_lanes(last - at), largest[part]);
        }
    }
}

// One panel [depth][32 pixels][4] of a convolution's patches, depth in the order of the weight (channel, then tap).
template <int DTYPE>
BF_TARGET void quantize_patches(const typename Element<DTYPE>::Type* image, const float* maxima, const Geometry& shape,
                                int64_t first_pixel, uint8_t* panel, float* steps, int32_t* sums) {
    const Lanes lanes(shape, first_pixel);
    const int64_t plane = shape.height * shape.width, taps = shape.taps(), width = shape.channels * taps;
    for (int half = 0; half < 2; ++half) {
        __m512 largest = _mm512_setzero_ps();
        for (int64_t tap = 0; tap < taps; ++tap) largest = _mm512_max_ps(largest, lanes.of<FLOAT32>(maxima, tap, half));
        _mm512_storeu_ps(steps + 16 * half, _mm512_div_ps(largest, _mm512_set1_ps(127.0f)));
        const __mmask16 any = _mm512_cmp_ps_mask(largest, _mm512_setzero_ps(), _CMP_GT_OQ);
        const __m512 inverse = _mm512_maskz_div_ps(any, _mm512_set1_ps(127.0f), largest);
        __m512i total = _mm512_setzero_si512();
        const typename Element<DTYPE>::Type* channel = image;
        int64_t tap = 0;
        for (int64_t k = 0; k < width; k += 4) {
            __m512i four = _mm512_setzero_si512();
            for (int j = 0; j < 4 && k + j < width; ++j) {
                const __m512 value = _mm512_mul_ps(lanes.of<DTYPE>(channel, tap, half), inverse);
                const __m512i byte = _mm512_and_si512(_mm512_cvtps_epi32(value), _mm512_set1_epi32(255));
                four = _mm512_or_si512(four, _mm512_sllv_epi32(byte, _mm512_set1_epi32(8 * j)));
                if (++tap == taps) tap = 0, channel += plane;
            }
            total = _mm512_dpbusd_epi32(total, _mm512_set1_epi8(1), four);
            _mm512_storeu_si512(panel + k * LANES + 64 * half, four);
        }
        _mm512_storeu_si512(sums + 16 * half, total);
    }
}

template <int DTYPE>
struct Convolution {
    using Type = typename Element<DTYPE>::Type;
    const Layer& layer;
    int bits;
    int64_t channels;  // of the output
    const Geometry& shape;
    const float* bias;
    Type* out;

    // Output channels first .. first + count against panels from .. to, whose patches are in `panels`.
    BF_TARGET void piece(int64_t first, int64_t count, int64_t from, int64_t to, const uint8_t* panels, const float* steps,
                         const int32_t* sums) const {
        const int64_t stride = rounded_up(layer.width, 4), pixels = shape.pixels();
        static thread_local Memory<uint8_t> memory;
        uint8_t* rows = memory.of(count * stride);
        symbol_rows(layer, bits, first, count, stride, rows);
        for (int64_t number = from; number < to; ++number) {
            const int64_t image = number / shape.panels_an_image();
            const int64_t pixel = number % shape.panels_an_image() * LANES;
            const int64_t at = (number - from) * LANES;
            const __mmask16 masks[2] = {first_lanes(pixels - pixel), first_lanes(pixels - pixel - 16)};
            products<false>(panels + at * stride, rows, count, stride, stride / 4, [&](int64_t row, const int32_t* sum) BF_TARGET {
                const int64_t channel = first + row;
                const __m512 scale = _mm512_set1_ps(layer.scales[channel]);
                const __m512 offset = _mm512_set1_ps(bias ? bias[channel] : 0.0f);
                Type* const to_pixels = out + (image * channels + channel) * pixels + pixel;
                for (int part = 0; part < 2; ++part) {
                    const __m512i middle = _mm512_mullo_epi32(_mm512_loadu_si512(sums + at + 16 * part),
                                                              _mm512_set1_epi32(half_levels(bits)));
                    const __m512i exact = _mm512_sub_epi32(_mm512_load_si512(sum + 16 * part), middle);
                    const __m512 factor = _mm512_mul_ps(_mm512_loadu_ps(steps + at + 16 * part), scale);
                    const __m512 value = _mm512_add_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(exact), factor), offset);
                    stored<DTYPE>(to_pixels + 16 * part, masks[part], value);
                }
            });
        }
    }
};

template <int DTYPE>
void convolution(const Layer& layer, int bits, int64_t channels, const void* x, const Geometry& shape, const float* bias,
                 void* out, int threads) {
    using Type = typename Element<DTYPE>::Type;
    const auto* images = static_cast<const Type*>(x);
    const int64_t plane = shape.height * shape.width, stride = rounded_up(layer.width, 4);
    static thread_local Memory<float> maxima_memory, step_memory;
    static thread_local Memory<uint8_t> panel_memory;
    static thread_local Memory<int32_t> sum_memory;
    float* maxima = maxima_memory.of(shape.images * plane);
    const int64_t strip = 256, strips = (plane + strip - 1) / strip;
    parallel(shape.images * strips, threads, [&](int64_t part) {
        const int64_t image = part / strips, first = part % strips * strip;
        const int64_t last = first + strip < plane ? first + strip : plane;
        pixel_maxima<DTYPE>(images + image * shape.channels * plane, shape, first, last, maxima + image * plane);
    });
    const int64_t all = shape.images * shape.panels_an_image();
    const int64_t together = ACTIVATIONS / (LANES * stride) > 4 ? ACTIVATIONS / (LANES * stride) : 4;
    uint8_t* panels = panel_memory.of(together * LANES * stride);
    float* steps = step_memory.of(together * LANES);
    int32_t* sums = sum_memory.of(together * LANES);
    const Convolution<DTYPE> work{layer, bits, channels, shape, bias, static_cast<Type*>(out)};
    int64_t rows = PIECE / stride / ROWS * ROWS;
    rows = rows < ROWS ? ROWS : rows;
    while (rows > ROWS && (channels + rows - 1) / rows < 4 * threads) rows -= ROWS;  // enough pieces for all threads
    for (int64_t from = 0; from < all; from += together) {
        const int64_t to = from + together < all ? from + together : all;
        parallel(to - from, threads, [&](int64_t part) {
            const int64_t number = from + part, image = number / shape.panels_an_image();
            quantize_patches<DTYPE>(images + image * shape.channels * plane, maxima + image * plane, shape,
                                    number % shape.panels_an_image() * LANES, panels + part * LANES * stride,
                                    steps + part * LANES, sums + part * LANES);
        });
        parallel((channels + rows - 1) / rows, threads, [&](int64_t part) {
            const int64_t first = part * rows, count = first + rows < channels ? rows : channels - first;
            work.piece(first, count, from, to, panels, steps, sums);
        });
    }
}

}  // namespace
}  // namespace bitsfusion
#endif

namespace bitsfusion {
namespace {

bool fits(int64_t size, int64_t channels, int64_t width, int bits, int dtype) {
    if (bits < 1 || bits > 7 || dtype < FLOAT32 || dtype > FLOAT16 || channels < 1 || width < 1) return false;
    const int64_t k = per_byte(bits);
    return size == 4 * channels + (channels * width + k - 1) / k;
}

}  // namespace
}  // namespace bitsfusion

extern "C" {

// Whether this processor and this build have the instructions that the two functions below need.
int bitsfusion_has_int8() {
#if defined(__x86_64__)
    return __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
#else
    return 0;
#endif
}

// x: tokens * width of dtype; out: tokens * channels of dtype; bias: channels floats or null. 0, or 1 if sizes do not fit.
int bitsfusion_int8_linear(const uint8_t* packed, int64_t size, int64_t channels, int64_t width, int bits, const void* x,
                           int64_t tokens, int dtype, const float* bias, void* out, int threads) {
    using namespace bitsfusion;
    if (!fits(size, channels, width, bits, dtype) || !bitsfusion_has_int8()) return 1;
#if defined(__x86_64__)
    const uint8_t* codes = packed + 4 * channels;
    const Layer layer{codes, packed + size, nullptr, reinterpret_cast<const float*>(packed), width};
    if (dtype == FLOAT32) linear<FLOAT32>(layer, bits, channels, x, tokens, bias, out, threads);
    if (dtype == BFLOAT16) linear<BFLOAT16>(layer, bits, channels, x, tokens, bias, out, threads);
    if (dtype == FLOAT16) linear<FLOAT16>(layer, bits, channels, x, tokens, bias, out, threads);
#endif
    return 0;
}

// A convolution of stride 1 with zero padding. x: [images, in, height, width] of dtype; out likewise, with `channels`.
// 0, or 1 if sizes do not fit, the kernel has more than 9 taps, or the output's width is no multiple of 8.
int bitsfusion_int8_convolution(const uint8_t* packed, int64_t size, int64_t channels, int bits, const void* x,
                                int64_t images, int64_t in, int64_t height, int64_t width, int64_t kernel_height,
                                int64_t kernel_width, int64_t pad_height, int64_t pad_width, int dtype, const float* bias,
                                void* out, int threads) {
    using namespace bitsfusion;
    const int64_t taps = kernel_height * kernel_width;
    if (!fits(size, channels, in * taps, bits, dtype) || !bitsfusion_has_int8()) return 1;
#if defined(__x86_64__)
    const Geometry shape{images, in, height, width, kernel_height, kernel_width, pad_height, pad_width};
    if (taps > MAX_TAPS || shape.out_height() < 1 || shape.out_width() < 1 || shape.out_width() % 8 != 0) return 1;
    const uint8_t* codes = packed + 4 * channels;
    const Layer layer{codes, packed + size, nullptr, reinterpret_cast<const float*>(packed), in * taps};
    if (dtype == FLOAT32) convolution<FLOAT32>(layer, bits, channels, x, shape, bias, out, threads);
    if (dtype == BFLOAT16) convolution<BFLOAT16>(layer, bits, channels, x, shape, bias, out, threads);
    if (dtype == FLOAT16) convolution<FLOAT16>(layer, bits, channels, x, shape, bias, out, threads);
#endif
    return 0;
}

}  // extern "C"
