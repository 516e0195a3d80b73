// Products of adapters, compiled for avx512.
#include "adapter_impl.hpp"
