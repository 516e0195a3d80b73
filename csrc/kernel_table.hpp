// One table of function pointers per ISA, filled by csrc/isa/<isa>/*.cpp and chosen once by cpuid.
//
// Every entry computes bit for bit the same in every table: integer parts are exact, float parts take the same steps in
// the same order. Code in ISA translation units must have internal linkage (static or an unnamed namespace): an inline
// function with external linkage, compiled for AVX-512, could be the copy that the linker keeps for everybody.
#pragma once

#include <string>
#include <vector>

#include "formats.hpp"
#include "row_kernels.hpp"

namespace headrace {

using PanelKernel = void (*)(const PanelProduct&);

struct KernelTable {
    const char* isa = nullptr;
    PanelKernel panel[kFormats] = {};  // by Format
    RowKernels rows = {};              // norms, row quantisation, rotary positions, attention
};

struct IsaSupport {
    const char* name;
    bool compiled;
    bool runnable;  // this CPU and operating system can execute it
};

// Fillers, one per ISA and kernel file; each sets its own entries only. Declared for every ISA, called if compiled in.
namespace portable { void fill_matmul(KernelTable&); void fill_rows(KernelTable&); }
namespace avx2 { void fill_matmul(KernelTable&); void fill_rows(KernelTable&); }
namespace avx512 { void fill_matmul(KernelTable&); void fill_rows(KernelTable&); }

std::vector<IsaSupport> isa_support();       // best first
std::vector<std::string> cpu_features();     // those that choose kernels and are present
const KernelTable& best_kernels();           // by cpuid
const KernelTable& kernels_named(const char* isa);  // throws std::invalid_argument when unknown or not runnable

// The table the process computes with. `set_isa("auto")` returns to the best; it must not be called during a product.
const KernelTable& kernels();
void set_isa(const char* isa);

}  // namespace headrace
