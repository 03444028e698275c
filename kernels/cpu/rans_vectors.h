// Units through up to four range-ANS streams at a time, whose independent chains hide each other's latencies:
// for the instruction set whose RansLanes was included before.
#pragma once

#include "cpu/rans_rows.h"
#include "cpu/unroll.h"

namespace qsgd {
namespace {

struct RansRows {
    using L = RansLanes;
    using Int = L::Int;
    using Mask = L::Mask;

    template <int N>
    static void encode(const RansEncoder& e, const RansUnit* units, RansEncodeStream* const* streams) {
        bool plain = true;
        for (int n = 0; n < N; ++n) plain &= units[n].plain;
        if (!same_class_in_rows<N>(e, e.choice, units))
            encode_apart<N>(e, units, streams);
        else if (plain)
            encode_alike<N, true>(e, units, streams);
        else
            encode_alike<N, false>(e, units, streams);
    }

    template <int N>
    static void decode(const RansDecoder& d, const RansUnit* units, RansDecodeStream* const* streams) {
        if (!same_class_in_rows<N>(d, d, units) || !decode_alike<N>(d, units, streams))
            decode_apart<N>(d, units, streams);
    }

  private:
    static Int set(uint32_t a) { return L::set(a); }

    // Whether the elements of each unit have one class, without low bits.
    template <int N, class Tables, class Choice>
    static bool same_class_in_rows(const Tables& t, const Choice& choice, const RansUnit* units) {
        if (choice.columns) return false;
        uint32_t shifts = 0;
        for (int n = 0; n < N; ++n) shifts |= t.shifts[rans_class(units[n].byte, choice.classes)];
        return shifts == 0;
    }

    // The classes of a row of a unit whose class would be `unit` - 8 without columns.
    template <class Choice>
    static Int classes_of(const Choice& choice, uint32_t unit, uint64_t column) {
        const Int columns = choice.columns ? L::load_bytes(choice.column_of + column) : set(7);
        const Int sum = L::subtract(L::max_magnitude(L::add(columns, set(unit)), set(8)), set(8));
        return L::smaller_magnitude(sum, set(choice.classes - 1u));
    }

    struct Shifts {
        alignas(64) uint32_t of_class[kRansMaxClasses];

        explicit Shifts(const uint8_t* shifts) {
            for (uint32_t c = 0; c < kRansMaxClasses; ++c) of_class[c] = shifts[c];
        }
    };

    // Appends the low halves of the states of `mask`, which lose them.
    static Int write(Int x, Mask mask, uint16_t*& out) {
        x = L::give_halves(x, mask, out);
        out += L::count(mask);
        return x;
    }

    static Int push_symbol(Int x, Int f, Int start, L::Float reciprocal, uint16_t*& out) {
        x = write(x, L::at_least(x, L::shift_left<31 - kRansBits>(f)), out);
        const Int quotient = L::truncate(L::multiply(L::convert(x), reciprocal));
        const Int rest = L::subtract(x, L::multiply(quotient, f));
        const Int next = L::add(L::add(L::shift_left<kRansBits>(quotient), rest), start);
        const Mask one_too_small = L::at_least(rest, f);
        return L::add_where(one_too_small, next, L::subtract(set(kRansOne), f));
    }

    static Int push_low(Int x, Int low, Int bits, uint16_t*& out) {
        const Int limit = L::shift_right_by(set(1u << 31), bits);  // beyond every state if there are no bits
        x = write(x, L::at_least(x, limit), out);
        return L::bit_or(L::shift_left_by(x, bits), low);
    }

    struct Written {
        Int x;
        uint16_t* out;
    };
    // A row that has escapes. By value: what a pointer has seen is kept in memory.
    static __attribute__((noinline)) Written encode_rare_row(const RansEncoder& e, const RansUnit& unit,
                                                             uint64_t column, const int16_t* codes, Int x,
                                                             uint16_t* out) {
        uint8_t classes[16];
        alignas(64) uint32_t states[16];
        L::store(states, x);
        row_classes(e.choice, unit.byte, column, classes);
        out = encode_row(e, classes, codes, states, out);
        return {L::load(states), out};
    }

    // Numbers without an interval of their own.
    static bool escapes(Int number, Int f) {
        const Mask far = L::at_least(L::add(number, set(kRansTop)), set(2 * kRansTop + 1));
        return L::any(L::either(far, L::is_zero(f)));
    }

    template <int N, bool kPlain>
    static void encode_alike(const RansEncoder& e, const RansUnit* units, RansEncodeStream* const* streams) {
        Int x[N];
        L::Table intervals[N];
        L::FloatTable reciprocals[N];
        uint16_t* out[N];
        for (int n = 0; n < N; ++n) {
            const uint32_t at = rans_class(units[n].byte, e.choice.classes) * kRansSymbols;
            intervals[n] = L::load_table(e.intervals + at);
            reciprocals[n] = L::load_table(e.reciprocals + at);
            x[n] = L::load(streams[n]->states);
            out[n] = streams[n]->out;
        }
        for (int row = 0; row < kUnitRows; ++row)
            unroll<0, N>([&](auto k) QSGD_INLINE_LAMBDA {
                constexpr int n = k.value;
                const int16_t* const codes = units[n].codes + 16 * row;
                __builtin_prefetch(units[n].fetch + 64 * row, 0, 2);
                const Int code = L::load_halves(codes);
                const Int interval = L::look_up(intervals[n], code);
                const Int f = L::bit_and(interval, set(0xFFFF));
                if (!kPlain && __builtin_expect(escapes(code, f), 0)) {
                    const Written rare = encode_rare_row(e, units[n], 0, codes, x[n], out[n]);
                    x[n] = rare.x, out[n] = rare.out;
                    return;
                }
                const L::Float reciprocal = L::look_up(reciprocals[n], code);
                x[n] = push_symbol(x[n], f, L::shift_right<16>(interval), reciprocal, out[n]);
            });
        for (int n = 0; n < N; ++n) {
            L::store(streams[n]->states, x[n]);
            streams[n]->out = out[n];
        }
    }

    template <int N>
    static void encode_apart(const RansEncoder& e, const RansUnit* units, RansEncodeStream* const* streams) {
        const Shifts shifts(e.shifts);
        const L::Table shift_table = L::load_table(shifts.of_class);
        Int x[N];
        uint16_t* out[N];
        uint64_t column[N];
        for (int n = 0; n < N; ++n) {
            x[n] = L::load(streams[n]->states);
            out[n] = streams[n]->out;
            column[n] = units[n].column;
        }
        for (int row = 0; row < kUnitRows; ++row) {
            Int shift[N], moved[N], number[N], interval[N];  // stage by stage, as decode_alike
            unroll<0, N>([&](auto k) QSGD_INLINE_LAMBDA {
                constexpr int n = k.value;
                __builtin_prefetch(units[n].fetch + 64 * row, 0, 2);
                const Int classes = classes_of(e.choice, units[n].byte, column[n]);
                shift[n] = L::look_up(shift_table, classes);
                const Int half = L::shift_right<1>(L::shift_left_by(set(1), shift[n]));
                moved[n] = L::add(L::load_halves(units[n].codes + 16 * row), half);
                number[n] = L::shift_right_signed_by(moved[n], shift[n]);
                const Int symbol = L::bit_and(number[n], set(kRansSymbols - 1));
                interval[n] = L::gather(e.intervals, L::add(L::shift_left<5>(classes), symbol));
            });
            unroll<0, N>([&](auto k) QSGD_INLINE_LAMBDA {
                constexpr int n = k.value;
                const Int f = L::bit_and(interval[n], set(0xFFFF));
                if (__builtin_expect(escapes(number[n], f), 0)) {
                    const Written rare =
                        encode_rare_row(e, units[n], column[n], units[n].codes + 16 * row, x[n], out[n]);
                    x[n] = rare.x, out[n] = rare.out;
                } else {
                    if (L::any(L::at_least(shift[n], set(1)))) {
                        const Int low = L::subtract(moved[n], L::shift_left_by(number[n], shift[n]));
                        x[n] = push_low(x[n], low, shift[n], out[n]);
                    }
                    // Faster than to gather it.
                    const L::Float reciprocal = L::divide(L::set(1 - 0x1p-22f), L::convert(f));
                    x[n] = push_symbol(x[n], f, L::shift_right<16>(interval[n]), reciprocal, out[n]);
                }
                column[n] = next_column(column[n], e.choice.columns);
            });
        }
        for (int n = 0; n < N; ++n) {
            L::store(streams[n]->states, x[n]);
            streams[n]->out = out[n];
        }
    }

    struct Reader {
        Int x;
        const uint8_t *in, *begin;
        uint32_t bad;

        // Refills the states that are too small.
        QSGD_INLINE void fill() {
            const Mask mask = L::less(x, L::set(kRansLow));
            const uint8_t* p = in - 2 * L::count(mask);
            bad |= p < begin;
            in = p < begin ? begin : p;
            x = L::take_halves(x, mask, in);
        }
    };

    template <int N>
    static void load(const RansDecodeStream* const* streams, Reader* readers) {
        for (int n = 0; n < N; ++n)
            readers[n] = {L::load(streams[n]->states), streams[n]->in, streams[n]->begin, streams[n]->bad};
    }
    static void store(const Reader& reader, RansDecodeStream& stream) {
        L::store(stream.states, reader.x);
        stream.in = reader.in, stream.bad = reader.bad;
    }

    // Pops a symbol off each lane; what is left wants to be filled.
    QSGD_INLINE static Int pop_symbol(Int& x, Int slot) {
        const Int place = L::bit_and(L::shift_right<11>(slot), set(kRansOne - 1));
        const Int f = L::bit_and(slot, set(0x7FF));
        x = L::add(L::multiply(f, L::shift_right<kRansBits>(x)), place);
        return L::shift_right_signed<27>(slot);
    }
    static bool any_escape(Int symbol) { return L::any(L::less(symbol, set(-kRansTop))); }

    static __attribute__((noinline)) Reader decode_rare_row(const RansDecoder& d, const RansUnit& unit,
                                                            uint64_t column, Reader reader, int16_t* codes) {
        uint8_t classes[16];
        RansDecodeStream stream;
        stream.begin = reader.begin;
        store(reader, stream);
        row_classes(d, unit.byte, column, classes);
        decode_row(d, classes, stream, codes);
        return {L::load(stream.states), stream.in, stream.begin, stream.bad};
    }

    // As if there were no escapes. If there is one the streams are left as they were.
    template <int N>
    static bool decode_alike(const RansDecoder& d, const RansUnit* units, RansDecodeStream* const* streams) {
        Reader readers[N];
        const uint32_t* slots[N];
        Int least = set(0);
        load<N>(streams, readers);
        for (int n = 0; n < N; ++n) slots[n] = d.slots + rans_class(units[n].byte, d.classes) * kRansOne;
        for (int row = kUnitRows - 1; row >= 0; --row) {
            Int slot[N];  // stage by stage: gathers are long, and would keep the streams from overlapping
            unroll<0, N>([&](auto k) QSGD_INLINE_LAMBDA {
                slot[k.value] = L::gather(slots[k.value], L::bit_and(readers[k.value].x, set(kRansOne - 1)));
            });
            unroll<0, N>([&](auto k) QSGD_INLINE_LAMBDA {
                const Int symbol = pop_symbol(readers[k.value].x, slot[k.value]);
                least = L::smaller_signed(least, symbol);
                L::store_low_halves(units[k.value].codes + 16 * row, symbol);
            });
            unroll<0, N>([&](auto k) QSGD_INLINE_LAMBDA { readers[k.value].fill(); });
        }
        if (any_escape(least)) return false;
        for (int n = 0; n < N; ++n) store(readers[n], *streams[n]);
        return true;
    }

    // Takes the low bits of codes of which `high` is known.
    QSGD_INLINE static Int pop_low(Reader& reader, Int high, Int shift) {
        const Int power = L::shift_left_by(set(1), shift);
        const Int low = L::bit_and(reader.x, L::subtract(power, set(1)));
        reader.x = L::shift_right_by(reader.x, shift);
        reader.fill();
        return L::subtract(L::add(L::shift_left_by(high, shift), low), L::shift_right<1>(power));
    }

    template <int N>
    static void decode_apart(const RansDecoder& d, const RansUnit* units, RansDecodeStream* const* streams) {
        const Shifts shifts(d.shifts);
        const L::Table shift_table = L::load_table(shifts.of_class);
        Reader readers[N];
        uint64_t column[N];
        load<N>(streams, readers);
        for (int n = 0; n < N; ++n) column[n] = last_row_column(units[n].column, d.columns);
        for (int row = kUnitRows - 1; row >= 0; --row) {
            Int classes[N], slot[N], before[N];
            unroll<0, N>([&](auto k) QSGD_INLINE_LAMBDA {
                constexpr int n = k.value;
                before[n] = readers[n].x;
                classes[n] = classes_of(d, units[n].byte, column[n]);
                const Int at =
                    L::add(L::shift_left<kRansBits>(classes[n]), L::bit_and(before[n], set(kRansOne - 1)));
                slot[n] = L::gather(d.slots, at);
            });
            unroll<0, N>([&](auto k) QSGD_INLINE_LAMBDA {
                constexpr int n = k.value;
                int16_t* const codes = units[n].codes + 16 * row;
                Reader& reader = readers[n];
                const Int high = pop_symbol(reader.x, slot[n]);
                if (__builtin_expect(any_escape(high), 0)) {
                    reader.x = before[n];
                    reader = decode_rare_row(d, units[n], column[n], reader, codes);
                } else {
                    reader.fill();
                    const Int shift = L::look_up(shift_table, classes[n]);
                    const bool any_low = L::any(L::at_least(shift, set(1)));
                    L::store_low_halves(codes, any_low ? pop_low(reader, high, shift) : high);
                }
                column[n] = previous_column(column[n], d.columns);
            });
        }
        for (int n = 0; n < N; ++n) store(readers[n], *streams[n]);
    }
};

}  // namespace
}  // namespace qsgd
