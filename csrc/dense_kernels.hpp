// Products in fp32 with packed weights, forwards and backwards, as entries of the kernel table: what training multiplies by.
// Plain data only: included by translation units of every ISA.
#pragma once

#include <cstddef>
#include <cstdint>

#include "formats.hpp"

namespace headrace {

inline constexpr int kDenseVectors = 3;    // of 16 outputs that share one pass over the inputs
inline constexpr int kDenseWidth = 16 * kDenseVectors;
inline constexpr int kDenseDepth = 256;    // inputs whose products are summed before they join the output

// out[r][c] = (or, `add`, +=) sum over k of x[r][k] · tile[k][c], c < width. The sum starts at zero and runs over k upwards,
// one fma a step. `tile` is [depth][kDenseWidth], of which the first 16·vectors columns are filled.
struct DenseProduct {
    const float* x;
    std::size_t x_stride;
    const float* tile;
    int depth;
    int rows;
    int vectors;
    int width;
    float* out;
    std::size_t out_stride;
    bool add;
};

struct DenseKernels {
    // Values of `count` (at most 16) inputs of a panel from input k on, a multiple of 16: to[i · stride …] holds the 16 channels of k + i.
    void (*expand[kFormats])(const std::uint8_t* panel, int k, int count, float* to, std::size_t stride) = {};
    // to[j · stride + i] = from[16 · i + j].
    void (*turn)(const float* from, float* to, std::size_t stride) = nullptr;
    void (*multiply)(const DenseProduct& product) = nullptr;
};

}  // namespace headrace
