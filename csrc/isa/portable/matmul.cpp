// Panel products, compiled for portable.
#include "matmul_impl.hpp"
// on its operands:
#include "group_matmul_impl.hpp"
#include "integer_impl.hpp"
