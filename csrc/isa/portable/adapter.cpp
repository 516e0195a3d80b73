// Products of adapters, compiled for portable.
#include "adapter_impl.hpp"
