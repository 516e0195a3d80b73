// Building a chain: every size is checked against the matrices once, so that a step needs no checks of its own.
#include <algorithm>
#include <stdexcept>
#include <string>

#include "chain.hpp"

namespace headrace {
namespace {

void demand(bool holds, const std::string& what) {
    if (!holds) throw std::invalid_argument(what);
}

void check_gains(const char* name, const Gains& gains, int width, bool required) {
    demand(gains.empty() ? !required : gains.size() == static_cast<std::size_t>(width),
           std::string(name) + " must have " + std::to_string(width) + " values, has " + std::to_string(gains.size()));
}

void check_matrix(const char* name, const Matrix& matrix, int inputs, const std::vector<int>& sources) {
    demand(matrix != nullptr, std::string(name) + " is missing");
    demand(matrix->inputs() == inputs, std::string(name) + " must take " + std::to_string(inputs) + " inputs, takes " +
                                           std::to_string(matrix->inputs()));
    demand(matrix->source_rows() == sources, std::string(name) + " has not the outputs that the block describes");
}

int panels_of(int outputs) { return (outputs + kPanelWidth - 1) / kPanelWidth; }

// The layer's sides, which exist from the first of its blocks on.
AdapterSides& sides_of(std::vector<AdapterSides>& layers, int layer) {
    layers.resize(std::max(layers.size(), static_cast<std::size_t>(layer) + 1));
    return layers[static_cast<std::size_t>(layer)];
}

}  // namespace

Chain::Chain(const ChainShape& shape, std::shared_ptr<ThreadPool> pool) : shape_(shape), pool_(std::move(pool)) {
    demand(pool_ != nullptr, "pool is missing");
    demand(shape.hidden > 0 && shape.hidden % 32 == 0, "hidden must be a positive multiple of 32");
    demand(shape.vocab > 0, "vocab must be positive");
    demand(shape.context > 0 && shape.context <= 1 << 24, "context must lie in 1 … 16777216");
}

void Chain::add_attention(AttentionBlock block, std::vector<float> inverse_frequencies) {
    AttentionShape& shape = block.shape;
    const int width = shape.head_dim;
    demand(width > 0 && width % 32 == 0 && width <= kMaxHeadDim, "head_dim must be a multiple of 32, at most 1024");
    demand(shape.heads > 0 && shape.kv_heads > 0 && shape.heads % shape.kv_heads == 0, "heads must be a multiple of kv_heads");
    demand(shape.group() <= kMaxQueries, "more than " + std::to_string(kMaxQueries) + " query heads share a KV head");
    demand(shape.window >= 0, "window must not be negative");
    demand(inverse_frequencies.size() == static_cast<std::size_t>(width / 2), "inverse_frequencies must have head_dim / 2 values");
    check_gains("norm", block.norm, shape_.hidden, true);
    check_gains("post_norm", block.post_norm, shape_.hidden, false);
    check_gains("q_norm", block.q_norm, width, false);
    check_gains("k_norm", block.k_norm, width, false);
    check_gains("q_bias", block.q_bias, shape.heads * width, false);
    check_gains("k_bias", block.k_bias, shape.kv_heads * width, false);
    check_gains("v_bias", block.v_bias, shape.kv_heads * width, false);
    const bool balanced = !block.k_shift.empty();
    check_gains("k_shift", block.k_shift, shape.kv_heads * width, balanced);
    check_gains("k_factor", block.k_factor, shape.kv_heads * width, balanced);
    check_gains("q_factor", block.q_factor, shape.kv_heads * width, balanced);
    demand(balanced || (block.k_factor.empty() && block.q_factor.empty()), "k_factor and q_factor go with k_shift");
    check_matrix("qkv", block.qkv, shape_.hidden, {shape.heads * width, shape.kv_heads * width, shape.kv_heads * width});
    check_matrix("o", block.o, shape.heads * width, {shape_.hidden});
    demand(!block.qkv->interleaved(), "qkv must not be interleaved");

    const auto same = [&](const auto& rope) { return rope->inverse_frequencies() == inverse_frequencies; };
    const auto found = std::find_if(ropes_.begin(), ropes_.end(), same);
    if (found != ropes_.end()) {
        block.rope = found->get();
    } else {
        ropes_.push_back(std::make_unique<RopeTable>(std::move(inverse_frequencies)));
        block.rope = ropes_.back().get();
    }
    shape.page_offset = page_bytes_;
    page_bytes_ += shape.layer_bytes();
    qkv_width_ = std::max(qkv_width_, static_cast<std::size_t>(block.qkv->columns()));
    wide_width_ = std::max(wide_width_, static_cast<std::size_t>(shape.heads * width));
    block.layer = static_cast<int>(attention_.size());
    AdapterSides& sides = sides_of(adapter_sides_, block.layer);
    sides.inputs[kModuleQ] = sides.inputs[kModuleK] = sides.inputs[kModuleV] = shape_.hidden;
    sides.panels[kModuleQ] = panels_of(shape.heads * width);
    sides.panels[kModuleK] = sides.panels[kModuleV] = panels_of(shape.kv_heads * width);
    sides.inputs[kModuleO] = shape.heads * width;
    sides.panels[kModuleO] = panels_of(shape_.hidden);
    order_.push_back({true, static_cast<int>(attention_.size())});
    attention_.push_back(std::move(block));
}

void Chain::add_mlp(MlpBlock block) {
    demand(block.inner > 0 && block.inner % 32 == 0, "inner must be a positive multiple of 32");
    check_gains("norm", block.norm, shape_.hidden, true);
    check_gains("post_norm", block.post_norm, shape_.hidden, false);
    check_matrix("gate_up", block.gate_up, shape_.hidden, {block.inner, block.inner});
    check_matrix("down", block.down, block.inner, {shape_.hidden});
    demand(block.gate_up->interleaved(), "gate_up must be interleaved");
    wide_width_ = std::max(wide_width_, static_cast<std::size_t>(block.inner));
    block.layer = static_cast<int>(mlp_.size());
    AdapterSides& sides = sides_of(adapter_sides_, block.layer);
    sides.inputs[kModuleGate] = sides.inputs[kModuleUp] = shape_.hidden;
    sides.panels[kModuleGate] = sides.panels[kModuleUp] = panels_of(block.inner);
    sides.inputs[kModuleDown] = block.inner;
    sides.panels[kModuleDown] = panels_of(shape_.hidden);
    order_.push_back({false, static_cast<int>(mlp_.size())});
    mlp_.push_back(std::move(block));
}

void Chain::set_ends(Matrix embedding, Matrix head, Gains final_norm) {
    check_matrix("embedding", embedding, shape_.hidden, {shape_.vocab});
    check_matrix("head", head, shape_.hidden, {shape_.vocab});
    check_gains("final_norm", final_norm, shape_.hidden, true);
    embedding_ = std::move(embedding);
    head_ = std::move(head);
    final_norm_ = std::move(final_norm);
}

}  // namespace headrace
