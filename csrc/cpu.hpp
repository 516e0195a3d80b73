// What this CPU and operating system can execute, probed by cpuid and, for tile registers, by asking the system.
#pragma once

#include <string>
#include <vector>

namespace headrace {

// What is missing for an instruction set, in words; "" when nothing is.
std::string cpu_lacks_for_avx2();
std::string cpu_lacks_for_avx512();
std::string cpu_lacks_for_bf16();
std::string cpu_lacks_for_amx();  // asks the system for tile registers, for all threads of this process

// A product of bf16 pairs takes no longer than an fp32 fma. AMD: Zen 4 and later. Intel's, with a quarter of the rate, are slower.
bool cpu_multiplies_bf16_fast();

// Of what everything needs, before any kernel is chosen: numpy's compiled parts end with an illegal instruction without it.
std::string cpu_lacks_for_anything();

std::vector<std::string> cpu_features();  // those that choose kernels and are present

}  // namespace headrace
