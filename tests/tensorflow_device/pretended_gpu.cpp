// A GPU for TensorFlow that is pretended: a pluggable device of type GPU in the host's memory, and the CUDA
// kernels as tests/cuda_emulation/ runs them. Its memory cannot be touched but by its copies and by the
// kernels, so that an op that reads what lies on the device crashes as it would on a real one. What is
// enqueued is done in that order, whatever the stream, but not before somebody asks whether it is.
#include <dlfcn.h>
#include <fenv.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <mutex>

#include "qsgd_cuda.h"
#include "tensorflow/c/experimental/stream_executor/stream_executor.h"

struct SP_Stream_st {};
struct SP_Event_st {};
struct SP_Timer_st {};

namespace {

constexpr uint64_t kMemory = uint64_t{1} << 28;

// The device's memory, of which TensorFlow's own allocator takes large parts, and gives none back.
class Memory {
  public:
    Memory()
        : base_(static_cast<uint8_t*>(
              mmap(nullptr, kMemory, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0))) {}

    void* take(uint64_t size) {
        const uint64_t begin = used_.fetch_add((size + 255) / 256 * 256);
        return base_ != MAP_FAILED && begin + size <= kMemory ? base_ + begin : nullptr;
    }

    void open() {
        mutex_.lock();
        mprotect(base_, kMemory, PROT_READ | PROT_WRITE);
    }

    void close() {
        mprotect(base_, kMemory, PROT_NONE);
        mutex_.unlock();
    }

  private:
    std::mutex mutex_;
    uint8_t* const base_;
    std::atomic<uint64_t> used_ = 0;
};

Memory memory;

// The device at work. It knows nothing of how this thread rounds: TensorFlow's take subnormal numbers for 0.
struct Working {
    Working() {
        memory.open();
        fegetenv(&rounding_);
        fesetenv(FE_DFL_ENV);
    }
    ~Working() {
        fesetenv(&rounding_);
        memory.close();
    }

  private:
    fenv_t rounding_;
};

// What is enqueued and not done.
class Queue {
  public:
    void put(std::function<void()> work) {
        const std::lock_guard<std::mutex> lock(mutex_);
        waiting_.push_back(std::move(work));
    }

    void finish() {
        const std::lock_guard<std::recursive_mutex> alone(working_);
        while (auto work = next()) work();
    }

  private:
    std::function<void()> next() {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (waiting_.empty()) return nullptr;
        const auto work = std::move(waiting_.front());
        waiting_.pop_front();
        return work;
    }

    std::mutex mutex_;
    std::recursive_mutex working_;  // what the host is called back for may wait, too
    std::deque<std::function<void()>> waiting_;
};

Queue& queue = *new Queue;  // which threads of TensorFlow's may need to the very end

// Puts off what the device is to do.
template <class Work>
void enqueue(Work work) {
    queue.put([work] {
        const Working now;
        work();
    });
}

void ok(TF_Status* status) { TF_SetStatus(status, TF_OK, ""); }

void copy(void* to, const void* from, uint64_t size, TF_Status* status) {
    enqueue([=] { memcpy(to, from, size); });
    ok(status);
}

void copy_now(void* to, const void* from, uint64_t size, TF_Status* status) {
    copy(to, from, size, status);
    queue.finish();
}

std::atomic<uint64_t> encodes, decodes, bytes_to_host;

void copy_to_host(void* to, const SP_DeviceMemoryBase* from, uint64_t size, TF_Status* status) {
    bytes_to_host += size;
    copy(to, from->opaque, size, status);
}

void make_executor(const SP_Platform*, SE_CreateStreamExecutorParams* params, TF_Status* status) {
    using Device = const SP_Device*;
    using Stream = SP_Stream;
    using Base = SP_DeviceMemoryBase;
    SP_StreamExecutor& e = *params->stream_executor;
    e.struct_size = SP_STREAMEXECUTOR_STRUCT_SIZE;
    e.allocate = [](Device, uint64_t size, int64_t, Base* at) {
        *at = {SP_DEVICE_MEMORY_BASE_STRUCT_SIZE, nullptr, memory.take(size), size, 0};
    };
    e.deallocate = [](Device, Base*) {};
    e.host_memory_allocate = [](Device, uint64_t size) {
        return aligned_alloc(256, (size + 255) / 256 * 256);
    };
    e.host_memory_deallocate = [](Device, void* at) { free(at); };
    e.get_allocator_stats = [](Device, SP_AllocatorStats*) -> TF_Bool { return false; };
    e.device_memory_usage = [](Device, int64_t* left, int64_t* total) -> TF_Bool {
        *left = *total = kMemory;
        return true;
    };
    e.create_stream = [](Device, Stream* stream, TF_Status* s) { *stream = new SP_Stream_st, ok(s); };
    e.destroy_stream = [](Device, Stream stream) { delete stream; };
    e.create_stream_dependency = [](Device, Stream, Stream, TF_Status* s) { ok(s); };
    e.get_stream_status = [](Device, Stream, TF_Status* s) { ok(s); };
    e.create_event = [](Device, SP_Event* event, TF_Status* s) { *event = new SP_Event_st, ok(s); };
    e.destroy_event = [](Device, SP_Event event) { delete event; };
    e.get_event_status = [](Device, SP_Event) {
        queue.finish();
        return SE_EVENT_COMPLETE;
    };
    e.record_event = [](Device, Stream, SP_Event, TF_Status* s) { ok(s); };
    e.wait_for_event = [](Device, Stream, SP_Event, TF_Status* s) { ok(s); };
    e.create_timer = [](Device, SP_Timer* timer, TF_Status* s) { *timer = new SP_Timer_st, ok(s); };
    e.destroy_timer = [](Device, SP_Timer timer) { delete timer; };
    e.start_timer = [](Device, Stream, SP_Timer, TF_Status* s) { ok(s); };
    e.stop_timer = [](Device, Stream, SP_Timer, TF_Status* s) { ok(s); };
    e.memcpy_dtoh = [](Device, Stream, void* to, const Base* from, uint64_t size, TF_Status* s) {
        copy_to_host(to, from, size, s);
    };
    e.memcpy_htod = [](Device, Stream, Base* to, const void* from, uint64_t size, TF_Status* s) {
        copy(to->opaque, from, size, s);
    };
    e.memcpy_dtod = [](Device, Stream, Base* to, const Base* from, uint64_t size, TF_Status* s) {
        copy(to->opaque, from->opaque, size, s);
    };
    e.sync_memcpy_dtoh = [](Device, void* to, const Base* from, uint64_t size, TF_Status* s) {
        copy_to_host(to, from, size, s);
        queue.finish();
    };
    e.sync_memcpy_htod = [](Device, Base* to, const void* from, uint64_t size, TF_Status* s) {
        copy_now(to->opaque, from, size, s);
    };
    e.sync_memcpy_dtod = [](Device, Base* to, const Base* from, uint64_t size, TF_Status* s) {
        copy_now(to->opaque, from->opaque, size, s);
    };
    e.block_host_for_event = [](Device, SP_Event, TF_Status* s) { queue.finish(), ok(s); };
    e.block_host_until_done = [](Device, Stream, TF_Status* s) { queue.finish(), ok(s); };
    e.synchronize_all_activity = [](Device, TF_Status* s) { queue.finish(), ok(s); };
    e.mem_zero = [](Device, Stream, Base* at, uint64_t size, TF_Status* s) {
        enqueue([to = at->opaque, size] { memset(to, 0, size); }), ok(s);
    };
    e.memset = [](Device, Stream, Base* at, uint8_t value, uint64_t size, TF_Status* s) {
        enqueue([to = at->opaque, value, size] { memset(to, value, size); }), ok(s);
    };
    e.memset32 = [](Device, Stream, Base* at, uint32_t value, uint64_t size, TF_Status* s) {
        auto* const to = static_cast<uint32_t*>(at->opaque);
        enqueue([=] { std::fill_n(to, size / 4, value); }), ok(s);
    };
    e.host_callback = [](Device, Stream, SE_StatusCallbackFn function, void* argument) -> TF_Bool {
        queue.put([=] {
            TF_Status* const ended = TF_NewStatus();
            function(argument, ended);
            TF_DeleteStatus(ended);
        });
        return true;
    };
    ok(status);
}

// Puts off a kernel's call, whose arguments must be right.
template <class Call>
int put_off(Call call) {
    enqueue([call] {
        if (call() != QSGD_OK) abort();
    });
    return QSGD_OK;
}

// The emulated library's function of that name, which this one's stands in front of.
template <class Function>
Function* emulated(const char* name, Function*) {
    return reinterpret_cast<Function*>(dlsym(RTLD_NEXT, name));
}

}  // namespace

#define EXPORTED extern "C" __attribute__((visibility("default")))

EXPORTED void SE_InitPlugin(SE_PlatformRegistrationParams* params, TF_Status* status) {
    using Platform = const SP_Platform*;
    *params->platform = {SP_PLATFORM_STRUCT_SIZE, nullptr, "PRETENDED", "GPU", false, true, true};
    SP_PlatformFns& f = *params->platform_fns;
    f.struct_size = SP_PLATFORM_FNS_STRUCT_SIZE;
    f.get_device_count = [](Platform, int* count, TF_Status* s) { *count = 1, ok(s); };
    f.create_device = [](Platform, SE_CreateDeviceParams* p, TF_Status* s) {
        p->device->struct_size = SP_DEVICE_STRUCT_SIZE;
        p->device->ordinal = p->ordinal;
        ok(s);
    };
    f.destroy_device = [](Platform, SP_Device*) {};
    f.create_device_fns = [](Platform, SE_CreateDeviceFnsParams* p, TF_Status* s) {
        p->device_fns->struct_size = SP_DEVICE_FNS_STRUCT_SIZE;
        ok(s);
    };
    f.destroy_device_fns = [](Platform, SP_DeviceFns*) {};
    f.create_stream_executor = make_executor;
    f.destroy_stream_executor = [](Platform, SP_StreamExecutor*) {};
    f.create_timer_fns = [](Platform, SP_TimerFns* timer, TF_Status* s) {
        *timer = {SP_TIMER_FNS_STRUCT_SIZE, nullptr, [](SP_Timer) { return uint64_t{0}; }};
        ok(s);
    };
    f.destroy_timer_fns = [](Platform, SP_TimerFns*) {};
    params->destroy_platform = [](SP_Platform*) {};
    params->destroy_platform_fns = [](SP_PlatformFns*) {};
    ok(status);
}

EXPORTED int qsgd_cuda_encode(const qsgd_spec* spec, const void* gradient, void* frame, uint64_t capacity,
                              const qsgd_draw* draw, void* scratch, uint64_t scratch_bytes, void* stream) {
    static const auto encode = emulated("qsgd_cuda_encode", qsgd_cuda_encode);
    ++encodes;
    return put_off([=, spec = *spec] {
        return encode(&spec, gradient, frame, capacity, draw, scratch, scratch_bytes, stream);
    });
}

EXPORTED int qsgd_cuda_encode_begin(const qsgd_spec* spec, const void* gradient, const qsgd_draw* draw,
                                    void* scratch, uint64_t scratch_bytes, uint64_t* frame_bytes,
                                    void* stream) {
    static const auto begin = emulated("qsgd_cuda_encode_begin", qsgd_cuda_encode_begin);
    return put_off([=, spec = *spec] {
        return begin(&spec, gradient, draw, scratch, scratch_bytes, frame_bytes, stream);
    });
}

EXPORTED int qsgd_cuda_encode_end(const qsgd_spec* spec, void* frame, uint64_t frame_bytes, void* scratch,
                                  uint64_t scratch_bytes, void* stream) {
    static const auto end = emulated("qsgd_cuda_encode_end", qsgd_cuda_encode_end);
    ++encodes;
    return put_off(
        [=, spec = *spec] { return end(&spec, frame, frame_bytes, scratch, scratch_bytes, stream); });
}

EXPORTED int qsgd_cuda_decode_sum(const void* frames, uint64_t bytes, uint32_t frame_count,
                                  const qsgd_expectation* expected, float factor, const qsgd_late* late,
                                  void* out, qsgd_verdict* verdict, void* scratch, uint64_t scratch_bytes,
                                  void* stream) {
    static const auto decode_sum = emulated("qsgd_cuda_decode_sum", qsgd_cuda_decode_sum);
    ++decodes;
    return put_off([=, expected = *expected] {
        return decode_sum(frames, bytes, frame_count, &expected, factor, late, out, verdict, scratch,
                          scratch_bytes, stream);
    });
}

// How many frames and sums were made since this was asked last, and how many bytes were copied to the host.
EXPORTED void pretended_gpu_calls(uint64_t counts[3]) {
    counts[0] = encodes.exchange(0);
    counts[1] = decodes.exchange(0);
    counts[2] = bytes_to_host.exchange(0);
}
