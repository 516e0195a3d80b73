// Passes over logits, compiled for avx2.
#include "sampler_scans_impl.hpp"
