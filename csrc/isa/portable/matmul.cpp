// Panel products, compiled for portable.
#include "matmul_impl.hpp"
// on its operands:
#include "integer_impl.hpp"
