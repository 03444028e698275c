// Loops whose index is a compile-time constant.
#pragma once

namespace qsgd {
namespace {

template <int K>
struct Index {
    static constexpr int value = K;
};

template <int First, int Last, class Body>
inline __attribute__((always_inline)) void unroll(Body&& body) {
    if constexpr (First < Last) {
        body(Index<First>{});
        unroll<First + 1, Last>(body);
    }
}

#define QSGD_INLINE __attribute__((always_inline))

}  // namespace
}  // namespace qsgd
