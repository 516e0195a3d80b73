// Products in fp32 with packed weights, compiled for avx2.
#include "dense_impl.hpp"
