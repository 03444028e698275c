// How a rans frame's codes are told apart and with which tables, from a sample of its units
// (docs/wire_format.md, section 11).
#include "cuda/quantize.cuh"
#include "cuda/rans.cuh"
#include "cuda/scan.cuh"

namespace qsgd {
namespace {

constexpr uint32_t kManyThreads = 1024;  // of a block that is alone

// Where a lane's element of row r of a sampled unit is.
__device__ __forceinline__ uint64_t place_of(uint64_t sampled_unit, int r) {
    return kUnit * sampled_unit + static_cast<uint64_t>(r) * kLanes + lane_of_half_warp();
}

// Codes of the sampled units, sums of their magnitudes, and of the columns'.
__global__ void __launch_bounds__(kThreads) sample_units(RansFrame frame) {
    const EncodeJob& job = frame.job;
    const Random random(job.seed(), job.spec.rank, job.spec.tensor, job.step());
    const uint64_t self = thread_of_grid() / kLanes, half_warps = threads_of_grid() / kLanes;
    const bool columns = frame.modes > kColumnClasses;
    for (uint64_t first = self / 2 * 2; first < frame.sampled; first += half_warps) {  // the same in the warp
        const uint64_t k = first + self % 2;
        const bool there = k < frame.sampled;
        const uint64_t unit = there ? rans_sample_unit(frame.units, frame.sampled, k) : frame.units;
        const uint64_t begin = kUnit * unit + lane_of_half_warp();
        ColumnWalk walk(unit, columns ? job.spec.columns : 0);
        uint32_t sum = 0;
        each_code(job, random, unit, [&](int r, int32_t code) {
            const uint32_t magnitude = magnitude_of(code);
            sum += magnitude;
            if (there) frame.codes[place_of(k, r)] = static_cast<int16_t>(code);
            if (!columns || begin + kLanes * static_cast<uint64_t>(r) >= job.spec.count) return;
            atomicAdd(&frame.column_sums[walk.column], magnitude);
            atomicAdd(&frame.column_counts[walk.column], 1u);
            walk.next_row();
        });
        sum = across<kLanes>(sum, Sum());
        if (!there || lane_of_half_warp() != 0) continue;
        frame.sums[k] = sum;
        atomicMax(&frame.state->largest, sum);
    }
}

struct ColumnsShared {
    uint64_t parts[kManyThreads / kWarp], largest;
};

// The columns' bytes and expected magnitudes, by one block.
__global__ void __launch_bounds__(kManyThreads) fit_columns(RansFrame frame) {
    ColumnsShared& shared = *shared_memory<ColumnsShared>();
    uint64_t magnitudes = 0, lengths = 0, all, elements, total;
    for (uint64_t k = threadIdx.x; k < frame.sampled; k += blockDim.x) {
        const uint64_t left = frame.job.spec.count - kUnit * rans_sample_unit(frame.units, frame.sampled, k);
        magnitudes += frame.sums[k], lengths += left < kUnit ? left : kUnit;
    }
    block_scan(magnitudes, shared.parts, all);
    block_scan(lengths, shared.parts, elements);
    const Share mine(frame.job.spec.columns);
    uint64_t sum = 0, largest = 0;
    for (uint64_t c = mine.begin; c < mine.end; ++c) {
        const uint32_t count = frame.column_counts[c];
        const uint64_t mean = rans_column_mean(count ? frame.column_sums[c] : all, count ? count : elements);
        frame.expected[c + 1] = mean;  // for now
        sum += mean;
        largest = Maximum()(largest, mean);
    }
    if (threadIdx.x == 0) shared.largest = 0, frame.expected[0] = 0;
    uint64_t before = block_scan(sum, shared.parts, total);
    atomic_max(&shared.largest, largest);
    __syncthreads();
    for (uint64_t c = mine.begin; c < mine.end; ++c) {
        const uint64_t mean = frame.expected[c + 1];
        frame.column_bytes[c] = rans_column_byte(mean, shared.largest);
        frame.expected[c + 1] = before += mean;
    }
}

constexpr uint32_t kAllClasses = kRansModes * kRansMaxClasses;

// Counts a half-warp's sampled unit in its classes of a mode; the second time in those that have a shift.
__device__ __forceinline__ void count_unit(const RansFrame& frame, const RansChoice& choice, uint64_t k,
                                           bool second, RansCounts* counts) {
    const uint64_t unit = rans_sample_unit(frame.units, frame.sampled, k);
    const uint32_t byte = choose_unit_byte(choice, frame.sums[k], unit, frame.job.spec.count);
    if (byte == 0) return;
    ColumnWalk walk(unit, choice.columns);
    for (int r = 0; r < kRows; ++r, walk.next_row()) {
        const uint32_t column = choice.columns ? choice.column_of[walk.column] : 7;
        RansCounts& mine = counts[rans_class(byte, column, kRansMaxClasses)];
        if (second && mine.shift == 0) continue;
        const int32_t code = frame.codes[place_of(k, r)];
        const uint32_t as = rans_counted_as(code, mine.shift);
        atomicAdd(&mine.of[as], 1u);
        if (!second && as > kRansTop) atomic_add(&mine.beyond, magnitude_of(code));
    }
}

__global__ void __launch_bounds__(kThreads, 1) count_sample(RansFrame frame, bool second) {
    RansCounts* const counts = shared_memory<RansCounts>();
    const uint32_t classes = frame.modes * kRansMaxClasses;
    for (uint32_t c = threadIdx.x; c < classes; c += kThreads) {
        counts[c] = {};
        if (second) counts[c].shift = choose_rans_shift(frame.state->counts[0][c]);
    }
    __syncthreads();
    for (uint64_t k = thread_of_grid() / kLanes; k < frame.sampled; k += threads_of_grid() / kLanes)
        for (uint32_t mode = 0; mode < frame.modes; ++mode)
            count_unit(frame, frame.choice(static_cast<RansMode>(mode), kRansMaxClasses), k, second,
                       counts + mode * kRansMaxClasses);
    __syncthreads();
    RansCounts* const all = frame.state->counts[second];
    constexpr uint32_t kNumbers = kRansTop + 2;
    for (uint32_t k = threadIdx.x; k < classes * kNumbers; k += kThreads) {
        const uint32_t count = counts[k / kNumbers].of[k % kNumbers];
        if (count) atomicAdd(&all[k / kNumbers].of[k % kNumbers], count);
    }
    for (uint32_t c = threadIdx.x; c < classes; c += kThreads)
        if (counts[c].beyond) atomic_add(&all[c].beyond, counts[c].beyond);
}

struct ModelShared {
    RansCounts counts[kAllClasses];
    RansTable tables[kAllClasses];
    uint64_t costs[kRansModes];
};

// The tables of a mode, a lane for each class; returns how many there are.
__device__ __forceinline__ uint32_t fit(const RansFrame& frame, uint32_t mode, ModelShared& shared) {
    const uint32_t c = threadIdx.x % kWarp, first = mode * kRansMaxClasses;
    RansCounts& mine = shared.counts[first + c];
    mine = frame.state->counts[0][first + c];
    mine.shift = choose_rans_shift(mine);
    if (mine.shift)
        for (int m = 0; m <= kRansTop + 1; ++m) mine.of[m] = frame.state->counts[1][first + c].of[m];
    __syncwarp();  // other lanes' counts are read; a ballot orders no memory
    const uint32_t seen = __ballot_sync(kAllLanes, rans_counted(mine) > 0), classes = rans_classes(seen);
    RansTable& table = shared.tables[first + c];
    uint64_t cost = 0, bytes = 0;
    if (c < classes) {
        const uint32_t like = rans_class_like(c, seen, frame.complete());
        choose_rans_table(shared.counts[first + like], frame.job.spec.levels, frame.complete(), table);
        cost = rans_cost(mine, table), bytes = rans_table_bytes(table);
    }
    bytes = rans_head_bytes(static_cast<RansMode>(mode), across<kWarp>(bytes, Sum()), frame.job.spec.count,
                            frame.job.spec.columns);
    cost = across<kWarp>(cost, Sum()) + rans_head_cost(bytes, frame.units, frame.sampled);
    if (c == 0) shared.costs[mode] = cost;
    return classes;
}

// The head of the payload, and what the encoder looks up: by the warp of the chosen mode.
__device__ __forceinline__ void put_model(const RansFrame& frame, RansMode mode, uint32_t classes,
                                          const RansTable* tables) {
    const uint32_t c = threadIdx.x % kWarp, columns = mode == kColumnClasses ? frame.job.spec.columns : 0;
    uint8_t* const payload = frame.job.frame + frame.job.at.payload;
    uint64_t before = kRansHead;
    for (uint32_t k = 0; k < c && k < classes; ++k) before += rans_table_bytes(tables[k]);
    if (c < classes) {
        write_rans_table(tables[c], payload + before);
        fill_class(frame.state->encoder, c, tables[c]);
    }
    const uint64_t tables_end = before + (c + 1 == classes ? rans_table_bytes(tables[c]) : 0);
    const uint64_t head = rans_head_bytes(mode, __shfl_sync(kAllLanes, tables_end, classes - 1) - kRansHead,
                                          frame.job.spec.count, columns);
    for (uint32_t k = c; k < columns; k += kWarp) payload[head - columns + k] = frame.column_bytes[k];
    if (c != 0) return;
    payload[0] = mode, payload[1] = static_cast<uint8_t>(classes);
    memcpy(payload + 4, &columns, sizeof columns);
    RansState& state = *frame.state;
    state.encoder.choice = frame.choice(mode, classes);
    state.lengths = frame.job.at.payload + head;
    state.units = state.lengths - columns - (mode == kOneClass ? 0 : ceil_div(frame.units, 2));
    state.streams = state.lengths + 4 * frame.streams;
}

// A warp for each mode.
__global__ void __launch_bounds__(kRansModes* kWarp) choose_model(RansFrame frame) {
    ModelShared& shared = *shared_memory<ModelShared>();
    const uint32_t mode = threadIdx.x / kWarp;
    const uint32_t classes = fit(frame, mode, shared);
    __syncthreads();
    const RansMode chosen = choose_rans_mode(shared.costs, frame.modes);
    if (mode == chosen) put_model(frame, chosen, classes, shared.tables + mode * kRansMaxClasses);
}

}  // namespace

cudaError_t choose_rans_model(const RansFrame& frame, void* stream) {
    const uint32_t blocks = blocks_for(ceil_div(frame.sampled, kThreads / kLanes));
    const Launch counting = {blocks, kThreads, sizeof(RansCounts) * kAllClasses, stream};
    cudaError_t error = launch(sample_units, {blocks, kThreads, 0, stream}, frame);
    if (!error && frame.modes > kColumnClasses)
        error = launch(fit_columns, {1, kManyThreads, sizeof(ColumnsShared), stream}, frame);
    if (!error) error = launch(count_sample, counting, frame, false);
    if (!error) error = launch(count_sample, counting, frame, true);
    return error ? error : launch(choose_model, {1, kRansModes * kWarp, sizeof(ModelShared), stream}, frame);
}

}  // namespace qsgd
