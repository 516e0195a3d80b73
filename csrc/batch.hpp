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

// Linear modules that an adapter may change, in the order of its directory.
enum AdapterModule : int { kModuleQ, kModuleK, kModuleV, kModuleO, kModuleGate, kModuleUp, kModuleDown };
inline constexpr int kAdapterModules = 7;
inline constexpr int kPlaceFields = 5;  // rank, page and byte of A, page and byte of B

// An adapter that lies in pages of the pool: see AdapterDirectory in headrace/kernels/interface.py.
struct AdapterView {
    Int32View pages;
    Int32View places;  // [layers · modules][fields]
    const float* scales = nullptr;
    std::size_t scale_count = 0;
};

// See StepAdapters there.
struct AdaptersView {
    Int32View starts;
    Int32View ids;
    const float* scales = nullptr;
    std::size_t scale_count = 0;
    std::vector<AdapterView> adapters;
};

// See StepBatch in headrace/kernels/interface.py for the meaning of the arrays.
struct BatchView {
    Int32View token_ids;
    Int32View positions;
    Int32View slice_starts;
    Int32View page_starts;
    Int32View page_ids;
    Int32View output_rows;
    Int32View first_rows;  // empty, or for each slice the row of the pool from which on its pages follow each other; -1: by its table
    const AdaptersView* adapters = nullptr;  // null: none in this step

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
