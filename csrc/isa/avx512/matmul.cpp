// Panel products, compiled for avx512.
#include "matmul_impl.hpp"
