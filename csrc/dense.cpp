#include "dense.hpp"

#include <algorithm>

#include "buffer.hpp"

namespace headrace {

namespace {

constexpr std::size_t kSpansAhead = 4;

// Asks for the records of inputs k … k + width - 1 of a panel: backwards they are short runs that lie far apart.
void fetch(const PackedMatrix& matrix, const Panel& panel, int k, int width) {
    const FormatTraits& traits = kFormatTraits[static_cast<int>(panel.format)];
    if (traits.integer) return;
    const auto record = static_cast<std::size_t>(traits.record_bytes);
    const std::size_t from = static_cast<std::size_t>(k / traits.group) * record;
    const std::size_t to = static_cast<std::size_t>((k + width - 1) / traits.group + 1) * record;
    for (std::size_t line = from; line < to; line += 64) __builtin_prefetch(matrix.data() + panel.offset + line);
}

}  // namespace

DenseMatrix::DenseMatrix(const PackedMatrix& matrix) : matrix_(matrix) {
    const int step = matrix.interleaved() ? 2 : 1;
    for (std::size_t source = 0; source < matrix.source_rows().size(); ++source) {
        const int rows = matrix.source_rows()[source], begin = matrix.column_starts()[source] / kPanelWidth;
        for (int row = 0; row < rows; row += kPanelWidth)
            spans_.push_back({begin + row / kPanelWidth * step, outputs_ + row, std::min(kPanelWidth, rows - row)});
        outputs_ += rows;
    }
}

std::size_t DenseMatrix::span_at(int output) const {
    const auto found = std::partition_point(spans_.begin(), spans_.end(), [&](const Span& span) { return span.first < output; });
    return static_cast<std::size_t>(found - spans_.begin());
}

bool DenseMatrix::is_border(int output) const {
    if (output == outputs_) return true;
    const std::size_t place = span_at(output);
    return place < spans_.size() && spans_[place].first == output;
}

void DenseMatrix::expand(const KernelTable& table, const Span& span, int k, int count, float* to, std::size_t stride) const {
    const Panel& panel = matrix_.panels()[static_cast<std::size_t>(span.panel)];
    if (const auto kernel = table.dense.expand[static_cast<int>(panel.format)]) {
        kernel(matrix_.data() + panel.offset, k, count, to, stride);
        return;
    }
    std::vector<float> column(static_cast<std::size_t>(matrix_.inputs()));  // integer formats: channel by channel
    for (int channel = 0; channel < kPanelWidth; ++channel) {
        if (channel < span.width) dequantize_column(matrix_, kPanelWidth * span.panel + channel, column.data());
        for (int i = 0; i < count; ++i)
            to[static_cast<std::size_t>(i) * stride + static_cast<std::size_t>(channel)] =
                channel < span.width ? column[static_cast<std::size_t>(k + i)] : 0.0f;
    }
}

void DenseMatrix::forward(const KernelTable& table, const DenseRows& rows, int first, int end) const {
    Buffer<float> memory;
    float* tile = memory.reserve(static_cast<std::size_t>(kDenseDepth) * kDenseWidth);
    const std::size_t last = span_at(end);
    for (std::size_t begin = span_at(first), stop = begin; begin < last; begin = stop) {
        int width = 0, vectors = 0;
        for (bool full = true; stop < last && full && vectors < kDenseVectors; ++stop, ++vectors) {
            width += spans_[stop].width;
            full = spans_[stop].width == kPanelWidth;
        }
        for (int k = 0; k < matrix_.inputs(); k += kDenseDepth) {
            const int depth = std::min(kDenseDepth, matrix_.inputs() - k);
            for (int i = 0; i < depth; i += 16)
                for (int v = 0; v < vectors; ++v)
                    expand(table, spans_[begin + static_cast<std::size_t>(v)], k + i, std::min(16, depth - i),
                           tile + i * kDenseWidth + 16 * v, kDenseWidth);
            table.dense.multiply({rows.from + k, rows.from_stride, tile, depth, rows.rows, vectors, width,
                                  rows.to + (spans_[begin].first - first), rows.to_stride, k > 0});
        }
    }
}

void DenseMatrix::backward(const KernelTable& table, const DenseRows& rows, int first, int end, bool add) const {
    Buffer<float> memory;
    float* tile = memory.reserve(static_cast<std::size_t>(kDenseDepth) * kDenseWidth + 256);
    float* block = tile + static_cast<std::size_t>(kDenseDepth) * kDenseWidth;
    const std::size_t last = span_at(end);
    for (int k = 0; k < matrix_.inputs(); k += kDenseWidth) {
        const int width = std::min(kDenseWidth, matrix_.inputs() - k), vectors = (width + 15) / 16;
        for (std::size_t begin = span_at(first), stop = begin; begin < last; begin = stop) {
            int depth = 0;
            for (; stop < last && depth + spans_[stop].width <= kDenseDepth; ++stop) {
                if (stop + kSpansAhead < last)
                    fetch(matrix_, matrix_.panels()[static_cast<std::size_t>(spans_[stop + kSpansAhead].panel)], k, width);
                for (int v = 0; v < vectors; ++v) {
                    const int count = std::min(16, width - 16 * v);
                    std::fill_n(block, count < 16 ? 256 : 0, 0.0f);
                    expand(table, spans_[stop], k + 16 * v, count, block, 16);
                    float* to = tile + depth * kDenseWidth + 16 * v;
                    if (depth + 16 <= kDenseDepth) {
                        table.dense.turn(block, to, kDenseWidth);
                        continue;
                    }
                    for (int n = 0; n < spans_[stop].width; ++n)  // a narrow panel at the tile's end
                        for (int i = 0; i < 16; ++i) to[n * kDenseWidth + i] = block[16 * i + n];
                }
                depth += spans_[stop].width;
            }
            table.dense.multiply({rows.from + (spans_[begin].first - first), rows.from_stride, tile, depth, rows.rows, vectors,
                                  width, rows.to + k, rows.to_stride, add || begin != span_at(first)});
        }
    }
}

}  // namespace headrace
