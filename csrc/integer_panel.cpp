// The layout of integer panels and of the sums that go with their rows; see formats.hpp.
#include "formats.hpp"

namespace headrace {

SumLayout sum_layout(int inputs) {
    SumLayout layout{};
    int count = (inputs + 31) / 32;
    for (int level = 0; level < 3; ++level) {
        layout.start[level] = layout.length;
        layout.length += count + count % 2;
        count = (count + 1) / 2;
    }
    return layout;
}

IntegerPanel integer_panel(Format format, int inputs) {
    const FormatTraits& traits = kFormatTraits[static_cast<int>(format)];
    const auto whole = static_cast<std::size_t>(inputs);
    if (traits.bits == 8) return {0, 0, 64 + whole * kPanelWidth};
    const int groups = (inputs + traits.group - 1) / traits.group;
    const auto blocks = static_cast<std::size_t>((groups + kBlockGroups - 1) / kBlockGroups);
    return {traits.group, groups, 64 + blocks * kBlockHead + whole * kPanelWidth / 2};
}

}  // namespace headrace
