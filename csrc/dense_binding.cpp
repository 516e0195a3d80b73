// Python's view of products in fp32 with packed weights.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <stdexcept>

#include "dense.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace headrace {
namespace {

using From = nb::ndarray<const float, nb::ndim<2>, nb::device::cpu>;
using To = nb::ndarray<float, nb::ndim<2>, nb::device::cpu>;

constexpr std::size_t kMostRows = 1u << 20;

// Checked views of both sides: rows may lie apart, the values of a row may not.
DenseRows view(const From& from, const To& to, int columns, int outputs) {
    const auto fits = [](const auto& array, int width) {
        return array.shape(1) == static_cast<std::size_t>(width) && (width < 2 || array.stride(1) == 1) &&
               (array.shape(0) < 2 || array.stride(0) >= width);
    };
    if (!fits(from, columns) || !fits(to, outputs) || from.shape(0) != to.shape(0) || from.shape(0) > kMostRows)
        throw std::invalid_argument("rows don't fit the matrix, or the values of a row lie apart");
    const auto stride = [](const auto& array) { return static_cast<std::size_t>(array.shape(0) < 2 ? 0 : array.stride(0)); };
    return {from.data(), stride(from), to.data(), stride(to), static_cast<int>(from.shape(0))};
}

void check_range(const DenseMatrix& matrix, int first, int end) {
    if (first < 0 || first >= end || end > matrix.outputs() || !matrix.is_border(first) || !matrix.is_border(end))
        throw std::invalid_argument("the range of outputs is empty or cuts a panel");
}

void forward(const DenseMatrix& matrix, const From& x, const To& out, int first, int end) {
    check_range(matrix, first, end);
    const DenseRows rows = view(x, out, matrix.inputs(), end - first);
    nb::gil_scoped_release release;
    matrix.forward(kernels(), rows, first, end);
}

void backward(const DenseMatrix& matrix, const From& dy, const To& out, int first, int end, bool add) {
    check_range(matrix, first, end);
    const DenseRows rows = view(dy, out, end - first, matrix.inputs());
    nb::gil_scoped_release release;
    matrix.backward(kernels(), rows, first, end, add);
}

}  // namespace

void bind_dense(nb::module_& m) {
    nb::class_<DenseMatrix>(m, "DenseMatrix", "A packed matrix [outputs, inputs] by the values that its codes stand for, in fp32.")
        .def(nb::init<const PackedMatrix&>(), "matrix"_a, nb::keep_alive<1, 2>())
        .def_prop_ro("inputs", &DenseMatrix::inputs)
        .def_prop_ro("outputs", &DenseMatrix::outputs)
        .def("forward", &forward, "x"_a, "out"_a, "first"_a, "end"_a, "out = x · W[first:end]ᵀ, on the calling thread.")
        .def("backward", &backward, "dy"_a, "out"_a, "first"_a, "end"_a, "add"_a = false,
             "out = (or +=) dy · W[first:end], on the calling thread.");
}

}  // namespace headrace
