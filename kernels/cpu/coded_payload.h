// What a variable-length payload says before its codes, checked (docs/wire_format.md, sections 6 and 9).
#pragma once

#include <memory>
#include <vector>

#include "cpu/checked.h"

namespace qsgd {
namespace {

// The parts of a payload, taken one after the other. Everything that is read was checked to lie in it.
class PayloadParts {
  public:
    CodedPayload coded = {};

  protected:
    void begin(const FrameView& frame) {
        p_ = frame.base + frame.at.payload;
        left_ = frame.header.coded_bytes - frame.at.payload;
    }
    bool take(uint64_t bytes, const uint8_t*& taken) {
        taken = p_;
        if (bytes > left_) return false;
        p_ += bytes, left_ -= bytes;
        return true;
    }

    const uint8_t* p_;
    uint64_t left_;
    std::vector<const uint8_t*> stretches_;
};

class RansPayload : public PayloadParts {
  public:
    // False if no encoder writes such a payload.
    bool open(const FrameView& frame) {
        const uint64_t count = frame.header.count;
        begin(frame);
        if (count == 0) return left_ == 0;
        const uint8_t* head;
        return take(kRansHead, head) && read_rans_head(head, count, coded.rans) && read_tables() &&
               read_classes(count) && read_lengths(count);
    }

  private:
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

    std::unique_ptr<uint32_t[]> slots_;
    std::vector<uint8_t> columns_;
};

class EliasPayload : public PayloadParts {
  public:
    bool open(const FrameView& frame) {
        const Header& h = frame.header;
        begin(frame);
        if (h.count == 0) return left_ == 0;
        const uint8_t* head;
        uint32_t words[2];
        if (!take(kEliasHead, head)) return false;
        memcpy(words, head, sizeof words);
        if (!is_elias_block(words[0], h.codec == QSGD_CODEC_ELIAS_SPARSE) || words[1]) return false;
        coded.elias_block = words[0];
        return read_lengths(h.count);
    }

  private:
    bool read_lengths(uint64_t count) {
        const uint64_t blocks = ceil_div(count, coded.elias_block);
        if (left_ / 2 < blocks || !take(2 * blocks, coded.lengths)) return false;
        for (uint64_t k = 0; k < blocks; ++k) {
            uint16_t bytes;
            const uint8_t* block;
            memcpy(&bytes, coded.lengths + 2 * k, sizeof bytes);
            if (!take(bytes, block)) return false;
            if (k % (kStretch / coded.elias_block) == 0) stretches_.push_back(block);
        }
        coded.stretches = stretches_.data();
        return left_ == 0;
    }
};

class VariablePayload {
  public:
    bool open(const FrameView& frame) {
        elias_used_ = is_elias(frame.header.codec);
        return elias_used_ ? elias_.open(frame) : rans_.open(frame);
    }
    const CodedPayload& coded() const { return elias_used_ ? elias_.coded : rans_.coded; }

  private:
    bool elias_used_ = false;
    EliasPayload elias_;
    RansPayload rans_;
};

}  // namespace
}  // namespace qsgd
