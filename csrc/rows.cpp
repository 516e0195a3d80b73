#include "rows.hpp"

namespace headrace {

void RowBuffer::reserve(int rows, int inputs) {
    inputs_ = inputs;
    padded_ = (inputs + kGroup - 1) / kGroup * kGroup;
    sums_ = static_cast<std::size_t>(sum_layout(inputs).length);
    const auto count = static_cast<std::size_t>(rows), n = static_cast<std::size_t>(padded_);
    planes_.reserve(count * 2 * n);
    scale_.reserve(count);
    sums32_.reserve(count * (n / 32));
    sums16_.reserve(count * (n / 16));
    bytes_.reserve(count * n);
    byte_scale_.reserve(count);
    byte_sums_.reserve(count * sums_);
    byte_totals_.reserve(count);
    plane_sums_.reserve(count * 2 * sums_);
    plane_totals_.reserve(count * 2);
    group_bytes_.reserve(count * n);
    group_scales_.reserve(count * (n / 32));
    group_weighted_.reserve(count * (n / 32));
    offsets32_.reserve(count * (n / 32));
    offsets16_.reserve(count * (n / 16));
}

// Every format that takes integers has inputs in multiples of 32.
void RowBuffer::fill(const KernelTable& table, const PackedMatrix& matrix, const float* values, int row) {
    const auto i = static_cast<std::size_t>(row), n = static_cast<std::size_t>(padded_);
    if (matrix.needs_planes()) {
        std::int8_t* planes = planes_.data() + i * 2 * n;
        table.rows.quantise(values, inputs_, {planes, scale_.data() + i, sums32_.data() + i * (n / 32), sums16_.data() + i * (n / 16)});
        if (matrix.needs_plane_sums())
            table.rows.sum_planes(planes, inputs_, plane_sums_.data() + i * 2 * sums_, plane_totals_.data() + i * 2);
    }
    if (matrix.needs_groups())
        table.rows.quantise_groups(values, inputs_, {group_bytes_.data() + i * n, group_scales_.data() + i * (n / 32),
                                                     group_weighted_.data() + i * (n / 32), offsets32_.data() + i * (n / 32),
                                                     offsets16_.data() + i * (n / 16)});
    if (matrix.needs_bytes())
        table.rows.quantise_bytes(values, inputs_, {bytes_.data() + i * n, byte_scale_.data() + i, byte_sums_.data() + i * sums_,
                                                    byte_totals_.data() + i});
}

Rows RowBuffer::rows(int first, int count, const float* values) const {
    const auto i = static_cast<std::size_t>(first), n = static_cast<std::size_t>(padded_), stride = static_cast<std::size_t>(inputs_);
    Rows view{count, inputs_, planes_.data() + i * 2 * n, scale_.data() + i, sums32_.data() + i * (n / 32),
              sums16_.data() + i * (n / 16), values + i * stride, stride};
    view.bytes = bytes_.data() + i * n;
    view.byte_scale = byte_scale_.data() + i;
    view.byte_sums = byte_sums_.data() + i * sums_;
    view.byte_totals = byte_totals_.data() + i;
    view.plane_sums = plane_sums_.data() + i * 2 * sums_;
    view.plane_totals = plane_totals_.data() + i * 2;
    view.groups = {group_bytes_.data() + i * n, group_scales_.data() + i * (n / 32), group_weighted_.data() + i * (n / 32),
                   offsets32_.data() + i * (n / 32), offsets16_.data() + i * (n / 16)};
    return view;
}

}  // namespace headrace
