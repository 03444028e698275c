// How a tensor's codes are told apart and with which tables each class is coded, from a sample of its units
// (docs/wire_format.md, section 11).
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "cpu/isa.h"
#include "cpu/rans_choice.h"

namespace qsgd {
namespace {

// Units whose codes are looked at before coding begins.
struct Sample {
    std::vector<uint64_t> units, sums;  // and the sums of their magnitudes
    std::vector<int16_t> codes;
    uint64_t all_units;

    explicit Sample(const EncodeJob& job) : all_units(ceil_div(job.spec.count, kUnit)) {
        const uint64_t most = std::min<uint64_t>(512, std::max<uint64_t>(64, all_units / 8));
        const uint64_t size = std::min(all_units, most);
        units.resize(size), sums.resize(size), codes.resize(kUnit * size);
        for (uint64_t k = 0; k < size; ++k) {  // one of each of `size` ranges, so that no period is met
            const uint64_t each = all_units / size, more = all_units % size;
            const uint64_t begin = k * each + std::min(k, more), length = each + (k < more);
            units[k] = begin + static_cast<uint32_t>(k * 0x9E3779B1u) % length;
        }
        kernels().sample_codes(job, units.data(), size, codes.data());
        for (uint64_t k = 0; k < size; ++k)
            for (uint64_t i = 0; i < kUnit; ++i)
                sums[k] += static_cast<uint64_t>(std::abs(codes[kUnit * k + i]));
    }
    bool complete() const { return units.size() == all_units; }
};

struct Counts {
    uint32_t of[kRansTop + 2] = {};  // magnitudes after the shift; the last: those that are escaped
    uint64_t elements = 0;           // of all these
    uint64_t beyond = 0;             // sum of the magnitudes that are escaped without a shift
    uint8_t shift = 0;

    int number(int code) const { return (code + (1 << shift >> 1)) >> shift; }
    void add(int code) {
        const int magnitude = std::abs(code);
        if (magnitude > kRansTop) beyond += static_cast<uint64_t>(magnitude);
        ++of[std::min(magnitude, kRansTop + 1)];
    }
    void add_shifted(int code) { ++of[std::min(std::abs(number(code)), kRansTop + 1)]; }

    // After all were added. Whether there is a shift, with which they are to be added once more.
    bool choose_shift() {
        uint64_t magnitude = beyond;
        for (int m = 0; m <= kRansTop + 1; ++m) elements += of[m];
        for (int m = 0; m <= kRansTop; ++m) magnitude += static_cast<uint64_t>(m) * of[m];
        while (elements && shift < kRansMaxShift && magnitude >= 4 * elements << shift) ++shift;
        if (shift) std::fill(std::begin(of), std::end(of), 0);
        return shift > 0;
    }
};

inline uint64_t rounded(uint64_t part, uint64_t whole) { return (2 * part + whole) / (2 * whole); }

// The table for what was counted in a sample, or in all there is: then what does not occur needs no
// frequency.
inline RansTable table_of(const Counts& counts, int levels, bool complete) {
    RansTable t = {};
    if (counts.elements == 0) {
        t.escape = 1, t.frequency[0] = kRansOne - 1;
        return t;
    }
    t.shift = counts.shift;
    int seen = kRansTop;
    while (seen > 0 && counts.of[seen] == 0) --seen;
    const int largest = counts.number(levels),
              most = complete ? seen : std::min({seen + 1, kRansTop, largest});
    const auto share = [&](uint64_t count, uint64_t each, bool possible) {
        const uint64_t f = rounded(count * kRansOne, each * counts.elements);
        return static_cast<uint16_t>(f == 0 && possible ? 1 : f);
    };
    const uint64_t escaped = counts.of[kRansTop + 1];
    uint32_t others = t.escape = share(escaped, 1, complete ? escaped > 0 : most < largest);
    for (int m = 1; m <= most; ++m) {
        t.frequency[m] = share(counts.of[m], 2, !complete || counts.of[m]);
        others += 2 * t.frequency[m];
        if (t.frequency[m]) t.top = static_cast<uint8_t>(m);
    }
    while (others >= kRansOne) {  // zero is always possible
        uint16_t* const most_frequent = std::max_element(t.frequency + 1, t.frequency + kRansTop + 1);
        if (t.escape > *most_frequent)
            --t.escape, --others;
        else
            --*most_frequent, others -= 2;
    }
    t.frequency[0] = static_cast<uint16_t>(kRansOne - others);
    return t;
}

// log2(x) in 256ths, rounded down.
inline uint64_t log2_256(uint32_t x) {
    const int octave = 31 - __builtin_clz(x);
    uint64_t result = static_cast<uint64_t>(octave), m = static_cast<uint64_t>(x) << (31 - octave);
    for (int bit = 0; bit < 8; ++bit) {
        m = m * m >> 31;
        result = result << 1 | m >> 32;
        m >>= m >> 32;
    }
    return result;
}

// Bits, in 256ths, that the elements take.
inline uint64_t cost_of(const Counts& counts, const RansTable& t) {
    const auto bits = [](uint32_t f) { return 256u * kRansBits - log2_256(f); };
    uint64_t cost = 256u * t.shift * counts.elements;
    for (int m = 0; m <= kRansTop; ++m)
        if (counts.of[m]) cost += counts.of[m] * bits(t.frequency[m]);
    const uint64_t escaped = counts.of[kRansTop + 1];
    return escaped ? cost + escaped * (bits(t.escape) + 256u * (16 - t.shift)) : cost;
}

// A choice of classes, with the tables and the cost that come of it.
struct RansModel {
    RansChoice choice = {};
    RansTable tables[kRansMaxClasses];
    std::vector<uint8_t> column_of;
    std::vector<uint64_t> expected;
    uint64_t cost = 0;  // of the sample and its share of what precedes the streams

    uint64_t table_bytes() const {
        uint64_t bytes = 0;
        for (uint32_t c = 0; c < choice.classes; ++c) bytes += rans_table_bytes(tables[c]);
        return bytes;
    }
    // Bytes from the payload's begin to its first stream.
    uint64_t head_bytes(uint64_t count) const {
        const uint64_t units = choice.mode == kOneClass ? 0 : ceil_div(ceil_div(count, kUnit), 2);
        return kRansHead + table_bytes() + units + choice.columns + 4 * rans_all_streams(count);
    }
};

class ModelBuilder {
  public:
    ModelBuilder(const qsgd_spec& spec, const Sample& sample) : spec_(spec), sample_(sample) {}

    RansModel one_class() const {
        RansModel model;
        fit(model);
        return model;
    }

    RansModel unit_classes() const {
        RansModel model;
        model.choice.mode = kUnitClasses;
        const uint64_t largest = *std::max_element(sample_.sums.begin(), sample_.sums.end());
        model.choice.base = largest ? half_octaves(largest) - 15 : 0;
        fit(model);
        return model;
    }

    bool columns_known() const {
        return spec_.columns >= 16 && spec_.count / 64 >= spec_.columns &&
               sample_.codes.size() / 16 >= spec_.columns;
    }

    RansModel column_classes() const {
        RansModel model;
        const uint32_t columns = spec_.columns;
        const std::vector<uint64_t> means = column_means();
        int32_t largest = 0;
        for (const uint64_t mean : means) largest = std::max(largest, half_octaves(mean));
        model.column_of.resize(columns + 16);
        model.expected.resize(columns + 1);
        for (uint32_t c = 0; c < columns; ++c) {
            model.column_of[c] = static_cast<uint8_t>(limited(half_octaves(means[c]) - largest + 24, 0, 31));
            model.expected[c + 1] = model.expected[c] + means[c];
        }
        std::copy_n(model.column_of.begin(), 16, model.column_of.begin() + columns);
        model.choice.mode = kColumnClasses;
        model.choice.columns = columns;
        model.choice.column_of = model.column_of.data();
        model.choice.expected = model.expected.data();
        fit(model);
        return model;
    }

  private:
    // Mean magnitudes times 1024, at least 1, and the mean of all where the sample has none.
    std::vector<uint64_t> column_means() const {
        std::vector<uint64_t> sums(spec_.columns), counts(spec_.columns);
        uint64_t all = 0, elements = 0;
        for (uint64_t k = 0; k < sample_.units.size(); ++k) {
            const uint64_t begin = sample_.units[k] * kUnit, end = std::min(begin + kUnit, spec_.count);
            for (uint64_t i = begin, c = begin % spec_.columns; i < end;
                 ++i, c = c + 1 < spec_.columns ? c + 1 : 0) {
                sums[c] += static_cast<uint64_t>(std::abs(sample_.codes[kUnit * k + i - begin]));
                ++counts[c];
            }
            all += sample_.sums[k], elements += end - begin;
        }
        for (uint32_t c = 0; c < spec_.columns; ++c) {
            const uint64_t sum = counts[c] ? sums[c] : all, count = counts[c] ? counts[c] : elements;
            sums[c] = std::max<uint64_t>(1, (1024 * sum + 256) / count);
        }
        return sums;
    }

    // Calls body(codes, class) for runs of the sample's codes.
    template <class Body>
    void each_run(const RansChoice& choice, Body&& body) const {
        for (uint64_t k = 0; k < sample_.units.size(); ++k) {
            const uint64_t begin = sample_.units[k] * kUnit, left = spec_.count - begin;
            const uint32_t byte = choose_unit_byte(choice, sample_.sums[k], begin, std::min(left, kUnit));
            const int16_t* const codes = sample_.codes.data() + kUnit * k;
            if (byte == 0) continue;
            if (choice.mode != kColumnClasses) {
                body(codes, kUnit, rans_class(byte, kRansMaxClasses));
                continue;
            }
            uint64_t c = begin % spec_.columns;
            for (uint64_t i = 0; i < kUnit; ++i, c = c + 1 < spec_.columns ? c + 1 : 0)
                body(codes + i, 1, rans_class(byte, choice.column_of[c], kRansMaxClasses));
        }
    }

    // The tables for the model's choice of classes.
    void fit(RansModel& model) const {
        Counts counts[kRansMaxClasses];
        each_run(model.choice, [&](const int16_t* codes, uint64_t length, uint32_t c) {
            for (uint64_t i = 0; i < length; ++i) counts[c].add(codes[i]);
        });
        bool shifted = false;
        for (Counts& c : counts) shifted |= c.choose_shift();
        if (shifted)
            each_run(model.choice, [&](const int16_t* codes, uint64_t length, uint32_t c) {
                for (uint64_t i = 0; i < length && counts[c].shift; ++i) counts[c].add_shifted(codes[i]);
            });
        uint32_t classes = kRansMaxClasses;
        while (classes > 1 && counts[classes - 1].elements == 0) --classes;
        model.choice.classes = static_cast<uint8_t>(classes);
        for (uint32_t c = classes; c-- > 0;) {
            const bool unseen = counts[c].elements == 0 && c + 1 < classes && !sample_.complete();
            model.tables[c] = unseen
                                  ? model.tables[c + 1]
                                  : table_of(counts[c], static_cast<int>(spec_.levels), sample_.complete());
            model.cost += cost_of(counts[c], model.tables[c]);
        }
        const uint64_t head = 256 * 8 * (model.head_bytes(spec_.count) - 4 * rans_all_streams(spec_.count));
        model.cost += head / sample_.all_units * sample_.units.size();
    }

    const qsgd_spec& spec_;
    const Sample& sample_;
};

// The cheapest model for the tensor.
inline RansModel choose_model(const EncodeJob& job) {
    const Sample sample(job);
    const ModelBuilder builder(job.spec, sample);
    RansModel best = builder.one_class();
    RansModel units = builder.unit_classes();
    if (units.cost < best.cost) best = std::move(units);
    if (!builder.columns_known()) return best;
    RansModel columns = builder.column_classes();
    if (columns.cost < best.cost - best.cost / 64) best = std::move(columns);
    return best;
}

}  // namespace
}  // namespace qsgd
