// What the range-ANS coder asks of sixteen lanes, in AVX-512. rans_avx2.h defines the same names.
#pragma once

#include "cpu/avx512.h"

namespace qsgd {
namespace {

struct RansLanes : Lanes {
    using Mask = __mmask16;
    // 32 numbers, of which the low five bits choose.
    struct Table {
        __m512i low, high;
    };
    struct FloatTable {
        __m512 low, high;
    };
    static Table load_table(const uint32_t* p) { return {Lanes::load(p), Lanes::load(p + 16)}; }
    static FloatTable load_table(const float* p) { return {Lanes::load(p), Lanes::load(p + 16)}; }
    static Int look_up(const Table& t, Int at) { return _mm512_permutex2var_epi32(t.low, at, t.high); }
    static Float look_up(const FloatTable& t, Int at) { return _mm512_permutex2var_ps(t.low, at, t.high); }
    // Into a register made zero just before: the instruction waits for what was in it.
    static Int gather(const uint32_t* table, Int at) {
        __m512i into = _mm512_setzero_si512();
        asm("" : "+v"(into));
        return _mm512_mask_i32gather_epi32(into, 0xFFFF, at, table, 4);
    }

    static Int subtract(Int a, Int b) { return _mm512_sub_epi32(a, b); }
    static Int smaller_signed(Int a, Int b) { return _mm512_min_epi32(a, b); }
    static Int smaller_magnitude(Int a, Int b) { return _mm512_min_epu32(a, b); }
    static Int shift_left_by(Int a, Int k) { return _mm512_sllv_epi32(a, k); }
    static Int shift_right_by(Int a, Int k) { return _mm512_srlv_epi32(a, k); }
    static Int shift_right_signed_by(Int a, Int k) { return _mm512_srav_epi32(a, k); }
    static Float divide(Float a, Float b) { return _mm512_div_ps(a, b); }

    static Mask at_least(Int a, Int b) { return _mm512_cmpge_epu32_mask(a, b); }  // unsigned
    static Mask less(Int a, Int b) { return _mm512_cmplt_epi32_mask(a, b); }      // signed
    static Mask is_zero(Int a) { return _mm512_testn_epi32_mask(a, a); }
    static Mask either(Mask a, Mask b) { return a | b; }
    static bool any(Mask a) { return a != 0; }
    static uint32_t count(Mask a) { return static_cast<uint32_t>(__builtin_popcount(a)); }
    static Int add_where(Mask mask, Int a, Int b) { return _mm512_mask_add_epi32(a, mask, a, b); }

    // The lanes of `mask` give their low halves to `out`, one after the other, where 32 bytes are written.
    static Int give_halves(Int x, Mask mask, uint16_t* out) {
        const __m256i words = _mm512_cvtepi32_epi16(_mm512_maskz_compress_epi32(mask, x));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), words);
        return _mm512_mask_srli_epi32(x, mask, x, 16);
    }
    // The opposite; 32 bytes are read.
    static Int take_halves(Int x, Mask mask, const uint8_t* in) {
        const __m512i words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(in)));
        const __m512i low = _mm512_maskz_expand_epi32(mask, words);
        return _mm512_mask_or_epi32(x, mask, _mm512_slli_epi32(x, 16), low);
    }
};

}  // namespace
}  // namespace qsgd
