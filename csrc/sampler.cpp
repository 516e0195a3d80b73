#include "sampler.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "threads.hpp"

#pragma GCC diagnostic ignored "-Wpsabi"  // vectors of 64 bytes never cross a call: everything that takes them is inlined

#if defined(__x86_64__)
#define HEADRACE_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define HEADRACE_CLONES
#endif

namespace headrace {
namespace {

constexpr int kBlock = 256;
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kGreedyBelow = 1e-6f;

typedef float V16 __attribute__((vector_size(64)));
typedef std::int32_t W16 __attribute__((vector_size(64)));

#define ALWAYS inline __attribute__((always_inline))

ALWAYS V16 load(const float* p) { V16 v; std::memcpy(&v, p, sizeof v); return v; }
ALWAYS void store(float* p, const V16& v) { std::memcpy(p, &v, sizeof v); }
ALWAYS V16 splat(float x) { return V16{} + x; }

// Fixed tree: lane i meets i + 8, then i + 4, i + 2, i + 1.
ALWAYS float lane_sum(const V16& v) {
    float a[16];
    std::memcpy(a, &v, sizeof a);
    for (int width = 8; width > 0; width /= 2)
        for (int i = 0; i < width; ++i) a[i] += a[i + width];
    return a[0];
}

// e^x for x <= 0, exactly 1 at 0, 0 below -87. Only products and sums (the build never fuses them), so that every clone
// gives the same bits.
ALWAYS void exp_nonpositive(const V16& x, V16& result) {
    const V16 low = splat(-87.0f);
    const V16 clamped = x > low ? x : low;
    const V16 magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer in the low mantissa bits
    const V16 shifted = clamped * 1.44269504088896341f + magic;
    const V16 whole = shifted - magic;
    const V16 r = (clamped - whole * 0.693359375f) + whole * 2.12194440e-4f;
    V16 p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    W16 bits, exponent;
    std::memcpy(&bits, &p, sizeof bits);
    std::memcpy(&exponent, &shifted, sizeof exponent);
    bits += exponent << 23;  // the magic's own bits leave at the top
    V16 scaled;
    std::memcpy(&scaled, &bits, sizeof scaled);
    result = x > low ? scaled : V16{};
}

// The last, incomplete block as a whole one padded with -inf; other blocks as they are.
ALWAYS const float* whole_block(const float* z, int n, int first, float* padded) {
    if (first + kBlock <= n) return z + first;
    std::fill(padded, padded + kBlock, -kInfinity);
    std::memcpy(padded, z + first, sizeof(float) * static_cast<std::size_t>(n - first));
    return padded;
}

// Largest value of each block; false when a value is NaN.
HEADRACE_CLONES bool block_maxima(const float* z, int n, float* maxima) {
    float padded[kBlock];
    W16 magnitude = {};  // largest bits without sign: only NaN is beyond infinity (gcc takes other comparisons apart)
    for (int first = 0; first < n; first += kBlock) {
        const float* block = whole_block(z, n, first, padded);
        V16 most = splat(-kInfinity);
        for (int i = 0; i < kBlock; i += 16) {
            const V16 v = load(block + i);
            most = v > most ? v : most;
            W16 bits;
            std::memcpy(&bits, &v, sizeof bits);
            bits &= 0x7fffffff;
            magnitude = bits > magnitude ? bits : magnitude;
        }
        float best = -kInfinity;
        for (int i = 0; i < 16; ++i) best = most[i] > best ? most[i] : best;
        maxima[first / kBlock] = best;
    }
    std::int32_t largest = 0;
    for (int i = 0; i < 16; ++i) largest = std::max(largest, magnitude[i]);
    return largest <= 0x7f800000;
}

// w[i] = e^((z[i] - top) * inverse), padded to whole blocks with 0, and each block's sum.
HEADRACE_CLONES void weigh(const float* z, int n, float top, float inverse, float* w, float* sums) {
    float padded[kBlock];
    for (int first = 0; first < n; first += kBlock) {
        const float* block = whole_block(z, n, first, padded);
        V16 total = {};
        for (int i = 0; i < kBlock; i += 16) {
            V16 e;
            exp_nonpositive((load(block + i) - top) * inverse, e);
            store(w + first + i, e);
            total += e;
        }
        sums[first / kBlock] = lane_sum(total);
    }
}

// The block sums only.
HEADRACE_CLONES void exp_sums(const float* z, int n, float top, float* sums) {
    float padded[kBlock];
    for (int first = 0; first < n; first += kBlock) {
        const float* block = whole_block(z, n, first, padded);
        V16 total = {};
        for (int i = 0; i < kBlock; i += 16) {
            V16 e;
            exp_nonpositive(load(block + i) - top, e);
            total += e;
        }
        sums[first / kBlock] = lane_sum(total);
    }
}

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
    std::vector<Candidate> candidates, chosen;

    void penalise(const SampleBatch& batch, const SampleRequest& request);
    float modify(const SampleBatch& batch, const SampleRequest& request, const float* raw);
    void write_top(const SampleBatch& batch, int row, const float* raw, double log_total);
    bool top_k_top_p(const SampleRequest& request, double total, Candidate& last);
    int draw_all(double u, double total) const;
    int draw_kept(double u, const Candidate& last) const;
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
    block_maxima(modified.data(), batch.vocab, maxima.data());
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

// Leaves in `chosen` (order of id) what top-k and top-p keep, and in `last` the least of it. False: nothing to cut.
bool Sampler::Scratch::top_k_top_p(const SampleRequest& request, double total, Candidate& last) {
    const int n = static_cast<int>(modified.size());
    const bool by_rank = request.top_k > 0 && request.top_k < n;
    const bool by_mass = request.top_p < 1.0f;
    if (!by_rank && !by_mass) return false;
    // All tokens below this weigh together less than 1 - p of the total, so that the nucleus is full before them.
    float least = by_rank ? 0.0f : static_cast<float>((1.0 - static_cast<double>(request.top_p)) * total / n);
    block_maxima(weights.data(), blocks * kBlock, maxima.data());
    if (by_rank) least = std::max(0.0f, reached_by(request.top_k, maxima.data(), blocks, work));
    gather(weights.data(), n, maxima.data(), least, candidates);
    chosen = candidates;
    if (by_rank && static_cast<std::size_t>(request.top_k) < chosen.size()) {
        std::nth_element(chosen.begin(), chosen.begin() + (request.top_k - 1), chosen.end(), before);
        chosen.resize(static_cast<std::size_t>(request.top_k));
    }
    if (by_rank) {
        total = 0.0;
        for (const Candidate& candidate : chosen) total += candidate.weight;
    }
    last = lightest_kept(chosen, by_mass ? static_cast<double>(request.top_p) * total : kInfinity);
    return true;
}

// Inverse of the cumulative weights in order of id, over everything.
int Sampler::Scratch::draw_all(double u, double total) const {
    const double goal = u * total;
    double mass = 0.0;
    int block = 0;
    while (block + 1 < blocks && mass + sums[static_cast<std::size_t>(block)] <= goal) mass += sums[static_cast<std::size_t>(block++)];
    int last = -1;
    for (; block < blocks; ++block)
        for (int i = block * kBlock; i < (block + 1) * kBlock; ++i) {
            const float w = weights[static_cast<std::size_t>(i)];
            if (w <= 0.0f) continue;
            last = i;
            mass += w;
            if (mass > goal) return i;
        }
    for (int i = block * kBlock - 1; last < 0; --i)  // rounding at the far end: the last token that can be drawn
        if (weights[static_cast<std::size_t>(i)] > 0.0f) last = i;
    return last;
}

int Sampler::Scratch::draw_kept(double u, const Candidate& last) const {
    double total = 0.0;
    for (const Candidate& candidate : candidates)
        if (!before(last, candidate)) total += candidate.weight;
    const double goal = u * total;
    double mass = 0.0;
    int token = -1;
    for (const Candidate& candidate : candidates) {
        if (before(last, candidate) || candidate.weight <= 0.0f) continue;
        token = candidate.token;
        mass += candidate.weight;
        if (mass > goal) break;
    }
    return token;
}

// `weights` and `sums` are filled. Filters in order: top-k, top-p of what is left, min-p against the heaviest.
int Sampler::Scratch::draw(const SampleRequest& request) {
    const double total = ordered_sum(sums.data(), blocks);
    const double u = uniform(request);
    Candidate last{};
    const bool cut = top_k_top_p(request, total, last);
    if (!cut && request.min_p <= 0.0f) return draw_all(u, total);
    const int n = static_cast<int>(modified.size());
    const Candidate floor{request.min_p, n};
    if (!cut) {
        for (int block = 0; block < blocks; ++block) maxima[static_cast<std::size_t>(block)] = kInfinity;
        gather(weights.data(), n, maxima.data(), request.min_p, candidates);
        return draw_kept(u, floor);
    }
    return draw_kept(u, before(floor, last) ? floor : last);
}

Sampler::Sampler(int vocab, int threads) : vocab_(vocab), pool_(std::make_unique<ThreadPool>(threads)) {
    for (int i = 0; i < threads; ++i) scratch_.push_back(std::make_unique<Scratch>(vocab));
}

Sampler::~Sampler() = default;

void Sampler::sample_row(const SampleBatch& batch, int row, Scratch& s) const {
    const SampleRequest& request = batch.requests[row];
    SampleResult& result = batch.results[row];
    const float* raw = batch.logits + static_cast<std::size_t>(request.row) * batch.stride;
    result = {-1, SampleStatus::ok, std::numeric_limits<float>::quiet_NaN(), 0};
    const bool numbers = block_maxima(raw, vocab_, s.raw_maxima.data());
    const float raw_top = *std::max_element(s.raw_maxima.begin(), s.raw_maxima.end());
    if (!numbers || std::isinf(raw_top)) {
        result.status = SampleStatus::not_a_number;
        return;
    }
    const bool changed = request.repetition != 1.0f || request.presence != 0.0f || request.frequency != 0.0f ||
                         request.bias_count > 0 || request.mask >= 0;
    const bool chooses = request.given < 0, draws = chooses && request.temperature >= kGreedyBelow;
    bool raw_weighed = false;
    if (chooses) {
        float top = raw_top;
        if (changed) top = s.modify(batch, request, raw);
        if (top == -kInfinity) {
            result.status = SampleStatus::nothing_allowed;
            return;
        }
        const float* z = changed ? s.modified.data() : raw;
        if (draws) {
            weigh(z, vocab_, top, 1.0f / request.temperature, s.weights.data(), s.sums.data());
            raw_weighed = !changed && request.temperature == 1.0f;
            result.token = s.draw(request);
        } else {
            result.token = lowest_argmax(z, vocab_, (changed ? s.maxima : s.raw_maxima).data(), s.blocks);
        }
    } else {
        result.token = request.given;
    }
    if (request.top_count < 0) return;
    if (!raw_weighed) exp_sums(raw, vocab_, raw_top, s.raw_sums.data());
    const double total = ordered_sum((raw_weighed ? s.sums : s.raw_sums).data(), s.blocks);
    const double log_total = static_cast<double>(raw_top) + std::log(total);
    result.logprob = static_cast<float>(static_cast<double>(raw[result.token]) - log_total);
    s.write_top(batch, row, raw, log_total);
}

void Sampler::run(const SampleBatch& batch) {
    if (batch.rows == 1) return sample_row(batch, 0, *scratch_[0]);
    pool_->parallel_for(batch.rows, [&](int row, int worker) { sample_row(batch, row, *scratch_[static_cast<std::size_t>(worker)]); });
}

}  // namespace headrace
