#include "pack_integer.hpp"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>

namespace headrace {
namespace {

constexpr std::int64_t kAccumulatorPeak = (std::int64_t{1} << 31) - 1;
constexpr std::int64_t kActivationByte = 128;  // of either plane, in absolute value

const FormatTraits& traits_of(Format format) { return kFormatTraits[static_cast<int>(format)]; }

std::uint8_t nibble(const std::uint8_t* packed, int i) { return packed[i / 2] >> (i % 2 * 4) & 15; }

// One channel's nibbles of 32 inputs into the four lines that begin at `lines`.
void place_nibbles(const std::uint8_t* packed, int lane, std::uint8_t* lines) {
    for (int i = 0; i < 16; ++i)
        lines[64 * (i / 4) + 4 * lane + i % 4] = static_cast<std::uint8_t>(nibble(packed, i) | nibble(packed, i + 16) << 4);
}

// Where a group's scales, zeros and codes stand.
struct GroupPlace {
    std::size_t scales, zeros, codes;
};

GroupPlace group_place(const IntegerPanel& panel, int g) {
    const auto block = static_cast<std::size_t>(g / kBlockGroups), inner = static_cast<std::size_t>(g % kBlockGroups);
    const auto lines = static_cast<std::size_t>(panel.group) * kPanelWidth / 2;
    const std::size_t base = 64 + block * (kBlockHead + kBlockGroups * lines);
    return {base + kPanelWidth * inner, base + 64 + inner / 2 * 64 + inner % 2 * 2, base + kBlockHead + inner * lines};
}

std::int64_t place_groups(Format format, const std::uint8_t* row, int inputs, int lane, std::uint8_t* panel) {
    const IntegerPanel layout = integer_panel(format, inputs);
    const auto channel = static_cast<std::size_t>(lane);
    std::int64_t total = 0;
    for (int g = 0; g < layout.groups; ++g) {
        const GroupPlace at = group_place(layout, g);
        const int count = std::min(layout.group, inputs - g * layout.group), scale = row[0];
        std::int16_t zero;
        std::memcpy(&zero, row + 1, 2);
        panel[at.scales + channel] = row[0];
        std::memcpy(panel + at.zeros + 4 * channel, &zero, 2);
        row += 3;
        for (int i = 0; i < count; ++i) total += std::abs(nibble(row, i) * scale - zero);
        for (int k = 0; k < count; k += 32) place_nibbles(row + k / 2, lane, panel + at.codes + static_cast<std::size_t>(8 * k));
        row += count / 2;
    }
    return total;
}

std::int64_t place_bytes(const std::uint8_t* row, int inputs, int lane, std::uint8_t* lines) {
    std::int64_t total = 0;
    for (int k = 0; k < inputs; ++k) {
        lines[static_cast<std::size_t>(16 * (k / 4 * 4) + 4 * lane + k % 4)] = row[k] ^ 0x80;
        total += std::abs(static_cast<int>(static_cast<std::int8_t>(row[k])));
    }
    return total;
}

}  // namespace

std::size_t integer_row_bytes(Format format, int inputs) {
    const FormatTraits& traits = traits_of(format);
    const auto whole = static_cast<std::size_t>(inputs);
    if (traits.bits == 8) return 4 + whole;
    return 4 + whole / 2 + 3 * static_cast<std::size_t>(integer_panel(format, inputs).groups);
}

PackFault pack_integer_panel(Format format, const std::uint8_t* const* rows, int inputs, std::uint8_t* panel) {
    const IntegerPanel at = integer_panel(format, inputs);
    std::memset(panel, 0, at.bytes);
    for (int lane = 0; lane < kPanelWidth; ++lane) {
        if (rows[lane] == nullptr) continue;
        float scale;
        std::memcpy(&scale, rows[lane], 4);
        if (!std::isfinite(scale)) return PackFault::not_finite;
        std::memcpy(panel + 4 * lane, &scale, 4);
        const std::uint8_t* codes = rows[lane] + 4;
        const std::int64_t total = traits_of(format).bits == 8 ? place_bytes(codes, inputs, lane, panel + 64)
                                                               : place_groups(format, codes, inputs, lane, panel);
        if (total * kActivationByte > kAccumulatorPeak) return PackFault::too_large;
    }
    return PackFault::none;
}

void dequantize_integer(Format format, const std::uint8_t* panel, int inputs, int lane, float* out) {
    const IntegerPanel layout = integer_panel(format, inputs);
    const auto column = static_cast<std::size_t>(lane);
    float channel;
    std::memcpy(&channel, panel + 4 * column, 4);
    for (int k = 0; k < inputs; ++k) {
        int whole;
        if (layout.group == 0) {
            whole = panel[64 + static_cast<std::size_t>(16 * (k / 4 * 4) + k % 4) + 4 * column] - 128;
        } else {
            const GroupPlace at = group_place(layout, k / layout.group);
            const int i = k % 32, chunk = k % layout.group - i;
            std::int16_t zero;
            std::memcpy(&zero, panel + at.zeros + 4 * column, 2);
            const int code = panel[at.codes + static_cast<std::size_t>(8 * chunk + 64 * (i % 16 / 4) + i % 4) + 4 * column] >> (i / 16 * 4) & 15;
            whole = code * panel[at.scales + column] - zero;
        }
        out[k] = channel * static_cast<float>(whole);
    }
}

}  // namespace headrace
