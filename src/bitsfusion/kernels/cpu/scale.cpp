// The scale of least squared error, row by row: the search of bitsfusion/numerics/scale.py without its temporaries.
//
// As the scale shrinks from infinity, weight i steps from level k - 1 to k when it passes |w_i| / (k - 1/2). Between two
// such events the levels q stay, the best scale for them is <w, q> / <q, q>, and it explains <w, q>^2 / <q, q> of the
// row's energy. The events are sorted by radix, both sums follow them in double, and the largest quotient wins.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "parallel.h"

namespace bitsfusion {
namespace {

constexpr int DIGIT_BITS = 11;
constexpr int DIGITS = 3;  // the 31 bits of a float that is not negative
constexpr int BUCKETS = 1 << DIGIT_BITS;

// An event: the scale it happens at in the upper half (as a float's bits, inverted so that the largest comes first),
// k - 1 in the next 8 bits, the weight's place in the lower 24.
using Event = uint64_t;

struct Search {
    int64_t width;
    int half;
    std::vector<float> magnitudes;
    std::vector<Event> events, sorted;

    Search(int64_t row_width, int row_half)
        : width(row_width), half(row_half), magnitudes(width), events(width * half), sorted(width * half) {}

    float best(const float* row) {
        make_events(row);
        sort_events();
        double product = 0, energy = 0, best_product = 0, best_energy = 0;
        for (const Event event : events) {
            product += magnitudes[event & 0xffffff];
            energy += static_cast<double>(2 * ((event >> 24) & 0xff) + 1);
            // product^2 / energy > best_product^2 / best_energy
            if (product * product * best_energy > best_product * best_product * energy || best_energy == 0) {
                best_product = product;
                best_energy = energy;
            }
        }
        return best_energy > 0 ? static_cast<float>(best_product / best_energy) : 0.0f;
    }

    void make_events(const float* row) {
        std::memset(counts, 0, sizeof(counts));
        for (int64_t i = 0; i < width; ++i) magnitudes[i] = std::fabs(row[i]);
        Event* event = events.data();
        for (int k = 0; k < half; ++k) {
            const float divisor = static_cast<float>(k) + 0.5f;
            for (int64_t i = 0; i < width; ++i) {
                const float at = magnitudes[i] / divisor;
                uint32_t bits;
                std::memcpy(&bits, &at, 4);
                bits = 0x7fffffff - bits;
                for (int digit = 0; digit < DIGITS; ++digit) ++counts[digit][bucket(bits, digit)];
                *event++ = static_cast<Event>(bits) << 32 | static_cast<Event>(k) << 24 | static_cast<Event>(i);
            }
        }
    }

    static uint32_t bucket(uint32_t bits, int digit) { return (bits >> (DIGIT_BITS * digit)) & (BUCKETS - 1); }

    void sort_events() {
        for (int digit = 0; digit < DIGITS; ++digit) {
            uint32_t start = 0;
            for (uint32_t& count : counts[digit]) {
                const uint32_t here = count;
                count = start;
                start += here;
            }
            for (const Event event : events) {
                sorted[counts[digit][bucket(static_cast<uint32_t>(event >> 32), digit)]++] = event;
            }
            events.swap(sorted);
        }
    }

  private:
    uint32_t counts[DIGITS][BUCKETS];
};

}  // namespace
}  // namespace bitsfusion

extern "C" {

// rows: count * width finite floats; scales: count floats. 0, or 1 where the sizes are too large or memory runs out.
int bitsfusion_exact_scale(const float* rows, int64_t count, int64_t width, int half, float* scales, int threads) {
    using namespace bitsfusion;
    if (width < 1 || half < 1 || half > 256 || width >= 1 << 24 || width * half >= int64_t{1} << 31) return 1;
    std::atomic<int> failed{0};
    const int64_t parts = count < 4 * threads ? count : 4 * threads;
    parallel(parts, threads, [&](int64_t part) {
        try {
            auto search = std::make_unique<Search>(width, half);
            for (int64_t row = count * part / parts; row < count * (part + 1) / parts; ++row) {
                scales[row] = search->best(rows + row * width);
            }
        } catch (const std::bad_alloc&) {
            failed = 1;
        }
    });
    return failed;
}

}  // extern "C"
