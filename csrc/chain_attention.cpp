// The attention half of a chain.
#include <algorithm>

#include "chain.hpp"
#include "chain_regions.hpp"

namespace headrace {
namespace {

std::size_t product(int a, std::size_t b) { return static_cast<std::size_t>(a) * b; }

const float* pointer(const Gains& gains) { return gains.empty() ? nullptr : gains.data(); }

}  // namespace

void Chain::run_attention(const AttentionBlock& block, const BatchView& batch, const PoolView& pages) {
    const int rows = batch.rows(), width = block.shape.heads * block.shape.head_dim;
    norm_rows(block.norm, *block.qkv, rows);
    const Rows x = activations_.rows(0, rows, normed_.data());
    const auto columns = static_cast<std::size_t>(block.qkv->columns());
    adapters_.shrink(*table_, *pool_, block.layer, kModuleQ, 3, normed_.data(), static_cast<std::size_t>(shape_.hidden));
    for_tiles(*block.qkv, rows, [&](int m0, int m1, int panel0, int panel1, int) {
        fetch_adapters(*block.qkv, m0, panel0, panel1);
        matmul_tile(*table_, *block.qkv, x, m0, m1, panel0, panel1, qkv_.data(), columns);
        add_adapters(*block.qkv, m0, panel0, panel1, qkv_.data() + product(m0, columns) + panel0 * kPanelWidth, columns);
    });
    finish_qkv(block, batch, pages);
    finished_ = &block;
    finished_rows_ = rows;
    const auto stride = static_cast<std::size_t>(width);
    attention_runner_.run(*table_, *pool_, block.shape, batch, pages,
                          {qkv_.data() + block.qkv->column_starts()[0], columns, wide_.data(), stride});
    quantise_wide(width, *block.o, rows);
    adapters_.shrink(*table_, *pool_, block.layer, kModuleO, 1, wide_.data(), stride);
    product_onto_residual(*block.o, activations_.rows(0, rows, wide_.data()), block.post_norm);
}

// All keys and values of the step are in their pages before any row reads one.
void Chain::finish_qkv(const AttentionBlock& block, const BatchView& batch, const PoolView& pages) {
    const auto columns = static_cast<std::size_t>(block.qkv->columns());
    const std::vector<int>& starts = block.qkv->column_starts();
    for_rows(batch.rows(), [&](int row, int) {
        const int position = batch.positions[static_cast<std::size_t>(row)];
        float* values = qkv_.data() + product(row, columns);
        QkvRow work{};
        work.q = values + starts[0];
        work.k = values + starts[1];
        work.v = values + starts[2];
        work.q_bias = pointer(block.q_bias);
        work.k_bias = pointer(block.k_bias);
        work.v_bias = pointer(block.v_bias);
        work.q_norm = pointer(block.q_norm);
        work.k_norm = pointer(block.k_norm);
        work.k_shift = pointer(block.k_shift);
        work.k_factor = pointer(block.k_factor);
        work.q_factor = pointer(block.q_factor);
        work.cosine = block.rope->cosine(position);
        work.sine = block.rope->sine(position);
        work.eps = shape_.eps;
        work.scale = block.scale;
        work.heads = block.shape.heads;
        work.kv_heads = block.shape.kv_heads;
        work.head_dim = block.shape.head_dim;
        std::uint8_t* page = pages.data + product(row_page_[static_cast<std::size_t>(row)], pages.page_bytes);
        work.page = page + block.shape.page_offset;
        work.format = block.shape.format;
        work.slot = position % kPageTokens;
        table_->rows.finish_qkv(work);
    });
}

int Chain::finished_width() const {
    return finished_ == nullptr ? 0 : (finished_->shape.heads + finished_->shape.kv_heads) * finished_->shape.head_dim;
}

std::vector<float> Chain::finished_heads() {
    std::lock_guard lock(busy_);
    const auto width = static_cast<std::size_t>(finished_width());
    std::vector<float> all(product(finished_rows_, width));
    if (finished_ == nullptr) return all;
    const auto columns = static_cast<std::size_t>(finished_->qkv->columns());
    const auto queries = static_cast<std::size_t>(finished_->shape.heads * finished_->shape.head_dim);
    for (int row = 0; row < finished_rows_; ++row) {
        const float* from = qkv_.data() + product(row, columns);
        float* to = all.data() + product(row, width);
        std::copy_n(from + finished_->qkv->column_starts()[0], queries, to);
        std::copy_n(from + finished_->qkv->column_starts()[1], width - queries, to + queries);
    }
    return all;
}

void Chain::find_pages(const BatchView& batch) {
    row_page_.resize(static_cast<std::size_t>(batch.rows()));
    for (std::size_t slice = 0; slice + 1 < batch.slice_starts.size; ++slice)
        for (int row = batch.slice_starts[slice]; row < batch.slice_starts[slice + 1]; ++row) {
            const int page = batch.positions[static_cast<std::size_t>(row)] / kPageTokens;
            row_page_[static_cast<std::size_t>(row)] = batch.page_ids[static_cast<std::size_t>(batch.page_starts[slice] + page)];
        }
}

}  // namespace headrace
