// Peak rates, compiled for portable.
#include "peak_impl.hpp"
