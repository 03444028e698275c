// How many levels bring a tensor the relative variance that is asked for (docs/theory.md).
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/scales.h"

namespace qsgd {
namespace {

// Scales of all buckets, and what a level's square is worth there as a part of ||v||^2.
struct BucketWeights {
    std::vector<float> scales, weights;
    double elements = 0;  // each counts as its bucket's weight

    BucketWeights(EncodeJob job, uint32_t threads) : scales(job.at.buckets), weights(job.at.buckets) {
        find_scales_apart(job, threads, scales.data());
        std::vector<float> norms = scales;
        if (job.spec.norm != QSGD_NORM_L2) {
            job.spec.norm = QSGD_NORM_L2;
            find_scales_apart(job, threads, norms.data());
        }
        double squared_norm = 0;  // buckets with a NaN do not count: they decode to NaN
        for (const float norm : norms) squared_norm += is_finite(norm) ? square(norm) : 0;
        for (uint64_t b = 0; b < scales.size(); ++b) {
            if (!is_positive(scales[b]) || squared_norm == 0) continue;
            weights[b] = static_cast<float>(square(scales[b]) / squared_norm);
            const uint64_t length = std::min(job.spec.bucket_size, job.spec.count - b * job.spec.bucket_size);
            elements += static_cast<double>(length) * weights[b];
        }
    }

  private:
    static double square(double x) { return x * x; }
};

class LevelSolver {
  public:
    LevelSolver(const EncodeJob& job, double variance, uint32_t threads)
        : job_(job), wanted_(variance), threads_(threads), buckets_(job, threads) {}

    // The least levels up to `limit` that bring no more variance; `limit` if none do.
    uint32_t solve(uint32_t limit) const {
        if (buckets_.elements == 0) return 1;           // nothing but zeros
        if (job_.spec.flags & QSGD_FLAG_SUBTRACTIVE) {  // a twelfth for every element
            const double levels = std::ceil(std::sqrt(buckets_.elements / 12 / wanted_));
            return levels < limit ? std::max(static_cast<uint32_t>(levels), 1u) : limit;
        }
        // f (1 - f) is 1/4 at most, and mostly 1/6 on average.
        const double enough = std::sqrt(buckets_.elements / 4 / wanted_) + 1;
        const uint32_t high = enough < limit ? static_cast<uint32_t>(enough) + 1 : limit + 1;
        RowSample sample = first_sample();
        Found found = search(sample, high, static_cast<uint32_t>(0.8 * high));
        while (sample.stride > 1 && found.error > std::max(kMostError * wanted_, found.margin)) {
            const double more = found.error / (kMostError * wanted_);
            sample = sample_of(static_cast<double>(sample.rows / sample.stride) * std::max(2.0, more * more));
            found = search(sample, high, found.levels);
        }
        return found.levels;
    }

  private:
    static constexpr double kSampledRows = 4096;  // at first
    static constexpr uint64_t kChunk = 64;        // rows that are summed together
    static constexpr double kMostError = 0.0075;  // standard error of the variance, as a part of it
    static constexpr double kExact = 1.0 / 256;   // difference from the variance that is asked for, likewise

    struct Found {
        uint32_t levels;
        double variance, error;  // and its standard error
        double margin;           // that leaves no doubt in these levels
    };

    // At least so many rows, if there are.
    RowSample sample_of(double least) const {
        const qsgd_spec& spec = job_.spec;
        const uint64_t size = std::min(spec.bucket_size, spec.count);
        const uint64_t rows = (job_.at.buckets - 1) * ceil_div(size, 16) +
                              ceil_div(spec.count - (job_.at.buckets - 1) * size, 16);
        RowSample sample = {spec, job_.gradient, buckets_.scales.data(), buckets_.weights.data(), rows, 1};
        while (static_cast<double>(rows / (2 * sample.stride)) >= least) sample.stride *= 2;
        return sample;
    }

    // Of f (1 - f), for each chunk of the sample's rows.
    std::vector<double> chunk_sums(const RowSample& sample, float levels) const {
        const uint64_t sampled = ceil_div(sample.rows, sample.stride), chunks = ceil_div(sampled, kChunk);
        std::vector<double> sums(chunks);
        parallel(useful_threads(threads_, 16 * sampled), chunks,
                 [&](uint32_t, uint64_t first, uint64_t last) {
                     for (uint64_t k = first; k < last; ++k)
                         sums[k] = kernels().rounding_sum(sample, kChunk * k,
                                                          std::min(kChunk * (k + 1), sampled), levels);
                 });
        return sums;
    }

    // Whether the sample stands for half of ||v||^2 or more: what lies in a few elements that it missed shows
    // in no standard error. With x = |v| / M, 4 (x/2 - x^2/4) - 2 (x - x^2) is x^2.
    bool represents(const RowSample& sample) const {
        double share = 0;
        for (const double sum : chunk_sums(sample, 0.5f)) share += 4 * sum;
        for (const double sum : chunk_sums(sample, 1)) share -= 2 * sum;
        return share >= 0.5;
    }

    // As many rows as it takes to stand for the tensor.
    RowSample first_sample() const {
        RowSample sample = sample_of(kSampledRows);
        while (sample.stride > 1 && !represents(sample))
            sample = sample_of(8 * static_cast<double>(sample.rows / sample.stride));
        return sample;
    }

    Found estimate(const RowSample& sample, uint32_t levels) const {
        const std::vector<double> sums = chunk_sums(sample, static_cast<float>(levels));
        double sum = 0, differences = 0;  // of neighbours: what is systematic does not count as an error
        for (uint64_t k = 0; k < sums.size(); ++k) {
            sum += sums[k];
            if (k % 2 || (k > 0 && k + 1 == sums.size()))
                differences += (sums[k] - sums[k - 1]) * (sums[k] - sums[k - 1]);
        }
        const double unit = 1.0 / (static_cast<double>(levels) * levels);
        const double left_out = 1 - 1 / static_cast<double>(sample.stride);
        return {levels, unit * sum, unit * std::sqrt(left_out * differences), 0};
    }

    // Between levels that are too few and `high`, which are enough or more than allowed; begins with `guess`.
    // False position on 1 / sqrt(variance), a power between 1/2 and 1 of the levels; 2/3 until both sides are
    // known.
    Found search(const RowSample& sample, uint32_t high, uint32_t guess) const {
        const double target = 1 / std::sqrt(wanted_);
        double below = -target, above = 0;  // how far the ends of the interval are from it
        uint32_t low = 0, levels = std::max(guess, 1u);
        Found best = {};
        double nearest = wanted_;
        for (uint32_t tries = 1, side = 0;; ++tries) {
            const Found found = estimate(sample, levels);
            const double here = 1 / std::sqrt(std::max(found.variance, 1e-6 * wanted_)) - target;
            const bool enough = found.variance <= wanted_;
            if (enough || best.levels < found.levels) best = found;
            const double difference = std::abs(found.variance - wanted_);
            if (difference <= kExact * wanted_) return found;
            nearest = std::min(nearest, difference);
            (enough ? high : low) = levels;
            (enough ? above : below) = here;
            best.margin = nearest / 4;
            if (high - low <= 1) return best;
            if (side == (enough ? 1u : 2u))
                (enough ? below : above) /= 2;  // "Illinois": or one end may stay for ever
            side = enough ? 1 : 2;
            const double ratio = (target + here) / target, jump = std::sqrt(ratio) * ratio;
            const double next =
                low > 0 && above > 0 ? low + (high - low) * below / (below - above) : levels / jump;
            const double limited = std::min(std::max(next + 0.5, low + 1.0), high - 1.0);
            levels = tries % 8 ? static_cast<uint32_t>(limited) : low + (high - low) / 2;
        }
    }

    const EncodeJob& job_;
    const double wanted_;
    const uint32_t threads_;
    const BucketWeights buckets_;
};

}  // namespace
}  // namespace qsgd
