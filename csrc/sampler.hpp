// Sampling of one token a row: raw log-probabilities, penalties, bias, mask, temperature, top-k, top-p, min-p and the draw.
//
// A row's result depends on that row alone: sums run over blocks of 256 in order of token id, ties go to the lower id, and
// the random number comes from a counter, so neither neighbours nor threads can change it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace headrace {

class ThreadPool;

// What one row asks. Field for field the numpy dtype in headrace/kernels/sampler.py.
struct SampleRequest {
    std::uint64_t seed;        // Philox key
    std::uint64_t base;        // third and fourth counter word
    std::uint32_t choice;      // second counter word
    std::uint32_t index;       // first counter word: index of the output token
    float temperature;         // below 1e-6: arg-max
    float top_p;               // 1: off
    float min_p;               // 0: off
    float repetition;          // 1: off
    float presence;            // 0: off
    float frequency;           // 0: off
    std::int32_t top_k;        // 0: off
    std::int32_t top_count;    // best raw log-probabilities wanted; -1: none at all, not even the chosen token's
    std::int32_t given;        // score this token instead of choosing one; -1: choose
    std::int32_t mask;         // row of the masks; -1: none
    std::int32_t history;      // first of its tokens in the history array …
    std::int32_t prompt_count; // … this many of the prompt …
    std::int32_t output_count; // … then this many of the output
    std::int32_t bias;         // first of its entries in the bias arrays
    std::int32_t bias_count;
    std::int32_t row;          // its line of the logits; several requests may share one
};
static_assert(sizeof(SampleRequest) == 88);

enum class SampleStatus : std::int32_t { ok = 0, not_a_number = 1, nothing_allowed = 2 };

struct SampleResult {
    std::int32_t token;
    SampleStatus status;
    float logprob;            // of the raw distribution
    std::int32_t top_count;   // filled entries of the top arrays
};
static_assert(sizeof(SampleResult) == 16);

struct SampleBatch {
    const float* logits;       // [request.row][stride]
    std::size_t stride;
    int rows;                  // requests
    int vocab;
    const SampleRequest* requests;
    const std::int32_t* history;
    const std::int32_t* bias_tokens;
    const float* bias_values;
    const std::uint32_t* masks;  // [masks][mask_words], bit t of a row set: token t is allowed
    int mask_words;
    SampleResult* results;
    std::int32_t* top_tokens;  // [rows][top_stride]
    float* top_logprobs;
    int top_stride;
};

class Sampler {
  public:
    // Rows are shared out over `pool`, which may serve others too and may be resized between two calls.
    Sampler(int vocab, std::shared_ptr<ThreadPool> pool);
    ~Sampler();
    Sampler(const Sampler&) = delete;
    Sampler& operator=(const Sampler&) = delete;
    void run(const SampleBatch& batch);
    int vocab() const { return vocab_; }

  private:
    struct Scratch;
    void sample_row(const SampleBatch& batch, int row, Scratch& scratch) const;
    Scratch& scratch_of(int worker);

    int vocab_;
    std::shared_ptr<ThreadPool> pool_;
    std::vector<std::unique_ptr<Scratch>> scratch_;  // of every thread that a pool may have, made at its first row
};

}  // namespace headrace
