// Passes over a row of logits, compiled for several instruction sets with the same bits in each.
//
// Rows are taken in blocks of 256 in order of token id; a sum runs over 16 lanes and then over a fixed tree, so that it
// depends on the row alone.
#pragma once

namespace headrace {

inline constexpr int kScanBlock = 256;

struct ScanKernels {
    // Largest value of each block; false when a value is NaN.
    bool (*block_maxima)(const float* z, int n, float* maxima) = nullptr;
    // w[i] = e^((z[i] - top) * inverse) for z[i] <= top, padded to whole blocks with 0, and each block's sum.
    void (*weigh)(const float* z, int n, float top, float inverse, float* w, float* sums) = nullptr;
    // The block sums of e^(z[i] - top) only.
    void (*exp_sums)(const float* z, int n, float top, float* sums) = nullptr;
    // Keeps weights above `least`, and those equal to it up to token `last`; the others become 0. Block sums are of what is kept.
    void (*cut)(float* w, int padded, float least, int last, float* sums) = nullptr;
};

}  // namespace headrace
