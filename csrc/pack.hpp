// From a file's raw blocks to panels: what a packed matrix is made of.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "packed_matrix.hpp"

namespace headrace {

// The file's data can't be a matrix of the claimed kind and shape.
struct PackError : std::invalid_argument {
    using std::invalid_argument::invalid_argument;
};

// One matrix as the file holds it: `rows` rows of encoded blocks. `order` (or null): output row i is stored row order[i].
struct PackSource {
    const std::uint8_t* data;
    std::size_t length;
    std::string kind;  // name in the GGUF tables: "F32", "Q4_1", …
    int rows;
    int inputs;
    const std::int32_t* order;
};

// How one source kind becomes panels.
struct SourceKind {
    const char* name;
    int block;        // inputs of one encoded block
    int block_bytes;
    Format format;
};

const std::vector<SourceKind>& source_kinds();

// Bytes of a source of that kind and shape. Throws PackError when there is no such matrix.
std::size_t source_bytes(const std::string& kind, int rows, int inputs);

// Stacks the sources along the outputs. `interleave` (exactly two sources of equal height, such as gate and up) alternates
// their panels, so that one tile has both halves of a gated product. Codes are kept exactly; the scales of K-quants
// (fp16 times a small integer) are rounded to fp16. Throws PackError; reads nothing beyond `length`.
std::unique_ptr<PackedMatrix> pack_matrix(ThreadPool& pool, const std::vector<PackSource>& sources, bool interleave);

// The matrix that pack_matrix would make of sources of these kinds and shapes (their data and order are not looked at), over
// panels that were made before: `panels` must outlive it and be aligned to 64 bytes. Throws PackError when `length` differs.
std::unique_ptr<PackedMatrix> borrow_matrix(const std::vector<PackSource>& sources, bool interleave, const std::uint8_t* panels,
                                            std::size_t length);

}  // namespace headrace
