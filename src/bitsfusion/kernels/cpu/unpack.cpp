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

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "parallel.h"
#include "radix.h"
#include "unpack_avx2.h"
#include "unpack_avx512.h"
#include "unpack_neon.h"

namespace bitsfusion {
namespace {

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
int bitsfusion_interface() { return 4; }

// Whether this processor and this build have an instruction set (enum Isa).
int bitsfusion_has_isa(int isa) {
    using namespace bitsfusion;
    if (isa == SCALAR) return 1;
#if defined(__x86_64__)
    if (isa == AVX2) {
        unsigned a, b, c, d;  // not every compiler's builtin knows F16C
        return __builtin_cpu_supports("avx2") && __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C) != 0;
    }
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
