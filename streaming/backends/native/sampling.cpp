// Samples the next token of each row: temperature, top-k, top-p, min-p, then the inverse of the
// cumulative distribution at a uniform random number. `sampling.py` in `backends/sampling` defines
// these rules and their order; its `sample_tokens` is the twin of this kernel in torch.
//
// Top-k and top-p both keep the tokens from some threshold weight on. A histogram finds the bucket
// in which the threshold lies, and only the weights in that bucket are sorted. One thread samples a
// whole row, in an order that depends on that row alone: neither other rows nor the number of
// threads affect the token. Weights are float32. Their sums are double, but for those within a
// group of GROUP tokens in `sum_groups`.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <vector>

#include "vectors.h"

extern "C" {

// `SamplingMetadata` in `sampling.py`, one token's parameters.
struct SamplingMetadata {
    double temperature;  // above 0
    double top_k;        // a whole number of tokens; 0 keeps all
    double top_p;        // share of the total weight; 1 keeps all
    double min_p;        // share of the likeliest token's weight; 0 keeps all
    double uniform;      // random number in [0, 1)
};

// Mirrors a ctypes structure in `native/sampling.py`.
struct Sampling {
    const float* logits;               // (any, vocab_size), contiguous; sampled rows have no NaN
                                       // and at least one finite logit
    const int64_t* rows;               // (num_rows) indices of rows of `logits`
    const SamplingMetadata* metadata;  // (num_rows)
    int64_t* token_ids;                // (num_rows) output
    int64_t num_rows, vocab_size;
    int64_t num_threads;
};

}  // extern "C"

namespace {

constexpr int GROUP = 1024;       // tokens in a group; `invert` skips groups by their sums
constexpr int BUCKET_SHIFT = 19;  // drops the lower 19 of 23 mantissa bits
constexpr int NUM_BUCKETS = (0x3f800000 >> BUCKET_SHIFT) + 1;  // 2033, the last one for 1.0

// Returns the bucket of a weight in [0, 1]. The bits of non-negative floats are in the order of the
// floats, so the upper ones number buckets by size: 16 for each power of two.
uint32_t bucket_of(float weight) {
    uint32_t bits;
    std::memcpy(&bits, &weight, sizeof bits);
    return bits >> BUCKET_SHIFT;
}

// Buffers of one thread, reused from row to row.
struct Scratch {
    std::vector<float> weights;   // (vocab_size padded to whole groups), 0 for banned tokens
    std::vector<float> chosen;    // weights of the bucket in which the threshold lies
    std::vector<double> sums;     // (number of groups)
    std::vector<double> buckets;  // (NUM_BUCKETS)
};

// Sets `weights` to exp((logit - best) / temperature), so that the likeliest token has weight 1 and
// nothing overflows. Padding has weight 0.
void weigh(const float* logits, int64_t vocab_size, double temperature, Scratch& scratch) {
    const int64_t padded = (vocab_size + GROUP - 1) / GROUP * GROUP;
    std::vector<float>& weights = scratch.weights;
    weights.resize(padded);
    std::copy(logits, logits + vocab_size, weights.begin());
    std::fill(weights.begin() + vocab_size, weights.end(), -INFINITY);
    Vec highest = load(weights.data());
    for (int64_t i = WIDTH; i < padded; i += WIDTH) {
        Vec next = load(weights.data() + i);
        highest = highest > next ? highest : next;
    }
    const Vec best = broadcast(largest(highest)), divisor = broadcast(temperature);
    for (int64_t i = 0; i < padded; i += WIDTH)
        store(weights.data() + i, exp_of((load(weights.data() + i) - best) / divisor));
}

// Sets `sums` to the sum of each group's weights and returns the total.
double sum_groups(Scratch& scratch) {
    double total = 0.0;
    scratch.sums.clear();
    for (size_t start = 0; start < scratch.weights.size(); start += GROUP) {
        Vec added = {};
        for (int i = 0; i < GROUP; i += WIDTH) added += load(scratch.weights.data() + start + i);
        scratch.sums.push_back(sum(added));
        total += scratch.sums.back();
    }
    return total;
}

// Sets weights below `least` to 0.
void keep_at_least(float least, std::vector<float>& weights) {
    for (size_t i = 0; i < weights.size(); i += WIDTH) {
        Vec some = load(weights.data() + i);
        store(weights.data() + i, some < broadcast(least) ? broadcast(0.0f) : some);
    }
}

// Keeps the fewest of the likeliest tokens whose amounts come to at least `bound`, and sets the
// weights of all others to 0. `amount_of(weight)` is the amount of a token: 1 for top-k, its weight
// for top-p. Weights below `tail` are cut off in any case, so they are not counted.
template <typename AmountOf>
void keep_likeliest(double bound, float tail, Scratch& scratch, AmountOf amount_of) {
    std::vector<float>& weights = scratch.weights;
    scratch.buckets.assign(NUM_BUCKETS, 0.0);
    for (float weight : weights)
        if (weight >= tail) scratch.buckets[bucket_of(weight)] += amount_of(weight);
    // Go down from the largest weights to the bucket with which the sum reaches the bound.
    double before = 0.0;
    uint32_t bucket = NUM_BUCKETS - 1;
    while (bucket > 0 && before + scratch.buckets[bucket] < bound)
        before += scratch.buckets[bucket--];
    std::vector<float>& chosen = scratch.chosen;
    chosen.clear();
    for (float weight : weights)
        if (weight >= tail && bucket_of(weight) == bucket) chosen.push_back(weight);
    // Within the bucket, keep the largest weights until the sum reaches the bound.
    std::sort(chosen.begin(), chosen.end(), std::greater<float>());
    // Rounding left the bound above the sum of all: keep all that were counted.
    if (chosen.empty()) return keep_at_least(tail, weights);
    size_t num_kept = 0;
    do before += amount_of(chosen[num_kept++]);
    while (before < bound && num_kept < chosen.size());
    const float least = chosen[num_kept - 1];
    // Of equally likely tokens, keep those with lower ids: drop the surplus from the end.
    size_t num_too_many = std::count(chosen.begin() + num_kept, chosen.end(), least);
    for (size_t i = weights.size(); num_too_many > 0; i--)
        if (weights[i - 1] == least) {
            weights[i - 1] = 0.0f;
            num_too_many--;
        }
    keep_at_least(least, weights);
}

// Returns the first token at which the cumulative sum of weights, by token id, exceeds `bound`. If
// rounding leaves none, returns the last token with a weight above 0. Whole groups are skipped by
// their sums; the loop over tokens may run past its group, as that sum was rounded differently.
int64_t invert(double bound, const Scratch& scratch) {
    size_t group = 0;
    double before = 0.0;
    while (group + 1 < scratch.sums.size() && before + scratch.sums[group] <= bound)
        before += scratch.sums[group++];
    for (size_t i = group * GROUP; i < scratch.weights.size(); i++) {
        before += scratch.weights[i];
        if (before > bound && scratch.weights[i] > 0.0f) return i;
    }
    size_t last = scratch.weights.size() - 1;
    while (last > 0 && scratch.weights[last] == 0.0f) last--;
    return last;
}

// Samples a token from one row of logits, (vocab_size).
int64_t sample(const float* logits, int64_t vocab_size, const SamplingMetadata& metadata,
               Scratch& scratch) {
    weigh(logits, vocab_size, metadata.temperature, scratch);
    if (metadata.top_k > 0 && metadata.top_k < vocab_size)
        keep_likeliest(metadata.top_k, 0.0f, scratch, [](float) { return 1.0; });
    if (metadata.top_p < 1.0) {
        const double total = sum_groups(scratch);
        // Even all vocab_size tokens below this weight would sum to less than the share 1 - top_p
        // that is cut off, so none of them is kept.
        const float tail = (1.0 - metadata.top_p) / vocab_size * total;
        keep_likeliest(metadata.top_p * total, tail, scratch,
                       [](float weight) { return (double)weight; });
    }
    if (metadata.min_p > 0.0) keep_at_least(metadata.min_p, scratch.weights);
    const double total = sum_groups(scratch);
    return invert(metadata.uniform * total, scratch);
}

}  // namespace

extern "C" void tokenwire_sample(const Sampling* in) {
#pragma omp parallel num_threads(in->num_threads) if (in->num_rows > 1)
    {
        static thread_local Scratch scratch;
        // Rows differ in cost: top-k and top-p sort.
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < in->num_rows; i++)
            in->token_ids[i] = sample(in->logits + in->rows[i] * in->vocab_size, in->vocab_size,
                                      in->metadata[i], scratch);
    }
}
