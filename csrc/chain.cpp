// Running a step: what happens between the token ids and the kept rows.
#include "chain.hpp"

#include <cstring>
#include <stdexcept>
#include <string>

#include "chain_regions.hpp"

namespace headrace {
namespace {

constexpr std::size_t kProductScratch = static_cast<std::size_t>(kTileRows) * kTilePanels * kPanelWidth;

// Tiles of the head are as wide for few rows as for many: their best values are merged one by one.
constexpr int kHeadPanels = 16;
constexpr int kHeadRows = 64;
constexpr std::size_t kHeadScratch = static_cast<std::size_t>(kHeadRows) * kHeadPanels * kPanelWidth;

std::size_t product(int a, std::size_t b) { return static_cast<std::size_t>(a) * b; }

}  // namespace

void Chain::reserve(int rows) {
    const auto hidden = static_cast<std::size_t>(shape_.hidden);
    normed_.reserve(product(rows, hidden));
    qkv_.reserve(product(rows, qkv_width_));
    wide_.reserve(product(rows, wide_width_));
    reserve_scratch();
}

void Chain::reserve_scratch() {
    scratch_floats_ = std::max(kProductScratch, kHeadScratch);
    scratch_.reserve(product(pool_->threads(), scratch_floats_));
}

void Chain::resize_threads(int threads) {
    std::lock_guard lock(busy_);
    pool_->resize(threads);
}

void Chain::forward(const BatchView& batch, const PoolView& pages, int first, int last) {
    std::lock_guard lock(busy_);
    if (!embedding_) throw std::invalid_argument("the chain has no embedding yet");
    if (first < 0 || first > last || last > blocks()) throw std::invalid_argument("no such span of blocks");
    check_batch(batch, pages, {shape_.vocab, shape_.context, page_bytes_}, stamps_);
    if (first > 0 && (gathered_ || residual_rows_ != batch.rows()))
        throw std::invalid_argument("token_ids differs in length from the span before, or that was the last");
    if (batch.adapters) check_adapters(batch, pages, adapter_sides_, stamps_);
    table_ = &kernels();
    kept_rows_ = 0;
    reserve(batch.rows());
    const int reach = 1 + *std::max_element(batch.positions.data, batch.positions.data + batch.positions.size);
    for (const auto& rope : ropes_) rope->reach(reach);
    find_pages(batch);
    adapters_.begin(batch, pages, adapter_sides_);
    if (first == 0) embed(batch);
    for (int i = first; i < last; ++i) {
        const Order& block = order_[static_cast<std::size_t>(i)];
        if (i + 1 == blocks() && !block.attention) gather_outputs(batch);
        if (block.attention)
            run_attention(attention_[static_cast<std::size_t>(block.index)], batch, pages);
        else
            run_mlp(mlp_[static_cast<std::size_t>(block.index)], residual_rows_);
    }
    if (last < blocks()) return;
    gather_outputs(batch);
    keep_outputs();
}

// From here on only the output rows matter: nothing of the others will be read again. Does nothing the second time.
void Chain::gather_outputs(const BatchView& batch) {
    if (gathered_) return;
    gathered_ = true;
    const auto hidden = static_cast<std::size_t>(shape_.hidden);
    const std::size_t rows = batch.output_rows.size;
    float* kept = final_.reserve(rows * hidden);
    for (std::size_t row = 0; row < rows; ++row)
        std::memcpy(kept + row * hidden, residual_.data() + product(batch.output_rows[row], hidden), hidden * sizeof(float));
    reserve(static_cast<int>(rows));
    float* residual = residual_.reserve(rows * hidden);
    if (rows > 0) std::memcpy(residual, kept, rows * hidden * sizeof(float));
    residual_rows_ = static_cast<int>(rows);
    adapters_.gather(batch);
}

void Chain::embed(const BatchView& batch) {
    residual_rows_ = batch.rows();
    gathered_ = false;
    float* residual = residual_.reserve(product(residual_rows_, static_cast<std::size_t>(shape_.hidden)));
    for_rows(residual_rows_, [&](int row, int) {
        float* to = residual + product(row, static_cast<std::size_t>(shape_.hidden));
        dequantize_column(*embedding_, batch.token_ids[static_cast<std::size_t>(row)], to);
        if (shape_.embedding_scale != 1.0f) table_->rows.scale(shape_.embedding_scale, shape_.hidden, to);
    });
}

// The residual rows, normed, in whichever forms the next product takes.
void Chain::norm_rows(const Gains& gains, const PackedMatrix& next, int rows) {
    activations_.reserve(rows, shape_.hidden);
    for_rows(rows, [&](int row, int) {
        const std::size_t offset = product(row, static_cast<std::size_t>(shape_.hidden));
        float* to = normed_.data() + offset;
        table_->rows.norm(residual_.data() + offset, gains.data(), shape_.eps, shape_.hidden, to);
        activations_.fill(*table_, next, to, row);
    });
}

void Chain::quantise_wide(int width, const PackedMatrix& next, int rows) {
    activations_.reserve(rows, width);
    if (!next.needs_integers()) return;
    for_rows(rows, [&](int row, int) { activations_.fill(*table_, next, wide_.data() + product(row, static_cast<std::size_t>(width)), row); });
}

void Chain::fetch_adapters(const PackedMatrix& matrix, int m0, int panel0, int panel1) const {
    if (adapters_.active()) adapters_.fetch(matrix, m0, panel0, panel1);
}

// What adapters add to a tile of a product with `matrix`: row m0 and panel0 stand at the beginning of `tile`.
void Chain::add_adapters(const PackedMatrix& matrix, int m0, int panel0, int panel1, float* tile, std::size_t stride) {
    static_assert(kStripeRows % kTileRows == 0, "a tile's rows must lie in one stripe");
    if (adapters_.active()) adapters_.expand(*table_, matrix, m0, panel0, panel1, tile, stride);
}

// residual += x·W^T, normed on the way if the block has a post-norm.
void Chain::product_onto_residual(const PackedMatrix& matrix, const Rows& x, const Gains& post_norm) {
    const auto hidden = static_cast<std::size_t>(shape_.hidden);
    if (!post_norm.empty()) {
        for_tiles(matrix, x.count, [&](int m0, int m1, int panel0, int panel1, int) {
            fetch_adapters(matrix, m0, panel0, panel1);
            matmul_tile(*table_, matrix, x, m0, m1, panel0, panel1, normed_.data(), hidden);
            add_adapters(matrix, m0, panel0, panel1, normed_.data() + product(m0, hidden) + panel0 * kPanelWidth, hidden);
        });
        for_rows(x.count, [&](int row, int) {
            float* values = normed_.data() + product(row, hidden);
            table_->rows.norm(values, post_norm.data(), shape_.eps, shape_.hidden, values);
            table_->rows.add(values, shape_.hidden, residual_.data() + product(row, hidden));
        });
        return;
    }
    for_tiles(matrix, x.count, [&](int m0, int m1, int panel0, int panel1, int worker) {
        float* local = scratch_.data() + product(worker, scratch_floats_);
        const int width = (panel1 - panel0) * kPanelWidth;
        fetch_adapters(matrix, m0, panel0, panel1);
        matmul_tile_local(*table_, matrix, x, m0, m1, panel0, panel1, local, static_cast<std::size_t>(width));
        add_adapters(matrix, m0, panel0, panel1, local, static_cast<std::size_t>(width));
        for (int row = m0; row < m1; ++row)
            table_->rows.add(local + (row - m0) * width, width, residual_.data() + product(row, hidden) + panel0 * kPanelWidth);
    });
}

void Chain::run_mlp(const MlpBlock& block, int rows) {
    norm_rows(block.norm, *block.gate_up, rows);
    const Rows x = activations_.rows(0, rows, normed_.data());
    const auto inner = static_cast<std::size_t>(block.inner), hidden = static_cast<std::size_t>(shape_.hidden);
    adapters_.shrink(*table_, *pool_, block.layer, kModuleGate, 2, normed_.data(), hidden);
    for_tiles(*block.gate_up, rows, [&](int m0, int m1, int panel0, int panel1, int worker) {
        float* local = scratch_.data() + product(worker, scratch_floats_);
        const int width = (panel1 - panel0) * kPanelWidth;
        fetch_adapters(*block.gate_up, m0, panel0, panel1);
        matmul_tile_local(*table_, *block.gate_up, x, m0, m1, panel0, panel1, local, static_cast<std::size_t>(width));
        add_adapters(*block.gate_up, m0, panel0, panel1, local, static_cast<std::size_t>(width));
        for (int row = m0; row < m1; ++row)
            table_->rows.gate(block.activation, local + (row - m0) * width, (panel1 - panel0) / 2,
                              wide_.data() + product(row, inner) + panel0 / 2 * kPanelWidth);
    });
    quantise_wide(block.inner, *block.down, rows);
    adapters_.shrink(*table_, *pool_, block.layer, kModuleDown, 1, wide_.data(), inner);
    product_onto_residual(*block.down, activations_.rows(0, rows, wide_.data()), block.post_norm);
}

void Chain::keep_outputs() {
    const auto hidden = static_cast<std::size_t>(shape_.hidden);
    final_activations_.reserve(residual_rows_, shape_.hidden);
    for_rows(residual_rows_, [&](int row, int) {
        float* to = final_.data() + product(row, hidden);
        table_->rows.norm(residual_.data() + product(row, hidden), final_norm_.data(), shape_.eps, shape_.hidden, to);
        final_activations_.fill(*table_, *head_, to, row);
    });
    kept_rows_ = residual_rows_;
}

// Kept rows first … first+count-1 as the head's input.
Rows Chain::head_rows(int first, int count) const {
    if (first < 0 || count < 1 || count > kept_rows_ - first)
        throw std::invalid_argument("rows " + std::to_string(first) + " … +" + std::to_string(count) + " are not among the " +
                                    std::to_string(kept_rows_) + " kept rows");
    return final_activations_.rows(first, count, final_.data());
}

std::shared_ptr<float> Chain::logits(int first, int count) {
    std::lock_guard lock(busy_);
    const Rows x = head_rows(first, count);
    const auto stride = static_cast<std::size_t>(head_->columns());
    float* out = logits_.reserve(product(count, stride));
    for_tiles(*head_, count, [&](int m0, int m1, int panel0, int panel1, int) {
        matmul_tile(*table_, *head_, x, m0, m1, panel0, panel1, out, stride);
    });
    const auto vocab = static_cast<std::size_t>(shape_.vocab);
    for (int row = 1; row < count && stride != vocab; ++row)  // the last panel's padding goes
        std::memmove(out + product(row, vocab), out + product(row, stride), vocab * sizeof(float));
    return logits_.share();
}

// Arg-max by tiles: the best of each tile, then the tiles in order, so that the lowest id wins a tie.
void Chain::greedy(int first, int count, std::int32_t* out) {
    std::lock_guard lock(busy_);
    const Rows x = head_rows(first, count);
    const int panels = head_->panel_count(), tiles = (panels + kHeadPanels - 1) / kHeadPanels;
    const int stripes = (count + kHeadRows - 1) / kHeadRows;
    reserve_scratch();
    best_value_.resize(product(count, static_cast<std::size_t>(tiles)));
    best_id_.resize(best_value_.size());
    pool_->parallel_for(tiles * stripes, [&](int tile, int worker) {
        float* local = scratch_.data() + product(worker, scratch_floats_);
        const int m0 = tile % stripes * kHeadRows, m1 = std::min(m0 + kHeadRows, count);
        const int panel0 = tile / stripes * kHeadPanels, panel1 = std::min(panel0 + kHeadPanels, panels);
        const int width = (panel1 - panel0) * kPanelWidth, start = panel0 * kPanelWidth;
        matmul_tile_local(*table_, *head_, x, m0, m1, panel0, panel1, local, static_cast<std::size_t>(width));
        for (int row = m0; row < m1; ++row) {
            const std::size_t place = product(row, static_cast<std::size_t>(tiles)) + static_cast<std::size_t>(tile / stripes);
            const int best = table_->rows.arg_max(local + (row - m0) * width, std::min(width, shape_.vocab - start));
            best_id_[place] = start + best;
            best_value_[place] = local[(row - m0) * width + best];
        }
    });
    for (int row = 0; row < count; ++row) {
        const std::size_t from = product(row, static_cast<std::size_t>(tiles));
        std::size_t best = from;
        for (std::size_t i = from + 1; i < from + static_cast<std::size_t>(tiles); ++i)
            if (best_value_[i] > best_value_[best]) best = i;
        out[row] = best_id_[best];
    }
}

}  // namespace headrace
