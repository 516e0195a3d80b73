// Panel products, compiled for avx2.
#include "matmul_impl.hpp"
// on its operands:
#include "integer_impl.hpp"
