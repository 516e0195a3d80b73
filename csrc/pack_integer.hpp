// From encoded rows of integer codes (see headrace/models/integer_rows.py) to panels.
#pragma once

#include <cstddef>
#include <cstdint>

#include "formats.hpp"

namespace headrace {

// Bytes of one encoded row.
std::size_t integer_row_bytes(Format format, int inputs);

enum class PackFault : std::uint8_t { none, not_finite, too_large };

// rows[lane] is null for padding channels, which get scale 0. `too_large`: a channel's products could leave int32.
PackFault pack_integer_panel(Format format, const std::uint8_t* const* rows, int inputs, std::uint8_t* panel);

// Row `lane` of a panel as fp32 values.
void dequantize_integer(Format format, const std::uint8_t* panel, int inputs, int lane, float* out);

}  // namespace headrace
