// Peak rates, compiled for avx2.
#include "peak_impl.hpp"
