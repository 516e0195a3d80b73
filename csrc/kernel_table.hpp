// One table of function pointers per ISA, filled by csrc/isa/<isa>/*.cpp and chosen once by cpuid.
//
// Every entry computes bit for bit the same in every table: integer parts are exact, float parts take the same steps in
// the same order. Code in ISA translation units must have internal linkage (static or an unnamed namespace): an inline
// function with external linkage, compiled for AVX-512, could be the copy that the linker keeps for everybody.
#pragma once

#include <string>
#include <vector>

#include "adapter_kernels.hpp"
#include "dense_kernels.hpp"
#include "formats.hpp"
#include "row_kernels.hpp"
#include "sampler_scans.hpp"

namespace headrace {

using PanelKernel = void (*)(const PanelProduct&);

// Panel products of blocks of rows on a tile unit, for formats that have one. The unit must be configured on the thread
// for the format and the exact number of rows, and released afterwards: state left behind is saved at every switch.
struct TileKernels {
    int rows = 0;   // of a full block; 0: this ISA has no tile unit
    int least = 0;  // blocks with fewer rows go to `KernelTable::panel`
    PanelKernel panel[kFormats] = {};
    void (*configure)(Format format, int rows) noexcept = nullptr;
    void (*release)() noexcept = nullptr;
};

// From half a tile on: its products cost as much as a full one, folding costs as many steps as there are rows. Estimated
// from instruction counts; `headrace bench kernels` on a CPU with AMX shows rows 4 and 8 on both sides of it.
inline constexpr int kLeastTileRows = 8;

// The limits that products are held against: the product instructions on registers alone, for `rounds` rounds (they
// return the multiply-adds done), and loads alone.
struct PeakKernels {
    long (*bytes)(long rounds) = nullptr;   // 8-bit codes × 8-bit activations
    long (*floats)(long rounds) = nullptr;  // fp32
    void (*read)(const std::uint8_t* from, std::size_t length) = nullptr;  // loads alone, in multiples of 64 bytes
};

struct KernelTable {
    const char* isa = nullptr;
    PanelKernel panel[kFormats] = {};  // by Format
    TileKernels tiles = {};
    PeakKernels peaks = {};
    RowKernels rows = {};              // norms, row quantisation, rotary positions, attention
    AdapterKernels adapters = {};
    DenseKernels dense = {};           // fp32 products with packed weights, for training
    ScanKernels scans = {};            // passes of the sampler over logits
};

struct IsaSupport {
    const char* name;
    bool compiled;
    bool runnable;   // this CPU and operating system can execute it
    bool automatic;  // chosen by itself where it is the best; false: only by name
    std::string lacking;  // why it is not runnable
};

// Fillers, one per ISA and kernel file; each sets its own entries only. Declared for every ISA, called if compiled in.
namespace portable {
void fill_matmul(KernelTable&);
void fill_integer(KernelTable&);
void fill_groups(KernelTable&);
void fill_rows(KernelTable&);
void fill_scans(KernelTable&);
void fill_peaks(KernelTable&);
void fill_adapters(KernelTable&);
void fill_dense(KernelTable&);
}
namespace avx2 {
void fill_matmul(KernelTable&);
void fill_integer(KernelTable&);
void fill_groups(KernelTable&);
void fill_rows(KernelTable&);
void fill_scans(KernelTable&);
void fill_peaks(KernelTable&);
void fill_adapters(KernelTable&);
void fill_dense(KernelTable&);
}
namespace avx512 {
void fill_matmul(KernelTable&);
void fill_integer(KernelTable&);
void fill_groups(KernelTable&);
void fill_rows(KernelTable&);
void fill_scans(KernelTable&);
void fill_peaks(KernelTable&);
void fill_adapters(KernelTable&);
void fill_dense(KernelTable&);
}
namespace avx512_bf16 {
void fill_attention(KernelTable&);
}
namespace amx {
void fill_tiles(KernelTable&);
void fill_integer_tiles(KernelTable&);
}
namespace amx_emulated {
void fill_tiles(KernelTable&);
void fill_integer_tiles(KernelTable&);
}

std::vector<IsaSupport> isa_support();       // best first
const KernelTable& best_kernels();           // by cpuid
const KernelTable& kernels_named(const char* isa);  // throws std::invalid_argument when unknown or not runnable

// The table the process computes with. `set_isa("auto")` returns to the best; it must not be called during a product.
const KernelTable& kernels();
void set_isa(const char* isa);

}  // namespace headrace
