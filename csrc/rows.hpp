// Buffers for the activation rows of one product, in whichever forms its matrix takes.
#pragma once

#include <cstddef>
#include <cstdint>

#include "buffer.hpp"
#include "formats.hpp"
#include "kernel_table.hpp"
#include "packed_matrix.hpp"

namespace headrace {

class RowBuffer {
  public:
    void reserve(int rows, int inputs);
    // The forms of one row that products with `matrix` take; different rows may be filled by different threads.
    void fill(const KernelTable& table, const PackedMatrix& matrix, const float* values, int row);
    // Rows first … first+count-1. `values` is row 0 and must outlive the view.
    Rows rows(int first, int count, const float* values) const;

  private:
    int inputs_ = 0, padded_ = 0;
    std::size_t sums_ = 0;  // of one plane of a row
    Buffer<std::int8_t> planes_, bytes_;
    Buffer<float> scale_, byte_scale_;
    Buffer<std::int32_t> sums32_, sums16_, byte_totals_, plane_totals_;
    Buffer<std::int16_t> byte_sums_, plane_sums_;
    Buffer<std::int8_t> group_bytes_;
    Buffer<float> group_scales_, group_weighted_;
    Buffer<std::int32_t> offsets32_, offsets16_;
};

}  // namespace headrace
