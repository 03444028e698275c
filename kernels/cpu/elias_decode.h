// Elias' strings to codes (docs/wire_format.md, section 6). Whatever the bits are, no block is read beyond
// what can be read nor written beyond its codes.
#pragma once

#include "cpu/elias_stream.h"

namespace qsgd {
namespace {

class DenseStream : public EliasStream {
  public:
    DenseStream(const BitSource& source, int16_t* codes, uint64_t elements, uint32_t levels)
        : EliasStream(source, codes, elements, levels) {}

    bool more() const { return out_ < end_; }
    bool ready() const { return room(kLookups) && source_.whole(at_); }
    // ready() must be true.
    QSGD_INLINE void step() {
        uint64_t next = source_.peek_whole(at_);
        for (int k = 0; k < kLookups; ++k)
            if (__builtin_expect(take(kDenseTable, next) == 0, 0)) return take_one_apart();
    }
    // more() must be true.
    QSGD_INLINE void take_one() {
        uint64_t next = source_.peek(at_);
        const int32_t magnitude = static_cast<int32_t>(take_number(next, levels_ + 1)) - 1;
        const int32_t live = magnitude > 0, negative = live & static_cast<int32_t>(next >> 63);
        *out_++ = static_cast<int16_t>((magnitude ^ -negative) + negative);
        at_ += static_cast<uint64_t>(live);
    }
    bool finish() {
        while (ready()) step();
        while (more()) {
            uint64_t next = source_.peek(at_);
            if (!room(1) || take(kDenseTable, next) == 0) take_one();
        }
        return ended();
    }

  private:
    // For a stream that shall stay in registers: only the copy has an address.
    void take_one_apart() {
        DenseStream copy = *this;
        copy.take_one();
        *this = copy;
    }
};

class SparseStream : public EliasStream {
  public:
    // The codes must be 0 before.
    SparseStream(const BitSource& source, int16_t* codes, uint64_t elements, uint32_t levels)
        : EliasStream(source, codes, elements, levels) {
        left_ = take_nonzeros(elements);
    }

    bool more() const { return left_ > 0; }
    bool ready() const {
        return room(kLookups) && left_ >= CodesTable::kNonzeros * kLookups && source_.whole(at_);
    }
    // ready() must be true.
    QSGD_INLINE void step() {
        uint64_t next = source_.peek_whole(at_);
        for (int k = 0; k < kLookups; ++k)
            if (__builtin_expect(take_some(next) == 0, 0)) return take_one_apart();
    }
    // more() must be true.
    QSGD_INLINE void take_one() {
        const uint64_t gap = take_gap();
        if (bad_ || gap > static_cast<uint64_t>(end_ - out_)) {
            bad_ = true, left_ = 0;
            return;
        }
        out_[gap - 1] = take_code();
        out_ += gap, --left_;
    }
    bool finish() {
        while (ready()) step();
        while (more()) {
            uint64_t next = source_.peek(at_);
            if (left_ < CodesTable::kNonzeros || !room(1) || take_some(next) == 0) take_one();
        }
        return ended();
    }

  private:
    QSGD_INLINE uint32_t take_some(uint64_t& next) {
        const uint32_t sizes = take(kSparseTable, next);
        left_ -= sizes / 256;
        return sizes;
    }
    void take_one_apart() {
        SparseStream copy = *this;
        copy.take_one();
        *this = copy;
    }

    uint64_t left_;  // nonzeros
};

// A sparse block of any size, some elements at a time.
class SpreadStream : public EliasStream {
  public:
    // From the block's beginning.
    SpreadStream(const BitSource& source, uint64_t elements, uint32_t levels)
        : EliasStream(source, nullptr, 0, levels), nonzeros_(take_nonzeros(elements)) {
        if (nonzeros_ > 0) zeros_ = take_gap() - 1;
    }
    SpreadStream(const BitSource& source, const EliasPlace& place, uint32_t levels)
        : EliasStream(source, nullptr, 0, levels), nonzeros_(place.nonzeros), zeros_(place.zeros) {
        at_ = place.at;
    }

    EliasPlace place() const { return {at_, nonzeros_, zeros_}; }
    void read(int16_t* codes, uint64_t elements) {
        memset(codes, 0, elements * sizeof *codes);
        visit(elements, [&](uint64_t at, int16_t code) { codes[at] = code; });
    }
    void skip(uint64_t elements) {
        visit(elements, [](uint64_t, int16_t) {});
    }
    // Whether this is the block's end, and as it must be.
    bool finished() const { return nonzeros_ == 0 && ended(); }

  private:
    template <class Body>
    QSGD_INLINE void visit(uint64_t elements, Body body) {
        while (!bad_ && nonzeros_ > 0 && zeros_ < elements) {
            body(zeros_, take_code());
            if (--nonzeros_ > 0) zeros_ += take_gap();
        }
        if (nonzeros_ > 0) zeros_ -= elements;
    }

    uint64_t nonzeros_, zeros_ = 0;
};

constexpr uint64_t kLongCode = 8;  // bits: most codes are longer than what is looked up

// Two whole blocks at a time, since each of a block's lookups waits for the one before. Returns whether both
// are as they must be.
template <class Stream>
bool decode_two(const BitSource* sources, int16_t* codes, uint32_t levels) {
    Stream a(sources[0], codes, kEliasBlock, levels), b(sources[1], codes + kEliasBlock, kEliasBlock, levels);
    {
        Stream x = a, y = b;  // in registers
        if (sources[0].bits + sources[1].bits > 2 * kEliasBlock * kLongCode)
            while (x.more() && y.more()) x.take_one(), y.take_one();
        while (x.ready() && y.ready()) x.step(), y.step();
        a = x, b = y;
    }
    const bool first = a.finish(), second = b.finish();
    return first && second;
}

// Whether all are from -levels to levels.
inline bool within(const int16_t* codes, uint64_t elements, uint32_t levels) {
    int16_t beyond = 0;
    const int16_t top = static_cast<int16_t>(levels);
    for (uint64_t i = 0; i < elements; ++i) beyond |= (codes[i] > top) | (codes[i] < -top);
    return beyond == 0;
}

}  // namespace
}  // namespace qsgd
