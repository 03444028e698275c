// Gradient dtypes: how sixteen elements are widened to float32, and rounded back.
#pragma once

#include "numeric.h"
#include "qsgd.h"

namespace qsgd {
namespace {

struct Float32 {
    using Element = float;
    static Lanes::Float load(const float* p) { return Lanes::load(p); }
    static void store(float* p, Lanes::Float v) { Lanes::store(p, Lanes::canonical_nan(v)); }
    static float widen(float v) { return v; }
    static float narrow(float v) { return v == v ? v : float_from_bits(kNanBits); }
};

struct Float16 {
    using Element = uint16_t;
    static Lanes::Float load(const uint16_t* p) { return Lanes::load_float16(p); }
    static void store(uint16_t* p, Lanes::Float v) { Lanes::store_float16(p, Lanes::canonical_nan(v)); }
    static float widen(uint16_t v) { return float_from_float16(v); }
    static uint16_t narrow(float v) { return float16_from_float(v); }
};

struct Bfloat16 {
    using Element = uint16_t;
    static Lanes::Float load(const uint16_t* p) { return Lanes::load_bfloat16(p); }
    static void store(uint16_t* p, Lanes::Float v) { Lanes::store_bfloat16(p, Lanes::canonical_nan(v)); }
    static float widen(uint16_t v) { return float_from_bfloat16(v); }
    static uint16_t narrow(float v) { return bfloat16_from_float(v); }
};

// Elements of any alignment: memcpy is one instruction where it matters.
template <class Element>
Element load_element(const void* base, uint64_t i) {
    Element e;
    memcpy(&e, static_cast<const char*>(base) + i * sizeof(Element), sizeof e);
    return e;
}

template <class Element>
const Element* element_at(const void* base, uint64_t i) {
    return reinterpret_cast<const Element*>(static_cast<const char*>(base) + i * sizeof(Element));
}

}  // namespace
}  // namespace qsgd
