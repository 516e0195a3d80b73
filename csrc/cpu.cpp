#include "cpu.hpp"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <stdexcept>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace headrace {
namespace {

struct Feature {
    const char* name;
    bool here;
};

#if defined(__x86_64__)

bool has_amx(int bit) {
    unsigned a = 0, b = 0, c = 0, d = 0;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d >> bit & 1) != 0;
}

// Both parts of the tile state (17: shapes, 18: data) are saved at a thread switch.
bool system_saves_tiles() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (__get_cpuid(1, &a, &b, &c, &d) == 0 || (c >> 27 & 1) == 0) return false;  // no xgetbv
    std::uint32_t low, high;
    asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (low >> 17 & 3) == 3;
}

// Linux hands tile registers out on request only: a thread that uses them unasked is killed.
bool system_grants_tiles() {
#if defined(__linux__)
    constexpr long kRequestPermission = 0x1023, kTileData = 18;
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
    return false;
#endif
}

// The builtin wants a literal, and counts as missing what the operating system does not save.
#define HERE(name) {name, __builtin_cpu_supports(name) != 0}

std::vector<Feature> probe() {
    return {
        HERE("avx2"),     HERE("fma"),      HERE("f16c"),       HERE("avx512f"), HERE("avx512bw"), HERE("avx512vl"),
        HERE("avx512dq"), HERE("avx512vnni"), HERE("avx512bf16"), {"amx-tile", has_amx(24)}, {"amx-int8", has_amx(25)},
        HERE("ssse3"),    HERE("sse4.2"),   HERE("popcnt"),
    };
}

#undef HERE

#else

std::vector<Feature> probe() { return {}; }

#endif

// The first so many; numpy's compiled parts need the rest.
constexpr std::size_t kForAvx2 = 3, kForAvx512 = 8, kForBf16 = 9, kForAmx = 11;

// HEADRACE_CPU_WITHOUT: features, with commas between, that are to count as missing, as if this were an older CPU.
void hide(std::vector<Feature>& features, const std::string& names) {
    for (std::size_t from = 0; from <= names.size();) {
        const std::size_t comma = std::min(names.find(',', from), names.size());
        const std::string name = names.substr(from, comma - from);
        bool known = name.empty();
        for (Feature& feature : features)
            if (name == feature.name) {
                feature.here = false;
                known = true;
            }
        if (!known) throw std::invalid_argument("HEADRACE_CPU_WITHOUT: no feature '" + name + "' chooses between kernels");
        from = comma + 1;
    }
}

const std::vector<Feature>& present() {
    static const std::vector<Feature> features = [] {
        std::vector<Feature> found = probe();
        if (const char* names = std::getenv("HEADRACE_CPU_WITHOUT")) hide(found, names);
        return found;
    }();
    return features;
}

// "this CPU has no …" with those of the features first … last-1 that are missing.
std::string missing(std::size_t first, std::size_t last) {
    std::string names;
    if (present().empty()) return "this CPU is not an x86-64";
    for (std::size_t i = first; i < last; ++i)
        if (!present()[i].here) names += (names.empty() ? "" : ", ") + std::string(present()[i].name);
    return names.empty() ? "" : "this CPU has no " + names;
}

// What it has instead.
std::string had() {
    std::string names;
    for (const std::string& name : cpu_features()) names += (names.empty() ? "" : ", ") + name;
    return " (it has " + (names.empty() ? "none of the known features" : names) + ")";
}

std::string lacking(std::size_t first, std::size_t last) {
    const std::string names = missing(first, last);
    return names.empty() ? "" : names + had();
}

}  // namespace

std::string cpu_lacks_for_avx2() { return lacking(0, kForAvx2); }

std::string cpu_lacks_for_avx512() { return lacking(0, kForAvx512); }

std::string cpu_lacks_for_bf16() { return lacking(0, kForBf16); }

bool cpu_multiplies_bf16_fast() {
#if defined(__x86_64__)
    return __builtin_cpu_is("amd") != 0;
#else
    return false;
#endif
}

std::string cpu_lacks_for_amx() {
    if (std::string names = lacking(0, kForAmx); !names.empty()) return names;
#if defined(__x86_64__)
    if (!system_saves_tiles()) return "the operating system does not save tile registers";
    if (!system_grants_tiles()) return "the operating system refuses this process tile registers";
#endif
    return "";
}

std::string cpu_lacks_for_anything() {
    return present().empty() ? "" : missing(kForAmx, present().size());
}

std::vector<std::string> cpu_features() {
    std::vector<std::string> names;
    for (std::size_t i = 0; i < kForAmx && i < present().size(); ++i)
        if (present()[i].here) names.emplace_back(present()[i].name);
    return names;
}

}  // namespace headrace
