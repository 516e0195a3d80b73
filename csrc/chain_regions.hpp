// How the chain cuts its work: rows and weight panels into tiles of the pool. Cuts never influence results.
#pragma once

#include <algorithm>

#include "chain.hpp"

namespace headrace {

inline constexpr int kSerialRows = 2;       // so few rows are not worth a region
inline constexpr int kTileRows = 64;        // activation rows of a tile stay in L2 while its panels pass
inline constexpr int kTileBytes = 24 << 10; // weights of a tile: a few microseconds of memory time
inline constexpr int kTilePanels = 8;       // at most, which bounds scratch
inline constexpr int kAdapterPanels = 6;    // at least with adapters, whose own panels of a tile are then longer stretches of memory

// fn(row, worker) for every row, in short runs.
template <class Fn>
void Chain::for_rows(int rows, Fn&& fn) {
    if (rows <= kSerialRows) {
        for (int row = 0; row < rows; ++row) fn(row, 0);
        return;
    }
    const int run = std::clamp(rows / (8 * pool_->threads()), 1, 8);
    pool_->parallel_for((rows + run - 1) / run, [&](int tile, int worker) {
        for (int row = tile * run; row < std::min(rows, (tile + 1) * run); ++row) fn(row, worker);
    });
}

// body(m0, m1, panel0, panel1, worker) for a grid over rows and panels; panel0 is even (gates and ups stay together).
template <class Body>
void Chain::for_tiles(const PackedMatrix& matrix, int rows, Body&& body) {
    const int panel_bytes = static_cast<int>(matrix.bytes() / static_cast<std::size_t>(matrix.panel_count()));
    const int least = adapters_.active() ? kAdapterPanels : 2;
    const int panels = std::clamp(kTileBytes / std::max(panel_bytes, 1) / 2 * 2, least, kTilePanels);
    const int columns = (matrix.panel_count() + panels - 1) / panels, stripes = (rows + kTileRows - 1) / kTileRows;
    pool_->parallel_for(columns * stripes, [&](int tile, int worker) {
        const int m0 = tile % stripes * kTileRows, panel0 = tile / stripes * panels;
        body(m0, std::min(m0 + kTileRows, rows), panel0, std::min(panel0 + panels, matrix.panel_count()), worker);
    });
}

}  // namespace headrace
