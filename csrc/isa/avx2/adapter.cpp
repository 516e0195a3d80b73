// Products of adapters, compiled for avx2.
#include "adapter_impl.hpp"
