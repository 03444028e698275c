// A rans payload: what precedes the streams, the streams by several threads, and what to allow for them.
#pragma once

#include "cpu/encode_stretches.h"
#include "cpu/rans_model.h"

namespace qsgd {
namespace {

inline uint64_t most_rans_bytes(uint64_t count, uint64_t columns) {
    if (count == 0) return 0;
    const uint64_t units = ceil_div(count, kUnit), streams = rans_all_streams(count);
    return most_rans_head_bytes(count, columns) + 4 * streams + most_stream_bytes(units, streams);
}

// 16-bit words that a stretch of a tensor of `count` elements has at most.
inline uint64_t most_stretch_words(uint64_t count) {
    const uint64_t units = ceil_div(count, kUnit);
    return rans_streams(units) == 1 ? most_stream_bytes(units, 1) / 2 + 32 : kRansStreams * kRansScratchWords;
}

// What precedes the streams; returns where the units' bytes, the streams' lengths and the streams go.
struct RansPlaces {
    uint8_t *units, *lengths, *streams;
};

inline RansPlaces write_rans_head(const RansModel& model, uint64_t count, uint8_t* p) {
    const RansChoice& choice = model.choice;
    const uint8_t head[4] = {choice.mode, choice.classes, 0, 0};
    memcpy(p, head, sizeof head);
    memcpy(p + 4, &choice.columns, 4);
    p += kRansHead;
    for (uint32_t c = 0; c < choice.classes; ++c) p = write_rans_table(model.tables[c], p);
    RansPlaces places;
    places.units = p;
    if (choice.mode != kOneClass) p += ceil_div(ceil_div(count, kUnit), 2);
    if (choice.columns) memcpy(p, model.column_of.data(), choice.columns);
    places.lengths = p + choice.columns;
    places.streams = places.lengths + 4 * rans_all_streams(count);
    return places;
}

// Writes the payload; returns its end.
inline uint8_t* encode_rans_payload(const EncodeJob& job, uint32_t threads) {
    const uint64_t count = job.spec.count;
    if (count == 0) return job.frame + job.at.payload;
    const RansModel model = choose_model(job);
    RansEncoder encoder;
    encoder.choice = model.choice;
    for (uint32_t c = 0; c < model.choice.classes; ++c) fill_class(encoder, c, model.tables[c]);
    const RansPlaces places = write_rans_head(model, count, job.frame + job.at.payload);
    const RansJob rans = {&encoder, places.units, places.lengths};

    const uint64_t room = most_stretch_words(count), most = most_stream_bytes(kStretch / kUnit, kRansStreams);
    const std::unique_ptr<uint16_t[]> words(new uint16_t[room * threads]);
    return encode_stretches(threads, count, most, places.streams,
                            [&](uint32_t worker, uint64_t first, uint64_t last, uint8_t* out) {
                                return kernels().encode_rans(job, rans, first, last,
                                                             words.get() + room * worker, out);
                            });
}

}  // namespace
}  // namespace qsgd
