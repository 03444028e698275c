// An Elias payload's codes, some units at a time and in any order.
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
        position_.block = frame_.coded->stretches[stretch];
        position_.number = stretch * (kStretch / block_);
        position_.bad = false;
        if (block_ > kReadElements) find_places(stretch);
    }

    // The codes of elements [begin, begin + length) of the stretch, which are to be read kReadElements at a
    // time.
    void read(uint64_t begin, uint64_t length, int16_t* codes) {
        seek(begin / block_);
        if (block_ > kReadElements)
            SpreadStream(source(), place(begin), frame_.header.levels).read(codes, length);
        else if (block_ > kEliasBlock)
            read_spread(length, codes);
        else if (sparse_)
            read_blocks<SparseStream>(length, codes);
        else
            read_blocks<DenseStream>(length, codes);
    }

  private:
    uint64_t bytes(uint64_t number) const {
        uint16_t length;
        memcpy(&length, frame_.coded->lengths + 2 * number, sizeof length);
        return length;
    }
    void seek(uint64_t number) {
        while (position_.number < number) position_.block += bytes(position_.number++);
        while (position_.number > number) position_.block -= bytes(--position_.number);
    }
    BitSource source() const {
        const uint8_t* const end = frame_.base + frame_.header.frame_bytes;
        return {position_.block, 8 * bytes(position_.number), static_cast<uint64_t>(end - position_.block)};
    }
    BitSource take_source() {
        const BitSource taken = source();
        seek(position_.number + 1);
        return taken;
    }
    EliasPlace& place(uint64_t begin) const { return position_.places[begin % kStretch / kReadElements]; }

    // Where to begin with each part of a block that is longer than what is read at a time.
    void find_places(uint64_t stretch) {
        uint64_t begin = stretch * kStretch;
        const uint64_t left = frame_.header.count - begin, end = begin + (left < kStretch ? left : kStretch);
        while (begin < end) {
            const uint64_t elements = end - begin < block_ ? end - begin : block_;
            SpreadStream stream(take_source(), elements, frame_.header.levels);
            for (uint64_t at = 0; at < elements; at += kReadElements) {
                place(begin + at) = stream.place();
                stream.skip(elements - at < kReadElements ? elements - at : kReadElements);
            }
            position_.bad |= !stream.finished();
            begin += elements;
        }
    }

    void read_spread(uint64_t length, int16_t* codes) {
        for (uint64_t at = 0; at < length; at += block_) {
            const uint64_t elements = length - at < block_ ? length - at : block_;
            SpreadStream stream(take_source(), elements, frame_.header.levels);
            stream.read(codes + at, elements);
            position_.bad |= !stream.finished();
        }
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

    const FrameView& frame_;
    EliasPosition& position_;
    const bool sparse_;
    const uint32_t block_;
};

}  // namespace
}  // namespace qsgd
