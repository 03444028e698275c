// Elements of gradients as float32, and results as elements (docs/wire_format.md, sections 2 and 10).
#pragma once

#include "cuda/launch.cuh"

namespace qsgd {

__device__ __forceinline__ float canonical(float value) {
    return value != value ? float_from_bits(kNanBits) : value;
}

struct Float32 {
    using Element = float;
    static __device__ __forceinline__ float widen(float element) { return element; }
    static __device__ __forceinline__ float narrow(float value) { return canonical(value); }
};

struct Float16 {
    using Element = uint16_t;
    static __device__ __forceinline__ float widen(uint16_t element) { return float_from_float16(element); }
    static __device__ __forceinline__ uint16_t narrow(float value) { return float16_from_float(value); }
};

struct Bfloat16 {
    using Element = uint16_t;
    static __device__ __forceinline__ float widen(uint16_t element) { return float_from_bfloat16(element); }
    static __device__ __forceinline__ uint16_t narrow(float value) { return bfloat16_from_float(value); }
};

// body(T()) for the T of `dtype`.
template <class Body>
__device__ __forceinline__ void with_dtype(uint32_t dtype, Body body) {
    if (dtype == QSGD_FLOAT16)
        body(Float16());
    else if (dtype == QSGD_BFLOAT16)
        body(Bfloat16());
    else
        body(Float32());
}

constexpr int kRows = 32;  // of a unit: a thread has one lane's elements of all of them

// A lane's elements of one unit, zeros past the end.
__device__ inline void load_unit(const void* gradient, uint32_t dtype, uint64_t unit, uint64_t count,
                                 float* v) {
    const uint64_t first = kUnit * unit + lane_of_half_warp();
    const uint64_t left = first < count ? count - first : 0;
    with_dtype(dtype, [&](auto t) {
        using T = decltype(t);
        const auto* at = static_cast<const typename T::Element*>(gradient) + first;
        if (left > kUnit - kLanes) {
#pragma unroll
            for (int r = 0; r < kRows; ++r) v[r] = T::widen(at[kLanes * r]);
        } else {
#pragma unroll
            for (int r = 0; r < kRows; ++r) v[r] = kLanes * r < left ? T::widen(at[kLanes * r]) : 0;
        }
    });
}

// The opposite: results of a lane's elements of one unit.
__device__ inline void store_unit(const float* v, uint32_t dtype, uint64_t unit, uint64_t count, void* out) {
    const uint64_t first = kUnit * unit + lane_of_half_warp();
    const uint64_t left = first < count ? count - first : 0;
    with_dtype(dtype, [&](auto t) {
        using T = decltype(t);
        auto* const at = static_cast<typename T::Element*>(out) + first;
        if (left > kUnit - kLanes) {
#pragma unroll
            for (int r = 0; r < kRows; ++r) at[kLanes * r] = T::narrow(v[r]);
        } else {
#pragma unroll
            for (int r = 0; r < kRows; ++r)
                if (kLanes * r < left) at[kLanes * r] = T::narrow(v[r]);
        }
    });
}

// Walks down the rows of a lane, from element `first` on: which bucket is next?
class BucketWalk {
  public:
    uint64_t bucket;

    __device__ BucketWalk(uint64_t first, uint64_t size)
        : bucket(first / size), size_(size), place_(first % size) {}

    // Goes to the next row; true if it lies in another bucket.
    __device__ __forceinline__ bool next_row() {
        place_ += kLanes;
        if (place_ < size_) return false;
        const uint32_t step =
            size_ >= kLanes ? 1 : static_cast<uint32_t>(place_) / static_cast<uint32_t>(size_);  // place < 32
        bucket += step;
        place_ -= step * size_;
        return true;
    }

  private:
    uint64_t size_, place_;
};

// Walks up or down the rows of a unit: which column of a matrix is this lane's element in?
class ColumnWalk {
  public:
    uint32_t column;

    // `columns` is 0, and then so is `column`, or no less than kLanes.
    __device__ ColumnWalk(uint64_t unit, uint32_t columns, int row = 0) : column(0), columns_(columns) {
        const uint64_t element = kUnit * unit + static_cast<uint64_t>(row) * kLanes + lane_of_half_warp();
        if (columns) column = static_cast<uint32_t>(element % columns);
    }
    __device__ __forceinline__ void next_row() {
        column += kLanes;
        if (column >= columns_) column -= columns_;
    }
    __device__ __forceinline__ void previous_row() {
        column -= column >= kLanes ? kLanes : kLanes - columns_;
    }

  private:
    const uint32_t columns_;
};

}  // namespace qsgd
