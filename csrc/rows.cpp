#include "rows.hpp"

namespace headrace {

RowBuffer::RowBuffer(int rows, int inputs)
    : rows_(rows),
      inputs_(inputs),
      padded_((inputs + kGroup - 1) / kGroup * kGroup),
      planes_(new std::int8_t[static_cast<std::size_t>(rows) * padded_ * 2]()),
      scale_(new float[static_cast<std::size_t>(rows)]()),
      sums32_(new std::int32_t[static_cast<std::size_t>(rows) * (padded_ / 32)]()),
      sums16_(new std::int32_t[static_cast<std::size_t>(rows) * (padded_ / 16)]()) {}

// Every format that takes planes has inputs in multiples of 32.
Rows RowBuffer::load(const KernelTable& table, const float* values, bool planes) {
    for (std::size_t row = 0; planes && row < static_cast<std::size_t>(rows_); ++row) {
        const auto inputs = static_cast<std::size_t>(inputs_), padded = static_cast<std::size_t>(padded_);
        table.rows.quantise(values + row * inputs, inputs_,
                            {planes_.get() + row * padded * 2, scale_.get() + row, sums32_.get() + row * (padded / 32),
                             sums16_.get() + row * (padded / 16)});
    }
    return {rows_, inputs_, planes_.get(), scale_.get(), sums32_.get(), sums16_.get(), values, static_cast<std::size_t>(inputs_)};
}

}  // namespace headrace
