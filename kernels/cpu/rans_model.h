// How a tensor's codes are told apart and with which tables each class is coded, from a sample of its units
// (docs/wire_format.md, section 11).
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "cpu/isa.h"
#include "rans_choice.h"

namespace qsgd {
namespace {

// Units whose codes are looked at before coding begins.
struct Sample {
    std::vector<uint64_t> units, sums;  // and the sums of their magnitudes
    std::vector<int16_t> codes;
    uint64_t all_units;

    explicit Sample(const EncodeJob& job) : all_units(ceil_div(job.spec.count, kUnit)) {
        const uint64_t size = rans_sample_units(all_units);
        units.resize(size), sums.resize(size), codes.resize(kUnit * size);
        for (uint64_t k = 0; k < size; ++k) units[k] = rans_sample_unit(all_units, size, k);
        kernels().sample_codes(job, units.data(), size, codes.data());
        for (uint64_t k = 0; k < size; ++k)
            for (uint64_t i = 0; i < kUnit; ++i)
                sums[k] += static_cast<uint64_t>(std::abs(codes[kUnit * k + i]));
    }
    bool complete() const { return units.size() == all_units; }
};

// A choice of classes, with the tables and the cost that come of it.
struct RansModel {
    RansChoice choice = {};
    RansTable tables[kRansMaxClasses];
    std::vector<uint8_t> column_of;
    std::vector<uint64_t> expected;
    uint64_t cost = 0;  // of the sample and its share of what precedes the streams

    // Bytes from the payload's begin to the streams' lengths.
    uint64_t head_bytes(uint64_t count) const {
        uint64_t table_bytes = 0;
        for (uint32_t c = 0; c < choice.classes; ++c) table_bytes += rans_table_bytes(tables[c]);
        return rans_head_bytes(choice.mode, table_bytes, count, choice.columns);
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
        model.choice.base = rans_base(*std::max_element(sample_.sums.begin(), sample_.sums.end()));
        fit(model);
        return model;
    }

    bool columns_known() const { return rans_columns_known(spec_, sample_.units.size()); }

    RansModel column_classes() const {
        RansModel model;
        const uint32_t columns = spec_.columns;
        const std::vector<uint64_t> means = column_means();
        const uint64_t largest = *std::max_element(means.begin(), means.end());
        model.column_of.resize(columns + 16);
        model.expected.resize(columns + 1);
        for (uint32_t c = 0; c < columns; ++c) {
            model.column_of[c] = rans_column_byte(means[c], largest);
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
            sums[c] = counts[c] ? rans_column_mean(sums[c], counts[c]) : rans_column_mean(all, elements);
        }
        return sums;
    }

    // Calls body(codes, class) for runs of the sample's codes.
    template <class Body>
    void each_run(const RansChoice& choice, Body&& body) const {
        for (uint64_t k = 0; k < sample_.units.size(); ++k) {
            const uint64_t unit = sample_.units[k];
            const uint32_t byte = choose_unit_byte(choice, sample_.sums[k], unit, spec_.count);
            const int16_t* const codes = sample_.codes.data() + kUnit * k;
            if (byte == 0) continue;
            if (choice.mode != kColumnClasses) {
                body(codes, kUnit, rans_class(byte, kRansMaxClasses));
                continue;
            }
            uint64_t c = unit * kUnit % spec_.columns;
            for (uint64_t i = 0; i < kUnit; ++i, c = c + 1 < spec_.columns ? c + 1 : 0)
                body(codes + i, 1, rans_class(byte, choice.column_of[c], kRansMaxClasses));
        }
    }

    // The tables for the model's choice of classes.
    void fit(RansModel& model) const {
        RansCounts counts[kRansMaxClasses] = {};
        each_run(model.choice, [&](const int16_t* codes, uint64_t length, uint32_t c) {
            for (uint64_t i = 0; i < length; ++i) {
                const uint32_t m = rans_counted_as(codes[i], 0);
                ++counts[c].of[m];
                if (m > kRansTop) counts[c].beyond += static_cast<uint64_t>(std::abs(codes[i]));
            }
        });
        uint32_t seen = 0, shifted = 0;
        for (uint32_t c = 0; c < kRansMaxClasses; ++c) {
            seen |= static_cast<uint32_t>(rans_counted(counts[c]) > 0) << c;
            counts[c].shift = choose_rans_shift(counts[c]);
            shifted |= counts[c].shift;
            if (counts[c].shift) std::fill(std::begin(counts[c].of), std::end(counts[c].of), 0);
        }
        if (shifted)
            each_run(model.choice, [&](const int16_t* codes, uint64_t length, uint32_t c) {
                for (uint64_t i = 0; i < length && counts[c].shift; ++i)
                    ++counts[c].of[rans_counted_as(codes[i], counts[c].shift)];
            });
        model.choice.classes = static_cast<uint8_t>(rans_classes(seen));
        for (uint32_t c = 0; c < model.choice.classes; ++c) {
            const RansCounts& like = counts[rans_class_like(c, seen, sample_.complete())];
            choose_rans_table(like, spec_.levels, sample_.complete(), model.tables[c]);
            model.cost += rans_cost(counts[c], model.tables[c]);
        }
        model.cost += rans_head_cost(model.head_bytes(spec_.count), sample_.all_units, sample_.units.size());
    }

    const qsgd_spec& spec_;
    const Sample& sample_;
};

// The cheapest model for the tensor.
inline RansModel choose_model(const EncodeJob& job) {
    const Sample sample(job);
    const ModelBuilder builder(job.spec, sample);
    RansModel models[] = {builder.one_class(), builder.unit_classes(), {}};
    const uint32_t modes = builder.columns_known() ? 3 : 2;
    if (modes == 3) models[kColumnClasses] = builder.column_classes();
    const uint64_t costs[] = {models[0].cost, models[1].cost, models[2].cost};
    return std::move(models[choose_rans_mode(costs, modes)]);
}

}  // namespace
}  // namespace qsgd
