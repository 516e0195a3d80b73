// A weight matrix in its runtime form: panels of 16 output channels, each in the format that keeps its source's codes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "formats.hpp"
#include "kernel_table.hpp"
#include "threads.hpp"

namespace headrace {

struct Panel {
    std::size_t offset;  // into the matrix's bytes
    Format format;
};

// Sources stacked along the outputs, each padded to whole panels; source s begins at output column column_starts[s].
// `panels` may mix formats (a file that keeps V in more bits than Q and K), which costs one indirect call a panel.
class PackedMatrix {
  public:
    int inputs() const { return inputs_; }
    int columns() const { return static_cast<int>(panels_.size()) * kPanelWidth; }  // of the output, padding included
    int panel_count() const { return static_cast<int>(panels_.size()); }
    std::size_t bytes() const { return bytes_; }
    const std::vector<Panel>& panels() const { return panels_; }
    const std::vector<int>& column_starts() const { return column_starts_; }
    const std::vector<int>& source_rows() const { return source_rows_; }
    bool interleaved() const { return interleaved_; }
    bool needs_planes() const { return needs_planes_; }
    bool needs_values() const { return needs_values_; }
    bool needs_bytes() const { return needs_bytes_; }            // rows in 8 bits with one scale
    bool needs_groups() const { return needs_groups_; }          // rows in 8 bits with a scale every 32 inputs
    bool needs_integers() const { return needs_planes_ || needs_bytes_ || needs_groups_; }
    bool needs_plane_sums() const { return needs_plane_sums_; }  // group sums of the planes
    bool integer() const { return integer_; }                    // every panel is of an integer format
    const std::uint8_t* data() const { return data_.get(); }

  private:
    friend class Packer;
    struct Unmap {
        std::size_t length;  // 0: the panels are borrowed
        void operator()(std::uint8_t* data) const;
    };
    int inputs_ = 0;
    std::size_t bytes_ = 0;
    bool interleaved_ = false;
    bool needs_planes_ = false;
    bool needs_values_ = false;
    bool needs_bytes_ = false;
    bool needs_groups_ = false;
    bool needs_plane_sums_ = false;
    bool integer_ = true;
    std::vector<Panel> panels_;
    std::vector<int> column_starts_;
    std::vector<int> source_rows_;
    std::unique_ptr<std::uint8_t, Unmap> data_;
};

// out[m][16*panel0 …] = x[m] · W^T for rows m0 … m1-1 and panels panel0 … panel1-1. `out` points at row 0, column 0 of the
// whole product and `out_stride` counts floats. Bit-identical for every split of rows and panels and for every table.
void matmul_tile(const KernelTable& table, const PackedMatrix& matrix, const Rows& x, int m0, int m1, int panel0, int panel1,
                 float* out, std::size_t out_stride);

// The same with the 16·(panel1-panel0) columns written from column 0 of `out` (row 0 of `out` is row m0): for scratch tiles.
void matmul_tile_local(const KernelTable& table, const PackedMatrix& matrix, const Rows& x, int m0, int m1, int panel0, int panel1,
                       float* out, std::size_t out_stride);

// The whole product, cut into small tiles over the pool.
void matmul(const KernelTable& table, ThreadPool& pool, const PackedMatrix& matrix, const Rows& x, float* out,
            std::size_t out_stride);

// Reads every byte of the matrix once, in tiles over the pool: the memory's share of a product's time.
void read_matrix(const KernelTable& table, ThreadPool& pool, const PackedMatrix& matrix);

// Row `row` of the stacked outputs (its output column) as fp32 values, for embeddings and as oracle.
void dequantize_column(const PackedMatrix& matrix, int column, float* out);

}  // namespace headrace
