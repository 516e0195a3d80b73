// Python's view of the thread pool, the kernel tables and packed matrices.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "checksum.hpp"
#include "cpu.hpp"
#include "kernel_table.hpp"
#include "pack.hpp"
#include "packed_matrix.hpp"
#include "rows.hpp"
#include "stopwatch.hpp"
#include "threads.hpp"

namespace nb = nanobind;

namespace headrace {
namespace {

using Bytes = nb::ndarray<const std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Order = nb::ndarray<const std::int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Matrix = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Result = nb::ndarray<nb::numpy, float, nb::ndim<2>>;
using Source = std::tuple<Bytes, std::string, int, int, std::optional<Order>>;

constexpr std::size_t kMaxProductRows = 1u << 20;

Result new_matrix(std::size_t rows, std::size_t columns) {
    auto* data = new float[rows * columns];
    nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<float*>(p); });
    return Result(data, {rows, columns}, owner);
}

std::unique_ptr<PackedMatrix> pack(const std::vector<Source>& sources, ThreadPool& pool, bool interleave) {
    std::vector<PackSource> views;
    for (const auto& [data, kind, rows, inputs, order] : sources) {
        if (order && order->shape(0) != static_cast<std::size_t>(rows)) throw PackError("the row order has not one entry a row");
        views.push_back({data.data(), data.size(), kind, rows, inputs, order ? order->data() : nullptr});
    }
    nb::gil_scoped_release release;
    return pack_matrix(pool, views, interleave);
}

using Shape = std::tuple<std::string, int, int>;

std::unique_ptr<PackedMatrix> borrow(const std::vector<Shape>& shapes, bool interleave, const Bytes& panels) {
    std::vector<PackSource> views;
    for (const auto& [kind, rows, inputs] : shapes) views.push_back({nullptr, 0, kind, rows, inputs, nullptr});
    return borrow_matrix(views, interleave, panels.data(), panels.size());
}

using Panels = nb::ndarray<nb::numpy, const std::uint8_t, nb::ndim<1>, nb::c_contig>;

Panels panels_of(nb::handle self) {
    const auto& matrix = nb::cast<const PackedMatrix&>(self);
    return Panels(matrix.data(), {matrix.bytes()}, self);
}

void check_rows(const PackedMatrix& matrix, const Matrix& x) {
    if (x.shape(1) != static_cast<std::size_t>(matrix.inputs())) throw std::invalid_argument("x has not the matrix's inputs");
    if (x.shape(0) > kMaxProductRows) throw std::invalid_argument("x has too many rows");
}

Rows fill_rows(RowBuffer& buffer, const PackedMatrix& matrix, int rows, const float* values) {
    buffer.reserve(rows, matrix.inputs());
    for (int row = 0; row < rows; ++row)
        buffer.fill(kernels(), matrix, values + static_cast<std::size_t>(row) * static_cast<std::size_t>(matrix.inputs()), row);
    return buffer.rows(0, rows, values);
}

Result product(const PackedMatrix& matrix, const Matrix& x, ThreadPool& pool) {
    check_rows(matrix, x);
    const auto rows = static_cast<int>(x.shape(0)), columns = matrix.columns();
    Result out = new_matrix(x.shape(0), static_cast<std::size_t>(columns));
    float* to = out.data();
    nb::gil_scoped_release release;
    RowBuffer buffer;
    const Rows view = fill_rows(buffer, matrix, rows, x.data());
    matmul(kernels(), pool, matrix, view, to, static_cast<std::size_t>(columns));
    return out;
}

// Seconds for `repeat` rounds over the matrices (of one shape), each multiplied by the same rows: more matrices than the
// caches hold make the round read its weights from memory, as a step does.
double time_products(const std::vector<const PackedMatrix*>& matrices, const Matrix& x, ThreadPool& pool, int repeat) {
    if (matrices.empty() || repeat < 1) throw std::invalid_argument("nothing to time");
    for (const PackedMatrix* matrix : matrices) check_rows(*matrix, x);
    const auto columns = static_cast<std::size_t>(matrices.front()->columns());
    const PackedMatrix& first = *matrices.front();
    for (const PackedMatrix* matrix : matrices)
        if (matrix->columns() != first.columns() || matrix->needs_planes() != first.needs_planes() ||
            matrix->needs_bytes() != first.needs_bytes() || matrix->needs_groups() != first.needs_groups())
            throw std::invalid_argument("the matrices differ in shape or format");
    const std::vector<float> values(x.data(), x.data() + x.size());
    std::vector<float> out(x.shape(0) * columns);
    nb::gil_scoped_release release;
    RowBuffer buffer;
    const Rows view = fill_rows(buffer, *matrices.front(), static_cast<int>(x.shape(0)), values.data());
    const Stopwatch watch(pool);
    for (int i = 0; i < repeat; ++i)
        for (const PackedMatrix* matrix : matrices) matmul(kernels(), pool, *matrix, view, out.data(), columns);
    return watch.seconds();
}

// Seconds for `repeat` rounds of only reading the same matrices, in the tiles and on the threads of a product.
double time_reads(const std::vector<const PackedMatrix*>& matrices, ThreadPool& pool, int repeat) {
    if (matrices.empty() || repeat < 1) throw std::invalid_argument("nothing to time");
    nb::gil_scoped_release release;
    const Stopwatch watch(pool);
    for (int i = 0; i < repeat; ++i)
        for (const PackedMatrix* matrix : matrices) read_matrix(kernels(), pool, *matrix);
    return watch.seconds();
}

// Multiply-adds a second on registers alone, every thread of the pool busy for `rounds` rounds.
double peak_rate(const std::string& kind, ThreadPool& pool, long rounds) {
    if (rounds < 1 || (kind != "bytes" && kind != "floats")) throw std::invalid_argument("a peak is of bytes or floats, over 1 round or more");
    const auto kernel = kind == "bytes" ? kernels().peaks.bytes : kernels().peaks.floats;
    nb::gil_scoped_release release;
    std::atomic<long> done{0};
    const Stopwatch watch(pool);
    pool.parallel_for(pool.threads(), [&](int, int) { done.fetch_add(kernel(rounds), std::memory_order_relaxed); });
    return static_cast<double>(done.load()) / watch.seconds();
}

Result dequantize(const PackedMatrix& matrix, const Order& columns) {
    Result out = new_matrix(columns.shape(0), static_cast<std::size_t>(matrix.inputs()));
    for (std::size_t i = 0; i < columns.shape(0); ++i) {
        const std::int32_t column = columns.data()[i];
        if (column < 0 || column >= matrix.columns()) throw nb::index_error("column outside the matrix");
        dequantize_column(matrix, column, out.data() + i * static_cast<std::size_t>(matrix.inputs()));
    }
    return out;
}

std::vector<std::string> format_names(const PackedMatrix& matrix) {
    std::vector<std::string> names;
    for (const Panel& panel : matrix.panels()) names.emplace_back(kFormatTraits[static_cast<int>(panel.format)].name);
    return names;
}

void bind_tables(nb::module_& m) {
    m.def("set_isa", [](const std::string& name) { set_isa(name.c_str()); }, nb::arg("name"),
          "Compute with the kernels of one instruction set ('auto': the best). ValueError when this machine can't run it.");
    m.def("isa", [] { return std::string(kernels().isa); }, "Name of the instruction set in use.");
    m.def("isa_support", [] {
        std::vector<std::tuple<std::string, bool, bool, bool, std::string>> rows;
        for (const IsaSupport& isa : isa_support()) rows.emplace_back(isa.name, isa.compiled, isa.runnable, isa.automatic, isa.lacking);
        return rows;
    }, "(name, compiled, runnable, automatic, what it lacks here) of every instruction set, best first.");
    m.def("format_unit", [](const std::string& isa, const std::string& format) {
        const KernelTable& table = kernels_named(isa.c_str());
        for (int i = 0; i < kFormats; ++i)
            if (format == kFormatTraits[i].name)
                return table.tiles.panel[i] != nullptr ? "tiles from " + std::to_string(table.tiles.least) + " rows" : std::string("vectors");
        throw std::invalid_argument("no weight format '" + format + "'");
    }, nb::arg("isa"), nb::arg("format"), "What multiplies a weight format on a runnable instruction set.");
    m.def("cpu_lacks", &cpu_lacks_for_anything, "What this CPU misses to run anything at all; empty: nothing.");
    m.def("cpu_features", &cpu_features, "Names of the CPU features that choose the kernels and are present here.");
    m.def("format_traits", [] {
        std::vector<std::tuple<std::string, int, int, int, bool, int>> rows;
        for (const FormatTraits& t : kFormatTraits)
            rows.emplace_back(t.name, t.bits, t.group, t.record_bytes, t.has_min, t.quantised ? t.activation_bits : 32);
        return rows;
    }, "(name, bits, group, record bytes, has minimum, activation bits) of every runtime format.");
    m.def("source_kinds", [] {
        std::vector<std::tuple<std::string, int, int, std::string>> rows;
        for (const SourceKind& kind : source_kinds())
            rows.emplace_back(kind.name, kind.block, kind.block_bytes, kFormatTraits[static_cast<int>(kind.format)].name);
        return rows;
    }, "(kind, block inputs, block bytes, runtime format) of every encoding that can be packed.");
}

}  // namespace

void bind_matmul(nb::module_& m) {
    bind_tables(m);
    m.def("source_bytes", &source_bytes, nb::arg("kind"), nb::arg("rows"), nb::arg("inputs"),
          "Bytes that a matrix of that kind and shape takes in its source.");
    m.def("checksum", [](const Bytes& bytes, ThreadPool& pool) {
        nb::gil_scoped_release release;
        return checksum(bytes.data(), bytes.size(), pool);
    }, nb::arg("bytes"), nb::arg("pool"), "64 bits that tell damaged bytes from whole ones, at the rate of memory.");
    m.def("time_products", &time_products, nb::arg("matrices"), nb::arg("x"), nb::arg("pool"), nb::arg("repeat"),
          "Seconds for `repeat` rounds of products of the same rows with each matrix.");
    m.def("time_reads", &time_reads, nb::arg("matrices"), nb::arg("pool"), nb::arg("repeat"),
          "Seconds for `repeat` rounds of only reading each matrix.");
    m.def("peak_rate", &peak_rate, nb::arg("kind"), nb::arg("pool"), nb::arg("rounds"),
          "Multiply-adds a second of the product instructions ('bytes' or 'floats') on registers alone.");
    nb::class_<ThreadPool>(m, "ThreadPool", "Threads that take small tiles from a counter; the caller is one of them.")
        .def(nb::init<int>(), nb::arg("threads"))
        .def_prop_ro("threads", &ThreadPool::threads)
        .def("resize", &ThreadPool::resize, nb::arg("threads"), nb::call_guard<nb::gil_scoped_release>())
        .def("region_seconds", &region_seconds, nb::arg("tiles"), nb::arg("repeat"), nb::call_guard<nb::gil_scoped_release>(),
             "Mean seconds of a region of empty tiles.")
        .def("cover", &cover_counts, nb::arg("tiles"), nb::arg("regions"), nb::call_guard<nb::gil_scoped_release>(),
             "How often each tile ran over that many regions of growing length: a self-check of the pool.");
    nb::class_<PackedMatrix>(m, "PackedMatrix", "A weight matrix in its runtime form.")
        .def_static("pack", &pack, nb::arg("sources"), nb::arg("pool"), nb::arg("interleave") = false)
        .def_static("borrow", &borrow, nb::arg("shapes"), nb::arg("interleave"), nb::arg("panels").noconvert(), nb::keep_alive<0, 3>(),
                    "The matrix of sources (kind, rows, inputs) over panels that were packed before; keeps `panels` alive.")
        .def_prop_ro("panels", &panels_of, "The packed bytes, read-only: what `borrow` takes.")
        .def_prop_ro("inputs", &PackedMatrix::inputs)
        .def_prop_ro("columns", &PackedMatrix::columns)
        .def_prop_ro("bytes", &PackedMatrix::bytes)
        .def_prop_ro("formats", &format_names, "Format of each panel of 16 columns.")
        .def_prop_ro("column_starts", &PackedMatrix::column_starts)
        .def_prop_ro("source_rows", &PackedMatrix::source_rows)
        .def_prop_ro("interleaved", &PackedMatrix::interleaved)
        .def("matmul", &product, nb::arg("x"), nb::arg("pool"))
        .def("dequantize", &dequantize, nb::arg("columns"));
}

}  // namespace headrace
