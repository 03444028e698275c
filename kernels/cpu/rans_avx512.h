// Units through up to four range-ANS streams at a time, whose independent chains hide each other's latencies.
#pragma once

#include <immintrin.h>

#include "cpu/rans_rows.h"
#include "cpu/unroll.h"

namespace qsgd {
namespace {

struct RansRows {
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
    static __m512i set(uint32_t a) { return _mm512_set1_epi32(static_cast<int>(a)); }
    // Into a register made zero just before: the instruction waits for what was in it.
    static __m512i gather(__m512i at, const uint32_t* table) {
        __m512i into = _mm512_setzero_si512();
        asm("" : "+v"(into));
        return _mm512_mask_i32gather_epi32(into, 0xFFFF, at, table, 4);
    }
    static __m512i load_codes(const int16_t* p) {
        return _mm512_cvtepi16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    }

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
    static __m512i classes_of(const Choice& choice, uint32_t unit, uint64_t column) {
        const __m512i columns =
            choice.columns ? _mm512_cvtepu8_epi32(
                                 _mm_loadu_si128(reinterpret_cast<const __m128i*>(choice.column_of + column)))
                           : set(7);
        const __m512i sum =
            _mm512_sub_epi32(_mm512_max_epu32(_mm512_add_epi32(columns, set(unit)), set(8)), set(8));
        return _mm512_min_epu32(sum, set(choice.classes - 1u));
    }

    // Appends the low halves of the states of `mask`, which lose them.
    static __m512i write(__m512i x, __mmask16 mask, uint16_t*& out) {
        const __m256i words = _mm512_cvtepi32_epi16(_mm512_maskz_compress_epi32(mask, x));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), words);
        out += __builtin_popcount(mask);
        return _mm512_mask_srli_epi32(x, mask, x, 16);
    }

    static __m512i push_symbol(__m512i x, __m512i f, __m512i start, __m512 reciprocal, uint16_t*& out) {
        x = write(x, _mm512_cmpge_epu32_mask(x, _mm512_slli_epi32(f, 31 - kRansBits)), out);
        const __m512i quotient = _mm512_cvttps_epi32(_mm512_mul_ps(_mm512_cvtepi32_ps(x), reciprocal));
        const __m512i rest = _mm512_sub_epi32(x, _mm512_mullo_epi32(quotient, f));
        const __m512i next =
            _mm512_add_epi32(_mm512_add_epi32(_mm512_slli_epi32(quotient, kRansBits), rest), start);
        const __mmask16 one_too_small = _mm512_cmpge_epu32_mask(rest, f);
        return _mm512_mask_add_epi32(next, one_too_small, next, _mm512_sub_epi32(set(kRansOne), f));
    }

    struct Written {
        __m512i x;
        uint16_t* out;
    };
    // A row that has escapes. By value: what a pointer has seen is kept in memory.
    static __attribute__((noinline)) Written encode_rare_row(const RansEncoder& e, const RansUnit& unit,
                                                             uint64_t column, const int16_t* codes, __m512i x,
                                                             uint16_t* out) {
        uint8_t classes[16];
        alignas(64) uint32_t states[16];
        _mm512_store_si512(states, x);
        row_classes(e.choice, unit.byte, column, classes);
        out = encode_row(e, classes, codes, states, out);
        return {_mm512_load_si512(states), out};
    }

    // Numbers without an interval of their own.
    static __mmask16 escapes(__m512i number, __m512i f) {
        const __mmask16 far =
            _mm512_cmpgt_epu32_mask(_mm512_add_epi32(number, set(kRansTop)), set(2 * kRansTop));
        return far | _mm512_testn_epi32_mask(f, f);
    }

    template <int N, bool kPlain>
    static void encode_alike(const RansEncoder& e, const RansUnit* units, RansEncodeStream* const* streams) {
        __m512i x[N], intervals[N][2];
        __m512 reciprocals[N][2];
        uint16_t* out[N];
        for (int n = 0; n < N; ++n) {
            const uint32_t at = rans_class(units[n].byte, e.choice.classes) * kRansSymbols;
            for (int half = 0; half < 2; ++half) {
                intervals[n][half] = _mm512_loadu_si512(e.intervals + at + 16 * half);
                reciprocals[n][half] = _mm512_loadu_ps(e.reciprocals + at + 16 * half);
            }
            x[n] = _mm512_load_si512(streams[n]->states);
            out[n] = streams[n]->out;
        }
        for (int row = 0; row < kUnitRows; ++row)
            unroll<0, N>([&](auto k) QSGD_INLINE_LAMBDA {
                constexpr int n = k.value;
                const int16_t* const codes = units[n].codes + 16 * row;
                __builtin_prefetch(units[n].fetch + 64 * row, 0, 2);
                const __m512i code = load_codes(codes);
                const __m512i interval = _mm512_permutex2var_epi32(intervals[n][0], code, intervals[n][1]);
                const __m512i f = _mm512_and_si512(interval, set(0xFFFF));
                if (!kPlain && __builtin_expect(escapes(code, f), 0)) {
                    const Written rare = encode_rare_row(e, units[n], 0, codes, x[n], out[n]);
                    x[n] = rare.x, out[n] = rare.out;
                    return;
                }
                const __m512 reciprocal = _mm512_permutex2var_ps(reciprocals[n][0], code, reciprocals[n][1]);
                x[n] = push_symbol(x[n], f, _mm512_srli_epi32(interval, 16), reciprocal, out[n]);
            });
        for (int n = 0; n < N; ++n) {
            _mm512_store_si512(streams[n]->states, x[n]);
            streams[n]->out = out[n];
        }
    }

    template <int N>
    static void encode_apart(const RansEncoder& e, const RansUnit* units, RansEncodeStream* const* streams) {
        const __m512i shifts_low =
            _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(e.shifts)));
        const __m512i shifts_high =
            _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(e.shifts + 16)));
        __m512i x[N];
        uint16_t* out[N];
        uint64_t column[N];
        for (int n = 0; n < N; ++n) {
            x[n] = _mm512_load_si512(streams[n]->states);
            out[n] = streams[n]->out;
            column[n] = units[n].column;
        }
        for (int row = 0; row < kUnitRows; ++row)
            unroll<0, N>([&](auto k) QSGD_INLINE_LAMBDA {
                constexpr int n = k.value;
                const int16_t* const codes = units[n].codes + 16 * row;
                const uint64_t at = column[n];
                __builtin_prefetch(units[n].fetch + 64 * row, 0, 2);
                column[n] = next_column(at, e.choice.columns);
                const __m512i classes = classes_of(e.choice, units[n].byte, at);
                const __m512i shift = _mm512_permutex2var_epi32(shifts_low, classes, shifts_high);
                const __m512i half = _mm512_srli_epi32(_mm512_sllv_epi32(set(1), shift), 1);
                const __m512i moved = _mm512_add_epi32(load_codes(codes), half);
                const __m512i number = _mm512_srav_epi32(moved, shift);
                const __m512i entry = _mm512_add_epi32(_mm512_slli_epi32(classes, 5),
                                                       _mm512_and_si512(number, set(kRansSymbols - 1)));
                const __m512i interval = gather(entry, e.intervals);
                const __m512i f = _mm512_and_si512(interval, set(0xFFFF));
                if (__builtin_expect(escapes(number, f), 0)) {
                    const Written rare = encode_rare_row(e, units[n], at, codes, x[n], out[n]);
                    x[n] = rare.x, out[n] = rare.out;
                    return;
                }
                const __mmask16 has_low = _mm512_test_epi32_mask(shift, shift);
                if (has_low) {
                    const __m512i limit = _mm512_srlv_epi32(set(1u << 31), shift);
                    x[n] = write(x[n], _mm512_mask_cmpge_epu32_mask(has_low, x[n], limit), out[n]);
                    const __m512i low = _mm512_sub_epi32(moved, _mm512_sllv_epi32(number, shift));
                    x[n] = _mm512_or_si512(_mm512_sllv_epi32(x[n], shift), low);
                }
                // Faster than to gather it.
                const __m512 reciprocal = _mm512_div_ps(_mm512_set1_ps(1 - 0x1p-22f), _mm512_cvtepi32_ps(f));
                x[n] = push_symbol(x[n], f, _mm512_srli_epi32(interval, 16), reciprocal, out[n]);
            });
        for (int n = 0; n < N; ++n) {
            _mm512_store_si512(streams[n]->states, x[n]);
            streams[n]->out = out[n];
        }
    }

    struct Reader {
        __m512i x;
        const uint8_t *in, *begin;
        uint32_t bad;

        // Refills the states of `mask`.
        QSGD_INLINE void fill(__mmask16 mask) {
            const uint8_t* p = in - 2 * __builtin_popcount(mask);

            bad |= p < begin;
            in = p < begin ? begin : p;
            const __m512i words =
                _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(in)));
            const __m512i low = _mm512_maskz_expand_epi32(mask, words);
            x = _mm512_mask_or_epi32(x, mask, _mm512_slli_epi32(x, 16), low);
        }
    };

    template <int N>
    static void load(const RansDecodeStream* const* streams, Reader* readers) {
        for (int n = 0; n < N; ++n)
            readers[n] = {_mm512_load_si512(streams[n]->states), streams[n]->in, streams[n]->begin,
                          streams[n]->bad};
    }
    static void store(const Reader& reader, RansDecodeStream& stream) {
        _mm512_store_si512(stream.states, reader.x);
        stream.in = reader.in, stream.bad = reader.bad;
    }

    // Pops a symbol off each lane; what is left wants to be filled.
    QSGD_INLINE static __m512i pop_symbol(__m512i& x, __m512i slot) {
        const __m512i place = _mm512_and_si512(_mm512_srli_epi32(slot, 11), set(kRansOne - 1));
        const __m512i f = _mm512_and_si512(slot, set(0x7FF));
        x = _mm512_add_epi32(_mm512_mullo_epi32(f, _mm512_srli_epi32(x, kRansBits)), place);
        return _mm512_srai_epi32(slot, 27);
    }
    static __mmask16 low_states(__m512i x) { return _mm512_cmplt_epu32_mask(x, set(kRansLow)); }

    static __attribute__((noinline)) Reader decode_rare_row(const RansDecoder& d, const RansUnit& unit,
                                                            uint64_t column, Reader reader, int16_t* codes) {
        uint8_t classes[16];
        RansDecodeStream stream;
        stream.begin = reader.begin;
        store(reader, stream);
        row_classes(d, unit.byte, column, classes);
        decode_row(d, classes, stream, codes);
        return {_mm512_load_si512(stream.states), stream.in, stream.begin, stream.bad};
    }

    static void store_codes(int16_t* p, __m512i codes) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(codes));
    }

    // As if there were no escapes. If there is one the streams are left as they were.
    template <int N>
    static bool decode_alike(const RansDecoder& d, const RansUnit* units, RansDecodeStream* const* streams) {
        Reader readers[N];
        const uint32_t* slots[N];
        __m512i least = _mm512_setzero_si512();
        load<N>(streams, readers);
        for (int n = 0; n < N; ++n) slots[n] = d.slots + rans_class(units[n].byte, d.classes) * kRansOne;
        for (int row = kUnitRows - 1; row >= 0; --row) {
            __m512i slot[N];  // stage by stage: gathers are long, and would keep the streams from overlapping
            unroll<0, N>([&](auto k) QSGD_INLINE_LAMBDA {
                slot[k.value] =
                    gather(_mm512_and_si512(readers[k.value].x, set(kRansOne - 1)), slots[k.value]);
            });
            unroll<0, N>([&](auto k) QSGD_INLINE_LAMBDA {
                Reader& reader = readers[k.value];
                const __m512i symbol = pop_symbol(reader.x, slot[k.value]);
                least = _mm512_min_epi32(least, symbol);
                store_codes(units[k.value].codes + 16 * row, symbol);
            });
            unroll<0, N>([&](auto k)
                             QSGD_INLINE_LAMBDA { readers[k.value].fill(low_states(readers[k.value].x)); });
        }
        if (_mm512_cmplt_epi32_mask(least, set(-kRansTop))) return false;
        for (int n = 0; n < N; ++n) store(readers[n], *streams[n]);
        return true;
    }

    template <int N>
    static void decode_apart(const RansDecoder& d, const RansUnit* units, RansDecodeStream* const* streams) {
        const __m512i shifts_low =
            _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(d.shifts)));
        const __m512i shifts_high =
            _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(d.shifts + 16)));
        Reader readers[N];
        uint64_t column[N];
        load<N>(streams, readers);
        for (int n = 0; n < N; ++n) column[n] = last_row_column(units[n].column, d.columns);
        for (int row = kUnitRows - 1; row >= 0; --row)
            unroll<0, N>([&](auto k) QSGD_INLINE_LAMBDA {
                constexpr int n = k.value;
                Reader& reader = readers[n];
                int16_t* const codes = units[n].codes + 16 * row;
                const uint64_t from = column[n];
                column[n] = previous_column(from, d.columns);
                const __m512i classes = classes_of(d, units[n].byte, from), before = reader.x;
                const __m512i at = _mm512_add_epi32(_mm512_slli_epi32(classes, kRansBits),
                                                    _mm512_and_si512(before, set(kRansOne - 1)));
                __m512i code = pop_symbol(reader.x, gather(at, d.slots));
                if (__builtin_expect(_mm512_cmplt_epi32_mask(code, set(-kRansTop)), 0)) {
                    reader = decode_rare_row(d, units[n], from, {before, reader.in, reader.begin, reader.bad},
                                             codes);
                    return;
                }
                reader.fill(low_states(reader.x));
                const __m512i shift = _mm512_permutex2var_epi32(shifts_low, classes, shifts_high);
                if (_mm512_test_epi32_mask(shift, shift)) {
                    const __m512i power = _mm512_sllv_epi32(set(1), shift);
                    const __m512i low = _mm512_and_si512(reader.x, _mm512_sub_epi32(power, set(1)));
                    code = _mm512_sub_epi32(_mm512_add_epi32(_mm512_sllv_epi32(code, shift), low),
                                            _mm512_srli_epi32(power, 1));
                    reader.x = _mm512_srlv_epi32(reader.x, shift);
                    reader.fill(low_states(reader.x));
                }
                store_codes(codes, code);
            });
        for (int n = 0; n < N; ++n) store(readers[n], *streams[n]);
    }
};

}  // namespace
}  // namespace qsgd
