// Products in fp32 with packed weights, compiled for portable.
#include "dense_impl.hpp"
