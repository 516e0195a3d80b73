#include "batch.hpp"

#include <stdexcept>
#include <string>

#include "row_kernels.hpp"

namespace headrace {
namespace {

[[noreturn]] void refuse(const char* array, std::size_t index, long long value, const std::string& rule) {
    throw std::invalid_argument(std::string(array) + "[" + std::to_string(index) + "] is " + std::to_string(value) + ": " + rule);
}

void check_range(const char* name, const Int32View& values, long long limit) {
    for (std::size_t i = 0; i < values.size; ++i)
        if (values[i] < 0 || values[i] >= limit) refuse(name, i, values[i], "must lie in 0 … " + std::to_string(limit - 1));
}

void check_offsets(const char* name, const Int32View& starts, std::size_t entries, std::size_t total) {
    if (starts.size != entries) {
        throw std::invalid_argument(std::string(name) + " has " + std::to_string(starts.size) + " entries, expected " +
                                    std::to_string(entries));
    }
    if (starts[0] != 0) refuse(name, 0, starts[0], "offsets begin at 0");
    for (std::size_t i = 1; i < starts.size; ++i)
        if (starts[i] <= starts[i - 1]) refuse(name, i, starts[i], "offsets must increase: no slice is empty");
    if (static_cast<std::size_t>(starts[entries - 1]) != total)
        refuse(name, entries - 1, starts[entries - 1], "the last offset must be " + std::to_string(total));
}

// Positions of a slice follow each other, and its pages reach them all.
void check_slice(const BatchView& batch, std::size_t slice) {
    const int first = batch.slice_starts[slice], last = batch.slice_starts[slice + 1] - 1;
    for (int row = first + 1; row <= last; ++row)
        if (batch.positions[row] != batch.positions[row - 1] + 1)
            refuse("positions", row, batch.positions[row], "rows of a slice must have consecutive positions");
    const long long pages = batch.page_starts[slice + 1] - batch.page_starts[slice];
    if (batch.positions[last] >= pages * kPageTokens)
        refuse("positions", last, batch.positions[last], "the slice has only " + std::to_string(pages) + " pages of 16");
}

// Pages that follow each other from a row of the pool on all lie in it.
void check_first_rows(const BatchView& batch, const PoolView& pool) {
    if (batch.first_rows.size == 0) return;
    if (batch.first_rows.size != batch.slice_starts.size - 1) throw std::invalid_argument("first_rows needs one entry a slice");
    for (std::size_t slice = 0; slice < batch.first_rows.size; ++slice) {
        const long long first = batch.first_rows[slice], count = batch.page_starts[slice + 1] - batch.page_starts[slice];
        if (first < -1 || first > static_cast<long long>(pool.pages) - count)
            refuse("first_rows", slice, first, "the slice's pages would leave the pool");
    }
}

// Two rows must never write the same place: a page that is written belongs to one slice, once.
void check_written_pages(const BatchView& batch, std::size_t pages, std::vector<bool>& stamps) {
    stamps.assign(pages, false);
    for (int slice = 0; slice < batch.slices(); ++slice) {
        const int first = batch.positions[batch.slice_starts[slice]] / kPageTokens;
        const int last = batch.positions[batch.slice_starts[slice + 1] - 1] / kPageTokens;
        for (int page = first; page <= last; ++page) {
            const std::size_t index = static_cast<std::size_t>(batch.page_starts[slice] + page);
            const auto id = static_cast<std::size_t>(batch.page_ids[index]);
            if (stamps[id]) refuse("page_ids", index, batch.page_ids[index], "the page is written twice in one step");
            stamps[id] = true;
        }
    }
}

}  // namespace

void check_batch(const BatchView& batch, const PoolView& pool, const BatchLimits& limits, std::vector<bool>& stamps) {
    if (batch.token_ids.size == 0) throw std::invalid_argument("token_ids is empty");
    if (batch.token_ids.size > 1u << 20) throw std::invalid_argument("token_ids has more than 1048576 rows");
    if (batch.positions.size != batch.token_ids.size) throw std::invalid_argument("positions and token_ids differ in length");
    if (batch.slice_starts.size < 2) throw std::invalid_argument("slice_starts needs at least two entries");
    if (pool.page_bytes != limits.page_bytes)
        throw std::invalid_argument("pool has pages of " + std::to_string(pool.page_bytes) + " bytes, the chain needs " +
                                    std::to_string(limits.page_bytes));
    check_range("token_ids", batch.token_ids, limits.vocab);
    check_range("positions", batch.positions, limits.context);
    check_range("page_ids", batch.page_ids, static_cast<long long>(pool.pages));
    check_range("output_rows", batch.output_rows, static_cast<long long>(batch.token_ids.size));
    check_offsets("slice_starts", batch.slice_starts, batch.slice_starts.size, batch.token_ids.size);
    check_offsets("page_starts", batch.page_starts, batch.slice_starts.size, batch.page_ids.size);
    for (int slice = 0; slice < batch.slices(); ++slice) check_slice(batch, static_cast<std::size_t>(slice));
    check_first_rows(batch, pool);
    check_written_pages(batch, pool.pages, stamps);
}

}  // namespace headrace
