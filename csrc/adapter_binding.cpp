#include "adapter_binding.hpp"

#include <nanobind/stl/shared_ptr.h>

#include <algorithm>
#include <stdexcept>

#include "kernel_table.hpp"
#include "stopwatch.hpp"
#include "threads.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace headrace {
namespace {

using FloatRows = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using MutableFloatRows = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using CodeRows = nb::ndarray<const std::uint16_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Pages = nb::ndarray<const std::uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using CodePanels = nb::ndarray<const std::uint16_t, nb::ndim<3>, nb::c_contig, nb::device::cpu>;

// Both products of one adapter for all rows of x: `out` [rows][16·panels] gets scale · factor · B·(A·x) added.
void adapter_products(const FloatRows& x, const CodeRows& a, const CodePanels& b, const BoundAdapters::Floats& factors, float scale,
                      const MutableFloatRows& out) {
    const std::size_t rows = x.shape(0), inputs = x.shape(1), ranks = a.shape(0), panels = b.shape(0);
    if (inputs % 16 || a.shape(1) != inputs || b.shape(1) != ranks || b.shape(2) != 16 || factors.shape(0) != rows ||
        out.shape(0) != rows || out.shape(1) != 16 * panels)
        throw std::invalid_argument("x [T, k], a [r, k], b [p, r, 16], factors [T] and out [T, 16 p] don't fit, or k is no multiple of 16");
    std::vector<int> order(rows);
    for (std::size_t row = 0; row < rows; ++row) order[row] = static_cast<int>(row);
    std::vector<float> v(rows * ranks);
    const int count = static_cast<int>(rows), rank = static_cast<int>(ranks);
    const AdapterKernels& products = kernels().adapters;
    products.shrink({x.data(), inputs, order.data(), factors.data(), scale, count, a.data(), rank, static_cast<int>(inputs), v.data(), ranks, nullptr});
    products.expand({b.data(), static_cast<int>(panels), rank, v.data(), ranks, order.data(), 0, count, out.data(), 16 * panels, 1, false, nullptr});
}

// Seconds in which the pool reads every byte of these pages once and does nothing else.
double time_page_reads(const Pages& pages, ThreadPool& pool) {
    constexpr std::size_t kPiece = 64 << 10;
    const std::size_t bytes = pages.size();
    const KernelTable& table = kernels();
    nb::gil_scoped_release release;
    const Stopwatch watch(pool);
    pool.parallel_for(static_cast<int>((bytes + kPiece - 1) / kPiece), [&](int piece, int) {
        const std::size_t from = static_cast<std::size_t>(piece) * kPiece;
        table.peaks.read(pages.data() + from, (std::min(from + kPiece, bytes) - from) / 64 * 64);
    });
    return watch.seconds();
}

}  // namespace

BoundAdapters::BoundAdapters(Ints starts, Ints ids, Floats scales, const nb::list& adapters)
    : starts_(std::move(starts)), ids_(std::move(ids)), scales_(std::move(scales)) {
    for (nb::handle entry : adapters) {
        const auto parts = nb::cast<nb::tuple>(entry);
        if (parts.size() != 3) throw std::invalid_argument("an adapter is (pages, places, scales)");
        adapters_.push_back({nb::cast<Ints>(parts[0], false), nb::cast<IntRows>(parts[1], false), nb::cast<Floats>(parts[2], false)});
        const Owned& own = adapters_.back();
        if (own.places.shape(1) != kPlaceFields) throw std::invalid_argument("places must be [layers · modules, 5]");
        view_.adapters.push_back({{own.pages.data(), own.pages.shape(0)}, {own.places.data(), own.places.size()}, own.scales.data(),
                                  own.scales.shape(0)});
    }
    view_.starts = {starts_.data(), starts_.shape(0)};
    view_.ids = {ids_.data(), ids_.shape(0)};
    view_.scales = scales_.data();
    view_.scale_count = scales_.shape(0);
}

void bind_adapters(nb::module_& m) {
    nb::class_<BoundAdapters>(m, "StepAdapters", "Which adapters the slices of a step use, and where they lie.")
        .def(nb::init<BoundAdapters::Ints, BoundAdapters::Ints, BoundAdapters::Floats, nb::list>(), "starts"_a.noconvert(),
             "ids"_a.noconvert(), "scales"_a.noconvert(), "adapters"_a);
    m.def("time_page_reads", &time_page_reads, "pages"_a.noconvert(), "pool"_a, "Seconds to read these pages once.");
    m.def("adapter_products", &adapter_products, "x"_a.noconvert(), "a"_a.noconvert(), "b"_a.noconvert(), "factors"_a.noconvert(),
          "scale"_a, "out"_a.noconvert(), "Both products of one adapter with all rows of x, added to out.");
}

}  // namespace headrace
