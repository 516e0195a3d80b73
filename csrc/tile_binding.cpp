// Python's view of the model of the tile unit and of the shapes that the kernels load, for tests.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <cstring>
#include <stdexcept>
#include <string>

#include "tile_model.hpp"

namespace nb = nanobind;

namespace headrace {
namespace {

using Bytes = nb::ndarray<const std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Grid = nb::ndarray<const std::uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

void configure(TileModel& model, const Bytes& shape) {
    if (shape.size() != sizeof(TileConfig)) throw std::invalid_argument("a shape has 64 bytes");
    TileConfig config;
    std::memcpy(&config, shape.data(), sizeof config);
    model.configure(config);
}

void load(TileModel& model, int tile, const Grid& from) {
    if (from.shape(0) < static_cast<std::size_t>(model.rows(tile)) || from.shape(1) < static_cast<std::size_t>(model.row_bytes(tile)))
        throw std::invalid_argument("the array is smaller than the tile");
    model.load(tile, from.data(), from.shape(1));
}

nb::bytes store(const TileModel& model, int tile) {
    std::string to(static_cast<std::size_t>(model.rows(tile)) * static_cast<std::size_t>(model.row_bytes(tile)), '\0');
    model.store(tile, to.data(), static_cast<std::size_t>(model.row_bytes(tile)));
    return nb::bytes(to.data(), to.size());
}

void dot(TileModel& model, int sums, int a, int b, const std::string& signs) {
    const char* names[] = {"ss", "su", "us", "uu"};
    for (int i = 0; i < 4; ++i)
        if (signs == names[i]) return model.dot(sums, a, b, static_cast<TileSigns>(i));
    throw std::invalid_argument("signs are ss, su, us or uu");
}

}  // namespace

void bind_tiles(nb::module_& m) {
    nb::class_<TileModel>(m, "TileModel", "An exact model of a CPU's tile unit; RuntimeError where the unit would fault.")
        .def(nb::init<>())
        .def("configure", &configure, nb::arg("shape"))
        .def("release", &TileModel::release)
        .def("zero", &TileModel::zero, nb::arg("tile"))
        .def("load", &load, nb::arg("tile"), nb::arg("rows"))
        .def("store", &store, nb::arg("tile"))
        .def("dot", &dot, nb::arg("sums"), nb::arg("a"), nb::arg("b"), nb::arg("signs"));
    m.def("tile_model_use", [] { return nb::make_tuple(tile_models_configured(), tile_model_shapes()); },
          "(threads whose model holds a shape now, shapes loaded since the start) of the emulated instruction set.");
}

}  // namespace headrace
