/* The whole C ABI of the kernels: what Python calls through ctypes and TensorFlow ops call directly.
 *
 * Frames are specified in docs/wire_format.md. The caller owns every buffer; any alignment is accepted. No
 * function exits, throws, prints or keeps state; every failure is a status. All are safe to call from several
 * threads at once. */
#ifndef HVD_QSGD_QSGD_H
#define HVD_QSGD_QSGD_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define QSGD_ABI_VERSION 5
#define QSGD_API __attribute__((visibility("default")))

typedef enum {
    QSGD_OK = 0,
    /* What the caller asked for. */
    QSGD_BAD_ARGUMENT = 1,    /* a null pointer, or a field of qsgd_spec out of range */
    QSGD_FRAME_TOO_SMALL = 2, /* the buffer given to qsgd_encode or qsgd_pad is too small */
    QSGD_OUT_OF_MEMORY = 3,   /* scratch memory or threads could not be had */
    QSGD_CUDA_ERROR = 4,      /* a CUDA call failed: qsgd_cuda_error tells which way */
    /* A frame that is not valid by itself, in the order of the checks. */
    QSGD_TRUNCATED = 10,
    QSGD_BAD_MAGIC = 11,
    QSGD_BAD_VERSION = 12,
    QSGD_BAD_CODEC = 13,
    QSGD_BAD_NORM = 14,
    QSGD_BAD_DTYPE = 15,
    QSGD_BAD_RESERVED = 16, /* a reserved bit or byte is set */
    QSGD_BAD_COUNT = 17,
    QSGD_BAD_BUCKET_SIZE = 18,
    QSGD_BAD_LEVELS = 19,
    QSGD_BAD_LENGTH = 20,  /* coded_bytes or frame_bytes is not what the other fields give */
    QSGD_BAD_PAYLOAD = 23, /* the payload of a variable-length codec is none that an encoder writes */
    QSGD_BAD_SCALE = 22,   /* a scale is negative, infinite or another NaN than the canonical one */
    QSGD_ERROR_FRAME = 21, /* valid: the rank could not encode and sent a message instead */
    /* A valid frame that does not belong in this sum. */
    QSGD_OTHER_COUNT = 30,
    QSGD_OTHER_DTYPE = 31,
    QSGD_OTHER_TENSOR = 32,
    QSGD_OTHER_STEP = 33,
    QSGD_OTHER_RANK = 34,
    QSGD_BAD_CHECKSUM = 35,
    QSGD_TRAILING_BYTES = 36, /* bytes are left after the last frame */
    /* A reduced token that is not right. */
    QSGD_PART_OF_TOKEN = 40,
    QSGD_OTHER_REDUCTION = 41, /* no sum, or not over the ranks that exchange frames */
    QSGD_OTHER_MEANING = 42    /* a rank sent another signature */
} qsgd_status;

enum {
    QSGD_CODEC_ERROR = 0,
    QSGD_CODEC_PACKED = 1,
    QSGD_CODEC_TERNARY = 2,
    QSGD_CODEC_ELIAS_DENSE = 3,
    QSGD_CODEC_ELIAS_SPARSE = 4,
    QSGD_CODEC_RANS = 5,
    QSGD_CODEC_ONEBIT = 6,
    QSGD_CODEC_AUTO = 255 /* of no frame: qsgd_encode_next chooses another */
};
enum { QSGD_NORM_NONE = 0, QSGD_NORM_MAX = 1, QSGD_NORM_L2 = 2 }; /* the first: with onebit alone */
enum { QSGD_FLOAT32 = 1, QSGD_FLOAT16 = 2, QSGD_BFLOAT16 = 3 };
enum { QSGD_FLAG_SQUARED_NORM = 1, QSGD_FLAG_SUBTRACTIVE = 2 }; /* the second: packed and ternary only */
enum { QSGD_HEADER_BYTES = 96, QSGD_MAX_ERROR_FRAME = 96 + 1024, QSGD_TOKEN_LENGTH = 16 };
enum { QSGD_MAX_EXPLANATION = 2048 }; /* a text's room that is always enough */

/* How to encode, and what the header says. */
typedef struct {
    uint64_t count;       /* elements */
    uint64_t bucket_size; /* elements a scale; 1 .. 2^48 */
    uint64_t seed;
    uint32_t levels;
    uint32_t rank;
    uint32_t tensor;
    uint32_t step;
    uint8_t codec;
    uint8_t norm;
    uint8_t dtype;
    uint8_t flags;
    uint32_t columns; /* elements in a row of the tensor, 0 if it has none: what rans makes use of */
} qsgd_spec;

/* What every frame of a sum must say. */
typedef struct {
    uint64_t count;
    uint32_t tensor;
    uint32_t step;
    uint32_t dtype;
    uint32_t first_rank; /* frame k must come from rank first_rank + k */
} qsgd_expectation;

/* QSGD_ABI_VERSION of the library. */
QSGD_API uint32_t qsgd_abi_version(void);

/* The instruction set in use: "avx512", "avx2" or "baseline". Chosen at the first call from the processor and
 * HVD_QSGD_ISA; the bytes are the same for all. */
QSGD_API const char* qsgd_isa(void);

/* What spec.columns is for a tensor of this shape: elements in a row of it, taken as a matrix as square as
 * possible; 0 if it has no rows. It tells rans which elements may belong together: those of a row, those of a
 * column. */
QSGD_API uint32_t qsgd_columns(const uint64_t* shape, uint32_t dimensions);

/* The most bytes of a frame that qsgd_encode writes for *spec; with a fixed-width codec it always has as
 * many. For QSGD_CODEC_AUTO: with any codec. */
QSGD_API int qsgd_frame_bytes(const qsgd_spec* spec, uint64_t* bytes);

/* Encode spec->count elements at `gradient` into one frame at `frame`, which has room for `capacity` bytes
 * (at least qsgd_frame_bytes(spec)), on at most `threads` threads (0 counts as 1). *bytes becomes the frame's
 * length. */
QSGD_API int qsgd_encode(const qsgd_spec* spec, const void* gradient, void* frame, uint64_t capacity,
                         uint32_t threads, uint64_t* bytes);

/* The least levels, up to spec->levels, at which quantizing `gradient` brings a relative variance
 * E||Q(v)-v||^2 / ||v||^2 of no more than `variance` (positive and finite), to about 1 % of it: *levels
 * becomes spec->levels if more would be needed. Buckets with a NaN or an infinity do not count; of a gradient
 * of zeros 1 level is enough. Not for QSGD_CODEC_ONEBIT, which has one. It reads all of the gradient once for
 * the l2 norm and twice for the max norm, and then a sample, which is as large as the gradient asks for. */
QSGD_API int qsgd_solve_levels(const qsgd_spec* spec, const void* gradient, double variance, uint32_t threads,
                               uint32_t* levels);

/* What is remembered of a tensor from one frame to the next; zeros at first. */
typedef struct {
    uint64_t frame_bytes; /* of the last one */
    uint32_t frames;      /* so far, since the codec is chosen */
    uint32_t levels;      /* when codecs were last compared */
    uint8_t codec;        /* of the last one */
    uint8_t zero[7];
} qsgd_history;

/* The tensor's next frame: qsgd_encode with the levels that `variance` asks for (qsgd_solve_levels; 0: with
 * spec->levels), padded so that lengths stay put. QSGD_CODEC_AUTO is the codec that made the shortest frame
 * when all that know as many levels were last compared: at frames 0, 1, 2, 4, 8, ... 1024, 2048, 3072, ...
 * and when the levels have more than doubled or halved. Another codec must then save a sixteenth. */
QSGD_API int qsgd_encode_next(const qsgd_spec* spec, double variance, qsgd_history* history,
                              const void* gradient, void* frame, uint64_t capacity, uint32_t threads,
                              uint64_t* bytes);

/* Make the frame at `frame` `bytes` long, a multiple of 16, by more or less padding. */
QSGD_API int qsgd_pad(void* frame, uint64_t capacity, uint64_t bytes);

/* How long to make a frame that needs `bytes`, the tensor's last one having been `last` long (0: there was
 * none): as long as that, if it does, so that sizes stay put from step to step. */
QSGD_API uint64_t qsgd_padded_bytes(uint64_t bytes, uint64_t last);

/* out[i] = factor * (sum over frames, in order, of the decoded values). `frames` holds `frame_count` frames
 * one after the other, `bytes` in all; `out` has room for expected->count elements of expected->dtype. On
 * failure `out` is unspecified and *bad_frame is the index of the first frame at fault. */
QSGD_API int qsgd_decode_sum(const void* frames, uint64_t bytes, uint32_t frame_count,
                             const qsgd_expectation* expected, float factor, void* out, uint32_t threads,
                             uint32_t* bad_frame);

/* Error feedback. residual[i] += gradient[i], rounded to float32: what is to be encoded, as float32, in place
 * of the gradient of `dtype`. */
QSGD_API int qsgd_add_gradient(const void* gradient, uint32_t dtype, uint64_t count, float* residual,
                               uint32_t threads);

/* Error feedback. residual[i] -= the decoded value of the single frame at `frame`, which was encoded from it:
 * what is left for the next step. Where that is not finite it becomes 0. `residual` has expected->count
 * elements, whatever the frame's dtype; it is unspecified on failure. */
QSGD_API int qsgd_subtract_frame(const void* frame, uint64_t bytes, const qsgd_expectation* expected,
                                 float* residual, uint32_t threads);

/* Check the header and checksum of the single frame at `frame`, which may be followed by others. On QSGD_OK
 * or QSGD_ERROR_FRAME *frame_bytes is its length. */
QSGD_API int qsgd_check(const void* frame, uint64_t bytes, uint64_t* frame_bytes);

/* Set the checksum of the complete frame at `frame` (for frames written by hand: error frames, tests). */
QSGD_API int qsgd_seal(void* frame, uint64_t bytes);

/* Write the error frame of a rank that could not encode to `frame`, which has room for `capacity` bytes
 * (QSGD_MAX_ERROR_FRAME are enough), and its length to *bytes. `message` is UTF-8; it is cut if it is too
 * long. Of *spec only count, dtype, rank, tensor and step are used. */
QSGD_API int qsgd_error_frame(const qsgd_spec* spec, const char* message, void* frame, uint64_t capacity,
                              uint64_t* bytes);

/* What a status means: words that follow "the frame", or a sentence of their own below QSGD_TRUNCATED. */
QSGD_API const char* qsgd_status_text(int status);

/* What went wrong in qsgd_decode_sum, which was given these arguments and returned `status` and `bad_frame`:
 * a sentence for people, in `text`. `what` names the tensor. */
QSGD_API void qsgd_explain(int status, const void* frames, uint64_t bytes, uint32_t bad_frame,
                           const qsgd_expectation* expected, const char* what, char* text, uint64_t capacity);

/* The token: QSGD_TOKEN_LENGTH numbers that Horovod reduces in place of a gradient. Entry 0 is 1 on the first
 * rank and 0 elsewhere: a sum or an average of it is exactly the factor that Horovod would have applied to
 * the gradient (1 for Sum, 1/N for Average, with all pre- and postscale factors). Entry 1 is 1 everywhere: it
 * becomes N times the factor, unless the reduction is another one or other ranks take part. The remaining
 * entries are bits of a signature: each must come back as 0 or N times the factor, unless ranks differ. */

/* A few bits that differ, most likely, wherever an argument differs. */
QSGD_API uint32_t qsgd_signature(const char* operation, uint32_t tensor, uint64_t count, uint32_t dtype);

/* The entries that `rank` sends. */
QSGD_API void qsgd_token(uint32_t rank, uint32_t signature, float* token);

/* The factor of a token that came back with `length` entries from a reduction over `size` ranks. */
QSGD_API int qsgd_token_factor(const float* reduced, uint64_t length, uint32_t size, uint32_t signature,
                               float* factor);

/* What qsgd_token_factor, given these arguments, found wrong: a sentence for people, in `text`. */
QSGD_API void qsgd_explain_token(int status, uint64_t length, uint32_t size, const char* what, char* text,
                                 uint64_t capacity);

/* For benchmarks: the floor of a read-only pass, the sum of n float32 on one thread. */
QSGD_API float qsgd_read_sum(const float* values, uint64_t n);

#ifdef __cplusplus
}
#endif
#endif
