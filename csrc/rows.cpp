#include "rows.hpp"

#include <cmath>

namespace headrace {

RowBuffer::RowBuffer(int rows, int inputs)
    : rows_(rows),
      inputs_(inputs),
      padded_((inputs + kGroup - 1) / kGroup * kGroup),
      planes_(new std::int8_t[static_cast<std::size_t>(rows) * padded_ * 2]()),
      scale_(new float[static_cast<std::size_t>(rows)]()),
      sums32_(new std::int32_t[static_cast<std::size_t>(rows) * (padded_ / 32)]()),
      sums16_(new std::int32_t[static_cast<std::size_t>(rows) * (padded_ / 16)]()) {}

Rows RowBuffer::load(const float* values, bool planes) {
    if (planes)
        for (int row = 0; row < rows_; ++row) quantise(values + static_cast<std::size_t>(row) * inputs_, row);
    return {rows_, inputs_, planes_.get(), scale_.get(), sums32_.get(), sums16_.get(), values, static_cast<std::size_t>(inputs_)};
}

void RowBuffer::quantise(const float* x, int row) {
    std::int8_t* planes = planes_.get() + static_cast<std::size_t>(row) * padded_ * 2;
    std::int32_t* sums32 = sums32_.get() + static_cast<std::size_t>(row) * (padded_ / 32);
    std::int32_t* sums16 = sums16_.get() + static_cast<std::size_t>(row) * (padded_ / 16);
    float peak = 0.0f;
    for (int i = 0; i < inputs_; ++i) peak = std::fmax(peak, std::fabs(x[i]));
    const bool live = peak > 1e-30f;  // below, the inverse could overflow: the row counts as zero
    const float inverse = live ? static_cast<float>(kActivationPeak) / peak : 0.0f;
    scale_[static_cast<std::size_t>(row)] = live ? peak / static_cast<float>(kActivationPeak) : 0.0f;
    for (int i = 0; i < padded_ / 16; ++i) sums16[i] = 0;
    for (int i = 0; i < padded_; ++i) {
        const int code = i < inputs_ ? static_cast<int>(std::nearbyintf(x[i] * inverse)) : 0;
        const int high = (code + 128) >> 8;
        planes[i / 4 * 8 + i % 4] = static_cast<std::int8_t>(high);
        planes[i / 4 * 8 + 4 + i % 4] = static_cast<std::int8_t>(code - 256 * high);
        sums16[i / 16] += code;
    }
    for (int i = 0; i < padded_ / 32; ++i) sums32[i] = sums16[2 * i] + sums16[2 * i + 1];
}

}  // namespace headrace
