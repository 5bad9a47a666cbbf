// Linear layers and convolutions on int8 activations for one set of instructions (int8_avx2.h, int8_avx512.h).
//
// The product takes panels of LANES lanes, 4 values deep, against groups of ROWS rows of bytes. Lanes are output channels
// of a linear layer and pixels of a convolution, so that either stores what lies side by side in its output; the other
// operand is broadcast. Both lie in memory in the order in which they are read. The depth is cut so that a panel's cut
// stays in the first-level cache and the cut of all rows in the second; sums wait in memory between cuts. Weights are
// unpacked in pieces and never exist as a whole.
#pragma once

#include <cmath>
#include <cstdint>

#include "parallel.h"
#include "radix.h"

namespace bitsfusion {
namespace {

constexpr int64_t CUT = 128;              // steps of 4 values
constexpr int64_t ROWS_TOGETHER = 192;    // that meet a panel's cut; a multiple of every ROWS
constexpr int64_t SUMS = 1 << 15;         // that wait in memory at once
constexpr int64_t PIECE = 1 << 19;        // bytes of unpacked weights that a thread works on
constexpr int64_t ACTIVATIONS = 1 << 22;  // bytes of a convolution's panels that exist at once
constexpr int MAX_TAPS = 9;
constexpr int MAX_LANES = 32;

inline int64_t rounded_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// As many as fit, one at least, but few enough that all threads get some.
inline int64_t portion(int64_t fitting, int64_t all, int threads) {
    const int64_t fair = threads > 1 ? (all + 4 * threads - 1) / (4 * threads) : all;
    const int64_t some = fitting < fair ? fitting : fair;
    return some > 1 ? some : 1;
}

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

// One side of a product. Of each lane or row: what it adds to the value subtracted from the sum, its share of the factor,
// what it adds to the result. `bytes` are panels [steps][LANES][4] or groups of rows [steps][ROWS][4], one behind another.
struct Side {
    const uint8_t* bytes;
    const int32_t* middles;
    const float* factors;
    const float* offsets;
    int64_t count;
};

// t, and 1 / t or 0, from the largest magnitude.
inline float step_of(float largest, float* inverse) {
    *inverse = largest > 0 ? 127.0f / largest : 0.0f;
    return largest / 127.0f;
}

// `count` symbols from the layer's weight `first` on.
template <class Isa, int BITS>
void symbols(const Layer& layer, int64_t first, int64_t count, uint8_t* out) {
    constexpr int K = per_byte(BITS);
    if constexpr (K == 1) {
        std::memcpy(out, layer.codes + first, count);
    } else {
        const int64_t last = first + count;
        const auto one = [&](int64_t i) { *out++ = static_cast<uint8_t>(level<BITS>(layer, i) + half_levels(BITS)); };
        if (K == 2 && first % 2 != 0 && count > 0) one(first++);
        const int64_t done = Isa::template blocks<BITS>(layer, first, last, out);
        out += done;
        for (int64_t i = first + done; i < last; ++i) one(i);
    }
}

template <class Isa>
void symbol_row(const Layer& layer, int bits, int64_t row, int64_t stride, uint8_t* out) {
    const int64_t first = row * layer.width;
    switch (bits) {
        case 1: symbols<Isa, 1>(layer, first, layer.width, out); break;
        case 2: symbols<Isa, 2>(layer, first, layer.width, out); break;
        case 3: symbols<Isa, 3>(layer, first, layer.width, out); break;
        default: symbols<Isa, 4>(layer, first, layer.width, out); break;
    }
    std::memset(out + layer.width, 0, stride - layer.width);
}

// ROWS rows, `stride` bytes apart -> [steps][ROWS][4].
template <class Isa>
void interleave(const uint8_t* rows, int64_t stride, int64_t steps, uint8_t* out) {
    for (int64_t step = 0; step < steps; ++step) {
        for (int row = 0; row < Isa::ROWS; ++row, out += 4) std::memcpy(out, rows + row * stride + 4 * step, 4);
    }
}

// Every panel of lanes against every row; place(panel, row) says where the result goes and how many of its lanes there are.
template <class Isa, int DTYPE, bool WEIGHTS_IN_LANES, class Place>
void multiply(const Side& lanes, const Side& rows, int64_t steps, int bits, const Place& place) {
    constexpr int LANES = Isa::LANES, ROWS = Isa::ROWS;
    static thread_local Memory<int32_t> memory;
    for (int64_t first = 0; first < rows.count; first += ROWS_TOGETHER) {
        const int64_t here = rows.count - first < ROWS_TOGETHER ? rows.count - first : ROWS_TOGETHER;
        const int64_t groups = (here + ROWS - 1) / ROWS, each = groups * ROWS * LANES;
        const int64_t together = SUMS / each > 1 ? SUMS / each : 1;
        for (int64_t panel = 0; panel < lanes.count; panel += together) {
            const int64_t panels = lanes.count - panel < together ? lanes.count - panel : together;
            int32_t* sums = memory.of(panels * each);
            std::memset(sums, 0, panels * each * sizeof *sums);
            for (int64_t step = 0; step < steps; step += CUT) {
                const int64_t cut = steps - step < CUT ? steps - step : CUT;
                for (int64_t p = 0; p < panels; ++p) {
                    const uint8_t* lane_bytes = lanes.bytes + ((panel + p) * steps + step) * LANES * 4;
                    for (int64_t group = 0; group < groups; ++group) {
                        const uint8_t* row_bytes = rows.bytes + ((first / ROWS + group) * steps + step) * ROWS * 4;
                        Isa::template product<WEIGHTS_IN_LANES>(lane_bytes, row_bytes, cut, bits,
                                                                sums + p * each + group * ROWS * LANES);
                    }
                }
            }
            for (int64_t p = 0; p < panels; ++p) {
                const int64_t lane = (panel + p) * LANES;
                for (int64_t row = first; row < first + here; ++row) {
                    const auto [to, count] = place(panel + p, row);
                    Isa::template finish<DTYPE>(sums + p * each + (row - first) * LANES, lanes.middles + lane,
                                                rows.middles[row], lanes.factors + lane, rows.factors[row],
                                                lanes.offsets + lane, rows.offsets[row], count, to);
                }
            }
        }
    }
}

template <class Type>
struct Placed {
    Type* to;
    int64_t count;
};

// ---- linear ---------------------------------------------------------------------------------------------------------

template <class Isa, int DTYPE>
void linear(const Layer& layer, int bits, int64_t channels, const void* x, int64_t tokens, const float* bias, void* out,
            int threads) {
    using Type = typename Element<DTYPE>::Type;
    constexpr int LANES = Isa::LANES, ROWS = Isa::ROWS;
    const int64_t stride = rounded_up(layer.width, 64), steps = stride / 4;
    const int64_t groups = (tokens + ROWS - 1) / ROWS, panels = (channels + LANES - 1) / LANES;
    static thread_local Memory<uint8_t> value_memory;
    static thread_local Memory<float> step_memory;
    static thread_local Memory<int32_t> middle_memory;
    uint8_t* values = value_memory.of(groups * ROWS * stride);
    float* factors = step_memory.of(groups * ROWS);
    int32_t* middles = middle_memory.of(groups * ROWS);
    parallel(groups, threads, [&](int64_t group) {
        static thread_local Memory<float> float_memory;
        static thread_local Memory<uint8_t> row_memory;
        float* floats = float_memory.of(stride);
        uint8_t* rows = row_memory.of(ROWS * stride);
        for (int64_t r = 0, token = group * ROWS; r < ROWS; ++r, ++token) {
            std::memset(floats, 0, stride * sizeof *floats);
            if (token < tokens) {
                Isa::template floats<DTYPE>(static_cast<const Type*>(x) + token * layer.width, layer.width, floats);
            }
            float inverse;
            factors[token] = step_of(Isa::largest(floats, stride), &inverse);
            middles[token] = half_levels(bits) * Isa::round(floats, stride, inverse, rows + r * stride);
        }
        interleave<Isa>(rows, stride, steps, values + group * ROWS * stride);
    });
    const std::vector<float> no_offsets(tokens);
    const Side row_side{values, middles, factors, no_offsets.data(), tokens};
    const int64_t each = portion(PIECE / (LANES * stride), panels, threads);
    const std::vector<int32_t> no_middles(each * LANES);
    parallel((panels + each - 1) / each, threads, [&](int64_t piece) {
        const int64_t panel = piece * each, first = panel * LANES;
        const int64_t count = panels - panel < each ? panels - panel : each;
        const int64_t lanes = channels - first < count * LANES ? channels - first : count * LANES;
        static thread_local Memory<uint8_t> row_memory, panel_memory;
        static thread_local Memory<float> lane_memory;
        uint8_t* rows = row_memory.of(LANES * stride);
        uint8_t* weights = panel_memory.of(count * LANES * stride);
        float* scales = lane_memory.of(2 * count * LANES);
        float* offsets = scales + count * LANES;
        std::memset(scales, 0, 2 * count * LANES * sizeof *scales);
        std::memcpy(scales, layer.scales + first, lanes * sizeof *scales);
        if (bias) std::memcpy(offsets, bias + first, lanes * sizeof *offsets);
        for (int64_t p = 0; p < count; ++p) {
            for (int64_t lane = 0; lane < LANES && p * LANES + lane < lanes; ++lane) {
                symbol_row<Isa>(layer, bits, first + p * LANES + lane, stride, rows + lane * stride);
            }
            Isa::panel(rows, stride, weights + p * LANES * stride);
        }
        const Side lane_side{weights, no_middles.data(), scales, offsets, count};
        multiply<Isa, DTYPE, true>(lane_side, row_side, steps, bits, [&](int64_t p, int64_t token) {
            return Placed<Type>{static_cast<Type*>(out) + token * channels + first + p * LANES, lanes - p * LANES};
        });
    });
}

// ---- convolution ----------------------------------------------------------------------------------------------------

// Zero padding, rows of outputs a multiple of 4 wide. Panels do not cross images.
struct Geometry {
    int64_t images, channels, height, width;  // of the input
    int64_t kernel_height, kernel_width, pad_height, pad_width, stride;

    int64_t padded_height() const { return height + 2 * pad_height; }
    int64_t out_height() const { return (padded_height() - kernel_height) / stride + 1; }
    int64_t out_width() const { return (width + 2 * pad_width - kernel_width) / stride + 1; }
    int64_t pixels() const { return out_height() * out_width(); }
    int64_t taps() const { return kernel_height * kernel_width; }

    // A padded row keeps the columns together that outputs side by side look at: 0, stride, 2 stride ...; 1, stride + 1 ...
    int64_t columns() const { return (width + 2 * pad_width + stride - 1) / stride; }
    int64_t row_size() const { return stride * columns(); }
    int64_t place(int64_t column) const { return column % stride * columns() + column / stride; }
};

// The padded images below one another, from row `first` to row `last`, as floats: [channels, up to a multiple of 4][rows]
// [row size]; what the last channels are filled up with is zero, and so is what lies around an image.
template <class Isa, int DTYPE>
void strip(const Geometry& shape, const void* x, int64_t first, int64_t last, float* out, int threads) {
    using Type = typename Element<DTYPE>::Type;
    const int64_t size = (last - first) * shape.row_size();
    parallel(rounded_up(shape.channels, 4), threads, [&](int64_t channel) {
        static thread_local Memory<float> memory;
        float* to = out + channel * size;
        std::memset(to, 0, size * sizeof *to);
        if (channel >= shape.channels) return;
        for (int64_t row = first; row < last; ++row, to += shape.row_size()) {
            const int64_t image = row / shape.padded_height(), y = row % shape.padded_height() - shape.pad_height;
            if (y < 0 || y >= shape.height) continue;
            const int64_t at = ((image * shape.channels + channel) * shape.height + y) * shape.width;
            float* const together = shape.stride == 1 ? to + shape.pad_width : memory.of(shape.width);
            Isa::template floats<DTYPE>(static_cast<const Type*>(x) + at, shape.width, together);
            for (int64_t i = 0; shape.stride > 1 && i < shape.width; ++i) to[shape.place(shape.pad_width + i)] = together[i];
        }
    });
}

template <class Isa, int DTYPE>
void convolution(const Layer& layer, int bits, int64_t channels, const void* x, const Geometry& shape, const float* bias,
                 void* out, int threads) {
    using Type = typename Element<DTYPE>::Type;
    constexpr int LANES = Isa::LANES, ROWS = Isa::ROWS;
    const int64_t steps = (layer.width + 3) / 4, pixels = shape.pixels(), wide = shape.row_size();
    const int64_t panels_an_image = (pixels + LANES - 1) / LANES, panels = shape.images * panels_an_image;
    const int64_t together = ACTIVATIONS / (LANES * 4 * steps) > 4 ? ACTIVATIONS / (LANES * 4 * steps) : 4;
    static thread_local Memory<uint8_t> panel_memory;
    static thread_local Memory<float> strip_memory, step_memory;
    static thread_local Memory<int32_t> middle_memory;
    const std::vector<float> no_offsets(together * LANES > channels ? together * LANES : channels);
    const std::vector<int32_t> no_middles(channels);
    for (int64_t from = 0; from < panels; from += together) {
        const int64_t count = panels - from < together ? panels - from : together;
        // The rows of padded images that these panels look at.
        const auto row_of = [&](int64_t panel, int64_t pixel) {
            return panel / panels_an_image * shape.padded_height() + pixel / shape.out_width() * shape.stride;
        };
        const auto first_of = [&](int64_t panel) { return panel % panels_an_image * LANES; };
        const int64_t end = first_of(from + count - 1) + LANES < pixels ? first_of(from + count - 1) + LANES : pixels;
        const int64_t first_row = row_of(from, first_of(from));
        const int64_t last_row = row_of(from + count - 1, end - 1) + shape.kernel_height;
        const int64_t plane = (last_row - first_row) * wide;
        float* const planes = strip_memory.of((rounded_up(shape.channels, 4) + 1) * plane);
        float* const maxima = planes + rounded_up(shape.channels, 4) * plane;
        strip<Isa, DTYPE>(shape, x, first_row, last_row, planes, threads);
        std::memset(maxima, 0, plane * sizeof *maxima);
        parallel(last_row - first_row, threads, [&](int64_t row) {
            for (int64_t channel = 0; channel < shape.channels; ++channel) {
                Isa::maxima(planes + channel * plane + row * wide, wide, maxima + row * wide);
            }
        });
        int64_t offsets[4 * MAX_TAPS];  // of 4 channels, in the order of the weight
        for (int64_t i = 0; i < 4 * shape.taps(); ++i) {
            const int64_t channel = i / shape.taps(), tap = i % shape.taps();
            offsets[i] = channel * plane + tap / shape.kernel_width * wide + shape.place(tap % shape.kernel_width);
        }
        uint8_t* const patches = panel_memory.of(count * LANES * 4 * steps);
        float* const factors = step_memory.of(count * LANES);
        int32_t* const middles = middle_memory.of(count * LANES);
        parallel(count, threads, [&](int64_t number) {
            const float* lanes[MAX_LANES / 4];
            float inverses[MAX_LANES];
            for (int64_t lane = 0; lane < LANES; lane += 4) {
                int64_t pixel = first_of(from + number) + lane;
                if (pixel >= pixels) pixel = first_of(from + number);
                const int64_t at = (row_of(from + number, pixel) - first_row) * wide + pixel % shape.out_width();
                lanes[lane / 4] = planes + at;
                for (int64_t i = 0; i < 4; ++i) {
                    float largest = 0;
                    for (int64_t tap = 0; tap < shape.taps(); ++tap) {
                        const float one = maxima[at + i + offsets[tap]];
                        largest = one > largest ? one : largest;
                    }
                    factors[number * LANES + lane + i] = step_of(largest, inverses + lane + i);
                }
            }
            int32_t* const sums = middles + number * LANES;
            Isa::patches(lanes, offsets, 4 * shape.taps(), 4 * plane, steps, inverses, patches + number * LANES * 4 * steps, sums);
            for (int lane = 0; lane < LANES; ++lane) sums[lane] *= half_levels(bits);
        });
        const Side lane_side{patches, middles, factors, no_offsets.data(), count};
        const int64_t groups = (channels + ROWS - 1) / ROWS;
        const int64_t fitting = PIECE / (ROWS * 4 * steps);
        const int64_t each = portion(fitting < ROWS_TOGETHER / ROWS ? fitting : ROWS_TOGETHER / ROWS, groups, threads);
        parallel((groups + each - 1) / each, threads, [&](int64_t piece) {
            const int64_t first = piece * each * ROWS;
            const int64_t rows = channels - first < each * ROWS ? channels - first : each * ROWS;
            static thread_local Memory<uint8_t> row_memory, group_memory;
            uint8_t* unpacked = row_memory.of(ROWS * 4 * steps);
            uint8_t* weights = group_memory.of(each * ROWS * 4 * steps);
            for (int64_t row = 0; row < rows; row += ROWS) {
                for (int64_t r = 0; r < ROWS && row + r < rows; ++r) {
                    symbol_row<Isa>(layer, bits, first + row + r, 4 * steps, unpacked + r * 4 * steps);
                }
                interleave<Isa>(unpacked, 4 * steps, steps, weights + row * 4 * steps);
            }
            const float* biases = bias ? bias + first : no_offsets.data();
            const Side row_side{weights, no_middles.data(), layer.scales + first, biases, rows};
            multiply<Isa, DTYPE, false>(lane_side, row_side, steps, bits, [&](int64_t p, int64_t row) {
                const int64_t image = (from + p) / panels_an_image, pixel = first_of(from + p);
                Type* const channel = static_cast<Type*>(out) + (image * channels + first + row) * pixels;
                return Placed<Type>{channel + pixel, pixels - pixel};
            });
        });
    }
}

}  // namespace
}  // namespace bitsfusion
