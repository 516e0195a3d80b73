// Products with the two thin matrices of a low-rank adapter, as entries of the kernel table. Plain data only: included by
// translation units of every ISA.
#pragma once

#include <cstddef>
#include <cstdint>

namespace headrace {

// v[e][j] = (sum over k of a[j][k] · x[rows[e]][k]) · factors[e] · scale for `count` entries and `ranks` rows of A.
// The sum runs in sixteen lanes from left to right, then through the fixed tree.
struct AdapterShrink {
    const float* x;
    std::size_t x_stride;
    const int* rows;
    const float* factors;
    float scale;
    int count;
    const std::uint16_t* a;  // bf16 [ranks][inputs]
    int ranks;
    int inputs;              // a multiple of 16
    float* v;                // first entry, first rank
    std::size_t v_stride;
    const std::uint16_t* ahead;  // what will be read next, to be fetched meanwhile; may be null
};

// out[rows[e] − first_row][16·panel_step·p …] += (or, `fresh`, =) sum over j of v[e][j] · b[p][j][16] for `count` entries and `panels` panels.
// The sum starts at zero, runs over j upwards, and is added as a whole.
struct AdapterExpand {
    const std::uint16_t* b;  // bf16 [panels][ranks][16]
    int panels;
    int ranks;
    const float* v;
    std::size_t v_stride;
    const int* rows;
    int first_row;
    int count;
    float* out;
    std::size_t out_stride;
    int panel_step;          // 2: every other panel of `out`
    bool fresh;
    const std::uint16_t* ahead;
};

struct AdapterKernels {
    void (*shrink)(const AdapterShrink& task) = nullptr;
    void (*expand)(const AdapterExpand& task) = nullptr;
};

}  // namespace headrace
