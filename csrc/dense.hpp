// Products in fp32 with a packed matrix, by the values that its codes stand for.
//
// Outputs are those of its sources one behind the other, without padding and without interleaving. Per (row, output) the
// steps are the same for every number of rows, column range and table: sums over kDenseDepth inputs, joined in order.
#pragma once

#include <cstddef>
#include <vector>

#include "kernel_table.hpp"
#include "packed_matrix.hpp"

namespace headrace {

struct DenseRows {
    const float* from;
    std::size_t from_stride;
    float* to;
    std::size_t to_stride;
    int rows;
};

class DenseMatrix {
  public:
    explicit DenseMatrix(const PackedMatrix& matrix);

    int inputs() const { return matrix_.inputs(); }
    int outputs() const { return outputs_; }
    // True if a range of outputs may begin (or end) here.
    bool is_border(int output) const;

    // to[r][o - first] = sum over k of from[r][k] · W[o][k] for outputs first … end - 1, which are borders.
    void forward(const KernelTable& table, const DenseRows& rows, int first, int end) const;
    // to[r][k] = (or, `add`, +=) sum over outputs o = first … end - 1 of from[r][o - first] · W[o][k].
    void backward(const KernelTable& table, const DenseRows& rows, int first, int end, bool add) const;

  private:
    struct Span {
        int panel, first, width;  // outputs first … first + width - 1 are a panel's first channels
    };
    std::size_t span_at(int output) const;  // the first that begins there or later
    void expand(const KernelTable& table, const Span& span, int k, int count, float* to, std::size_t stride) const;

    const PackedMatrix& matrix_;
    std::vector<Span> spans_;
    int outputs_ = 0;
};

}  // namespace headrace
