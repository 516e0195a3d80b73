// A chain of blocks driven by data: embedding, attention and MLP blocks, final norm, head. One call runs a step.
#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "adapter.hpp"
#include "attention.hpp"
#include "batch.hpp"
#include "buffer.hpp"
#include "packed_matrix.hpp"
#include "rope_table.hpp"
#include "rows.hpp"
#include "threads.hpp"

namespace headrace {

using Matrix = std::shared_ptr<const PackedMatrix>;
using Gains = std::vector<float>;  // empty: the block has none

struct AttentionBlock {
    AttentionShape shape;  // its page_offset is set by the chain
    float scale = 1.0f;
    Gains norm, q_norm, k_norm, post_norm, q_bias, k_bias, v_bias;
    // Balance of coded keys, [kv_heads][head_dim] each or all empty: pages hold (key + k_shift) · k_factor, and queries are
    // multiplied by q_factor, its inverse. A shift moves all scores of a query alike, so no weight of attention changes.
    Gains k_shift, k_factor, q_factor;
    Matrix qkv;  // sources Q, K, V
    Matrix o;
    RopeTable* rope = nullptr;  // set by the chain
    int layer = 0;              // set by the chain
};

struct MlpBlock {
    int inner = 0;
    ActivationKind activation = ActivationKind::silu;
    Gains norm, post_norm;
    Matrix gate_up;  // two sources, interleaved by panel
    Matrix down;
    int layer = 0;   // set by the chain
};

struct ChainShape {
    int hidden = 0;
    int vocab = 0;
    int context = 0;
    float eps = 1e-5f;
    float embedding_scale = 1.0f;
};

class Chain {
  public:
    Chain(const ChainShape& shape, std::shared_ptr<ThreadPool> pool);

    // Building, in block order. Every size is checked against the matrices: std::invalid_argument.
    void add_attention(AttentionBlock block, std::vector<float> inverse_frequencies);
    void add_mlp(MlpBlock block);
    void set_ends(Matrix embedding, Matrix head, Gains final_norm);

    int blocks() const { return static_cast<int>(order_.size()); }
    std::size_t page_bytes() const { return page_bytes_; }
    const ChainShape& shape() const { return shape_; }

    // Runs blocks first … last-1. Block 0 starts from the embedding rows, a later one from the rows that the previous call
    // left; after the last block the output rows are normed and kept.
    void forward(const BatchView& batch, const PoolView& pages, int first, int last);

    // Waits for the call under way: scratch is sized for the threads that the call began with.
    void resize_threads(int threads);

    int kept_rows() const { return kept_rows_; }
    // Views outlive a growing buffer, but the next call overwrites what they show.
    std::shared_ptr<float> hidden() const { return final_.share(); }     // [kept rows][hidden]
    std::shared_ptr<float> logits(int first, int count);                 // [count][vocab]
    void greedy(int first, int count, std::int32_t* out);
    // Queries (times `scale`) and keys of all rows as the attention block that ran last made them: [heads + kv_heads][head_dim]
    // a row. Empty before the first.
    std::vector<float> finished_heads();
    int finished_width() const;

  private:
    struct Order {
        bool attention;
        int index;
    };
    template <class Fn> void for_rows(int rows, Fn&& fn);
    template <class Body> void for_tiles(const PackedMatrix& matrix, int rows, Body&& body);
    void product_onto_residual(const PackedMatrix& matrix, const Rows& x, const Gains& post_norm);
    void reserve(int rows);
    void reserve_scratch();
    void embed(const BatchView& batch);
    void norm_rows(const Gains& gains, const PackedMatrix& next, int rows);
    void run_attention(const AttentionBlock& block, const BatchView& batch, const PoolView& pages);
    void finish_qkv(const AttentionBlock& block, const BatchView& batch, const PoolView& pages);
    void find_pages(const BatchView& batch);
    void quantise_wide(int width, const PackedMatrix& next, int rows);
    void run_mlp(const MlpBlock& block, int rows);
    void gather_outputs(const BatchView& batch);
    void fetch_adapters(const PackedMatrix& matrix, int m0, int panel0, int panel1) const;
    void add_adapters(const PackedMatrix& matrix, int m0, int panel0, int panel1, float* tile, std::size_t stride);
    void keep_outputs();
    Rows head_rows(int first, int count) const;

    ChainShape shape_;
    std::shared_ptr<ThreadPool> pool_;
    std::mutex busy_;
    std::vector<Order> order_;
    std::vector<AttentionBlock> attention_;
    std::vector<MlpBlock> mlp_;
    std::vector<std::unique_ptr<RopeTable>> ropes_;
    Matrix embedding_, head_;
    Gains final_norm_;
    std::size_t page_bytes_ = 0;
    std::size_t qkv_width_ = 0, wide_width_ = 0, scratch_floats_ = 0;
    const KernelTable* table_ = nullptr;
    const AttentionBlock* finished_ = nullptr;  // whose queries and keys stand in qkv_

    int residual_rows_ = 0, kept_rows_ = 0, finished_rows_ = 0;
    bool gathered_ = false;  // the residual holds the output rows only
    Buffer<float> residual_, normed_, qkv_, wide_, final_, logits_, scratch_;
    RowBuffer activations_, final_activations_;
    AttentionRunner attention_runner_;
    AdapterRunner adapters_;
    std::vector<AdapterSides> adapter_sides_;
    std::vector<int> row_page_;
    std::vector<bool> stamps_;
    std::vector<float> best_value_;
    std::vector<std::int32_t> best_id_;
};

}  // namespace headrace
