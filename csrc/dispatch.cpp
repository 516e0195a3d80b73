// Which kernel table runs: probed once, overridden by name for tests and reports.
#include <atomic>
#include <stdexcept>
#include <string>

#include "kernel_table.hpp"

namespace headrace {
namespace {

bool cpu_runs_avx2() {
#if defined(HEADRACE_HAS_avx2)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#else
    return false;
#endif
}

bool cpu_runs_avx512() {
#if defined(HEADRACE_HAS_avx512)
    return cpu_runs_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni");
#else
    return false;
#endif
}

KernelTable portable_table() {
    KernelTable table;
    table.isa = "portable";
    portable::fill_matmul(table);
    portable::fill_rows(table);
    return table;
}

#if defined(HEADRACE_HAS_avx2)
KernelTable avx2_table() {
    KernelTable table;
    table.isa = "avx2";
    avx2::fill_matmul(table);
    avx2::fill_rows(table);
    return table;
}
#endif

#if defined(HEADRACE_HAS_avx512)
KernelTable avx512_table() {
    KernelTable table;
    table.isa = "avx512";
    avx512::fill_matmul(table);
    avx512::fill_rows(table);
    return table;
}
#endif

const KernelTable* find_table(const std::string& isa) {
    static const KernelTable portable_kernels = portable_table();
    if (isa == "portable") return &portable_kernels;
#if defined(HEADRACE_HAS_avx2)
    static const KernelTable avx2_kernels = avx2_table();
    if (isa == "avx2" && cpu_runs_avx2()) return &avx2_kernels;
#endif
#if defined(HEADRACE_HAS_avx512)
    static const KernelTable avx512_kernels = avx512_table();
    if (isa == "avx512" && cpu_runs_avx512()) return &avx512_kernels;
#endif
    return nullptr;
}

std::atomic<const KernelTable*>& selected() {
    static std::atomic<const KernelTable*> table{&best_kernels()};
    return table;
}

}  // namespace

std::vector<IsaSupport> isa_support() {
#if defined(HEADRACE_HAS_avx2)
    constexpr bool avx2_compiled = true;
#else
    constexpr bool avx2_compiled = false;
#endif
#if defined(HEADRACE_HAS_avx512)
    constexpr bool avx512_compiled = true;
#else
    constexpr bool avx512_compiled = false;
#endif
    return {{"avx512", avx512_compiled, cpu_runs_avx512()}, {"avx2", avx2_compiled, cpu_runs_avx2()}, {"portable", true, true}};
}

std::vector<std::string> cpu_features() {
    std::vector<std::string> names;
#if defined(__x86_64__)
#define HEADRACE_PROBE(name) \
    if (__builtin_cpu_supports(name)) names.emplace_back(name)
    HEADRACE_PROBE("avx2");
    HEADRACE_PROBE("fma");
    HEADRACE_PROBE("f16c");
    HEADRACE_PROBE("avx512f");
    HEADRACE_PROBE("avx512bw");
    HEADRACE_PROBE("avx512vl");
    HEADRACE_PROBE("avx512dq");
    HEADRACE_PROBE("avx512vnni");
#undef HEADRACE_PROBE
#endif
    return names;
}

const KernelTable& best_kernels() {
    for (const IsaSupport& isa : isa_support())
        if (isa.runnable) return *find_table(isa.name);
    return *find_table("portable");
}

const KernelTable& kernels_named(const char* isa) {
    const std::string name = isa;
    if (name == "auto") return best_kernels();
    if (const KernelTable* table = find_table(name)) return *table;
    throw std::invalid_argument("no kernels for instruction set '" + name + "' on this machine");
}

const KernelTable& kernels() { return *selected().load(std::memory_order_acquire); }

void set_isa(const char* isa) { selected().store(&kernels_named(isa), std::memory_order_release); }

}  // namespace headrace
