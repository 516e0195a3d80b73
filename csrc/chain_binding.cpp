// Python's view of the chain, and of single kernels for tests. Arrays are taken as they are, never converted or copied.
#include <algorithm>
#include <iterator>

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>
#include <string>

#include "adapter_binding.hpp"
#include "chain.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace headrace {
namespace {

using Ints = nb::ndarray<const std::int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Floats = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Pages = nb::ndarray<std::uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using FloatRows = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using MutableFloatRows = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using MutableFloats = nb::ndarray<float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using MutableBytes = nb::ndarray<std::int8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using MutableCodes = nb::ndarray<std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using MutableInts = nb::ndarray<std::int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Kept = nb::ndarray<nb::numpy, const float, nb::ndim<2>>;

Int32View view(const Ints& values) { return values.is_valid() ? Int32View{values.data(), values.shape(0)} : Int32View{}; }
PoolView view(const Pages& pages) { return {pages.data(), pages.shape(0), pages.shape(1)}; }

BatchView view_batch(const Ints& token_ids, const Ints& positions, const Ints& slice_starts, const Ints& page_starts,
                     const Ints& page_ids, const Ints& output_rows, const Ints& first_rows) {
    return {view(token_ids), view(positions), view(slice_starts), view(page_starts), view(page_ids), view(output_rows), view(first_rows)};
}

Gains gains(const nb::dict& block, const char* name) {
    if (!block.contains(name)) return {};
    const auto values = nb::cast<Floats>(block[name]);
    return Gains(values.data(), values.data() + values.shape(0));
}

ActivationKind activation(const std::string& name) {
    if (name == "silu") return ActivationKind::silu;
    if (name == "gelu_tanh") return ActivationKind::gelu_tanh;
    throw std::invalid_argument("no activation is called '" + name + "'");
}

// `vectors`: norm, post_norm, q_norm, k_norm, q_bias, k_bias, v_bias, k_shift, k_factor, q_factor, as far as the block has them.
void add_attention(Chain& chain, const AttentionShape& shape, float scale, const Floats& inverse_frequencies, Matrix qkv, Matrix o,
                   const nb::dict& vectors) {
    AttentionBlock block;
    block.shape = shape;
    block.scale = scale;
    block.qkv = std::move(qkv);
    block.o = std::move(o);
    block.norm = gains(vectors, "norm");
    block.post_norm = gains(vectors, "post_norm");
    block.q_norm = gains(vectors, "q_norm");
    block.k_norm = gains(vectors, "k_norm");
    block.q_bias = gains(vectors, "q_bias");
    block.k_bias = gains(vectors, "k_bias");
    block.v_bias = gains(vectors, "v_bias");
    block.k_shift = gains(vectors, "k_shift");
    block.k_factor = gains(vectors, "k_factor");
    block.q_factor = gains(vectors, "q_factor");
    const float* frequencies = inverse_frequencies.data();
    chain.add_attention(std::move(block), {frequencies, frequencies + inverse_frequencies.shape(0)});
}

void add_mlp(Chain& chain, int inner, const std::string& kind, Matrix gate_up, Matrix down, const nb::dict& vectors) {
    MlpBlock block;
    block.inner = inner;
    block.activation = activation(kind);
    block.gate_up = std::move(gate_up);
    block.down = std::move(down);
    block.norm = gains(vectors, "norm");
    block.post_norm = gains(vectors, "post_norm");
    chain.add_mlp(std::move(block));
}

void forward(Chain& chain, const Ints& token_ids, const Ints& positions, const Ints& slice_starts, const Ints& page_starts,
             const Ints& page_ids, const Ints& output_rows, const Pages& pages, int first, int last, const BoundAdapters* adapters,
             const Ints& first_rows) {
    BatchView batch = view_batch(token_ids, positions, slice_starts, page_starts, page_ids, output_rows, first_rows);
    if (adapters != nullptr) batch.adapters = &adapters->view();
    const PoolView pool = view(pages);
    nb::gil_scoped_release release;
    chain.forward(batch, pool, first, last);
}

// Attention alone: `q` is [rows, heads·head_dim], already scaled; keys and values are read from the pages.
void attention(ThreadPool& threads, const AttentionShape& shape, const Ints& positions, const Ints& slice_starts,
               const Ints& page_starts, const Ints& page_ids, const Pages& pages, const FloatRows& q, const MutableFloatRows& out,
               const Ints& first_rows) {
    const BatchView batch{view(positions), view(positions), view(slice_starts), view(page_starts), view(page_ids), {}, view(first_rows)};
    const PoolView pool = view(pages);
    const auto width = static_cast<std::size_t>(shape.heads * shape.head_dim);
    if (q.shape(1) != width || out.shape(1) != width || q.shape(0) != positions.shape(0) || out.shape(0) != q.shape(0))
        throw std::invalid_argument("q and out must be [rows, heads·head_dim]");
    if (shape.page_offset > pool.page_bytes || pool.page_bytes - shape.page_offset < shape.layer_bytes())
        throw std::invalid_argument("pages are too small for the shape");
    std::vector<bool> stamps;
    check_batch(batch, pool, {1 << 24, 1 << 24, pool.page_bytes}, stamps);
    nb::gil_scoped_release release;
    AttentionRunner runner;
    runner.run(kernels(), threads, shape, batch, pool, {q.data(), width, out.data(), width});
}

KvFormat kv_format(const std::string& name) {
    if (name == "bf16") return KvFormat::bf16;
    if (name == "kv8") return KvFormat::kv8;
    if (name == "kv4") return KvFormat::kv4;
    throw std::invalid_argument("no format of keys and values is called '" + name + "'");
}

// Keys and values [kv_heads, head_dim] of one token into slot `slot` of a page, as a step would after norm and rotation.
void store_kv(const AttentionShape& shape, const FloatRows& keys, const FloatRows& values, int slot, const MutableCodes& page) {
    const auto heads = static_cast<std::size_t>(shape.kv_heads), width = static_cast<std::size_t>(shape.head_dim);
    if (keys.shape(0) != heads || keys.shape(1) != width || values.shape(0) != heads || values.shape(1) != width)
        throw std::invalid_argument("keys and values must be [kv_heads, head_dim]");
    if (slot < 0 || slot >= kPageTokens) throw std::invalid_argument("slot must lie in 0 … 15");
    if (page.shape(0) < shape.page_offset + shape.layer_bytes()) throw std::invalid_argument("page is too small for the shape");
    kernels().rows.store_kv({shape.format, shape.kv_heads, shape.head_dim, keys.data(), values.data(),
                             page.data() + shape.page_offset, slot});
}

AttentionShape make_shape(int heads, int kv_heads, int head_dim, int window, std::size_t page_offset, const std::string& format) {
    if (heads < 1 || kv_heads < 1 || heads % kv_heads || heads / kv_heads > kMaxQueries)
        throw std::invalid_argument("heads must be 1 … 48 times kv_heads");
    if (head_dim < 32 || head_dim % 32 || head_dim > kMaxHeadDim) throw std::invalid_argument("head_dim must be a multiple of 32, at most 1024");
    if (window < 0) throw std::invalid_argument("window must not be negative");
    return {heads, kv_heads, head_dim, window, page_offset, kv_format(format)};
}

void map(const std::string& function, const Floats& x, const MutableFloats& out) {
    static constexpr const char* names[] = {"exp", "silu", "gelu_tanh", "power_of_two"};
    const auto which = std::find(std::begin(names), std::end(names), function) - std::begin(names);
    if (which == std::ssize(names)) throw std::invalid_argument("no function is called '" + function + "'");
    if (x.shape(0) % 16 || out.shape(0) != x.shape(0)) throw std::invalid_argument("x and out must have the same multiple of 16 values");
    kernels().rows.map(static_cast<int>(which), x.data(), static_cast<int>(x.shape(0)), out.data());
}

void norm(const Floats& x, const Floats& gain, float eps, const MutableFloats& out) {
    if (x.shape(0) % 16 || gain.shape(0) != x.shape(0) || out.shape(0) != x.shape(0))
        throw std::invalid_argument("x, gain and out must have the same multiple of 16 values");
    kernels().rows.norm(x.data(), gain.data(), eps, static_cast<int>(x.shape(0)), out.data());
}

float quantise(const Floats& x, const MutableBytes& planes, const MutableInts& sums16, const MutableInts& sums32) {
    const std::size_t n = x.shape(0);
    if (n % 32 || planes.shape(0) != 2 * n || sums16.shape(0) != n / 16 || sums32.shape(0) != n / 32)
        throw std::invalid_argument("x must have a multiple of 32 values, the outputs their sizes");
    float scale = 0.0f;
    kernels().rows.quantise(x.data(), static_cast<int>(n), {planes.data(), &scale, sums32.data(), sums16.data()});
    return scale;
}

Kept kept(const std::shared_ptr<float>& values, int rows, int columns) {
    nb::capsule owner(new std::shared_ptr<float>(values), [](void* p) noexcept { delete static_cast<std::shared_ptr<float>*>(p); });
    return Kept(values.get(), {static_cast<std::size_t>(rows), static_cast<std::size_t>(columns)}, owner);
}

Kept hidden(const Chain& chain) { return kept(chain.hidden(), chain.kept_rows(), chain.shape().hidden); }

Kept logits(Chain& chain, int first, int count) {
    std::shared_ptr<float> values;
    {
        nb::gil_scoped_release release;
        values = chain.logits(first, count);
    }
    return kept(values, count, chain.shape().vocab);
}

Kept finished_heads(Chain& chain) {
    auto* values = new std::vector<float>(chain.finished_heads());
    nb::capsule owner(values, [](void* p) noexcept { delete static_cast<std::vector<float>*>(p); });
    const auto width = static_cast<std::size_t>(chain.finished_width());
    return Kept(values->data(), {width == 0 ? 0 : values->size() / width, width}, owner);
}

void greedy(Chain& chain, int first, const MutableInts& out) {
    nb::gil_scoped_release release;
    chain.greedy(first, static_cast<int>(out.shape(0)), out.data());
}

void bind_kernels(nb::module_& m) {
    nb::class_<AttentionShape>(m, "AttentionShape", "Heads, head size, window (0: none) and place in the page of one layer's attention.")
        .def_static("of", &make_shape, "heads"_a, "kv_heads"_a, "head_dim"_a, "window"_a, "page_offset"_a, "format"_a)
        .def_prop_ro("layer_bytes", &AttentionShape::layer_bytes);
    m.def("store_kv", &store_kv, "shape"_a, "keys"_a.noconvert(), "values"_a.noconvert(), "slot"_a, "page"_a.noconvert(),
          "Write one token's keys and values into a slot of a page.");
    m.def("attention", &attention, "threads"_a, "shape"_a, "positions"_a.noconvert(), "slice_starts"_a.noconvert(),
          "page_starts"_a.noconvert(), "page_ids"_a.noconvert(), "pages"_a.noconvert(), "q"_a.noconvert(), "out"_a.noconvert(),
          "first_rows"_a.noconvert().none() = nb::none());
    m.def("map", &map, "function"_a, "x"_a.noconvert(), "out"_a.noconvert(), "exp, silu or gelu_tanh of each value.");
    m.def("norm", &norm, "x"_a.noconvert(), "gain"_a.noconvert(), "eps"_a, "out"_a.noconvert(), "x / rms(x) · gain.");
    m.def("quantise", &quantise, "x"_a.noconvert(), "planes"_a.noconvert(), "sums16"_a.noconvert(), "sums32"_a.noconvert(),
          "Quantise one row to two int8 planes; returns the scale.");
}

}  // namespace

void bind_chain(nb::module_& m) {
    bind_kernels(m);
    nb::class_<Chain>(m, "Chain", "A chain of blocks over packed matrices.")
        .def("__init__", [](Chain* self, int hidden, int vocab, int context, float eps, float embedding_scale,
                            std::shared_ptr<ThreadPool> pool) {
            new (self) Chain({hidden, vocab, context, eps, embedding_scale}, std::move(pool));
        }, "hidden"_a, "vocab"_a, "context"_a, "eps"_a, "embedding_scale"_a, "pool"_a)
        .def("add_attention", &add_attention, "shape"_a, "scale"_a, "inverse_frequencies"_a, "qkv"_a, "o"_a, "vectors"_a)
        .def("add_mlp", &add_mlp, "inner"_a, "activation"_a, "gate_up"_a, "down"_a, "vectors"_a)
        .def("set_ends", [](Chain& chain, Matrix embedding, Matrix head, const nb::dict& vectors) {
            chain.set_ends(std::move(embedding), std::move(head), gains(vectors, "norm"));
        }, "embedding"_a, "head"_a, "vectors"_a)
        .def_prop_ro("blocks", &Chain::blocks)
        .def_prop_ro("page_bytes", &Chain::page_bytes)
        .def("forward", &forward, "token_ids"_a.noconvert(), "positions"_a.noconvert(), "slice_starts"_a.noconvert(),
             "page_starts"_a.noconvert(), "page_ids"_a.noconvert(), "output_rows"_a.noconvert(), "pages"_a.noconvert(), "first"_a, "last"_a,
             "adapters"_a.none() = nb::none(), "first_rows"_a.noconvert().none() = nb::none())
        .def("finished_heads", &finished_heads, "Queries, then keys, of all rows as the attention block run last made them.")
        .def("resize_threads", &Chain::resize_threads, "threads"_a, nb::call_guard<nb::gil_scoped_release>(),
             "Compute with that many threads from the next call on; waits for the one under way.")
        .def("hidden", &hidden)
        .def("logits", &logits, "first"_a, "count"_a)
        .def("greedy", &greedy, "first"_a, "out"_a.noconvert());
}

}  // namespace headrace
