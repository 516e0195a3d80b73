#include "sampler.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernel_table.hpp"
#include "threads.hpp"

namespace headrace {
namespace {

constexpr int kBlock = kScanBlock;
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kGreedyBelow = 1e-6f;

// Disallowed tokens get -inf.
void apply_mask(float* z, int n, const std::uint32_t* mask) {
    for (int first = 0; first < n; first += 32) {
        const std::uint32_t word = mask[first / 32];
        if (word == 0xffffffffu) continue;
        const int count = std::min(32, n - first);
        for (int i = 0; i < count; ++i)
            if (!(word >> i & 1u)) z[first + i] = -kInfinity;
    }
}

double ordered_sum(const float* values, int count) {
    double total = 0.0;
    for (int i = 0; i < count; ++i) total += values[i];
    return total;
}

struct Candidate {
    float weight;
    std::int32_t token;
};

bool before(const Candidate& a, const Candidate& b) { return a.weight != b.weight ? a.weight > b.weight : a.token < b.token; }

// Values at or above `least`, in order of id; blocks whose maximum is lower are skipped.
void gather(const float* z, int n, const float* maxima, float least, std::vector<Candidate>& out) {
    out.clear();
    for (int first = 0; first < n; first += kBlock) {
        if (maxima[first / kBlock] < least) continue;
        const int last = std::min(n, first + kBlock);
        for (int i = first; i < last; ++i)
            if (z[i] >= least) out.push_back({z[i], i});
    }
}

// A value that at least `count` entries reach, cheap to find: the count-th largest block maximum.
float reached_by(int count, const float* maxima, int blocks, std::vector<float>& work) {
    if (count > blocks) return -kInfinity;
    work.assign(maxima, maxima + blocks);
    std::nth_element(work.begin(), work.begin() + (count - 1), work.end(), std::greater<float>());
    return work[static_cast<std::size_t>(count - 1)];
}

int lowest_argmax(const float* z, int n, const float* maxima, int blocks) {
    const int block = static_cast<int>(std::max_element(maxima, maxima + blocks) - maxima);
    const int last = std::min(n, (block + 1) * kBlock);
    for (int i = block * kBlock; i < last; ++i)
        if (z[i] == maxima[block]) return i;
    return block * kBlock;
}

// The candidate at which the mass from the heaviest down reaches `goal`: halves are told apart and only one is entered,
// so that a flat distribution costs as little as a peaked one.
Candidate lightest_kept(std::vector<Candidate>& chosen, double goal) {
    std::size_t first = 0, end = chosen.size();
    double mass = 0.0;
    while (end - first > 1) {
        const std::size_t middle = first + (end - first) / 2;
        const auto at = [&](std::size_t i) { return chosen.begin() + static_cast<std::ptrdiff_t>(i); };
        std::nth_element(at(first), at(middle), at(end), before);
        double heavier = mass;
        for (std::size_t i = first; i < middle; ++i) heavier += chosen[i].weight;
        if (heavier >= goal) {
            end = middle;
        } else {
            mass = heavier;
            first = middle;
        }
    }
    return chosen[first];
}

// Philox4x32-10 (Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3): 53 random bits in [0, 1).
double uniform(const SampleRequest& request) {
    std::uint32_t c0 = request.index, c1 = request.choice;
    std::uint32_t c2 = static_cast<std::uint32_t>(request.base), c3 = static_cast<std::uint32_t>(request.base >> 32);
    std::uint32_t k0 = static_cast<std::uint32_t>(request.seed), k1 = static_cast<std::uint32_t>(request.seed >> 32);
    for (int round = 0; round < 10; ++round) {
        const std::uint64_t a = static_cast<std::uint64_t>(0xD2511F53u) * c0, b = static_cast<std::uint64_t>(0xCD9E8D57u) * c2;
        const std::uint32_t n0 = static_cast<std::uint32_t>(b >> 32) ^ c1 ^ k0, n2 = static_cast<std::uint32_t>(a >> 32) ^ c3 ^ k1;
        c1 = static_cast<std::uint32_t>(b);
        c3 = static_cast<std::uint32_t>(a);
        c0 = n0;
        c2 = n2;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    const std::uint64_t bits = (static_cast<std::uint64_t>(c0) << 21) ^ (c1 >> 11);
    return static_cast<double>(bits) * 0x1p-53;
}

}  // namespace

struct Sampler::Scratch {
    explicit Scratch(int vocab)
        : blocks((vocab + kBlock - 1) / kBlock), modified(static_cast<std::size_t>(vocab)),
          weights(static_cast<std::size_t>(blocks) * kBlock), seen(static_cast<std::size_t>(vocab)),
          raw_maxima(static_cast<std::size_t>(blocks)), maxima(raw_maxima.size()), raw_sums(raw_maxima.size()), sums(raw_maxima.size()) {}

    int blocks;
    std::vector<float> modified, weights;
    std::vector<std::int32_t> seen;  // all zero between rows
    std::vector<float> raw_maxima, maxima, raw_sums, sums, work;
    std::vector<double> masses;
    std::vector<Candidate> candidates;

    void penalise(const SampleBatch& batch, const SampleRequest& request);
    float modify(const SampleBatch& batch, const SampleRequest& request, const float* raw);
    void write_top(const SampleBatch& batch, int row, const float* raw, double log_total);
    Candidate last_of_top_k(const SampleRequest& request);
    Candidate last_of_top_p(double share, double total);
    int draw(const SampleRequest& request);
};

// Repetition divides (or multiplies, below zero) tokens of prompt and output once; presence and frequency subtract from
// tokens of the output.
void Sampler::Scratch::penalise(const SampleBatch& batch, const SampleRequest& request) {
    const std::int32_t* prompt = batch.history + request.history;
    const std::int32_t* output = prompt + request.prompt_count;
    constexpr std::int32_t kInPrompt = 1 << 30;
    for (int i = 0; i < request.prompt_count; ++i) seen[static_cast<std::size_t>(prompt[i])] = kInPrompt;
    for (int i = 0; i < request.output_count; ++i) ++seen[static_cast<std::size_t>(output[i])];
    for (int i = 0; i < request.prompt_count + request.output_count; ++i) {
        const auto token = static_cast<std::size_t>(prompt[i]);
        if (seen[token] == 0) continue;
        const std::int32_t count = seen[token] & (kInPrompt - 1);
        seen[token] = 0;
        float z = modified[token];
        z = z > 0.0f ? z / request.repetition : z * request.repetition;
        if (count > 0) z = z - request.presence - request.frequency * static_cast<float>(count);
        modified[token] = z;
    }
}

// The logits that are sampled from, and their maximum; block maxima go to `maxima`.
float Sampler::Scratch::modify(const SampleBatch& batch, const SampleRequest& request, const float* raw) {
    std::memcpy(modified.data(), raw, sizeof(float) * static_cast<std::size_t>(batch.vocab));
    if (request.repetition != 1.0f || request.presence != 0.0f || request.frequency != 0.0f) penalise(batch, request);
    for (int i = request.bias; i < request.bias + request.bias_count; ++i)
        modified[static_cast<std::size_t>(batch.bias_tokens[i])] += batch.bias_values[i];
    if (request.mask >= 0)
        apply_mask(modified.data(), batch.vocab, batch.masks + static_cast<std::size_t>(request.mask) * static_cast<std::size_t>(batch.mask_words));
    kernels().scans.block_maxima(modified.data(), batch.vocab, maxima.data());
    return *std::max_element(maxima.begin(), maxima.end());
}

void Sampler::Scratch::write_top(const SampleBatch& batch, int row, const float* raw, double log_total) {
    const SampleRequest& request = batch.requests[row];
    const int wanted = std::min({request.top_count, batch.vocab, batch.top_stride});
    SampleResult& result = batch.results[row];
    result.top_count = std::max(0, wanted);
    if (wanted <= 0) return;
    gather(raw, batch.vocab, raw_maxima.data(), reached_by(wanted, raw_maxima.data(), blocks, work), candidates);
    std::partial_sort(candidates.begin(), candidates.begin() + wanted, candidates.end(), before);
    for (int i = 0; i < wanted; ++i) {
        const Candidate& candidate = candidates[static_cast<std::size_t>(i)];
        const std::size_t slot = static_cast<std::size_t>(row) * static_cast<std::size_t>(batch.top_stride) + static_cast<std::size_t>(i);
        batch.top_tokens[slot] = candidate.token;
        batch.top_logprobs[slot] = static_cast<float>(static_cast<double>(candidate.weight) - log_total);
    }
}

// The lightest token that top-k, and top-p among those, keep. `maxima` are those of the weights.
Candidate Sampler::Scratch::last_of_top_k(const SampleRequest& request) {
    const int n = static_cast<int>(modified.size());
    const float least = std::max(0.0f, reached_by(request.top_k, maxima.data(), blocks, work));
    gather(weights.data(), n, maxima.data(), least, candidates);
    if (static_cast<std::size_t>(request.top_k) < candidates.size()) {
        std::nth_element(candidates.begin(), candidates.begin() + (request.top_k - 1), candidates.end(), before);
        candidates.resize(static_cast<std::size_t>(request.top_k));
    }
    double total = 0.0;
    for (const Candidate& candidate : candidates) total += candidate.weight;
    return lightest_kept(candidates, request.top_p < 1.0f ? static_cast<double>(request.top_p) * total : kInfinity);
}

// The lightest token of the nucleus: weights are counted into buckets of nearly equal weight (the upper bits of the float),
// whole buckets are taken from the heaviest down, and only the bucket in which the share is reached is put in order.
Candidate Sampler::Scratch::last_of_top_p(double share, double total) {
    constexpr int kShift = 18;
    constexpr int kBuckets = (0x3f800000 >> kShift) + 1;  // weights are at most 1
    const auto bucket_of = [](float weight) {
        std::int32_t bits;
        std::memcpy(&bits, &weight, sizeof bits);
        return bits >> kShift;
    };
    const int n = static_cast<int>(modified.size());
    // All tokens below this weigh together less than what the nucleus leaves out, so that it is full before them.
    const float least = static_cast<float>((1.0 - share) * total / n);
    masses.assign(kBuckets, 0.0);
    for (int first = 0; first < n; first += kBlock) {
        if (maxima[static_cast<std::size_t>(first / kBlock)] < least) continue;
        const float* w = weights.data() + first;
        for (int i = 0; i < kBlock; ++i)
            if (w[i] >= least) masses[static_cast<std::size_t>(bucket_of(w[i]))] += w[i];
    }
    const double goal = share * total;
    int bucket = kBuckets - 1, lowest = bucket;
    double mass = 0.0;
    for (; bucket >= 0; --bucket) {
        const double more = masses[static_cast<std::size_t>(bucket)];
        if (more > 0.0) lowest = bucket;
        if (mass + more >= goal) break;
        mass += more;
    }
    if (bucket < 0) {  // rounding: everything is needed
        bucket = lowest;
        mass -= masses[static_cast<std::size_t>(lowest)];
    }
    candidates.clear();
    for (int first = 0; first < n; first += kBlock) {
        if (bucket_of(maxima[static_cast<std::size_t>(first / kBlock)]) < bucket) continue;
        for (int i = first; i < std::min(n, first + kBlock); ++i)
            if (bucket_of(weights[static_cast<std::size_t>(i)]) == bucket) candidates.push_back({weights[static_cast<std::size_t>(i)], i});
    }
    return lightest_kept(candidates, goal - mass);
}

// `weights` and `sums` are filled. Filters in order: top-k, top-p of what is left, min-p against the heaviest. Then the
// inverse of the cumulative weights in order of id.
int Sampler::Scratch::draw(const SampleRequest& request) {
    const int n = static_cast<int>(modified.size());
    const bool by_rank = request.top_k > 0 && request.top_k < n, by_mass = request.top_p < 1.0f;
    double total = ordered_sum(sums.data(), blocks);
    if (by_rank || by_mass || request.min_p > 0.0f) {
        Candidate last{0.0f, n};
        if (by_rank || by_mass) kernels().scans.block_maxima(weights.data(), blocks * kBlock, maxima.data());
        if (by_rank) last = last_of_top_k(request);
        else if (by_mass) last = last_of_top_p(static_cast<double>(request.top_p), total);
        const Candidate floor{request.min_p, n};
        if (before(floor, last)) last = floor;
        kernels().scans.cut(weights.data(), blocks * kBlock, last.weight, last.token, sums.data());
        total = ordered_sum(sums.data(), blocks);
    }
    const double goal = uniform(request) * total;
    double mass = 0.0;
    int block = 0;
    while (block + 1 < blocks && mass + sums[static_cast<std::size_t>(block)] <= goal) mass += sums[static_cast<std::size_t>(block++)];
    int token = -1;
    for (int i = block * kBlock; i < blocks * kBlock; ++i) {
        const float w = weights[static_cast<std::size_t>(i)];
        if (w <= 0.0f) continue;
        token = i;
        mass += w;
        if (mass > goal) return i;
    }
    for (int i = block * kBlock - 1; token < 0; --i)  // rounding at the far end: the last token that can be drawn
        if (weights[static_cast<std::size_t>(i)] > 0.0f) token = i;
    return token;
}

Sampler::Sampler(int vocab, std::shared_ptr<ThreadPool> pool) : vocab_(vocab), pool_(std::move(pool)), scratch_(kMostThreads) {}

Sampler::~Sampler() = default;

void Sampler::sample_row(const SampleBatch& batch, int row, Scratch& s) const {
    const SampleRequest& request = batch.requests[row];
    SampleResult& result = batch.results[row];
    const float* raw = batch.logits + static_cast<std::size_t>(request.row) * batch.stride;
    result = {-1, SampleStatus::ok, std::numeric_limits<float>::quiet_NaN(), 0};
    const bool numbers = kernels().scans.block_maxima(raw, vocab_, s.raw_maxima.data());
    const float raw_top = *std::max_element(s.raw_maxima.begin(), s.raw_maxima.end());
    if (!numbers || std::isinf(raw_top)) {
        result.status = SampleStatus::not_a_number;
        return;
    }
    const bool changed = request.repetition != 1.0f || request.presence != 0.0f || request.frequency != 0.0f ||
                         request.bias_count > 0 || request.mask >= 0;
    const bool chooses = request.given < 0, draws = chooses && request.temperature >= kGreedyBelow;
    double total = 0.0;  // of e^(raw - raw_top), once known
    if (chooses) {
        float top = raw_top;
        if (changed) top = s.modify(batch, request, raw);
        if (top == -kInfinity) {
            result.status = SampleStatus::nothing_allowed;
            return;
        }
        const float* z = changed ? s.modified.data() : raw;
        if (draws) {
            kernels().scans.weigh(z, vocab_, top, 1.0f / request.temperature, s.weights.data(), s.sums.data());
            if (!changed && request.temperature == 1.0f) total = ordered_sum(s.sums.data(), s.blocks);
            result.token = s.draw(request);
        } else {
            result.token = lowest_argmax(z, vocab_, (changed ? s.maxima : s.raw_maxima).data(), s.blocks);
        }
    } else {
        result.token = request.given;
    }
    if (request.top_count < 0) return;
    if (total == 0.0) {
        kernels().scans.exp_sums(raw, vocab_, raw_top, s.raw_sums.data());
        total = ordered_sum(s.raw_sums.data(), s.blocks);
    }
    const double log_total = static_cast<double>(raw_top) + std::log(total);
    result.logprob = static_cast<float>(static_cast<double>(raw[result.token]) - log_total);
    s.write_top(batch, row, raw, log_total);
}

// Each thread of a region makes its own, so that a pool that grows meanwhile needs no agreement.
Sampler::Scratch& Sampler::scratch_of(int worker) {
    std::unique_ptr<Scratch>& scratch = scratch_[static_cast<std::size_t>(worker)];
    if (!scratch) scratch = std::make_unique<Scratch>(vocab_);
    return *scratch;
}

void Sampler::run(const SampleBatch& batch) {
    if (batch.rows == 1) return sample_row(batch, 0, scratch_of(0));
    pool_->parallel_for(batch.rows, [&](int row, int worker) { sample_row(batch, row, scratch_of(worker)); });
}

}  // namespace headrace
