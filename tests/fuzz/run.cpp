// A small coverage-guided fuzzer for compilers without libFuzzer: run [executions] [seed]. It mutates frames
// of every codec and keeps inputs that reach branches that none reached before (GCC:
// -fsanitize-coverage=trace-pc).
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>

#include <chrono>
#include <random>
#include <vector>

#include "frame.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

using Input = std::vector<uint8_t>;

constexpr size_t kEdges = 1 << 16, kMostBytes = 6000;
bool seen[kEdges], new_code;
uintptr_t previous;

std::mt19937_64 random_words;
uint64_t below(uint64_t n) { return n ? random_words() % n : 0; }

const Input* current;
// What the sanitizer's report does not tell: the input.
void save_input() {
    if (!current) return;
    FILE* const file = fopen("crash.bin", "wb");
    if (!file) return;
    fwrite(current->data(), 1, current->size(), file);
    fclose(file);
    fprintf(stderr, "the input is in crash.bin\n");
}

bool runs_new_code(const Input& input) {
    new_code = false;
    current = &input;
    LLVMFuzzerTestOneInput(input.data(), input.size());
    current = nullptr;
    return new_code;
}

Input seed_of(uint8_t codec, uint32_t levels, uint64_t count, uint64_t bucket, uint32_t columns,
              uint8_t dtype) {
    qsgd_spec spec = {};
    spec.count = count, spec.bucket_size = bucket, spec.levels = levels, spec.codec = codec,
    spec.dtype = dtype;
    spec.norm = codec == QSGD_CODEC_ONEBIT ? QSGD_NORM_NONE : QSGD_NORM_MAX;
    spec.columns = columns, spec.seed = count;
    std::vector<float> values(count + 1);
    for (float& value : values) {
        const double x = static_cast<double>(below(1u << 24)) / (1 << 23) - 1;
        value = static_cast<float>(below(3) ? 0 : x * x * x);
    }
    std::vector<uint16_t> halves(count + 1, 0x3C00);
    uint64_t bytes = 0;
    if (qsgd_frame_bytes(&spec, &bytes) != QSGD_OK) abort();
    Input frame(bytes + 1);
    const void* const gradient = dtype == QSGD_FLOAT32 ? static_cast<void*>(values.data()) : halves.data();
    if (qsgd_encode(&spec, gradient, frame.data() + 1, bytes, 1, &bytes) != QSGD_OK) abort();
    frame.resize(bytes + 1);
    frame[0] = 1;
    return frame;
}

std::vector<Input> seeds() {
    std::vector<Input> all;
    for (uint8_t codec = 1; qsgd::is_codec(codec) || codec < 16; ++codec) {
        if (!qsgd::is_codec(codec)) continue;
        for (const uint32_t levels : {1u, 7u, 127u, 32767u}) {
            if (levels > qsgd::max_levels(codec)) continue;
            for (const uint64_t count : {0, 1, 17, 300, 700, 1500})
                all.push_back(seed_of(codec, levels, count, count % 2 ? 512 : 64, 0, QSGD_FLOAT32));
            all.push_back(seed_of(codec, levels, 1280, 2000, 20, QSGD_BFLOAT16));
            all.push_back(seed_of(codec, levels, 1280, 2000, 20, QSGD_FLOAT32));
        }
    }
    qsgd_spec spec = {};
    spec.dtype = QSGD_FLOAT32;
    Input error(1 + QSGD_MAX_ERROR_FRAME);
    uint64_t bytes = 0;
    qsgd_error_frame(&spec, "out of memory", error.data() + 1, QSGD_MAX_ERROR_FRAME, &bytes);
    error.resize(1 + bytes);
    all.push_back(error);
    return all;
}

void set_word(Input& input) {
    constexpr uint64_t kWords[] = {0,   1,   2,   7,     15,         16,         31,         32,   255,
                                   511, 512, 513, 65535, 1ull << 31, 1ull << 32, 1ull << 48, ~0ull};
    const size_t width = size_t{1} << below(4);
    if (input.size() < width) return;
    uint64_t word = below(2) ? kWords[below(sizeof kWords / sizeof *kWords)] : random_words();
    word += below(4) ? 0 : below(33) - 16;
    memcpy(input.data() + below(input.size() - width + 1), &word, width);
}

// In the header, and where the payload begins, one step of which decides more than all the rest.
void change_front(Input& input) {
    const size_t front = input.size() < 160 ? input.size() : 160;
    input[below(front)] = static_cast<uint8_t>(random_words());
}

Input mutated(const std::vector<Input>& corpus) {
    Input input = corpus[below(corpus.size())];
    for (uint64_t steps = 1 + below(5); steps > 0 && !input.empty(); --steps) {
        switch (below(7)) {
            case 0:
                input[below(input.size())] ^= static_cast<uint8_t>(1u << below(8));
                break;
            case 1:
                set_word(input);
                break;
            case 2:
                change_front(input);
                break;
            case 3:
                input.resize(below(4) ? input.size() : below(input.size()) + 1);
                break;
            case 4: {
                const Input& other = corpus[below(corpus.size())];
                const size_t at = below(input.size()), length = below(64);
                for (size_t k = 0; k < length && at + k < input.size() && at + k < other.size(); ++k)
                    input[at + k] = other[at + k];
                break;
            }
            case 5:
                for (size_t k = below(input.size()), end = k + below(32); k < end && k < input.size(); ++k)
                    input[k] = static_cast<uint8_t>(random_words());
                break;
            default:
                if (input.size() < kMostBytes) input.insert(input.end(), 16 * below(9), 0);
        }
    }
    if (!input.empty())
        input[0] = static_cast<uint8_t>(below(8) | (below(8) != 0));  // a right checksum, mostly
    return input;
}

}  // namespace

extern "C" void __sanitizer_cov_trace_pc() {
    const auto here = reinterpret_cast<uintptr_t>(__builtin_return_address(0));
    bool& edge = seen[(here ^ previous >> 1) % kEdges];
    if (!edge) edge = new_code = true;
    previous = here;
}
extern "C" void __sanitizer_set_death_callback(void (*callback)(void)) __attribute__((weak));

int main(int argc, char** argv) {
    const uint64_t executions = argc > 1 ? strtoull(argv[1], nullptr, 10) : 1000000;
    const uint64_t seed = argc > 2 ? strtoull(argv[2], nullptr, 10) : 1;
    random_words.seed(seed);
    if (__sanitizer_set_death_callback) __sanitizer_set_death_callback(save_input);
    signal(SIGPROF, [](int) {
        fprintf(stderr, "1024 executions take longer than a minute\n");
        save_input();
        abort();
    });
    const itimerval a_minute = {{0, 0}, {60, 0}};
    std::vector<Input> corpus = seeds();
    for (const Input& input : corpus) runs_new_code(input);
    const auto start = std::chrono::steady_clock::now();
    for (uint64_t k = 1; k <= executions; ++k) {
        if (k % 1024 == 1) setitimer(ITIMER_PROF, &a_minute, nullptr);  // of processor time
        Input input = mutated(corpus);
        if (runs_new_code(input) && corpus.size() < 20000) corpus.push_back(std::move(input));
        if (k % 1000000 != 0 && k != executions) continue;
        const double seconds =
            std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
        printf("%s, seed %llu: %llu executions, %zu inputs kept, %.0f a second, nothing found\n", qsgd_isa(),
               static_cast<unsigned long long>(seed), static_cast<unsigned long long>(k), corpus.size(),
               static_cast<double>(k) / seconds);
        fflush(stdout);
    }
    return 0;
}
