// What a variable-length payload says before its codes, checked (docs/wire_format.md, sections 6 and 9).
#pragma once

#include <memory>
#include <vector>

#include "cpu/checked.h"

namespace qsgd {
namespace {

// The parts of a rans payload. Everything that is read was checked to lie in it.
class RansPayload {
  public:
    // False if no encoder writes such a payload.
    bool open(const FrameView& frame) {
        const uint64_t count = frame.header.count;
        p_ = frame.base + frame.at.payload;
        left_ = frame.header.coded_bytes - frame.at.payload;
        coded.rans = {};
        if (count == 0) return left_ == 0;
        return read_head(count) && read_tables() && read_classes(count) && read_lengths(count);
    }

    CodedPayload coded;

  private:
    bool take(uint64_t bytes, const uint8_t*& taken) {
        taken = p_;
        if (bytes > left_) return false;
        p_ += bytes, left_ -= bytes;
        return true;
    }

    bool read_head(uint64_t count) {
        const uint8_t* head;
        if (!take(kRansHead, head)) return false;
        RansDecoder& d = coded.rans;
        const uint8_t mode = head[0];
        d.classes = head[1];
        memcpy(&d.columns, head + 4, 4);
        if (mode > kColumnClasses || d.classes < 1 || d.classes > kRansMaxClasses || head[2] || head[3]) return false;
        d.mode = static_cast<RansMode>(mode);
        return mode == kColumnClasses ? d.columns >= 16 && d.columns <= count : d.columns == 0;
    }

    bool read_tables() {
        RansDecoder& d = coded.rans;
        slots_.reset(new uint32_t[d.classes * kRansOne]);
        for (uint32_t c = 0; c < d.classes; ++c) {
            RansTable table;
            const uint8_t* bytes;
            if (!read_rans_table(p_, left_, table) || !take(rans_table_bytes(table), bytes)) return false;
            d.shifts[c] = table.shift;
            fill_slots(table, slots_.get() + c * kRansOne);
        }
        d.slots = slots_.get();
        return true;
    }

    bool read_classes(uint64_t count) {
        RansDecoder& d = coded.rans;
        const uint8_t* columns;
        if (d.mode != kOneClass && !take(ceil_div(ceil_div(count, kUnit), 2), d.units)) return false;
        if (!take(d.columns, columns)) return false;
        if (d.columns == 0) return true;
        columns_.assign(columns, columns + d.columns);
        columns_.insert(columns_.end(), columns, columns + 16);
        d.column_of = columns_.data();
        return true;
    }

    bool read_lengths(uint64_t count) {
        const uint64_t streams = rans_all_streams(count);
        if (left_ / 4 < streams || !take(4 * streams, coded.lengths)) return false;
        for (uint64_t s = 0; s < streams; ++s) {
            uint32_t words;
            const uint8_t* stream;
            memcpy(&words, coded.lengths + 4 * s, sizeof words);
            if (!take(2 * static_cast<uint64_t>(words) + kRansStateBytes, stream)) return false;
            if (s % kRansStreams == 0) stretches_.push_back(stream);
        }
        coded.stretches = stretches_.data();
        return left_ == 0;
    }

    const uint8_t* p_;
    uint64_t left_;
    std::unique_ptr<uint32_t[]> slots_;
    std::vector<uint8_t> columns_;
    std::vector<const uint8_t*> stretches_;
};

}  // namespace
}  // namespace qsgd
