/* The C ABI of the CUDA kernels, in a library of its own: what qsgd.h does, for memory that a GPU reaches.
 *
 * The same bytes and the same sums to the last bit. Every buffer is the caller's, in memory that the device
 * can use, and none is used on return: all work is put on `stream` (a cudaStream_t of the current device). No
 * function waits for the device, allocates, or keeps state, and all may be captured into a CUDA graph.
 * `gradient` and `out` are aligned as their elements, everything else at 8 bytes. */
#ifndef HVD_QSGD_QSGD_CUDA_H
#define HVD_QSGD_QSGD_CUDA_H

#include "qsgd.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Numbers that are read when the work is done, not when it is asked for: a graph that is replayed draws fresh
 * ones. */
typedef struct {
    uint64_t seed;
    uint32_t step;
    uint32_t zero;
} qsgd_draw;

/* How a sum ended; in memory of the device, or pinned memory of the host. */
typedef struct {
    int32_t status;     /* qsgd_status: QSGD_OK, or a check of the frames that failed */
    uint32_t bad_frame; /* the first frame at fault */
} qsgd_verdict;

/* QSGD_ABI_VERSION of this library. */
QSGD_API uint32_t qsgd_cuda_abi_version(void);

/* What this thread's last QSGD_CUDA_ERROR was, in CUDA's words. */
QSGD_API const char* qsgd_cuda_error(void);

/* How many bytes of scratch memory encoding needs for *spec. */
QSGD_API int qsgd_cuda_encode_scratch(const qsgd_spec* spec, uint64_t* bytes);

/* qsgd_encode, on the device. The frame's length is what qsgd_frame_bytes says. If `draw` is not null, it is
 * memory of the device from where seed and step are taken instead of *spec. Packed and ternary
 * codecs only. */
QSGD_API int qsgd_cuda_encode(const qsgd_spec* spec, const void* gradient, void* frame, uint64_t capacity,
                              const qsgd_draw* draw, void* scratch, uint64_t scratch_bytes, void* stream);

/* A gradient, and memory for its frame. */
typedef struct {
    const qsgd_spec* spec;
    const void* gradient;
    void* frame;
    uint64_t capacity;
} qsgd_encoding;

/* How many bytes of scratch memory qsgd_cuda_encode_many needs for `count` gradients: their specs tell. */
QSGD_API int qsgd_cuda_encode_many_scratch(const qsgd_encoding* all, uint32_t count, uint64_t* bytes);

/* qsgd_cuda_encode of many gradients: the same frames. The array and what its specs point to, in memory of
 * the host, are read before it returns. A few kernels serve all whose buckets' scales are found on the way
 * (for packed codes buckets of 512, 1024, 2048 or 4096 elements with max norm, or of 512 with l2 norm; for
 * ternary codes of 512, 1024, 2560 or 5120, or of 512) and who need no squared norm; the others take kernels
 * of their own. */
QSGD_API int qsgd_cuda_encode_many(const qsgd_encoding* all, uint32_t count, const qsgd_draw* draw,
                                   void* scratch, uint64_t scratch_bytes, void* stream);

/* A frame whose length only its encoder finds, in two steps: codecs elias-dense, elias-sparse and
 * rans only. First everything but the frame, in scratch memory, and the frame's length, in memory of the
 * device: where several tensors' lengths lie side by side, the host needs one copy to know them all. `draw`
 * as above. */
QSGD_API int qsgd_cuda_encode_begin(const qsgd_spec* spec, const void* gradient, const qsgd_draw* draw,
                                    void* scratch, uint64_t scratch_bytes, uint64_t* frame_bytes,
                                    void* stream);

/* Then the frame, from the same *spec and the scratch memory as it was left. `frame_bytes` is the length that
 * was found, or more for padding, a multiple of 16. A frame that is given less is cut off there: whoever
 * decodes it refuses it. */
QSGD_API int qsgd_cuda_encode_end(const qsgd_spec* spec, void* frame, uint64_t frame_bytes, void* scratch,
                                  uint64_t scratch_bytes, void* stream);

/* How many bytes of scratch memory qsgd_cuda_decode_sum needs for so many frames of codecs packed and
 * ternary. */
QSGD_API int qsgd_cuda_decode_scratch(uint32_t frame_count, uint64_t* bytes);

/* The same if some of them may be of codecs elias-dense, elias-sparse and rans: for frames of `count`
 * elements. */
QSGD_API int qsgd_cuda_decode_scratch_variable(uint64_t count, uint32_t frame_count, uint64_t* bytes);

/* What multiplies a sum, and which step its frames must be of, where the host does not know that. */
typedef struct {
    const float* factor;   /* memory of the device, or null: `factor` by value holds */
    const qsgd_draw* draw; /* the same: its step instead of expected->step */
} qsgd_late;

/* qsgd_decode_sum, on the device, which makes all checks. *verdict tells how it ended; the sum is all NaN
 * unless that is QSGD_OK. Nothing of `out` can be relied on before. `late` may be null. A frame of another
 * codec than packed and ternary is refused (QSGD_BAD_CODEC), but elias-dense, elias-sparse and rans are not
 * where the scratch memory is as much as qsgd_cuda_decode_scratch_variable says. */
QSGD_API int qsgd_cuda_decode_sum(const void* frames, uint64_t bytes, uint32_t frame_count,
                                  const qsgd_expectation* expected, float factor, const qsgd_late* late,
                                  void* out, qsgd_verdict* verdict, void* scratch, uint64_t scratch_bytes,
                                  void* stream);

/* Frames to be added up, and memory for their sum. */
typedef struct {
    const void* frames;
    uint64_t bytes;
    const qsgd_expectation* expected;
    uint32_t frame_count;
    float factor;
    void* out;
    qsgd_verdict* verdict;
} qsgd_summation;

/* How many bytes of scratch memory qsgd_cuda_decode_sum_many needs for `count` sums: the numbers of their
 * frames tell. */
QSGD_API int qsgd_cuda_decode_sum_many_scratch(const qsgd_summation* all, uint32_t count, uint64_t* bytes);

/* qsgd_cuda_decode_sum of many sums, of codecs packed and ternary: the same results, by a few kernels for
 * all. The array and what it expects, in memory of the host, are read before it returns. */
QSGD_API int qsgd_cuda_decode_sum_many(const qsgd_summation* all, uint32_t count, const qsgd_late* late,
                                       void* scratch, uint64_t scratch_bytes, void* stream);

#ifdef __cplusplus
}
#endif
#endif
