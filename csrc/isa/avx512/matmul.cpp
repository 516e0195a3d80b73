// Panel products, compiled for avx512.
#include "matmul_impl.hpp"
// on its operands:
#include "integer_impl.hpp"
