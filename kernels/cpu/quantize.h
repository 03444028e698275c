// Rows of quantized values, and the payloads made of them (docs/wire_format.md, sections 5 and 6).
#pragma once

#include "cpu/checksum.h"
#include "cpu/elements.h"
#include "cpu/random.h"
#include "cpu/unroll.h"
#include "frame.h"

namespace qsgd {
namespace {

// Rows of a gradient whose buckets are whole rows, finite and not tiny: read where they lie.
template <class T>
struct DirectRows {
    const typename T::Element* values;
    const float* inverses;  // one a row
    Lanes::Float limit;
    Lanes::Int fixed_point(int row) const {
        __builtin_prefetch(values + 16 * row + 2560);  // the next block: its scales are found first
        return Lanes::round(
            Lanes::clamp(Lanes::multiply(T::load(values + 16 * row), Lanes::set(inverses[row])), limit));
    }
    DirectRows at(int row) const { return {values + 16 * row, inverses + row, limit}; }
};

// Rows of any block, copied, widened and rescaled.
struct StagedRows {
    const float* values;
    const float* inverses;  // one an element
    Lanes::Float limit;
    Lanes::Int fixed_point(int row) const {
        const Lanes::Float x =
            Lanes::multiply(Lanes::load(values + 16 * row), Lanes::load(inverses + 16 * row));
        return Lanes::round(Lanes::clamp(x, limit));
    }
    StagedRows at(int row) const { return {values + 16 * row, inverses + 16 * row, limit}; }
};

// Packs codes, which stand in bits 24 .. 24 + Bits - 1 of each lane, into 32-bit words, row after row.
template <int Bits>
struct Packer {
    uint32_t* out;
    RunningChecksum& running;
    Lanes::Int word = Lanes::set(0u);

    void emit() {
        Lanes::store(out, word);
        running.add(word);
        out += 16;
    }
    template <int Row>
    QSGD_INLINE void add(Lanes::Int code) {
        constexpr int at = Row * Bits % 32;
        constexpr int room = 32 - at;
        constexpr uint32_t mask = ((1u << Bits) - 1) << at;
        const Lanes::Int moved = at <= 24 ? Lanes::shift_right<at <= 24 ? 24 - at : 0>(code)
                                          : Lanes::shift_left<(at > 24) ? at - 24 : 0>(code);
        word = at == 0 ? Lanes::bit_and(moved, Lanes::set(mask))
                       : Lanes::or_masked(word, moved, Lanes::set(mask));
        if (room > Bits) return;
        emit();
        if constexpr (room < Bits) {
            constexpr uint32_t rest = (1u << (Bits - room)) - 1;
            word = Lanes::bit_and(Lanes::shift_right<24 + room>(code), Lanes::set(rest));
        }
    }
};

// One full unit of 512 elements: 16 * Bits words at out.
template <int Bits, class Rows>
void pack_unit(const Rows& rows, const Random& random, uint64_t unit, uint32_t* out,
               RunningChecksum& running) {
    Packer<Bits> packer{out, running};
    unroll<0, 2>([&](auto half) QSGD_INLINE {
        constexpr int kFirst = 16 * decltype(half)::value;
        Lanes::Int words[4];
        random.words(2 * unit + decltype(half)::value, words);
        unroll<0, 16>([&](auto q) QSGD_INLINE {
            constexpr int kRow = decltype(q)::value;
            const Lanes::Int bits = random.bits<kRow % 4>(words[kRow / 4]);
            packer.template add<kFirst + kRow>(Lanes::add(rows.fixed_point(kFirst + kRow), bits));
        });
    });
}

// The codes of one random group of 256 elements, a byte each.
template <class Rows>
void code_group(const Rows& rows, const Random& random, uint64_t group, int8_t* codes) {
    Lanes::Int words[4];
    random.words(group, words);
    unroll<0, 16>([&](auto q) QSGD_INLINE {
        constexpr int kRow = decltype(q)::value;
        const Lanes::Int bits = random.bits<kRow % 4>(words[kRow / 4]);
        const Lanes::Int code = Lanes::shift_right_signed<24>(Lanes::add(rows.fixed_point(kRow), bits));
        Lanes::store_low_bytes(codes + 16 * kRow, code);
    });
}

// Five rows of codes in {-1, 0, 1} to sixteen bytes.
inline void pack_ternary(const int8_t* codes, uint8_t* out) {
    const Lanes::Int one = Lanes::set(1u), three = Lanes::set(3u);
    Lanes::Int byte = Lanes::set(0u);
    for (int row = 4; row >= 0; --row)
        byte = Lanes::add(Lanes::multiply(byte, three), Lanes::add(Lanes::load_bytes(codes + 16 * row), one));
    Lanes::store_low_bytes(reinterpret_cast<int8_t*>(out), byte);
}

}  // namespace
}  // namespace qsgd
