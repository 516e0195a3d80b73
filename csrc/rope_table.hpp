// Cosines and sines of rotary positions for one set of frequencies, filled as positions are first met.
#pragma once

#include <cstddef>
#include <utility>
#include <vector>

namespace headrace {

class RopeTable {
  public:
    explicit RopeTable(std::vector<float> inverse_frequencies) : inverse_(std::move(inverse_frequencies)) {}
    const std::vector<float>& inverse_frequencies() const { return inverse_; }
    void reach(int positions);  // fills rows 0 … positions-1 at least
    const float* cosine(int position) const { return cosine_.data() + static_cast<std::size_t>(position) * inverse_.size(); }
    const float* sine(int position) const { return sine_.data() + static_cast<std::size_t>(position) * inverse_.size(); }

  private:
    std::vector<float> inverse_;  // radians a position, [head_dim/2]
    std::vector<float> cosine_;   // [position][head_dim/2]
    std::vector<float> sine_;
};

}  // namespace headrace
