#include "cpu.hpp"

#include <cstdint>
#include <utility>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace headrace {
namespace {

using Present = std::pair<const char*, bool>;

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

const std::vector<Present>& present() {
    static const std::vector<Present> features = {
        {"avx2", __builtin_cpu_supports("avx2")},         {"fma", __builtin_cpu_supports("fma")},
        {"f16c", __builtin_cpu_supports("f16c")},         {"avx512f", __builtin_cpu_supports("avx512f")},
        {"avx512bw", __builtin_cpu_supports("avx512bw")}, {"avx512vl", __builtin_cpu_supports("avx512vl")},
        {"avx512dq", __builtin_cpu_supports("avx512dq")}, {"avx512vnni", __builtin_cpu_supports("avx512vnni")},
        {"amx-tile", has_amx(24)},                        {"amx-int8", has_amx(25)},
    };
    return features;
}

#else

const std::vector<Present>& present() {
    static const std::vector<Present> features;
    return features;
}

#endif

// "this CPU has no …" with those of the features first … last-1 that are missing.
std::string missing(std::size_t first, std::size_t last) {
    std::string names;
    if (present().empty()) return "this CPU is not an x86-64";
    for (std::size_t i = first; i < last; ++i)
        if (!present()[i].second) names += (names.empty() ? "" : ", ") + std::string(present()[i].first);
    return names.empty() ? "" : "this CPU has no " + names;
}

}  // namespace

std::string cpu_lacks_for_avx2() { return missing(0, 3); }

std::string cpu_lacks_for_avx512() { return missing(0, 8); }

std::string cpu_lacks_for_amx() {
    if (std::string lacking = missing(0, 10); !lacking.empty()) return lacking;
#if defined(__x86_64__)
    if (!system_saves_tiles()) return "the operating system does not save tile registers";
    if (!system_grants_tiles()) return "the operating system refuses this process tile registers";
#endif
    return "";
}

std::vector<std::string> cpu_features() {
    std::vector<std::string> names;
    for (const auto& [name, here] : present())
        if (here) names.emplace_back(name);
    return names;
}

}  // namespace headrace
