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
};

struct Float16 {
    using Element = uint16_t;
    static Lanes::Float load(const uint16_t* p) { return Lanes::load_float16(p); }
    static void store(uint16_t* p, Lanes::Float v) { Lanes::store_float16(p, Lanes::canonical_nan(v)); }
};

struct Bfloat16 {
    using Element = uint16_t;
    static Lanes::Float load(const uint16_t* p) { return Lanes::load_bfloat16(p); }
    static void store(uint16_t* p, Lanes::Float v) { Lanes::store_bfloat16(p, Lanes::canonical_nan(v)); }
};

// body(T{}) for the T of `dtype`.
template <class Body>
auto with_dtype(uint8_t dtype, Body&& body) {
    switch (dtype) {
        case QSGD_FLOAT16:
            return body(Float16{});
        case QSGD_BFLOAT16:
            return body(Bfloat16{});
        default:
            return body(Float32{});
    }
}

// Element i of a buffer of any alignment, to be read or written as bytes.
template <class Element>
Element* element_at(void* base, uint64_t i) {
    return reinterpret_cast<Element*>(static_cast<char*>(base) + i * sizeof(Element));
}
template <class Element>
const Element* element_at(const void* base, uint64_t i) {
    return reinterpret_cast<const Element*>(static_cast<const char*>(base) + i * sizeof(Element));
}

// Sixteen elements of which `length` may be read; zeros after them.
template <class T>
Lanes::Float load_some(const typename T::Element* p, uint64_t length) {
    if (length >= 16) return T::load(p);
    typename T::Element some[16] = {};
    memcpy(some, p, length * sizeof *p);
    return T::load(some);
}

}  // namespace
}  // namespace qsgd
