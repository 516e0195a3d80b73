// numpy in, numpy out for the sampler; everything that comes from Python is checked against the arrays' lengths here.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/shared_ptr.h>

#include <cmath>
#include <stdexcept>

#include "sampler.hpp"
#include "threads.hpp"

namespace nb = nanobind;

namespace headrace {
namespace {

template <class T>
using Vector = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <class T>
using Matrix = nb::ndarray<const T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
template <class T>
using OutMatrix = nb::ndarray<T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

void require(bool holds, const char* message) {
    if (!holds) throw std::invalid_argument(message);
}

bool inside(std::int64_t first, std::int64_t count, std::size_t size) {
    return first >= 0 && count >= 0 && first + count <= static_cast<std::int64_t>(size);
}

struct Tables {
    Vector<std::int32_t> history;
    Vector<std::int32_t> bias_tokens;
    Vector<float> bias_values;
    Matrix<std::uint32_t> masks;
};

void check_request(const SampleRequest& request, const Tables& tables, int vocab) {
    const std::int64_t used = static_cast<std::int64_t>(request.prompt_count) + request.output_count;
    require(request.prompt_count >= 0 && request.output_count >= 0 && inside(request.history, used, tables.history.shape(0)),
            "a row's history is outside the history array");
    require(inside(request.bias, request.bias_count, tables.bias_tokens.shape(0)), "a row's bias is outside the bias arrays");
    require(request.mask < static_cast<std::int64_t>(tables.masks.shape(0)), "a row's mask is outside the masks");
    require(request.given < vocab, "a given token is outside the vocabulary");
    require(std::isfinite(request.temperature) && request.temperature >= 0.0f, "a temperature is negative or not finite");
    require(request.repetition > 0.0f, "a repetition penalty is not positive");
    for (std::int64_t i = 0; i < used; ++i) {
        const std::int32_t token = tables.history.data()[request.history + i];
        require(token >= 0 && token < vocab, "a token of a row's history is outside the vocabulary");
    }
    for (std::int32_t i = request.bias; i < request.bias + request.bias_count; ++i) {
        const std::int32_t token = tables.bias_tokens.data()[i];
        require(token >= 0 && token < vocab, "a biased token is outside the vocabulary");
    }
}

struct Outputs {
    OutMatrix<std::uint8_t> results;
    OutMatrix<std::int32_t> top_tokens;
    OutMatrix<float> top_logprobs;
};

void run(Sampler& sampler, const Matrix<float>& logits, const Matrix<std::uint8_t>& requests, const nb::tuple& tables, const nb::tuple& outputs) {
    const Tables in{nb::cast<Vector<std::int32_t>>(tables[0]), nb::cast<Vector<std::int32_t>>(tables[1]),
                    nb::cast<Vector<float>>(tables[2]), nb::cast<Matrix<std::uint32_t>>(tables[3])};
    const Outputs out{nb::cast<OutMatrix<std::uint8_t>>(outputs[0]), nb::cast<OutMatrix<std::int32_t>>(outputs[1]),
                      nb::cast<OutMatrix<float>>(outputs[2])};
    const std::size_t rows = requests.shape(0);
    require(rows > 0 && rows < (std::size_t{1} << 24), "a batch has at least one row");
    require(logits.shape(1) == static_cast<std::size_t>(sampler.vocab()), "logits are not [rows, vocab]");
    require(requests.shape(1) == sizeof(SampleRequest), "requests are not one record a row");
    require(out.results.shape(0) == rows && out.results.shape(1) == sizeof(SampleResult), "results are not one record a row");
    require(out.top_tokens.shape(0) == rows && out.top_logprobs.shape(0) == rows && out.top_tokens.shape(1) == out.top_logprobs.shape(1),
            "top arrays are not one line a row");
    require(in.bias_tokens.shape(0) == in.bias_values.shape(0), "bias arrays differ in length");
    require(in.masks.shape(0) == 0 || in.masks.shape(1) == static_cast<std::size_t>(sampler.vocab() + 31) / 32, "masks don't cover the vocabulary");
    const SampleBatch batch{
        .logits = logits.data(), .stride = logits.shape(1), .rows = static_cast<int>(rows), .vocab = sampler.vocab(),
        .requests = reinterpret_cast<const SampleRequest*>(requests.data()), .history = in.history.data(),
        .bias_tokens = in.bias_tokens.data(), .bias_values = in.bias_values.data(), .masks = in.masks.data(),
        .mask_words = static_cast<int>(in.masks.shape(1)), .results = reinterpret_cast<SampleResult*>(out.results.data()),
        .top_tokens = out.top_tokens.data(), .top_logprobs = out.top_logprobs.data(), .top_stride = static_cast<int>(out.top_tokens.shape(1)),
    };
    for (std::size_t row = 0; row < rows; ++row) {
        require(inside(batch.requests[row].row, 1, logits.shape(0)), "a request's row is outside the logits");
        check_request(batch.requests[row], in, sampler.vocab());
    }
    nb::gil_scoped_release released;
    sampler.run(batch);
}

}  // namespace

void bind_sampler(nb::module_& m) {
    nb::class_<Sampler>(m, "Sampler")
        .def("__init__", [](Sampler* self, int vocab, std::shared_ptr<ThreadPool> pool) {
            require(vocab > 0 && pool != nullptr, "a sampler needs a vocabulary and a pool");
            new (self) Sampler(vocab, std::move(pool));
        }, nb::arg("vocab"), nb::arg("pool"))
        .def("run", &run, nb::arg("logits"), nb::arg("requests"), nb::arg("tables"), nb::arg("outputs"));
}

}  // namespace headrace
