// What the dispatcher asks of an instruction set: plain functions over ranges, so that threads, memory and
// the C ABI live once, in code compiled for any processor. Files compiled for one instruction set use no
// std:: templates, which the linker would merge across instruction sets.
#pragma once

#include "elias.h"
#include "rans_tables.h"

namespace qsgd {

constexpr uint64_t kBlock = 2560;  // elements worked on at a time: 5 packed units, 32 ternary units
constexpr uint64_t kAhead =
    4 * kBlock;  // elements that are fetched into the second-level cache before their turn
constexpr uint64_t kLargeBucket =
    1 << 16;                           // from here on scales are found in a pass of their own, in parallel
constexpr uint64_t kNormChunk = 1024;  // buckets a partial sum of the squared norm

constexpr uint64_t kSpan =
    16 * kSharing;  // elements that use the same random words, and here the same inverse

struct EncodeJob {
    qsgd_spec spec;
    Layout at;
    const void* gradient;
    uint8_t* frame;
    bool scales_ready;
};

// A bucket's, or a part's, elements on either side of zero: sums of magnitudes (not finite, one of them, if
// an element is not), and how many are negative.
struct Sides {
    double positive = 0, negative = 0;
    uint64_t negatives = 0;
};

// Some rows of a tensor, each of sixteen elements of one bucket: one of every `stride`.
struct RowSample {
    qsgd_spec spec;
    const void* gradient;
    const float *scales, *weights;  // of buckets, and of their elements in a sum; 0: they do not count
    uint64_t rows, stride;          // all rows there are
};

// Where the encoder of a rans payload finds and leaves what.
struct RansJob {
    const RansEncoder* encoder;
    uint8_t *units, *lengths;  // places in the frame
};

constexpr uint64_t kRansScratchWords = 2 * kStretch / kRansStreams + 32;  // more than a stream can have

// Where the encoder of an Elias payload leaves what.
struct EliasJob {
    uint32_t block;    // elements of one
    uint8_t* lengths;  // of the blocks: a place in the frame
};

struct EliasScratch {
    int16_t* codes;  // of as many elements as are quantized at a time
    uint8_t* block;  // kEliasScratchBytes for a block's string
};

// What was read of a variable-length payload before its codes.
struct CodedPayload {
    const uint8_t* const* stretches;  // where the streams or blocks of each begin
    const uint8_t* lengths;           // of the streams or blocks
    RansDecoder rans;
    uint32_t elias_block;  // elements of one
};

struct FrameView {
    const uint8_t* base;
    Header header;
    Layout at;
    const CodedPayload* coded;
};

struct DecodeJob {
    const FrameView* frames;
    uint32_t frame_count;
    uint8_t dtype;
    bool alike;   // of one codec and width, with the same buckets, multiples of kFewestElements
    bool stream;  // write around the caches
    uint64_t count;
    float factor;
    void* out;
    bool subtract;  // from the float32 that are there
};

// Rows that share a step where frames are summed together: as many as the buckets allow of these two.
constexpr int kFewRows = 4, kManyRows = 32;
constexpr uint64_t kFewestElements = 16 * kFewRows;
constexpr uint64_t kGroup = 4;  // blocks whose steps are found together: one vector division for many buckets
constexpr uint64_t kGroupSteps = kGroup * kBlock / kFewestElements + 16;  // a vector may begin at the last

// What one thread keeps of a frame while it decodes.
struct alignas(64) FrameWork {
    uint64_t sums[8];  // parts of its checksum: set to zero before, to be added up after decode_blocks
    const uint8_t* base;
    float steps[kGroupSteps];  // of the group of blocks at hand
};

// Stretches of variable-length payloads are decoded some units at a time, from the last to the first.
constexpr uint64_t kReadUnits = 8, kReadElements = kReadUnits * kUnit, kReads = kStretch / kReadElements;

// A place in a sparse block of Elias' strings.
struct EliasPlace {
    uint64_t at;        // bits before
    uint64_t nonzeros;  // that come
    uint64_t zeros;     // before the next of them
};

// What a thread knows of the stretch of a frame that it decodes.
struct EliasPosition {
    const uint8_t* block;
    uint64_t number;            // of the block
    EliasPlace places[kReads];  // in blocks that are read in parts
    bool bad;
};

struct ReadPosition {
    RansDecodeStream rans[kRansStreams];
    EliasPosition elias;
};

struct Kernels {
    const char* name;
    // Scales (unless ready) and payload of blocks [first, last); returns the payload's part of the checksum.
    uint64_t (*encode_blocks)(const EncodeJob& job, uint64_t first, uint64_t last);
    // Sum of squares and largest magnitude of sum blocks [first, last), numbered through all buckets.
    void (*sum_blocks)(const EncodeJob& job, uint64_t first, uint64_t last, double* sums, uint32_t* largest);
    // The same blocks' elements on either side of zero.
    void (*sum_sides)(const EncodeJob& job, uint64_t first, uint64_t last, Sides* sides);
    // Pairwise tree over the sums of squares of buckets [first, last).
    double (*bucket_squares)(const EncodeJob& job, uint64_t first, uint64_t last);
    // Weighted sum of f (1 - f), f being the part beyond a whole number of levels, that rows [first, last) of
    // a sample stand for.
    double (*rounding_sum)(const RowSample& sample, uint64_t first, uint64_t last, float levels);
    // Decoded sum of blocks [first, last). Their terms of the frames' checksums are added to the sums in
    // `work`.
    void (*decode_blocks)(const DecodeJob& job, uint64_t first, uint64_t last, FrameWork* work);
    // The codes of some units, each as if it were alone.
    void (*sample_codes)(const EncodeJob& job, const uint64_t* units, uint64_t count, int16_t* codes);
    // Scales (unless ready) and streams of stretches [first, last), with room for the words of a stretch;
    // returns the end of what was written.
    uint8_t* (*encode_rans)(const EncodeJob& job, const RansJob& rans, uint64_t first, uint64_t last,
                            uint16_t* words, uint8_t* out);
    // The same with the blocks of Elias' strings.
    uint8_t* (*encode_elias)(const EncodeJob& job, const EliasJob& elias, uint64_t first, uint64_t last,
                             const EliasScratch& scratch, uint8_t* out);
    // Decoded sum of stretches [first, last), with room for the positions in all frames. Returns the first
    // frame whose payload is wrong, or frame_count.
    uint32_t (*decode_stretches)(const DecodeJob& job, uint64_t first, uint64_t last,
                                 ReadPosition* positions);
    // residual[i] += gradient[i] for i in [first, last).
    void (*add_gradient)(const void* gradient, uint8_t dtype, uint64_t first, uint64_t last, float* residual);
    uint64_t (*checksum)(const uint8_t* words, uint64_t first_word, uint64_t count);
    float (*read_sum)(const float* values, uint64_t n);
};

extern const Kernels kBaselineKernels;
#if defined(__x86_64__) || defined(_M_X64)
#define QSGD_X86 1
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
#endif

}  // namespace qsgd
