// A sum that tells damaged bytes from whole ones. Not for secrets: whoever wants to can make two files of one sum.
#pragma once

#include <cstddef>
#include <cstdint>

#include "threads.hpp"

namespace headrace {

// Pieces of 256 KiB are summed by the threads of the pool, each in eight lanes of 64-bit words; every step is a bijection of
// the word, so that no damage within one word goes unseen. The sums of the pieces are folded in order, with the length.
std::uint64_t checksum(const std::uint8_t* bytes, std::size_t length, ThreadPool& pool);

}  // namespace headrace
