// A step's adapters as Python hands them over: views of its arrays, which stay alive with it.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <vector>

#include "batch.hpp"

namespace headrace {

class BoundAdapters {
  public:
    using Ints = nanobind::ndarray<const std::int32_t, nanobind::ndim<1>, nanobind::c_contig, nanobind::device::cpu>;
    using IntRows = nanobind::ndarray<const std::int32_t, nanobind::ndim<2>, nanobind::c_contig, nanobind::device::cpu>;
    using Floats = nanobind::ndarray<const float, nanobind::ndim<1>, nanobind::c_contig, nanobind::device::cpu>;

    // `adapters`: (pages, places, scales) of each.
    BoundAdapters(Ints starts, Ints ids, Floats scales, const nanobind::list& adapters);
    const AdaptersView& view() const { return view_; }

  private:
    struct Owned {
        Ints pages;
        IntRows places;
        Floats scales;
    };
    Ints starts_, ids_;
    Floats scales_;
    std::vector<Owned> adapters_;
    AdaptersView view_;
};

}  // namespace headrace
