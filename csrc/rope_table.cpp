#include "rope_table.hpp"

#include <cmath>

namespace headrace {

// The angle is a float product, as in the reference implementations of these models; its cosine is taken in double.
void RopeTable::reach(int positions) {
    const std::size_t half = inverse_.size(), have = cosine_.size() / half;
    if (static_cast<std::size_t>(positions) <= have) return;
    const std::size_t want = (static_cast<std::size_t>(positions) + 255) / 256 * 256;
    cosine_.resize(want * half);
    sine_.resize(want * half);
    for (std::size_t position = have; position < want; ++position)
        for (std::size_t i = 0; i < half; ++i) {
            const double angle = static_cast<float>(position) * inverse_[i];
            cosine_[position * half + i] = static_cast<float>(std::cos(angle));
            sine_[position * half + i] = static_cast<float>(std::sin(angle));
        }
}

}  // namespace headrace
