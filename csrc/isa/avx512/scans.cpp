// Passes over logits, compiled for avx512.
#include "sampler_scans_impl.hpp"
