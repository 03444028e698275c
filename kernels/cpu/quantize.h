// Rows of quantized values, and the payloads made of them (docs/wire_format.md, sections 5 and 6).
#pragma once

#include "cpu/checksum.h"
#include "cpu/random.h"
#include "cpu/unroll.h"

namespace qsgd {
namespace {

// Rows of sixteen values to be quantized.
struct Rows {
    const float* values;
    const float* inverses;  // of a grid step, times 2^24; one for kSharing rows
    Rows from(uint64_t row) const { return {values + 16 * row, inverses + row / kSharing}; }
};

// What all rows have in common.
struct Quantizer {
    Lanes::Float limit;
    Lanes::Int multipliers[kSharing];
    explicit Quantizer(float levels) : limit(Lanes::set(levels * kFractionOne)) {
        for (int m = 0; m < kSharing; ++m) multipliers[m] = Lanes::in_register(Lanes::set(kMultipliers[m]));
    }

    // Calls body(row, x * 2^24, R) for kSharing rows from number FirstRow on, whose random words are `words`.
    template <int FirstRow, bool kFetchFar, class Body>
    QSGD_INLINE void values(const Rows& rows, const uint32_t* words, Body&& body) const {
        const Lanes::Float inverse = Lanes::set(rows.inverses[FirstRow / kSharing]);
        const Lanes::Int word = Lanes::in_register(Lanes::load(words));
        unroll<0, kSharing>([&](auto k) QSGD_INLINE_LAMBDA {
            const float* values = rows.values + 16 * (FirstRow + k.value);
            __builtin_prefetch(values + kBlock);  // the next block: its scales are found first
            if (kFetchFar)
                __builtin_prefetch(values + kAhead, 0, 2);  // from memory into the second-level cache
            const Lanes::Float x = Lanes::multiply(Lanes::load(values), inverse);
            const Lanes::Int random = k.value == 0 ? word : Lanes::multiply(word, multipliers[k.value]);
            body(Index<FirstRow + k.value>{}, Lanes::clamp(x, limit), Lanes::shift_right<8>(random));
        });
    }

    // The same for body(row, T + R), if it fits 32 bits: s <= 127. The code stands in bits 24 and up.
    template <int FirstRow, bool kFetchFar = true, class Body>
    QSGD_INLINE void span(const Rows& rows, const uint32_t* words, Body&& body) const {
        values<FirstRow, kFetchFar>(rows, words,
                                    [&](auto row, Lanes::Float x, Lanes::Int random) QSGD_INLINE_LAMBDA {
                                        body(row, Lanes::add(Lanes::round(x), random));
                                    });
    }

    // The same for body(row, code) and any s: x is taken apart, exactly, into a whole number and the rest.
    template <int FirstRow, bool kFetchFar, class Body>
    QSGD_INLINE void wide_span(const Rows& rows, const uint32_t* words, Body&& body) const {
        const Lanes::Float one = Lanes::set(1 / kFractionOne), minus_one = Lanes::set(-kFractionOne);
        values<FirstRow, kFetchFar>(
            rows, words, [&](auto row, Lanes::Float x, Lanes::Int random) QSGD_INLINE_LAMBDA {
                const Lanes::Int whole = Lanes::truncate(Lanes::multiply(x, one));
                const Lanes::Float rest = Lanes::add(x, Lanes::multiply(Lanes::convert(whole), minus_one));
                const Lanes::Int carry =
                    Lanes::shift_right_signed<24>(Lanes::add(Lanes::round(rest), random));
                body(row, Lanes::add(whole, carry));
            });
    }
};

// Packs codes, which stand in bits 24 .. 24 + Bits - 1 of each lane, into 32-bit words, row after row.
template <int Bits>
struct Packer {
    uint8_t* out;
    RunningChecksum& running;
    Lanes::Int word = Lanes::set(0u);

    QSGD_INLINE void emit() {
        Lanes::store(reinterpret_cast<uint32_t*>(out), word);
        running.add(word);
        out += 64;
    }
    // Row after row.
    template <int Row>
    QSGD_INLINE void add(Lanes::Int code) {
        if constexpr (Lanes::kRotates && 32 % Bits == 0)
            add_rotating<Row>(code);
        else
            add_in_place<Row>(code);
    }

  private:
    // One mask for all rows: the word is turned until the first code is back at the bottom.
    template <int Row>
    QSGD_INLINE void add_rotating(Lanes::Int code) {
        const Lanes::Int mask = Lanes::set(((1u << Bits) - 1) << 24);
        constexpr int at = Row * Bits % 32;
        word = at == 0 ? Lanes::bit_and(code, mask)
                       : Lanes::or_masked(Lanes::rotate_right<Bits>(word), code, mask);
        if constexpr (at + Bits == 32) {
            word = Lanes::rotate_right<(24 + Bits) % 32>(word);
            emit();
        }
    }

    template <int Row>
    QSGD_INLINE void add_in_place(Lanes::Int code) {
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

// `units` units of 512 elements, from number `unit` of the tensor on, to 64 * Bits bytes each at out.
template <int Bits>
void pack_units(Rows rows, float levels, const Random& random, uint64_t unit, uint64_t units, uint8_t* out,
                RunningChecksum& checksum) {
    // Rows that fill whole words and use whole random words: 8, 16 or 32.
    constexpr int kRows = Bits % 2 ? 32 : Bits % 4 ? 16 : 8;
    const Quantizer quantizer(levels);
    RunningChecksum running = checksum;
    for (; units > 0; --units, ++unit) {
        alignas(64) uint32_t words[kUnitWords];
        random.words(unit, words);
        for (int row = 0; row < 32; row += kRows) {
            Packer<Bits> packer{out, running};
            unroll<0, kRows / kSharing>([&](auto k) QSGD_INLINE_LAMBDA {
                quantizer.span<kSharing * k.value>(
                    rows, words + 16 * (row / kSharing + k.value),
                    [&](auto r, Lanes::Int code) QSGD_INLINE_LAMBDA { packer.template add<r.value>(code); });
            });
            rows = rows.from(kRows);
            out += 2 * Bits * kRows;
        }
    }
    checksum = running;
}

using PackUnits = void (*)(Rows rows, float levels, const Random& random, uint64_t unit, uint64_t units,
                           uint8_t* out, RunningChecksum& checksum);

inline PackUnits pack_units_of(uint32_t bits) {
    constexpr PackUnits all[] = {pack_units<2>, pack_units<3>, pack_units<4>, pack_units<5>,
                                 pack_units<6>, pack_units<7>, pack_units<8>};
    return all[bits - 2];
}

// The codes of `units` units, a byte each.
inline void code_units(Rows rows, const Random& random, uint64_t unit, uint64_t units, int8_t* codes) {
    const Quantizer quantizer(1);
    for (; units > 0; --units, ++unit) {
        alignas(64) uint32_t words[kUnitWords];
        random.words(unit, words);
        for (int row = 0; row < 32; row += kSharing, rows = rows.from(kSharing), codes += 16 * kSharing)
            quantizer.span<0>(
                rows, words + 16 * (row / kSharing), [&](auto r, Lanes::Int code) QSGD_INLINE_LAMBDA {
                    Lanes::store_low_bytes(codes + 16 * r.value, Lanes::shift_right_signed<24>(code));
                });
    }
}

// The same as 16-bit numbers, for any levels.
template <bool kWide, bool kFetchFar>
void wide_code_units(Rows rows, float levels, const Random& random, uint64_t unit, uint64_t units,
                     int16_t* codes) {
    const Quantizer quantizer(levels);
    for (; units > 0; --units, ++unit) {
        alignas(64) uint32_t words[kUnitWords];
        random.words(unit, words);
        for (int row = 0; row < 32; row += kSharing, rows = rows.from(kSharing), codes += 16 * kSharing) {
            const auto store = [&](auto r, Lanes::Int code) QSGD_INLINE_LAMBDA {
                Lanes::store_low_halves(codes + 16 * r.value, code);
            };
            if constexpr (kWide)
                quantizer.wide_span<0, kFetchFar>(rows, words + 16 * (row / kSharing), store);
            else
                quantizer.span<0, kFetchFar>(rows, words + 16 * (row / kSharing),
                                             [&](auto r, Lanes::Int code) QSGD_INLINE_LAMBDA {
                                                 store(r, Lanes::shift_right_signed<24>(code));
                                             });
        }
    }
}

// Eighty codes in {-1, 0, 1}, five rows, to sixteen bytes.
inline void pack_ternary(const int8_t* codes, uint8_t* out) {
    for (int l = 0; l < 16; ++l) {
        int byte = 0;
        for (int row = 4; row >= 0; --row) byte = 3 * byte + codes[16 * row + l];
        out[l] = static_cast<uint8_t>(byte + 121);  // 121: a one in every digit
    }
}

}  // namespace
}  // namespace qsgd
