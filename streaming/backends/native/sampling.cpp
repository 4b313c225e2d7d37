// Draws the next token of each row, by the rules and in the order that `draw.py` tells.
//
// What is left are the tokens from a certain weight on, so none is sorted but those whose weights
// are about as large as that one.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <vector>

#include "vectors.h"

extern "C" {

struct DrawRules {
    double temperature;
    double top_k;    // 0 for all
    double top_p;    // 1 for all
    double min_p;    // 0 for all
    double uniform;  // in [0, 1)
};

struct Draw {
    const float* logits;     // (..., vocab_size), contiguous; no NaN, and a finite one in each row
    const int64_t* rows;     // (num_rows,) which ones
    const DrawRules* rules;  // (num_rows,)
    int64_t* token_ids;      // (num_rows,)
    int64_t num_rows, vocab_size;
    int64_t num_threads;
};

}  // extern "C"

namespace {

constexpr int GROUP = 1024;      // tokens whose weights are summed up before any is looked at
constexpr int BUCKET_SHIFT = 19;  // weights in a bucket share their exponent and four bits more
constexpr int NUM_BUCKETS = (0x3f800000 >> BUCKET_SHIFT) + 1;  // up to that of 1.0

uint32_t bucket_of(float weight) {
    uint32_t bits;
    std::memcpy(&bits, &weight, sizeof bits);
    return bits >> BUCKET_SHIFT;
}

struct Scratch {
    std::vector<float> weights, chosen;
    std::vector<double> sums, buckets;
};

// Sets `weights`, of whole groups, to exp((logit - best) / temperature): the likeliest has 1.
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

// Sets `sums` to those of the weights in each group; returns that of all.
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

// Sets to 0 what is less than `least`.
void keep_at_least(float least, std::vector<float>& weights) {
    for (size_t i = 0; i < weights.size(); i += WIDTH) {
        Vec some = load(weights.data() + i);
        store(weights.data() + i, some < broadcast(least) ? broadcast(0.0f) : some);
    }
}

// Keeps the fewest of the likeliest tokens that together come to `bound` and sets the others to 0.
// `amount_of` tells what a token of a weight counts. Weights below `tail` are known to be cut off.
template <typename AmountOf>
void keep_likeliest(double bound, float tail, Scratch& scratch, AmountOf amount_of) {
    std::vector<float>& weights = scratch.weights;
    scratch.buckets.assign(NUM_BUCKETS, 0.0);
    for (float weight : weights)
        if (weight >= tail) scratch.buckets[bucket_of(weight)] += amount_of(weight);
    double before = 0.0;
    uint32_t bucket = NUM_BUCKETS - 1;
    while (bucket > 0 && before + scratch.buckets[bucket] < bound)
        before += scratch.buckets[bucket--];
    std::vector<float>& chosen = scratch.chosen;
    chosen.clear();
    for (float weight : weights)
        if (weight >= tail && bucket_of(weight) == bucket) chosen.push_back(weight);
    std::sort(chosen.begin(), chosen.end(), std::greater<float>());
    if (chosen.empty()) return keep_at_least(tail, weights);
    size_t num_kept = 0;
    do before += amount_of(chosen[num_kept++]);
    while (before < bound && num_kept < chosen.size());
    const float least = chosen[num_kept - 1];
    // Of equally likely ones those of lower ids are kept.
    size_t num_too_many = std::count(chosen.begin() + num_kept, chosen.end(), least);
    for (size_t i = weights.size(); num_too_many > 0; i--)
        if (weights[i - 1] == least) {
            weights[i - 1] = 0.0f;
            num_too_many--;
        }
    keep_at_least(least, weights);
}

// Returns the first token at which the weights sum up to more than `bound`; where rounding leaves
// none, the last one that has any.
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

int64_t draw(const float* logits, int64_t vocab_size, const DrawRules& rules, Scratch& scratch) {
    weigh(logits, vocab_size, rules.temperature, scratch);
    if (rules.top_k > 0 && rules.top_k < vocab_size)
        keep_likeliest(rules.top_k, 0.0f, scratch, [](float) { return 1.0; });
    if (rules.top_p < 1.0) {
        const double total = sum_groups(scratch);
        // Tokens each below this are together less than what top-p cuts off.
        const float tail = (1.0 - rules.top_p) / vocab_size * total;
        keep_likeliest(rules.top_p * total, tail, scratch,
                       [](float weight) { return (double)weight; });
    }
    if (rules.min_p > 0.0) keep_at_least(rules.min_p, scratch.weights);
    const double total = sum_groups(scratch);
    return invert(rules.uniform * total, scratch);
}

}  // namespace

extern "C" void tokenwire_draw(const Draw* in) {
#pragma omp parallel num_threads(in->num_threads) if (in->num_rows > 1)
    {
        static thread_local Scratch scratch;
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < in->num_rows; i++)
            in->token_ids[i] = draw(in->logits + in->rows[i] * in->vocab_size, in->vocab_size,
                                    in->rules[i], scratch);
    }
}
