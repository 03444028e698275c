// Units through their range-ANS streams, row after row: what processors without vector code for it do.
#pragma once

#include "cpu/rans_rows.h"
#include "cpu/unroll.h"

namespace qsgd {
namespace {

struct RansRows {
    // Encodes N units, each into its own stream.
    template <int N>
    static void encode(const RansEncoder& e, const RansUnit* units, RansEncodeStream* const* streams) {
        for (int n = 0; n < N; ++n) {
            uint64_t column = units[n].column;
            for (int row = 0; row < kUnitRows; ++row) {
                uint8_t classes[16];
                row_classes(e.choice, units[n].byte, column, classes);
                streams[n]->out =
                    encode_row(e, classes, units[n].codes + 16 * row, streams[n]->states, streams[n]->out);
                column = next_column(column, e.choice.columns);
            }
        }
    }

    // Decodes N units, each from its own stream, the last row first.
    template <int N>
    static void decode(const RansDecoder& d, const RansUnit* units, RansDecodeStream* const* streams) {
        for (int n = 0; n < N; ++n) {
            uint64_t column = last_row_column(units[n].column, d.columns);
            for (int row = kUnitRows - 1; row >= 0; --row) {
                uint8_t classes[16];
                row_classes(d, units[n].byte, column, classes);
                decode_row(d, classes, *streams[n], units[n].codes + 16 * row);
                column = previous_column(column, d.columns);
            }
        }
    }
};

}  // namespace
}  // namespace qsgd
