// An Elias payload's codes, some elements at a time.
#pragma once

#include "cpu/elias_decode.h"
#include "cpu/jobs.h"

namespace qsgd {
namespace {

class EliasReader {
  public:
    EliasReader(const FrameView& frame, EliasPosition& position)
        : frame_(frame),
          position_(position),
          sparse_(frame.header.codec == QSGD_CODEC_ELIAS_SPARSE),
          block_(frame.coded->elias_block) {}

    void open(uint64_t stretch) {
        position_ = {};
        position_.block = frame_.coded->stretches[stretch];
        position_.number = stretch * (kStretch / block_);
    }

    // The codes of elements [begin, begin + length), the next ones, from the beginning of a unit on.
    void read(uint64_t begin, uint64_t length, int16_t* codes) {
        if (block_ > kEliasBlock) return read_parts(begin, length, codes);
        if (sparse_) return read_blocks<SparseStream>(length, codes);
        return read_blocks<DenseStream>(length, codes);
    }

  private:
    BitSource source() const {
        uint16_t bytes;
        memcpy(&bytes, frame_.coded->lengths + 2 * position_.number, sizeof bytes);
        const uint8_t* const end = frame_.base + frame_.header.frame_bytes;
        return {position_.block, 8ull * bytes, static_cast<uint64_t>(end - position_.block)};
    }
    BitSource take_source() {
        const BitSource taken = source();
        position_.block += taken.bits / 8, ++position_.number;
        return taken;
    }

    template <class Stream>
    void read_blocks(uint64_t length, int16_t* codes) {
        const uint32_t levels = frame_.header.levels;
        if (sparse_) memset(codes, 0, length * sizeof *codes);
        uint64_t at = 0;
        for (; at + 2 * kEliasBlock <= length; at += 2 * kEliasBlock) {
            const BitSource two[] = {take_source(), take_source()};
            position_.bad |= !decode_two<Stream>(two, codes + at, levels);
        }
        for (; at < length; at += kEliasBlock) {
            const uint64_t left = length - at, elements = left < kEliasBlock ? left : kEliasBlock;
            position_.bad |= !Stream(take_source(), codes + at, elements, levels).finish();
        }
        position_.bad |= levels < CodesTable::kLargest && !within(codes, length, levels);
    }

    // Of larger blocks, which may end between.
    void read_parts(uint64_t begin, uint64_t length, int16_t* codes) {
        while (length > 0) {
            const uint64_t from = begin % block_, left = frame_.header.count - (begin - from);
            const uint64_t end = left < block_ ? left : block_;
            const uint64_t elements = length < end - from ? length : end - from;
            SpreadReader block(source(), frame_.header.levels, position_);
            if (from == 0) block.begin(end);
            block.read(codes, elements);
            if (from + elements == end) block.end(), take_source();
            begin += elements, length -= elements, codes += elements;
        }
    }

    const FrameView& frame_;
    EliasPosition& position_;
    const bool sparse_;
    const uint32_t block_;
};

}  // namespace
}  // namespace qsgd
