// Buffers for the activation rows of one product, with their quantisation.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "formats.hpp"
#include "kernel_table.hpp"

namespace headrace {

class RowBuffer {
  public:
    RowBuffer(int rows, int inputs);

    // The view of `rows` x `inputs` fp32 values, quantised too when `planes` is wanted. `values` must outlive the view.
    Rows load(const KernelTable& table, const float* values, bool planes);

  private:
    int rows_, inputs_, padded_;
    std::unique_ptr<std::int8_t[]> planes_;
    std::unique_ptr<float[]> scale_;
    std::unique_ptr<std::int32_t[]> sums32_, sums16_;
};

}  // namespace headrace
