// Panel products, compiled for avx2.
#include "matmul_impl.hpp"
