// What this CPU and operating system can execute, probed by cpuid and, for tile registers, by asking the system.
#pragma once

#include <string>
#include <vector>

namespace headrace {

// What is missing for an instruction set, in words; "" when nothing is.
std::string cpu_lacks_for_avx2();
std::string cpu_lacks_for_avx512();
std::string cpu_lacks_for_amx();  // asks the system for tile registers, for all threads of this process

// Of what everything needs, before any kernel is chosen: numpy's compiled parts end with an illegal instruction without it.
std::string cpu_lacks_for_anything();

std::vector<std::string> cpu_features();  // those that choose kernels and are present

}  // namespace headrace
