// Row kernels and attention, compiled for portable.
#include "rows_impl.hpp"
