// The tile unit of a CPU with AMX, as the kernels use it. tile_model.hpp has the same names without the hardware.
//
// Own assembler instead of the intrinsics: register numbers can be template parameters, and the operand of `ldtilecfg` is
// the whole shape (see tile_config.hpp).
#pragma once

#include "lanes.hpp"
#include "tile_config.hpp"

namespace headrace::HEADRACE_ISA {
namespace {

HEADRACE_INLINE void tile_configure(const TileConfig& config) { asm volatile("ldtilecfg %0" : : "m"(config)); }
HEADRACE_INLINE void tile_release() { asm volatile("tilerelease"); }

template <int t>
HEADRACE_INLINE void tile_zero() {
    asm volatile("tilezero %%tmm%c0" : : "i"(t));
}

template <int t>
HEADRACE_INLINE void tile_load(const void* from, std::size_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(t) : "memory");
}

template <int t>
HEADRACE_INLINE void tile_store(void* to, std::size_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(t) : "memory");
}

// sums[m][n] += Σ planes[m][k]·codes[k][n]: signed planes, unsigned codes.
template <int sums, int planes, int codes>
HEADRACE_INLINE void tile_dot() {
    asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(sums), "i"(planes), "i"(codes));
}

}  // namespace
}  // namespace headrace::HEADRACE_ISA
