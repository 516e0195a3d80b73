// Row kernels and attention, compiled for avx2.
#include "rows_impl.hpp"
