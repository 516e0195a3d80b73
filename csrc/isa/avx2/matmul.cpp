// Panel products, compiled for avx2.
#include "matmul_impl.hpp"
// on its operands:
#include "group_matmul_impl.hpp"
#include "integer_impl.hpp"
