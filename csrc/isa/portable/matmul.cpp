// Panel products, compiled for portable.
#include "matmul_impl.hpp"
