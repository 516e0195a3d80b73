// Row kernels and attention, compiled for avx512.
#include "rows_impl.hpp"
