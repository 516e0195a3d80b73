#include "packed_matrix.hpp"

#include <algorithm>
#include <cstring>

#include "gguf_blocks.hpp"
#include "pack_integer.hpp"

namespace headrace {
namespace {

constexpr int kTileRows = 64;
constexpr int kTilePanels = 4;

struct TileGrid {
    int row_tiles, panel_tiles, rows, panels;
};

TileGrid grid_of(const PackedMatrix& matrix, int rows) {
    const int row_tiles = (rows + kTileRows - 1) / kTileRows;
    const int panel_tiles = (matrix.panel_count() + kTilePanels - 1) / kTilePanels;
    return {row_tiles, panel_tiles, kTileRows, kTilePanels};
}

// Rows from m0 on in the form of an integer format.
void give_integer_rows(const FormatTraits& traits, const Rows& x, int m0, PanelProduct& product) {
    const auto row = static_cast<std::size_t>(m0), planes = static_cast<std::size_t>(traits.activation_bits / 8);
    const SumLayout sums = sum_layout(x.inputs);
    const bool one = planes == 1;
    product.plane_stride = static_cast<std::size_t>((x.inputs + kGroup - 1) / kGroup * kGroup) * planes;
    product.planes = (one ? x.bytes : x.planes) + product.plane_stride * row;
    product.scale = (one ? x.byte_scale : x.scale) + row;
    product.group_sum_length = static_cast<std::size_t>(sums.length);
    product.group_sum_stride = product.group_sum_length * planes;
    product.group_sums = (one ? x.byte_sums : x.plane_sums) + product.group_sum_stride * row +
                         sums.start[traits.group == 128 ? 2 : traits.group / 64];
    product.totals = (one ? x.byte_totals : x.plane_totals) + planes * row;
}

// Rows from m0 on in 8 bits with a scale every 32 inputs.
void give_group_rows(const FormatTraits& traits, const Rows& x, int m0, PanelProduct& product) {
    const auto row = static_cast<std::size_t>(m0), padded = static_cast<std::size_t>((x.inputs + kGroup - 1) / kGroup * kGroup);
    product.plane_stride = padded;
    product.planes = x.groups.bytes + padded * row;
    product.sum_stride = padded / static_cast<std::size_t>(traits.group);
    product.sums = (traits.group == 16 ? x.groups.offsets16 : x.groups.offsets32) + product.sum_stride * row;
    product.group_scale_stride = padded / kGroup;
    product.group_scales = x.groups.scales + product.group_scale_stride * row;
    product.group_weighted = x.groups.weighted + product.group_scale_stride * row;
}

// One panel times rows m0 … m1-1; `out` points at the first of them and the panel's first column.
void panel_times_rows(PanelKernel kernel, const PackedMatrix& matrix, const Rows& x, int m0, int m1, int panel, float* out,
                      std::size_t out_stride) {
    const int padded = (x.inputs + kGroup - 1) / kGroup * kGroup;
    const Panel& place = matrix.panels()[static_cast<std::size_t>(panel)];
    const FormatTraits& traits = kFormatTraits[static_cast<int>(place.format)];
    PanelProduct product{};
    product.panel = matrix.data() + place.offset;
    product.groups = matrix.inputs() / traits.group;
    product.inputs = matrix.inputs();
    product.rows = m1 - m0;
    product.out = out;
    product.out_stride = out_stride;
    if (traits.integer) {
        give_integer_rows(traits, x, m0, product);
    } else if (traits.quantised && traits.activation_bits == 8) {
        give_group_rows(traits, x, m0, product);
    } else if (traits.quantised) {
        product.plane_stride = static_cast<std::size_t>(padded) * 2;
        product.planes = x.planes + product.plane_stride * static_cast<std::size_t>(m0);
        product.sum_stride = static_cast<std::size_t>(padded / traits.group);
        product.sums = (traits.group == 16 ? x.sums16 : x.sums32) + product.sum_stride * static_cast<std::size_t>(m0);
        product.scale = x.scale + m0;
    } else {
        product.value_stride = x.value_stride;
        product.values = x.values + x.value_stride * static_cast<std::size_t>(m0);
    }
    kernel(product);
}

// The tile unit of the calling thread, configured as the blocks of one matmul_tile ask and released at its end.
class TileSession {
  public:
    explicit TileSession(const TileKernels& kernels) : kernels_(kernels) {}
    TileSession(const TileSession&) = delete;
    TileSession& operator=(const TileSession&) = delete;
    ~TileSession() {
        if (rows_ > 0) kernels_.release();
    }

    bool takes(Format format, int rows) const {
        return rows >= kernels_.least && kernels_.rows > 0 && kernels_.panel[static_cast<int>(format)] != nullptr;
    }

    PanelKernel kernel(Format format, int rows) {
        const int group = kFormatTraits[static_cast<int>(format)].group;
        if (rows != rows_ || group != group_) kernels_.configure(format, rows);
        rows_ = rows;
        group_ = group;
        return kernels_.panel[static_cast<int>(format)];
    }

  private:
    const TileKernels& kernels_;
    int rows_ = 0, group_ = 0;
};

// One row block at a time meets all panels of the tile, so that rows and panels both stay in the innermost cache. Panels
// of integer formats are expanded for many rows: without a tile unit they meet all of the tile's rows at once.
void panels_times_rows(const KernelTable& table, const PackedMatrix& matrix, const Rows& x, int m0, int m1, int panel0, int panel1,
                       float* out, std::size_t out_stride) {
    TileSession tiles(table.tiles);
    for (int row = m0, count = 0; row < m1; row += count) {
        const int block = m1 - row >= table.tiles.least && table.tiles.rows > 0 ? table.tiles.rows : kRowBlock;
        count = matrix.integer() && block == kRowBlock ? m1 - row : std::min(m1 - row, block);
        for (int panel = panel0; panel < panel1; ++panel) {
            const Format format = matrix.panels()[static_cast<std::size_t>(panel)].format;
            const PanelKernel kernel = tiles.takes(format, count) ? tiles.kernel(format, count) : table.panel[static_cast<int>(format)];
            panel_times_rows(kernel, matrix, x, row, row + count, panel,
                             out + static_cast<std::size_t>(row - m0) * out_stride + static_cast<std::size_t>(panel - panel0) * kPanelWidth,
                             out_stride);
        }
    }
}

void dequantize_group(Format format, const std::uint8_t* record, int lane, float* out) {
    const FormatTraits& traits = kFormatTraits[static_cast<int>(format)];
    const std::uint8_t* scales = record + traits.record_bytes - (traits.has_min ? 64 : 32);
    std::uint16_t half[2] = {0, 0};
    std::memcpy(&half[0], scales + 2 * lane, 2);
    if (traits.has_min) std::memcpy(&half[1], scales + 32 + 2 * lane, 2);
    const float d = float_of_half(half[0]), m = float_of_half(half[1]);
    for (int i = 0; i < traits.group; ++i) {
        int q;
        if (traits.bits == 4) q = record[64 * (i % 16 / 4) + 4 * lane + i % 4] >> (i / 16 * 4) & 15;
        else q = record[64 * (i / 4) + 4 * lane + i % 4] - 128;
        const float scaled = d * static_cast<float>(q);
        out[i] = scaled + m;
    }
}

float value_at(Format format, const std::uint8_t* panel, int lane, int k) {
    const std::size_t index = static_cast<std::size_t>(k) * kPanelWidth + static_cast<std::size_t>(lane);
    float value;
    if (format == Format::f32) {
        std::memcpy(&value, panel + 4 * index, 4);
        return value;
    }
    std::uint16_t word;
    std::memcpy(&word, panel + 2 * index, 2);
    if (format == Format::f16) return float_of_half(word);
    const std::uint32_t bits = static_cast<std::uint32_t>(word) << 16;
    std::memcpy(&value, &bits, 4);
    return value;
}

}  // namespace

void matmul_tile_local(const KernelTable& table, const PackedMatrix& matrix, const Rows& x, int m0, int m1, int panel0, int panel1,
                       float* out, std::size_t out_stride) {
    panels_times_rows(table, matrix, x, m0, m1, panel0, panel1, out, out_stride);
}

void matmul_tile(const KernelTable& table, const PackedMatrix& matrix, const Rows& x, int m0, int m1, int panel0, int panel1,
                 float* out, std::size_t out_stride) {
    float* corner = out + static_cast<std::size_t>(m0) * out_stride + static_cast<std::size_t>(panel0) * kPanelWidth;
    panels_times_rows(table, matrix, x, m0, m1, panel0, panel1, corner, out_stride);
}

void matmul(const KernelTable& table, ThreadPool& pool, const PackedMatrix& matrix, const Rows& x, float* out,
            std::size_t out_stride) {
    const TileGrid grid = grid_of(matrix, x.count);
    pool.parallel_for(grid.row_tiles * grid.panel_tiles, [&](int tile, int) {
        const int m0 = tile % grid.row_tiles * grid.rows, panel0 = tile / grid.row_tiles * grid.panels;
        matmul_tile(table, matrix, x, m0, std::min(m0 + grid.rows, x.count), panel0, std::min(panel0 + grid.panels, matrix.panel_count()),
                    out, out_stride);
    });
}

void read_matrix(const KernelTable& table, ThreadPool& pool, const PackedMatrix& matrix) {
    constexpr std::size_t kPiece = 64 << 10;
    const auto pieces = static_cast<int>((matrix.bytes() + kPiece - 1) / kPiece);
    pool.parallel_for(pieces, [&](int piece, int) {
        const std::size_t from = static_cast<std::size_t>(piece) * kPiece;
        table.peaks.read(matrix.data() + from, (std::min(from + kPiece, matrix.bytes()) - from) / 64 * 64);
    });
}

void dequantize_column(const PackedMatrix& matrix, int column, float* out) {
    const Panel& place = matrix.panels()[static_cast<std::size_t>(column / kPanelWidth)];
    const FormatTraits& traits = kFormatTraits[static_cast<int>(place.format)];
    const std::uint8_t* panel = matrix.data() + place.offset;
    const int lane = column % kPanelWidth;
    if (traits.integer) {
        dequantize_integer(place.format, panel, matrix.inputs(), lane, out);
        return;
    }
    if (!traits.quantised) {
        for (int k = 0; k < matrix.inputs(); ++k) out[k] = value_at(place.format, panel, lane, k);
        return;
    }
    for (int k = 0; k < matrix.inputs(); k += traits.group, panel += traits.record_bytes)
        dequantize_group(place.format, panel, lane, out + k);
}

}  // namespace headrace
