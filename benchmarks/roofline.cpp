// The most products a second that one core does by AVX2, from registers alone: what matmuls in float32 and in int8
// (vpmaddubsw into 16-bit sums) could reach. An instruction does 8 products of float32, or 32 of int8.
//
//     g++ -O2 -mavx2 -mfma benchmarks/roofline.cpp -o roofline && ./roofline
#include <cstdio>
#include <ctime>

namespace {

double seconds() {
    timespec now;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return now.tv_sec + 1e-9 * now.tv_nsec;
}

// 1e9 products a second, the best of nine: `body` does twelve instructions of `lanes` products each.
template <class Body>
double best(int lanes, const Body& body) {
    double least = 1e9;
    for (int turn = 0; turn < 9; ++turn) {
        const double start = seconds();
        for (int i = 0; i < 2000000; ++i) body();
        const double taken = seconds() - start;
        least = taken < least ? taken : least;
    }
    return 12.0 * lanes * 2000000 / least / 1e9;
}

}  // namespace

#define TWELVE(one) one(0) one(1) one(2) one(3) one(4) one(5) one(6) one(7) one(8) one(9) one(10) one(11)
#define FLOAT(i) "vfmadd231ps %%ymm12, %%ymm13, %%ymm" #i "\n"
#define INT8(i) "vpmaddubsw %%ymm12, %%ymm13, %%ymm14\nvpaddw %%ymm14, %%ymm" #i ", %%ymm" #i "\n"
#define REGISTERS                                                                                                      \
    "ymm0", "ymm1", "ymm2", "ymm3", "ymm4", "ymm5", "ymm6", "ymm7", "ymm8", "ymm9", "ymm10", "ymm11", "ymm14"

int main() {
    const double dense = best(8, [] { asm volatile(TWELVE(FLOAT)::: REGISTERS); });
    const double int8 = best(32, [] { asm volatile(TWELVE(INT8)::: REGISTERS); });
    std::printf("float32 %.1f, int8 %.1f 1e9 products a second, ratio %.2f\n", dense, int8, dense / int8);
}
