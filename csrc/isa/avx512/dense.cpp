// Products in fp32 with packed weights, compiled for avx512.
#include "dense_impl.hpp"
