#include "checksum.hpp"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <vector>

namespace headrace {
namespace {

constexpr std::size_t kPiece = 256u << 10;
constexpr int kLanes = 8;
constexpr std::uint64_t kFactor = 0x9E3779B97F4A7C15u;  // odd, so that multiplying loses nothing

std::uint64_t mix(std::uint64_t sum, std::uint64_t word) {
    const std::uint64_t product = (sum ^ word) * kFactor;
    return product ^ product >> 29;
}

std::uint64_t sum_piece(const std::uint8_t* bytes, std::size_t length) {
    std::uint64_t lanes[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = static_cast<std::uint64_t>(lane + 1) * kFactor;
    std::size_t at = 0;
    for (; length - at >= 8 * kLanes; at += 8 * kLanes) {
        std::uint64_t words[kLanes];
        std::memcpy(words, bytes + at, sizeof words);
        for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = mix(lanes[lane], words[lane]);
    }
    for (int lane = 0; at < length; ++lane) {
        std::uint64_t word = 0;
        const std::size_t taken = std::min<std::size_t>(8, length - at);
        std::memcpy(&word, bytes + at, taken);
        lanes[lane] = mix(lanes[lane], word);
        at += taken;
    }
    std::uint64_t sum = length;
    for (const std::uint64_t lane : lanes) sum = mix(sum, lane);
    return sum;
}

}  // namespace

std::uint64_t checksum(const std::uint8_t* bytes, std::size_t length, ThreadPool& pool) {
    const std::size_t pieces = (length + kPiece - 1) / kPiece;
    if (pieces > 0x7fffffff) throw std::invalid_argument("too many bytes for one sum");
    std::vector<std::uint64_t> sums(pieces);
    pool.parallel_for(static_cast<int>(pieces), [&](int piece, int) {
        const std::size_t start = static_cast<std::size_t>(piece) * kPiece;
        sums[static_cast<std::size_t>(piece)] = sum_piece(bytes + start, std::min(kPiece, length - start));
    });
    std::uint64_t sum = mix(kFactor, length);
    for (const std::uint64_t piece : sums) sum = mix(sum, piece);
    return sum;
}

}  // namespace headrace
