// Which kernel table runs: probed once, overridden by name for tests and reports.
#include <atomic>
#include <stdexcept>
#include <string>

#include "cpu.hpp"
#include "kernel_table.hpp"

namespace headrace {
namespace {

using Fill = void (*)(KernelTable&);

// One instruction set: `fill` is null when it isn't compiled in, `lacking` says what this machine misses (nothing: "").
struct Variant {
    const char* name;
    Fill fill;
    std::string (*lacking)();
    bool (*automatic)();
};

bool always() { return true; }
bool never() { return false; }

void fill_portable(KernelTable& table) {
    portable::fill_matmul(table);
    portable::fill_integer(table);
    portable::fill_groups(table);
    portable::fill_rows(table);
    portable::fill_scans(table);
    portable::fill_peaks(table);
    portable::fill_adapters(table);
    portable::fill_dense(table);
}

#if defined(HEADRACE_HAS_avx2)
void fill_avx2(KernelTable& table) {
    avx2::fill_matmul(table);
    avx2::fill_integer(table);
    avx2::fill_groups(table);
    avx2::fill_rows(table);
    avx2::fill_scans(table);
    avx2::fill_peaks(table);
    avx2::fill_adapters(table);
    avx2::fill_dense(table);
}
#else
constexpr Fill fill_avx2 = nullptr;
#endif

#if defined(HEADRACE_HAS_avx512)
void fill_avx512(KernelTable& table) {
    avx512::fill_matmul(table);
    avx512::fill_integer(table);
    avx512::fill_groups(table);
    avx512::fill_rows(table);
    avx512::fill_scans(table);
    avx512::fill_peaks(table);
    avx512::fill_adapters(table);
    avx512::fill_dense(table);
}
#else
constexpr Fill fill_avx512 = nullptr;
#endif

#if defined(HEADRACE_HAS_avx512) && defined(HEADRACE_HAS_avx512_bf16)
void fill_avx512_bf16(KernelTable& table) {
    fill_avx512(table);
    avx512_bf16::fill_attention(table);
}
#else
constexpr Fill fill_avx512_bf16 = nullptr;
#endif

#if defined(HEADRACE_HAS_avx512) && defined(HEADRACE_HAS_amx)
void fill_amx(KernelTable& table) {
    fill_avx512(table);
    amx::fill_tiles(table);
    amx::fill_integer_tiles(table);
}
#else
constexpr Fill fill_amx = nullptr;
#endif

#if defined(HEADRACE_HAS_avx512) && defined(HEADRACE_HAS_amx_emulated)
void fill_amx_emulated(KernelTable& table) {
    fill_avx512(table);
    amx_emulated::fill_tiles(table);
    amx_emulated::fill_integer_tiles(table);
}
#else
constexpr Fill fill_amx_emulated = nullptr;
#endif

const Variant kVariants[] = {  // best first
    {"amx", fill_amx, cpu_lacks_for_amx, always},
    {"avx512-bf16", fill_avx512_bf16, cpu_lacks_for_bf16, cpu_multiplies_bf16_fast},
    {"avx512", fill_avx512, cpu_lacks_for_avx512, always},
    {"avx2", fill_avx2, cpu_lacks_for_avx2, always},
    {"portable", fill_portable, [] { return std::string(); }, always},
    {"amx-emulated", fill_amx_emulated, cpu_lacks_for_avx512, never},
};
struct Entry {
    IsaSupport support;
    KernelTable table;
};

const std::vector<Entry>& entries() {
    static const std::vector<Entry> all = [] {
        std::vector<Entry> made;
        for (const Variant& variant : kVariants) {
            const std::string lacking = variant.fill == nullptr ? "not in this build" : variant.lacking();
            Entry& entry = made.emplace_back();
            entry.support = {variant.name, variant.fill != nullptr, lacking.empty(), variant.automatic(), lacking};
            entry.table.isa = variant.name;
            if (lacking.empty()) variant.fill(entry.table);
        }
        return made;
    }();
    return all;
}

std::atomic<const KernelTable*>& selected() {
    static std::atomic<const KernelTable*> table{&best_kernels()};
    return table;
}

}  // namespace

std::vector<IsaSupport> isa_support() {
    std::vector<IsaSupport> rows;
    for (const Entry& entry : entries()) rows.push_back(entry.support);
    return rows;
}

const KernelTable& best_kernels() {
    for (const Entry& entry : entries())
        if (entry.support.runnable && entry.support.automatic) return entry.table;
    throw std::logic_error("the portable kernels are missing");
}

const KernelTable& kernels_named(const char* isa) {
    const std::string name = isa;
    if (name == "auto") return best_kernels();
    for (const Entry& entry : entries())
        if (name == entry.support.name) {
            if (entry.support.runnable) return entry.table;
            throw std::invalid_argument("no kernels for instruction set '" + name + "' on this machine: " + entry.support.lacking);
        }
    throw std::invalid_argument("no kernels for instruction set '" + name + "'");
}

const KernelTable& kernels() { return *selected().load(std::memory_order_acquire); }

void set_isa(const char* isa) { selected().store(&kernels_named(isa), std::memory_order_release); }

}  // namespace headrace
