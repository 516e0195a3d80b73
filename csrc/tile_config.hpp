// Shapes of the eight tile registers, as `ldtilecfg` reads them. Plain data: included by every translation unit.
//
// The shapes are constants in read-only memory on purpose. Filled at run time they are a trap: the intrinsic of gcc 12
// claims to read 8 of the 64 bytes, so the compiler may drop the stores to the others, and the load of a half-filled
// shape ends the process (llama.cpp pull request #26954 met this). A constant has no stores to lose.
#pragma once

#include <cstdint>

namespace headrace {

inline constexpr int kTileRowLimit = 16;  // rows of a tile register
inline constexpr int kTileRowBytes = 64;

struct alignas(64) TileConfig {
    std::uint8_t palette;
    std::uint8_t start_row;
    std::uint8_t reserved[14];
    std::uint16_t row_bytes[16];
    std::uint8_t rows[16];
};
static_assert(sizeof(TileConfig) == 64);

// Registers of a product: sums of two groups in flight (each hi and lo), rows of activations (hi, lo), codes (two groups).
enum TileRegister { kSums = 0, kRowPlanes = 4, kCodeLines = 6 };

struct TileConfigs {
    TileConfig of[kTileRowLimit];  // [rows of activations - 1]
};

// Products over groups of `group` inputs: sums [rows][16] int32, planes [rows][group] int8, codes [group/4][16][4] uint8.
constexpr TileConfigs tile_configs(int group) {
    TileConfigs all{};
    for (int rows = 1; rows <= kTileRowLimit; ++rows) {
        TileConfig& config = all.of[rows - 1];
        config.palette = 1;
        for (int i = 0; i < 8; ++i) {
            const bool codes = i >= kCodeLines, planes = !codes && i >= kRowPlanes;
            config.rows[i] = static_cast<std::uint8_t>(codes ? group / 4 : rows);
            config.row_bytes[i] = static_cast<std::uint16_t>(planes ? group : kTileRowBytes);
        }
    }
    return all;
}

}  // namespace headrace
