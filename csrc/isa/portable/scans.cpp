// Passes over logits, compiled for portable.
#include "sampler_scans_impl.hpp"
