// Panel products on the tile unit of the CPU.
#include "tile_unit.hpp"
// The kernels, on the names above.
#include "tile_matmul_impl.hpp"
// on its names:
#include "tile_integer_impl.hpp"
