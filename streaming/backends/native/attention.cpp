// Paged attention for CPUs: prefill chunks and decodes of one step, called by `attention.py`.
//
// A query attends to its past in tiles of KV_TILE keys with an online softmax (Milakov and
// Gimelshein 2018, arXiv:1805.02867). Each KV_SPLIT keys have a softmax state of their own; the
// states are merged first to last (split-KV, as in flash decoding). A decode computes its splits in
// parallel, a prefill chunk one after the other.
//
// Batch invariance: tiles and splits are counted from position 0 of the sequence, and each query
// has its own accumulators. The order of a query's sums therefore depends only on its position in
// its sequence, and so do its bits. They are the same in a decode and in a chunk, with any
// neighbours and any number of threads. All sums are float32.
//
// Shapes: T tokens in the step, Hq query heads, Hkv key-value heads, G = Hq / Hkv query heads per
// key-value head, Dk and Dv the sizes of a key and a value, both multiples of WIDTH.
//   keys    (num_blocks, Hkv, Dk words, BLOCK), transposed within a block. A word has 32 bits and
//           holds one float32 of a key or two adjacent bfloat16 (then there are Dk / 2 words). The
//           same word of WIDTH consecutive tokens is one vector load, so scores of WIDTH keys are
//           computed without horizontal sums.
//   values  (num_blocks, Hkv, BLOCK, Dv), so that a vector load takes WIDTH elements of one value.
// Cache slots behind a sequence's last token may hold anything, NaN included: their scores are
// replaced by -inf, and their values are not read.

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "vectors.h"

namespace {

// Register blocking: a kernel keeps ROWS * VECTORS accumulators, VECTORS loaded operands and one
// broadcast operand in registers. MAX_ROWS is the largest ROWS for which they fit: 6 with AVX-512,
// 2 with AVX. Each loaded vector is used by all rows.
constexpr int VECTORS = 4;
constexpr int MAX_ROWS = (NUM_REGISTERS - VECTORS - 1) / VECTORS;

constexpr int BLOCK = 16;       // tokens in a block of the cache
constexpr int KV_TILE = 64;     // keys in one step of the online softmax
constexpr int KV_SPLIT = 512;   // keys with a softmax state of their own
constexpr int QUERY_TILE = 16;  // tokens of a chunk that are computed together
constexpr int KV_TILE_BLOCKS = KV_TILE / BLOCK;
constexpr float LOWEST = -FLT_MAX;  // initial maximum: finite, to avoid -inf - -inf = NaN

// Softmax state of one query over some of its keys. The weighted sum of the values, (Dv) float32,
// is kept beside it. `best` starts at LOWEST and `total` at 0.
struct Partial {
    float best;   // highest score
    float total;  // sum of exp(score - best)
};

// Merges `partial` and its weighted sum `values`, (Dv), into `whole` and `whole_values`: both are
// rescaled to the common maximum. Not inlined: one compiled copy rounds the same for every caller.
__attribute__((noinline)) void merge_partial(
    Partial& whole, float* whole_values, Partial partial, const float* values, int value_dim) {
    float best = std::max(whole.best, partial.best);
    float whole_share = exp_of(whole.best - best), share = exp_of(partial.best - best);
    whole.best = best;
    whole.total = whole.total * whole_share + partial.total * share;
    for (int i = 0; i < value_dim; i += WIDTH)
        store(whole_values + i, load(whole_values + i) * broadcast(whole_share) +
                                    load(values + i) * broadcast(share));
}

// Writes one query's output, (Dv): the weighted sum divided by the sum of the weights.
template <typename T>
void finish(T* output, Partial partial, const float* values, int value_dim) {
    for (int i = 0; i < value_dim; i += WIDTH)
        store(output + i, load(values + i) / broadcast(partial.total));
}

// Computes scores[r][k] = queries[r] . keys[k] * scale for the VECTORS * WIDTH keys of a KV tile
// that start at `first`. One lane belongs to one key and adds its products in the order of the
// words, so ROWS and `first` do not affect the bits.
//   queries  (ROWS, num_words), packed
//   blocks   (KV_TILE_BLOCKS) pointers to (num_words, BLOCK)
//   scores   (ROWS, KV_TILE)
template <int ROWS, typename T>
void score(const uint32_t* queries, const uint32_t* const* blocks, int first, int num_words,
           float scale, float* scores) {
    Vec sums[ROWS][VECTORS] = {};
    // WIDTH divides BLOCK, so a vector of keys never crosses a block.
    const uint32_t* keys[VECTORS];
    for (int v = 0; v < VECTORS; v++) {
        int key = first + v * WIDTH;
        keys[v] = blocks[key / BLOCK] + key % BLOCK;
    }
    for (int w = 0; w < num_words; w++) {
        BitsVec loaded[VECTORS];
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; v++) loaded[v] = load_bits(keys[v] + w * BLOCK);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) {
            const uint32_t query = queries[r * num_words + w];
#pragma GCC unroll 8
            for (int v = 0; v < VECTORS; v++)
                sums[r][v] = add_products(sums[r][v], query, loaded[v], T());
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; v++)
            store(scores + r * KV_TILE + first + v * WIDTH, sums[r][v] * broadcast(scale));
}

// Computes sums[r] += weights[r][k] * values[k] over the first `num_keys` keys of a KV tile, for
// N vectors of each value. The accumulators stay in registers while the keys are added in order, so
// ROWS and N do not affect the bits. A key that a row does not see has weight 0 and adds 0.
//   weights  (ROWS, KV_TILE)
//   blocks   (KV_TILE_BLOCKS) pointers to (BLOCK, Dv), advanced to the first of the N vectors
//   sums     (ROWS, Dv), likewise
template <int ROWS, int N, typename T>
void add_values(const float* weights, const T* const* blocks, int num_keys, int value_dim,
                float* sums) {
    Vec added[ROWS][N];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 8
        for (int v = 0; v < N; v++) added[r][v] = load(sums + r * value_dim + v * WIDTH);
    for (int k = 0; k < num_keys; k++) {
        const T* value = blocks[k / BLOCK] + (k % BLOCK) * value_dim;
        Vec loaded[N];
#pragma GCC unroll 8
        for (int v = 0; v < N; v++) loaded[v] = load(value + v * WIDTH);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) {
            Vec weight = broadcast(weights[r * KV_TILE + k]);
#pragma GCC unroll 8
            for (int v = 0; v < N; v++) added[r][v] += weight * loaded[v];
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 8
        for (int v = 0; v < N; v++) store(sums + r * value_dim + v * WIDTH, added[r][v]);
}

// Does the same for whole values: VECTORS * WIDTH elements at a time, then the rest.
template <int ROWS, typename T>
void add_kv_tile(const float* weights, const T* const* blocks, int num_keys, int value_dim,
              float* sums) {
    const T* from[KV_TILE_BLOCKS];
    std::copy(blocks, blocks + KV_TILE_BLOCKS, from);
    int left = value_dim / WIDTH;
    while (left > 0) {
        int n = std::min(left, VECTORS);
        if (n == 4) add_values<ROWS, 4>(weights, from, num_keys, value_dim, sums);
        if (n == 3) add_values<ROWS, 3>(weights, from, num_keys, value_dim, sums);
        if (n == 2) add_values<ROWS, 2>(weights, from, num_keys, value_dim, sums);
        if (n == 1) add_values<ROWS, 1>(weights, from, num_keys, value_dim, sums);
        for (const T*& block : from) block += n * WIDTH;
        sums += n * WIDTH;
        left -= n;
    }
}

// Calls `run(row, n)` for consecutive groups of rows, `row` being the first of a group. `n` is the
// size of the group as a compile-time constant, which selects the kernel: MAX_ROWS, then the rest.
template <typename Run>
void for_rows(int num_rows, Run run) {
    int row = 0;
    for (; num_rows - row >= MAX_ROWS; row += MAX_ROWS)
        run(row, std::integral_constant<int, MAX_ROWS>());
    // The std::min only keeps the compiler from making kernels that do not fit the registers.
    switch (num_rows - row) {
        case 1: run(row, std::integral_constant<int, 1>()); break;
        case 2: run(row, std::integral_constant<int, std::min(2, MAX_ROWS)>()); break;
        case 3: run(row, std::integral_constant<int, std::min(3, MAX_ROWS)>()); break;
        case 4: run(row, std::integral_constant<int, std::min(4, MAX_ROWS)>()); break;
        case 5: run(row, std::integral_constant<int, std::min(5, MAX_ROWS)>()); break;
    }
}

}  // namespace

extern "C" {

// These three mirror ctypes structures in `attention.py`; all integers are 64 bits wide.

// New tokens of one sequence: rows `start` to `start + num_tokens` of the step.
struct Chunk {
    int64_t start;       // first row
    int64_t num_tokens;  // rows
    int64_t length;      // tokens in the cache, the new ones included and last
    int64_t table;       // index in `tables` at which the sequence's block table begins
};

struct Attention {
    const void* queries;    // (T, Hq, Dk) with the strides below, the last one 1
    const void* keys;       // cache of the layer, layout see above
    const void* values;     // likewise
    void* output;           // (T, Hq, Dv), contiguous; padding rows are not written
    const Chunk* chunks;    // (num_chunks)
    const int64_t* tables;  // block tables, concatenated; entries are block numbers
    int64_t query_token_stride, query_head_stride;  // in elements
    int64_t num_chunks, num_heads, num_kv_heads, key_dim, value_dim;
    int64_t sliding_window;  // number of tokens that a token sees, itself included; 0 for all
    double scale;            // factor on scores, usually Dk ** -0.5
    int64_t is_bfloat16;     // 1: queries, keys, values and output are bfloat16; 0: float32
    int64_t num_threads;
};

struct Update {
    const void* new_keys;    // (T, Hkv, Dk) with the strides below, the last one 1
    const void* new_values;  // (T, Hkv, Dv) likewise
    void* keys;              // cache of the layer, layout see above
    void* values;            // likewise
    const int64_t* slots;    // (num_tokens) block * BLOCK + offset of each new token
    // Strides are in elements.
    int64_t key_token_stride, key_head_stride, value_token_stride, value_head_stride;
    int64_t num_tokens, num_kv_heads, key_dim, value_dim;
    int64_t is_bfloat16;  // 1: all four tensors are bfloat16; 0: float32
    int64_t num_threads;
};

}  // extern "C"

namespace {

// A unit of work for one thread: up to QUERY_TILE tokens of a chunk with the G query heads of one
// key-value head, over one split or over all splits. Its rows are (G, num_tokens): all tokens of
// the first query head, then those of the second. They share every key and value that is loaded.
struct WorkItem {
    const Chunk* chunk;
    int kv_head;
    int first_token, num_tokens;  // counted from the chunk's first token
    int first_split, num_splits;  // counted from the sequence's beginning
    int64_t partial;  // first row of its states in the shared buffer; -1 if it covers all splits
};

// Buffers of one thread, reused by its work items. R is the number of rows, at most
// QUERY_TILE * G.
struct Scratch {
    std::vector<uint32_t> queries;                  // (R, Dk words)
    std::vector<float> scores;                      // (R, KV_TILE), replaced by the weights
    std::vector<float> split_values, values;        // (R, Dv) of one split; of all so far
    std::vector<Partial> split_partials, partials;  // (R) likewise
};

int num_splits_of(const Chunk& chunk) { return (chunk.length + KV_SPLIT - 1) / KV_SPLIT; }

// Attends from the rows of a work item, whose queries are in the scratch, to one split.
// Overwrites `partials`, (R), and `values`, (R, Dv). KV tiles are the outer loop, so that keys and
// values come from memory once and from the CPU's cache for all other rows.
template <typename T>
void attend_split(const Attention& in, const WorkItem& item, int split, Scratch& scratch,
                  Partial* partials, float* values) {
    const int key_dim = in.key_dim, value_dim = in.value_dim;
    const int queries_per_kv = in.num_heads / in.num_kv_heads;
    const int num_rows = item.num_tokens * queries_per_kv;
    const int64_t first_position =
        item.chunk->length - item.chunk->num_tokens + item.first_token;
    const int64_t end = first_position + item.num_tokens;  // one past the last key of any row
    const int64_t window = in.sliding_window > 0 ? in.sliding_window : end;
    const int64_t first_seen = std::max<int64_t>(0, first_position + 1 - window);  // by any row
    const int64_t* table = in.tables + item.chunk->table;
    const int num_words = key_dim * sizeof(T) / sizeof(uint32_t);
    const uint32_t* all_keys = (const uint32_t*)in.keys;
    const T* all_values = (const T*)in.values;
    std::fill(partials, partials + num_rows, Partial{LOWEST, 0.0f});
    std::fill(values, values + num_rows * value_dim, 0.0f);
    float* scores = scratch.scores.data();
    const int64_t split_start = (int64_t)split * KV_SPLIT;
    for (int64_t start = split_start; start < std::min(split_start + KV_SPLIT, end);
         start += KV_TILE) {
        // A tile that no row sees would leave all states unchanged.
        if (start + KV_TILE <= first_seen) continue;
        const int num_keys = std::min<int64_t>(KV_TILE, end - start);
        const uint32_t* key_blocks[KV_TILE_BLOCKS];
        const T* value_blocks[KV_TILE_BLOCKS];
        for (int b = 0; b < KV_TILE_BLOCKS; b++) {
            // Past the end of the table, repeat the last block: its scores are masked.
            int64_t known = std::min<int64_t>(start / BLOCK + b, (end - 1) / BLOCK);
            int64_t block = table[known] * in.num_kv_heads + item.kv_head;
            key_blocks[b] = all_keys + block * num_words * BLOCK;
            value_blocks[b] = all_values + block * value_dim * BLOCK;
        }
        for_rows(num_rows, [&](int row, auto n) {
            for (int first = 0; first < num_keys; first += VECTORS * WIDTH)
                score<n.value, T>(scratch.queries.data() + row * num_words, key_blocks, first,
                                  num_words, in.scale, scores + row * KV_TILE);
        });
        for (int row = 0; row < num_rows; row++) {
            const int64_t position = first_position + row % item.num_tokens;
            float* row_scores = scores + row * KV_TILE;
            // The row sees keys [seen_from, seen_end) of the tile; mask whatever lies outside.
            const int64_t seen_end = std::min<int64_t>(KV_TILE, position + 1 - start);
            const int64_t seen_from = std::max<int64_t>(0, position + 1 - window - start);
            for (int64_t k = std::max<int64_t>(0, seen_end); k < KV_TILE; k++)
                row_scores[k] = -INFINITY;
            for (int64_t k = 0; k < std::min<int64_t>(KV_TILE, seen_from); k++)
                row_scores[k] = -INFINITY;
            Vec highest = load(row_scores);
            for (int k = WIDTH; k < KV_TILE; k += WIDTH) {
                Vec next = load(row_scores + k);
                highest = highest > next ? highest : next;
            }
            Partial& partial = partials[row];
            // If the row sees nothing of the tile, `best` stays as it is and all weights are 0.
            const float best = std::max(partial.best, largest(highest));
            Vec total = broadcast(0.0f);
            for (int k = 0; k < KV_TILE; k += WIDTH) {
                Vec weights = exp_of(load(row_scores + k) - broadcast(best));
                store(row_scores + k, weights);
                total += weights;
            }
            // Rescale the sums so far to the new maximum.
            if (best != partial.best) {
                const float share = exp_of(partial.best - best);
                partial.total *= share;
                for (int i = 0; i < value_dim; i += WIDTH) {
                    float* sums = values + row * value_dim + i;
                    store(sums, load(sums) * broadcast(share));
                }
            }
            partial.best = best;
            partial.total += sum(total);
        }
        for_rows(num_rows, [&](int row, auto n) {
            add_kv_tile<n.value>(scores + row * KV_TILE, value_blocks, num_keys, value_dim,
                                 values + row * value_dim);
        });
    }
}

// Computes a work item. If it covers all splits, writes its outputs; otherwise writes its states to
// `all_partials` and `all_values`, the shared buffers of split decodes.
template <typename T>
void attend_item(const Attention& in, const WorkItem& item, Scratch& scratch, Partial* all_partials,
                 float* all_values) {
    const int key_dim = in.key_dim, value_dim = in.value_dim;
    const int queries_per_kv = in.num_heads / in.num_kv_heads;
    const int num_rows = item.num_tokens * queries_per_kv;
    const int64_t first_row = item.chunk->start + item.first_token;
    const size_t query_bytes = key_dim * sizeof(T);
    scratch.queries.resize(num_rows * query_bytes / sizeof(uint32_t));
    scratch.scores.resize(num_rows * KV_TILE);
    // Gather the queries, so that `score` reads them contiguously.
    for (int row = 0; row < num_rows; row++) {
        const int head = item.kv_head * queries_per_kv + row / item.num_tokens;
        const T* query = (const T*)in.queries + head * in.query_head_stride +
                         (first_row + row % item.num_tokens) * in.query_token_stride;
        std::memcpy((char*)scratch.queries.data() + row * query_bytes, query, query_bytes);
    }
    if (item.partial >= 0) {
        attend_split<T>(in, item, item.first_split, scratch, all_partials + item.partial,
                        all_values + item.partial * value_dim);
        return;
    }
    scratch.partials.resize(num_rows);
    scratch.values.resize(num_rows * value_dim);
    // Compute and merge one split after the other, in the order in which `attend` merges those of a
    // decode. Merging a split that a row does not see (best = LOWEST, total = 0) changes nothing.
    attend_split<T>(in, item, item.first_split, scratch, scratch.partials.data(),
                    scratch.values.data());
    for (int split = item.first_split + 1; split < item.first_split + item.num_splits; split++) {
        scratch.split_partials.resize(num_rows);
        scratch.split_values.resize(num_rows * value_dim);
        attend_split<T>(in, item, split, scratch, scratch.split_partials.data(),
                        scratch.split_values.data());
        for (int row = 0; row < num_rows; row++)
            merge_partial(scratch.partials[row], scratch.values.data() + row * value_dim,
                          scratch.split_partials[row],
                          scratch.split_values.data() + row * value_dim, value_dim);
    }
    for (int row = 0; row < num_rows; row++) {
        const int head = item.kv_head * queries_per_kv + row / item.num_tokens;
        const int64_t token = first_row + row % item.num_tokens;
        finish((T*)in.output + (token * in.num_heads + head) * value_dim, scratch.partials[row],
               scratch.values.data() + row * value_dim, value_dim);
    }
}

// Attends from all chunks of a step: divides the work into items, computes them in parallel, and
// merges the states of split decodes.
//
// A chunk has an item for each key-value head and query tile. A chunk of one token (a decode) has
// one query tile only, so each of its splits is an item, too; otherwise few threads would share a
// long past. The states of such splits lie in `partials` and `values` as (decode, Hkv, split, G).
template <typename T>
void attend(const Attention& in) {
    const int queries_per_kv = in.num_heads / in.num_kv_heads;
    std::vector<WorkItem> items;
    std::vector<const Chunk*> split_chunks;  // decodes of more than one split
    std::vector<int64_t> split_rows;         // first row of their states
    int64_t num_partials = 0;
    for (int c = 0; c < in.num_chunks; c++) {
        const Chunk& chunk = in.chunks[c];
        const int num_splits = num_splits_of(chunk);
        const bool is_split = chunk.num_tokens == 1 && num_splits > 1;
        if (is_split) {
            split_chunks.push_back(&chunk);
            split_rows.push_back(num_partials);
        }
        for (int head = 0; head < in.num_kv_heads; head++) {
            for (int first = 0; first < chunk.num_tokens; first += QUERY_TILE) {
                const int num_tokens = std::min<int64_t>(QUERY_TILE, chunk.num_tokens - first);
                if (!is_split)
                    items.push_back({&chunk, head, first, num_tokens, 0, num_splits, -1});
                for (int split = 0; is_split && split < num_splits; split++) {
                    items.push_back({&chunk, head, first, num_tokens, split, 1, num_partials});
                    num_partials += queries_per_kv;
                }
            }
        }
    }
    std::vector<Partial> partials(num_partials);
    std::vector<float> values(num_partials * in.value_dim);
#pragma omp parallel num_threads(in.num_threads)
    {
        static thread_local Scratch scratch;
        // Items differ in length. Which thread takes one does not affect its result.
#pragma omp for schedule(dynamic)
        for (size_t i = 0; i < items.size(); i++)
            attend_item<T>(in, items[i], scratch, partials.data(), values.data());
        // The loop above ends in a barrier, so all states are there. Merge them into the first.
#pragma omp for schedule(dynamic)
        for (size_t c = 0; c < split_chunks.size(); c++) {
            const int num_splits = num_splits_of(*split_chunks[c]);
            for (int head = 0; head < in.num_heads; head++) {
                const int64_t first = split_rows[c] +
                                      head / queries_per_kv * num_splits * queries_per_kv +
                                      head % queries_per_kv;
                float* whole = values.data() + first * in.value_dim;
                for (int split = 1; split < num_splits; split++) {
                    const int64_t next = first + split * queries_per_kv;
                    merge_partial(partials[first], whole, partials[next],
                                  values.data() + next * in.value_dim, in.value_dim);
                }
                T* output = (T*)in.output;
                finish(output + (split_chunks[c]->start * in.num_heads + head) * in.value_dim,
                       partials[first], whole, in.value_dim);
            }
        }
    }
}

// Writes new keys and values to their slots. A key is scattered, one word per BLOCK words; a value
// is copied whole. Slots are distinct, so threads never write the same place.
template <typename T>
void update(const Update& in) {
    const int64_t num_words = in.key_dim * sizeof(T) / sizeof(uint32_t);
#pragma omp parallel for num_threads(in.num_threads) if (in.num_tokens > 4)
    for (int64_t t = 0; t < in.num_tokens; t++) {
        const int64_t block = in.slots[t] / BLOCK, offset = in.slots[t] % BLOCK;
        for (int64_t head = 0; head < in.num_kv_heads; head++) {
            const T* key = (const T*)in.new_keys;
            key += t * in.key_token_stride + head * in.key_head_stride;
            const T* value = (const T*)in.new_values;
            value += t * in.value_token_stride + head * in.value_head_stride;
            uint32_t* keys = (uint32_t*)in.keys +
                             (block * in.num_kv_heads + head) * num_words * BLOCK + offset;
            T* values = (T*)in.values +
                        ((block * in.num_kv_heads + head) * BLOCK + offset) * in.value_dim;
            for (int64_t w = 0; w < num_words; w++)
                std::memcpy(keys + w * BLOCK, (const uint32_t*)key + w, sizeof(uint32_t));
            std::memcpy(values, value, in.value_dim * sizeof(T));
        }
    }
}

}  // namespace

extern "C" {

void tokenwire_attend(const Attention* in) {
    if (in->is_bfloat16)
        attend<BFloat16>(*in);
    else
        attend<float>(*in);
}

void tokenwire_update(const Update* in) {
    if (in->is_bfloat16)
        update<BFloat16>(*in);
    else
        update<float>(*in);
}

}  // extern "C"
