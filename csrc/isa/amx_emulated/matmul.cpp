// The same panel products on a model of the tile unit, for tests on machines without one.
#include "tile_model.hpp"
// The kernels, on the names above.
#include "tile_matmul_impl.hpp"
// on its names:
#include "tile_integer_impl.hpp"
