// Attention of a whole step: its work cut into atoms (as in DeepSpeed-FastGen: one list of (slice, rows, keys) for prompts
// and decode rows alike, built on the host, run by one kernel) and handed to the pool.
#pragma once

#include <vector>

#include "batch.hpp"
#include "buffer.hpp"
#include "kernel_table.hpp"
#include "threads.hpp"

namespace headrace {

struct AttentionShape {
    int heads = 0, kv_heads = 0, head_dim = 0;
    int window = 0;               // 0: sees everything
    std::size_t page_offset = 0;  // bytes before this layer in a page
    KvFormat format = KvFormat::bf16;

    int group() const { return heads / kv_heads; }
    std::size_t layer_bytes() const { return static_cast<std::size_t>(kv_heads) * kv_head_bytes(format, head_dim); }
};

// Queries and results of all rows of the step: [rows][heads][head_dim] with a stride in floats.
struct AttentionRows {
    const float* q;
    std::size_t q_stride;
    float* out;
    std::size_t out_stride;
};

class AttentionRunner {
  public:
    void run(const KernelTable& table, ThreadPool& threads, const AttentionShape& shape, const BatchView& batch,
             const PoolView& pages, const AttentionRows& rows);

  private:
    // Consecutive rows of one slice, or one span of keys of a single row.
    struct Atom {
        int slice, row, rows;
        int first_key;        // of a span; -1: all keys at once
        std::size_t partial;  // where a span's sums go
    };
    // A row whose keys are cut into spans.
    struct Split {
        int row, spans;
        std::size_t partial;
    };

    void plan(const AttentionShape& shape, const BatchView& batch);
    void plan_single_row(const AttentionShape& shape, int slice, int row, int position);

    std::vector<Atom> atoms_;
    std::vector<Split> splits_;
    std::size_t partial_floats_ = 0;
    Buffer<float> partial_, scratch_;
};

}  // namespace headrace
