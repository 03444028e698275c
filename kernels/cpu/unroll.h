// Loops whose index is a compile-time constant.
#pragma once

#define QSGD_INLINE inline __attribute__((always_inline))
#define QSGD_INLINE_LAMBDA __attribute__((always_inline))

namespace qsgd {
namespace {

template <int K>
struct Index {
    static constexpr int value = K;
};

template <int First, int Last, class Body>
QSGD_INLINE void unroll(Body&& body) {
    if constexpr (First < Last) {
        body(Index<First>{});
        unroll<First + 1, Last>(body);
    }
}

}  // namespace
}  // namespace qsgd
