// Peak rates, compiled for avx512.
#include "peak_impl.hpp"
