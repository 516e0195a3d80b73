// A step's flat arrays as the chain sees them, checked once at the border so that kernels may believe every index.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace headrace {

struct Int32View {
    const std::int32_t* data = nullptr;
    std::size_t size = 0;
    std::int32_t operator[](std::size_t i) const { return data[i]; }
};

// See StepBatch in headrace/kernels/interface.py for the meaning of the arrays.
struct BatchView {
    Int32View token_ids;
    Int32View positions;
    Int32View slice_starts;
    Int32View page_starts;
    Int32View page_ids;
    Int32View output_rows;

    int rows() const { return static_cast<int>(token_ids.size); }
    int slices() const { return static_cast<int>(slice_starts.size) - 1; }
};

struct PoolView {
    std::uint8_t* data = nullptr;
    std::size_t pages = 0;
    std::size_t page_bytes = 0;
};

struct BatchLimits {
    int vocab;
    int context;
    std::size_t page_bytes;
};

// Throws std::invalid_argument naming the array at fault. `stamps` is scratch (one mark a page of the pool).
void check_batch(const BatchView& batch, const PoolView& pool, const BatchLimits& limits, std::vector<bool>& stamps);

}  // namespace headrace
