// Subtractive dither: what a decoder adds to codes, from the random numbers that the encoder added
// (docs/wire_format.md, section 10).
#pragma once

#include "cpu/random.h"
#include "cpu/unpack.h"

namespace qsgd {
namespace {

// The dithered codes of elements [begin, begin + length) of a frame, from the beginning of a unit on, in
// whole rows. `codes` were multiplied by 1 / code_scale; `out` may be the same.
template <class Code>
void undo_dither(const Header& h, uint64_t begin, uint64_t length, const Code* codes, float code_scale,
                 float* out) {
    const Random random(h.seed, h.rank, h.tensor, h.step);
    const Lanes::Float scale = Lanes::set(code_scale), half = Lanes::set(0.5f);
    const Lanes::Float minus_one = Lanes::set(-1 / kFractionOne);
    alignas(64) uint32_t words[kUnitWords];
    for (uint64_t i = 0; i < length; i += 16) {
        const uint64_t row = i % kUnit / 16;
        if (row == 0) random.words((begin + i) / kUnit, words);
        const Lanes::Int word = Lanes::load(words + row / kSharing * 16);
        const Lanes::Int bits =
            Lanes::shift_right<8>(Lanes::multiply(word, Lanes::set(kMultipliers[row % kSharing])));
        const Lanes::Float shift = Lanes::add(half, Lanes::multiply(Lanes::convert(bits), minus_one));
        Lanes::store(out + i, Lanes::add(Lanes::multiply(numbers(codes + i), scale), shift));
    }
}

}  // namespace
}  // namespace qsgd
