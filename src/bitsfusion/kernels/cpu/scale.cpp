// The scale of least squared error, row by row: the search of bitsfusion/numerics/scale.py without its temporaries.
//
// As the scale shrinks from infinity, weight i steps from level k - 1 to k when it passes |w_i| / (k - 1/2). Between two
// such events the levels q stay, the best scale for them is <w, q> / <q, q>, and it explains <w, q>^2 / <q, q> of the
// row's energy. The events are sorted by radix, both sums follow them in double, and the largest quotient wins.
//
// From 4 bits on most events are far from the best one, and only a window of scales is searched. The best scale s is the
// least-squares one of its own levels q, so what it leaves of w is orthogonal to q, and for any other scale t
//     error(t) <= |w - t q|^2 = error(s) + (s - t)^2 |q|^2 <= error(s) + ((s - t) / s)^2 |w|^2.
// A span of scales about t in which that keeps error(s) above an error that was seen elsewhere cannot hold the best one.
// Spans that may are cut finer, until sorting the events in what is left costs less. Where the part of w beyond the
// outermost level alone is a larger error than one seen, smaller scales are out, too.

#include <algorithm>
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

constexpr int WINDOWED_HALF = 8;   // b = 4; with fewer levels sorting all events is as fast
constexpr double SPAN = 1.1;       // a first span reaches from t / SPAN to t * SPAN
constexpr int CUTS = 4;            // a span that may hold the best scale is cut into so many
constexpr double EVENT_COST = 10;  // of sorting an event, in looks at one weight at one scale
constexpr double ROUNDING = 1e-4;  // by which an error summed in float may be wrong
constexpr int BLOCK = 512;

// An event: the scale it happens at in the upper half (as a float's bits, inverted so that the largest comes first),
// k - 1 in the next 8 bits, the weight's place in the lower 24.
using Event = uint64_t;

struct Window {
    float low, high;
};

struct Error {
    double all, clipped;  // clipped: what no scale below this one can avoid
};

struct Search {
    int64_t width;
    int half;
    std::vector<float> magnitudes;
    std::vector<Event> events, sorted;

    Search(int64_t row_width, int row_half) : width(row_width), half(row_half), magnitudes(row_width) {}

    float best(const float* row) {
        float largest = 0;
        double total = 0, square = 0;
        for (int64_t i = 0; i < width; ++i) {
            magnitudes[i] = std::fabs(row[i]);
            largest = std::fmax(largest, magnitudes[i]);
            total += magnitudes[i];
            square += static_cast<double>(magnitudes[i]) * magnitudes[i];
        }
        if (largest == 0) return 0;
        const bool squares_fit = largest > 1e-15f && largest < 1e15f;
        const Window all{0, 2 * largest};
        const Window window = half >= WINDOWED_HALF && squares_fit ? window_of_best(largest, total, square) : all;
        double product = 0, energy = 0;
        make_events(window, product, energy);
        sort_events();
        double best_product = product, best_energy = energy;
        for (const Event event : events) {
            product += magnitudes[event & 0xffffff];
            energy += static_cast<double>(2 * ((event >> 24) & 0xff) + 1);
            // product^2 / energy > best_product^2 / best_energy
            if (product * product * best_energy > best_product * best_product * energy || best_energy == 0) {
                best_product = product;
                best_energy = energy;
            }
        }
        return static_cast<float>(best_product / best_energy);
    }

    Window window_of_best(float largest, double total, double square) const {
        std::vector<double> centres;
        std::vector<Error> errors;
        double span = SPAN, least = square;
        const auto look_at = [&](double centre) {
            centres.push_back(centre);
            errors.push_back(error_at(static_cast<float>(centre)));
            least = std::fmin(least, errors.back().all);
        };
        double centre = 2.0 * largest / span;  // above twice the largest every level is zero
        do {
            look_at(centre);
            centre /= span * span;
        } while (errors.back().clipped <= least * (1 + ROUNDING));
        for (;;) {
            const double reach = (span - 1) * (span - 1) * square;
            std::vector<double> left;
            for (size_t i = 0; i < centres.size(); ++i) {
                if (errors[i].all * (1 - ROUNDING) - reach <= least * (1 + ROUNDING)) left.push_back(centres[i]);
            }
            const auto [lowest, highest] = std::minmax_element(left.begin(), left.end());
            const double low = *lowest / span, high = *highest * span;
            const double events = total / low - total / high;  // but for those of weights beyond the outermost level
            if (EVENT_COST * events <= static_cast<double>(width) * CUTS * left.size() || span - 1 < 1e-5) {
                return {static_cast<float>(low), static_cast<float>(high)};
            }
            const double whole = span;
            span = std::pow(whole, 1.0 / CUTS);
            centres.clear();
            errors.clear();
            for (const double old : left) {
                for (int part = 0; part < CUTS; ++part) look_at(old / whole * std::pow(span, 2 * part + 1));
            }
        }
    }

    // Of the row at one scale: squares in float, summed in pairs, in double over blocks. Plain loops, for the vectorizer.
    Error error_at(float scale) const {
        const int most = half;
        const float inverse = 1 / scale, largest = static_cast<float>(most) * scale;
        float all[BLOCK], clipped[BLOCK];
        Error error{0, 0};
        for (int64_t start = 0; start < width; start += BLOCK) {
            const int count = static_cast<int>(BLOCK < width - start ? BLOCK : width - start);
            const float* magnitude = magnitudes.data() + start;
            for (int i = 0; i < count; ++i) {
                const int level = std::min(static_cast<int>(magnitude[i] * inverse + 0.5f), most);
                const float rest = magnitude[i] - static_cast<float>(level) * scale;
                const float beyond = magnitude[i] - largest, over = (beyond + std::fabs(beyond)) / 2;
                all[i] = rest * rest;
                clipped[i] = over * over;
            }
            error.all += sum(all, count);
            error.clipped += sum(clipped, count);
        }
        return error;
    }

    static float sum(float* values, int count) {
        while (count > 1) {
            const int kept = (count + 1) / 2;
            for (int i = 0; i < count - kept; ++i) values[i] += values[i + kept];
            count = kept;
        }
        return values[0];
    }

    int level_at(float magnitude, float scale) const {
        const float level = magnitude / scale + 0.5f;
        return level < static_cast<float>(half) ? static_cast<int>(level) : half;
    }

    // The events inside the window, and both sums at its upper end.
    void make_events(const Window& window, double& product, double& energy) {
        std::memset(counts, 0, sizeof(counts));
        events.clear();
        for (int64_t i = 0; i < width; ++i) {
            const float magnitude = magnitudes[i];
            const int first = level_at(magnitude, window.high);
            const int last = magnitude == 0 ? 0 : window.low > 0 ? level_at(magnitude, window.low) : half;
            product += static_cast<double>(magnitude) * first;
            energy += static_cast<double>(first) * first;
            for (int k = first; k < last; ++k) {
                const float at = magnitude / (static_cast<float>(k) + 0.5f);
                uint32_t bits;
                std::memcpy(&bits, &at, 4);
                bits = 0x7fffffff - bits;
                for (int digit = 0; digit < DIGITS; ++digit) ++counts[digit][bucket(bits, digit)];
                events.push_back(static_cast<Event>(bits) << 32 | static_cast<Event>(k) << 24 | static_cast<Event>(i));
            }
        }
        sorted.resize(events.size());
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
