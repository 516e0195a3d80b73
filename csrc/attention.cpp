#include "attention.hpp"

#include <algorithm>

namespace headrace {
namespace {

constexpr int kAtomRows = 16;
constexpr int kTilesPerThread = 8;  // with fewer, heads are shared out one by one

std::size_t product(int a, std::size_t b) { return static_cast<std::size_t>(a) * b; }

PagePlaces places(const BatchView& batch, const PoolView& pool, std::size_t slice) {
    const int first = batch.first_rows.size ? batch.first_rows[slice] : -1;
    if (first >= 0) return {pool.data + product(first, pool.page_bytes), pool.page_bytes, nullptr};
    return {pool.data, pool.page_bytes, batch.page_ids.data + batch.page_starts[slice]};
}

}  // namespace

void AttentionRunner::plan(const AttentionShape& shape, const BatchView& batch) {
    atoms_.clear();
    splits_.clear();
    partial_floats_ = 0;
    const int most = std::clamp(kMaxQueries / shape.group(), 1, kAtomRows);
    for (int slice = 0; slice < batch.slices(); ++slice) {
        const int first = batch.slice_starts[static_cast<std::size_t>(slice)];
        const int end = batch.slice_starts[static_cast<std::size_t>(slice) + 1];
        if (end - first == 1) {
            plan_single_row(shape, slice, first, batch.positions[static_cast<std::size_t>(first)]);
            continue;
        }
        for (int row = first; row < end; row += most) atoms_.push_back({slice, row, std::min(most, end - row), -1, 0});
    }
}

// One atom, or one for each span of the row's keys when there are several.
void AttentionRunner::plan_single_row(const AttentionShape& shape, int slice, int row, int position) {
    const int first_key = shape.window > 0 ? std::max(0, position - shape.window + 1) : 0;
    const int first = first_key / kSpanKeys, last = position / kSpanKeys;
    if (first == last) {
        atoms_.push_back({slice, row, 1, -1, 0});
        return;
    }
    const std::size_t size = product(shape.heads, static_cast<std::size_t>(shape.head_dim + 2));
    splits_.push_back({row, last - first + 1, partial_floats_});
    for (int span = first; span <= last; ++span)
        atoms_.push_back({slice, row, 1, span * kSpanKeys, partial_floats_ + product(span - first, size)});
    partial_floats_ += product(last - first + 1, size);
}

void AttentionRunner::run(const KernelTable& table, ThreadPool& threads, const AttentionShape& shape, const BatchView& batch,
                          const PoolView& pages, const AttentionRows& rows) {
    plan(shape, batch);
    const auto width = static_cast<std::size_t>(shape.head_dim);
    const std::size_t scratch_floats = attention_scratch(shape.head_dim);
    float* partial = partial_.reserve(partial_floats_);
    float* scratch = scratch_.reserve(product(threads.threads(), scratch_floats));
    // One after the other, the heads of an atom's pages are read in the order in which they lie there; but enough tiles must
    // be left to share.
    const int heads = static_cast<int>(atoms_.size()) >= kTilesPerThread * threads.threads() ? shape.kv_heads : 1;
    const int tiles = static_cast<int>(atoms_.size()) * (shape.kv_heads / heads);
    threads.parallel_for(tiles, [&](int tile, int worker) {
        const int first = (tiles - 1 - tile) * heads;  // late rows have most keys: begin with them
        const Atom& atom = atoms_[static_cast<std::size_t>(first / shape.kv_heads)];
        for (int head = first % shape.kv_heads, i = 0; i < heads; ++i, ++head) {
            AttentionTile work{};
            work.q_stride = rows.q_stride;
            work.q = rows.q + product(atom.row, rows.q_stride) + product(head * shape.group(), width);
            work.out_stride = rows.out_stride;
            work.out = rows.out + product(atom.row, rows.out_stride) + product(head * shape.group(), width);
            work.rows = atom.rows;
            work.group = shape.group();
            work.head_dim = shape.head_dim;
            work.position = batch.positions[static_cast<std::size_t>(atom.row)];
            work.window = shape.window;
            work.format = shape.format;
            work.head_offset = shape.page_offset + product(head, kv_head_bytes(shape.format, shape.head_dim));
            work.asked = i > 0;
            work.another = i + 1 < heads;
            work.pages = places(batch, pages, static_cast<std::size_t>(atom.slice));
            work.scratch = scratch + product(worker, scratch_floats);
            if (atom.first_key < 0) {
                table.rows.attend(work);
            } else {
                work.out = partial + atom.partial + product(head * shape.group(), width + 2);
                table.rows.attend_span({work, atom.first_key});
            }
        }
    });
    for (const Split& split : splits_)
        table.rows.merge_spans({shape.format, partial + split.partial, split.spans, shape.heads, shape.head_dim,
                                rows.out + product(split.row, rows.out_stride)});
}

}  // namespace headrace
