// An exact model of the tile unit, for machines without one: shapes with their checks, loads, stores, zero and the byte
// products. What faults on the hardware throws std::logic_error here, so a kernel that breaks a rule ends its process in
// both. Slow, and never chosen by itself.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

#include "tile_config.hpp"

namespace headrace {

enum class TileSigns { ss, su, us, uu };  // signs of the first and the second operand's bytes

class TileModel {
  public:
    TileModel() = default;
    TileModel(const TileModel&) = delete;
    TileModel& operator=(const TileModel&) = delete;
    ~TileModel() { release(); }

    // All rules of `ldtilecfg`; palette 0 releases.
    void configure(const TileConfig& config);
    void release();
    bool configured() const { return config_.palette != 0; }

    void zero(int t) { std::memset(tiles_[shaped(t)], 0, sizeof tiles_[t]); }
    // Rows are row_bytes long and `stride` bytes apart; what lies beyond the shape becomes zero.
    void load(int t, const void* from, std::size_t stride);
    void store(int t, void* to, std::size_t stride) const;
    // sums[m][n] += Σ over k and j of a[m][4k+j]·b[k][4n+j], modulo 2^32.
    void dot(int sums, int a, int b, TileSigns signs);

    int rows(int t) const { return config_.rows[shaped(t)]; }
    int row_bytes(int t) const { return config_.row_bytes[shaped(t)]; }

  private:
    int shaped(int t) const;

    TileConfig config_{};
    alignas(64) std::uint8_t tiles_[8][kTileRowLimit][kTileRowBytes] = {};
};

TileModel& tile_model();       // of the calling thread
// The same from where nothing may be thrown: a kernel's shape that breaks a rule ends the process. Defined in common code, so
// that no compiler puts its own handler, a function that the linker may merge, into a file of one instruction set.
void configure_tile_model(const TileConfig& config) noexcept;
void release_tile_model() noexcept;
int tile_models_configured();  // models (one a thread) that hold a shape: 0 between products
long tile_model_shapes();      // shapes loaded since the start

}  // namespace headrace

#if defined(HEADRACE_ISA)
#include "lanes.hpp"

namespace headrace::HEADRACE_ISA {
namespace {

HEADRACE_INLINE void tile_configure(const TileConfig& config) { configure_tile_model(config); }
HEADRACE_INLINE void tile_release() { release_tile_model(); }
template <int t> HEADRACE_INLINE void tile_zero() { tile_model().zero(t); }
template <int t> HEADRACE_INLINE void tile_load(const void* from, std::size_t stride) { tile_model().load(t, from, stride); }
template <int t> HEADRACE_INLINE void tile_store(void* to, std::size_t stride) { tile_model().store(t, to, stride); }
template <int sums, int planes, int codes> HEADRACE_INLINE void tile_dot() { tile_model().dot(sums, planes, codes, TileSigns::su); }

}  // namespace
}  // namespace headrace::HEADRACE_ISA
#endif
