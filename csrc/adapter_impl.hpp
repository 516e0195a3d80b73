// Shrinking and expanding products of adapters on lanes. Included by csrc/isa/<isa>/adapter.cpp and nowhere else.
//
// Blocks of entries and ranks (or panels) only decide how often a weight is loaded: every sum has one order whatever its
// block, so results depend neither on how many rows use an adapter nor on the instruction set.
#pragma once

#include "kernel_table.hpp"
#include "lanes.hpp"

namespace headrace::HEADRACE_ISA {

#if defined(HEADRACE_LANES_512)
inline constexpr int kMostRows = 4, kSums = 16;  // 32 registers
#else
inline constexpr int kMostRows = 2, kSums = 4;  // a value takes two of 16 registers
#endif

// A single row is bound by memory, which is fastest when few places are read at once; two hide the latency of a sum.
inline constexpr int kStreams = 2;

inline constexpr std::size_t kLine = 32;  // values of a cache line

// Adapters are read once and from many places: the hardware's own prefetching starts anew at each of them and is late. Into
// the second cache: aiming at the first was measured at half the speed, since few of its misses can be on their way at once.
HEADRACE_INLINE void fetch(const std::uint16_t* line) { __builtin_prefetch(line, 0, 2); }

template <int rows, int ranks>
HEADRACE_INLINE void shrink_block(const AdapterShrink& task, int entry, int rank) {
    F16 sums[rows][ranks];
    const float* x[rows];
    for (int r = 0; r < rows; ++r) {
        x[r] = task.x + static_cast<std::size_t>(task.rows[entry + r]) * task.x_stride;
        for (int j = 0; j < ranks; ++j) sums[r][j] = splat(0.0f);
    }
    const auto inputs = static_cast<std::size_t>(task.inputs);
    const std::uint16_t* a = task.a + static_cast<std::size_t>(rank) * inputs;
    const std::uint16_t* ahead = entry == 0 && task.ahead ? task.ahead + static_cast<std::size_t>(rank) * inputs : nullptr;
    for (std::size_t k = 0; k < inputs; k += kLanes) {
        if (ahead && k % kLine == 0)
            for (int j = 0; j < ranks; ++j) fetch(ahead + static_cast<std::size_t>(j) * inputs + k);
        F16 weights[ranks];
        for (int j = 0; j < ranks; ++j) weights[j] = load_bf16(a + static_cast<std::size_t>(j) * inputs + k);
        for (int r = 0; r < rows; ++r) {
            const F16 values = load(x[r] + k);
            for (int j = 0; j < ranks; ++j) sums[r][j] = fma(weights[j], values, sums[r][j]);
        }
    }
    for (int r = 0; r < rows; ++r) {
        const float factor = task.factors[entry + r] * task.scale;
        float* v = task.v + static_cast<std::size_t>(entry + r) * task.v_stride + rank;
        for (int j = 0; j < ranks; ++j) v[j] = sum(sums[r][j]) * factor;
    }
}

template <int rows>
HEADRACE_INLINE void shrink_entries(const AdapterShrink& task, int entry) {
    constexpr int ranks = rows == 1 ? kStreams : kSums / rows;
    int rank = 0;
    for (; rank + ranks <= task.ranks; rank += ranks) shrink_block<rows, ranks>(task, entry, rank);
    for (; rank < task.ranks; ++rank) shrink_block<rows, 1>(task, entry, rank);
}

inline void adapter_shrink(const AdapterShrink& task) {
    int entry = 0;
    for (; entry + kMostRows <= task.count; entry += kMostRows) shrink_entries<kMostRows>(task, entry);
    if constexpr (kMostRows > 2)
        for (; entry + 2 <= task.count; entry += 2) shrink_entries<2>(task, entry);
    for (; entry < task.count; ++entry) shrink_entries<1>(task, entry);
}

template <int rows, int panels>
HEADRACE_INLINE void expand_block(const AdapterExpand& task, int entry, int panel) {
    F16 sums[rows][panels];
    const float* v[rows];
    for (int r = 0; r < rows; ++r) {
        v[r] = task.v + static_cast<std::size_t>(entry + r) * task.v_stride;
        for (int p = 0; p < panels; ++p) sums[r][p] = splat(0.0f);
    }
    const std::size_t size = static_cast<std::size_t>(task.ranks) * kLanes;
    const std::uint16_t* b = task.b + static_cast<std::size_t>(panel) * size;
    const std::uint16_t* ahead = entry == 0 && task.ahead ? task.ahead + static_cast<std::size_t>(panel) * size : nullptr;
    for (int j = 0; j < task.ranks; ++j, b += kLanes) {
        if (ahead && j % 2 == 0)
            for (int p = 0; p < panels; ++p) fetch(ahead + static_cast<std::size_t>(p) * size + static_cast<std::size_t>(j) * kLanes);
        F16 weights[panels];
        for (int p = 0; p < panels; ++p) weights[p] = load_bf16(b + static_cast<std::size_t>(p) * size);
        for (int r = 0; r < rows; ++r) {
            const F16 value = splat(v[r][j]);
            for (int p = 0; p < panels; ++p) sums[r][p] = fma(value, weights[p], sums[r][p]);
        }
    }
    const std::size_t step = static_cast<std::size_t>(task.panel_step) * kLanes;
    for (int r = 0; r < rows; ++r) {
        float* out = task.out + static_cast<std::size_t>(task.rows[entry + r] - task.first_row) * task.out_stride;
        for (int p = 0; p < panels; ++p) {
            float* to = out + static_cast<std::size_t>(panel + p) * step;
            store(to, task.fresh ? sums[r][p] : load(to) + sums[r][p]);
        }
    }
}

template <int rows>
HEADRACE_INLINE void expand_entries(const AdapterExpand& task, int entry) {
    constexpr int panels = rows == 1 ? kStreams : kSums / rows;
    int panel = 0;
    for (; panel + panels <= task.panels; panel += panels) expand_block<rows, panels>(task, entry, panel);
    for (; panel < task.panels; ++panel) expand_block<rows, 1>(task, entry, panel);
}

inline void adapter_expand(const AdapterExpand& task) {
    int entry = 0;
    for (; entry + kMostRows <= task.count; entry += kMostRows) expand_entries<kMostRows>(task, entry);
    if constexpr (kMostRows > 2)
        for (; entry + 2 <= task.count; entry += 2) expand_entries<2>(task, entry);
    for (; entry < task.count; ++entry) expand_entries<1>(task, entry);
}

void fill_adapters(KernelTable& table) {
    table.adapters.shrink = [](const AdapterShrink& task) { adapter_shrink(task); };
    table.adapters.expand = [](const AdapterExpand& task) { adapter_expand(task); };
}

}  // namespace headrace::HEADRACE_ISA
