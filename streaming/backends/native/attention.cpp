// Attention over a paged cache, for CPUs.
//
// A query attends to its past in spans of SPAN keys, with a running softmax (Milakov and Gimelshein
// 2018, arXiv:1805.02867); the spans of each SPLIT keys are computed by themselves, and the splits
// are added up first to last (flash decoding). Spans and splits are counted from the sequence's
// beginning and each query has sums of its own, so its bits depend on its place in its sequence
// alone: not on whether it is decoded or read in a chunk, which rows are beside it, or how the work
// is divided among threads. All sums are float32.
//
// Shapes: T tokens in the step, Hq query heads, Hkv key-value heads, G = Hq / Hkv queries to a
// key-value head, Dk and Dv the sizes of a key and a value, both multiples of the vector width.
//   keys    (num_blocks, Hkv, Dk, BLOCK) in words of 32 bits: each is one number of a token's key,
//           or two in bfloat16, and the tokens of a block lie side by side, as vectors
//   values  (num_blocks, Hkv, BLOCK, Dv)
// What lies in the cache behind a sequence's last token may be anything and is never used.

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "vectors.h"

namespace {

constexpr int VECTORS = 4;                                       // summed into side by side
constexpr int MAX_ROWS = (NUM_REGISTERS - VECTORS - 1) / VECTORS;  // whose sums fit in registers

constexpr int BLOCK = 16;   // tokens in a block of the cache
constexpr int SPAN = 64;    // keys to a step of the running softmax
constexpr int SPLIT = 512;  // keys that are added up by themselves
constexpr int TILE = 16;    // tokens of a chunk that are computed together
constexpr int SPAN_BLOCKS = SPAN / BLOCK;
constexpr float LOWEST = -FLT_MAX;  // stands for the best of no scores

// Sums of one query over some of its keys.
struct Partial {
    float best;   // the highest score
    float total;  // of exp(score - best)
};

// Adds what `partial` and `values`, (Dv), sum up to `whole`. Not inlined: it has to be compiled
// once, so that it rounds in the same way wherever it is called from.
__attribute__((noinline)) void add_partial(
    Partial& whole, float* whole_values, Partial partial, const float* values, int value_dim) {
    float best = std::max(whole.best, partial.best);
    float whole_share = exp_of(whole.best - best), share = exp_of(partial.best - best);
    whole.best = best;
    whole.total = whole.total * whole_share + partial.total * share;
    for (int i = 0; i < value_dim; i += WIDTH)
        store(whole_values + i, load(whole_values + i) * broadcast(whole_share) +
                                    load(values + i) * broadcast(share));
}

template <typename T>
void finish(T* output, Partial partial, const float* values, int value_dim) {
    for (int i = 0; i < value_dim; i += WIDTH)
        store(output + i, load(values + i) / broadcast(partial.total));
}

// scores[r][k] = queries[r] . keys[k] * scale, for VECTORS * WIDTH keys, `first` of the span on.
template <int ROWS, typename T>
void score(const uint32_t* queries, const uint32_t* const* blocks, int first, int num_words,
           float scale, float* scores) {
    Vec sums[ROWS][VECTORS] = {};
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
            store(scores + r * SPAN + first + v * WIDTH, sums[r][v] * broadcast(scale));
}

// sums[r] += weights[r][k] * values[k], for N vectors of the values of the first `num_keys` keys.
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
            Vec weight = broadcast(weights[r * SPAN + k]);
#pragma GCC unroll 8
            for (int v = 0; v < N; v++) added[r][v] += weight * loaded[v];
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 8
        for (int v = 0; v < N; v++) store(sums + r * value_dim + v * WIDTH, added[r][v]);
}

template <int ROWS, typename T>
void add_span(const float* weights, const T* const* blocks, int num_keys, int value_dim,
              float* sums) {
    const T* from[SPAN_BLOCKS];
    std::copy(blocks, blocks + SPAN_BLOCKS, from);
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

// Calls `run` for as many rows at a time as fit in the registers, with the first of them and, as a
// constant, their number.
template <typename Run>
void for_rows(int num_rows, Run run) {
    int row = 0;
    for (; num_rows - row >= MAX_ROWS; row += MAX_ROWS)
        run(row, std::integral_constant<int, MAX_ROWS>());
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

// New tokens of one sequence, which are the rows from `start` on of the step.
struct Chunk {
    int64_t start;       // first row
    int64_t num_tokens;  // rows
    int64_t length;      // tokens in the cache, these included and last
    int64_t table;       // where its block table begins in `tables`
};

struct Attention {
    const void* queries;  // (T, Hq, Dk) with the strides below, the last one 1
    const void* keys;     // see above
    const void* values;
    void* output;  // (T, Hq, Dv), contiguous
    const Chunk* chunks;
    const int64_t* tables;
    int64_t query_token_stride, query_head_stride;  // in elements
    int64_t num_chunks, num_heads, num_kv_heads, key_dim, value_dim;
    int64_t sliding_window;  // a token sees at most so many, itself included; 0 for all
    double scale;
    int64_t is_bfloat16;  // all tensors are, or else float32
    int64_t num_threads;
};

struct Update {
    const void* new_keys;  // (T, Hkv, Dk) with the strides below, the last one 1
    const void* new_values;
    void* keys;  // see above
    void* values;
    const int64_t* slots;  // (T,) block * BLOCK + offset
    int64_t key_token_stride, key_head_stride, value_token_stride, value_head_stride;
    int64_t num_tokens, num_kv_heads, key_dim, value_dim;
    int64_t is_bfloat16;
    int64_t num_threads;
};

}  // extern "C"

namespace {

// Tokens of a chunk for one key-value head, over one split or over all.
struct Piece {
    const Chunk* chunk;
    int kv_head;
    int first_token, num_tokens;
    int first_split, num_splits;
    int64_t partial;  // where its sums go, in rows; -1 where they are complete
};

struct Scratch {
    std::vector<uint32_t> queries;
    std::vector<float> scores, split_values, values;
    std::vector<Partial> split_partials, partials;
};

int num_splits_of(const Chunk& chunk) { return (chunk.length + SPLIT - 1) / SPLIT; }

// Attends with the rows of a piece to one split. Sets `partials` and `values`.
template <typename T>
void attend_split(const Attention& in, const Piece& piece, int split, Scratch& scratch,
                  Partial* partials, float* values) {
    const int key_dim = in.key_dim, value_dim = in.value_dim;
    const int num_groups = in.num_heads / in.num_kv_heads;
    const int num_rows = piece.num_tokens * num_groups;
    const int64_t first_position =
        piece.chunk->length - piece.chunk->num_tokens + piece.first_token;
    const int64_t end = first_position + piece.num_tokens;  // behind the last key that any row sees
    const int64_t window = in.sliding_window > 0 ? in.sliding_window : end;
    const int64_t first_seen = std::max<int64_t>(0, first_position + 1 - window);
    const int64_t* table = in.tables + piece.chunk->table;
    const int num_words = key_dim * sizeof(T) / sizeof(uint32_t);
    const uint32_t* all_keys = (const uint32_t*)in.keys;
    const T* all_values = (const T*)in.values;
    std::fill(partials, partials + num_rows, Partial{LOWEST, 0.0f});
    std::fill(values, values + num_rows * value_dim, 0.0f);
    float* scores = scratch.scores.data();
    const int64_t split_start = (int64_t)split * SPLIT;
    for (int64_t start = split_start; start < std::min(split_start + SPLIT, end); start += SPAN) {
        if (start + SPAN <= first_seen) continue;
        const int num_keys = std::min<int64_t>(SPAN, end - start);
        const uint32_t* key_blocks[SPAN_BLOCKS];
        const T* value_blocks[SPAN_BLOCKS];
        for (int b = 0; b < SPAN_BLOCKS; b++) {
            // Blocks that are not there are not seen; any does for them.
            int64_t known = std::min<int64_t>(start / BLOCK + b, (end - 1) / BLOCK);
            int64_t block = table[known] * in.num_kv_heads + piece.kv_head;
            key_blocks[b] = all_keys + block * num_words * BLOCK;
            value_blocks[b] = all_values + block * value_dim * BLOCK;
        }
        for_rows(num_rows, [&](int row, auto n) {
            for (int first = 0; first < num_keys; first += VECTORS * WIDTH)
                score<n.value, T>(scratch.queries.data() + row * num_words, key_blocks, first,
                                  num_words, in.scale, scores + row * SPAN);
        });
        for (int row = 0; row < num_rows; row++) {
            // Rows are tokens of a group's first query head, then of its second...
            const int64_t position = first_position + row % piece.num_tokens;
            float* of_row = scores + row * SPAN;
            const int64_t seen_end = std::min<int64_t>(SPAN, position + 1 - start);
            const int64_t seen_from = std::max<int64_t>(0, position + 1 - window - start);
            for (int64_t k = std::max<int64_t>(0, seen_end); k < SPAN; k++) of_row[k] = -INFINITY;
            for (int64_t k = 0; k < std::min<int64_t>(SPAN, seen_from); k++) of_row[k] = -INFINITY;
            Vec highest = load(of_row);
            for (int k = WIDTH; k < SPAN; k += WIDTH) {
                Vec next = load(of_row + k);
                highest = highest > next ? highest : next;
            }
            Partial& partial = partials[row];
            const float best = std::max(partial.best, largest(highest));
            Vec total = broadcast(0.0f);
            for (int k = 0; k < SPAN; k += WIDTH) {
                Vec weights = exp_of(load(of_row + k) - broadcast(best));
                store(of_row + k, weights);
                total += weights;
            }
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
            add_span<n.value>(scores + row * SPAN, value_blocks, num_keys, value_dim,
                              values + row * value_dim);
        });
    }
}

template <typename T>
void attend_piece(const Attention& in, const Piece& piece, Scratch& scratch, Partial* all_partials,
                  float* all_values) {
    const int key_dim = in.key_dim, value_dim = in.value_dim;
    const int num_groups = in.num_heads / in.num_kv_heads;
    const int num_rows = piece.num_tokens * num_groups;
    const int64_t first_row = piece.chunk->start + piece.first_token;
    const size_t query_bytes = key_dim * sizeof(T);
    scratch.queries.resize(num_rows * query_bytes / sizeof(uint32_t));
    scratch.scores.resize(num_rows * SPAN);
    for (int row = 0; row < num_rows; row++) {
        const int head = piece.kv_head * num_groups + row / piece.num_tokens;
        const T* query = (const T*)in.queries + head * in.query_head_stride +
                         (first_row + row % piece.num_tokens) * in.query_token_stride;
        std::memcpy((char*)scratch.queries.data() + row * query_bytes, query, query_bytes);
    }
    if (piece.partial >= 0) {
        attend_split<T>(in, piece, piece.first_split, scratch, all_partials + piece.partial,
                        all_values + piece.partial * value_dim);
        return;
    }
    scratch.partials.resize(num_rows);
    scratch.values.resize(num_rows * value_dim);
    attend_split<T>(in, piece, piece.first_split, scratch, scratch.partials.data(),
                    scratch.values.data());
    for (int split = piece.first_split + 1; split < piece.first_split + piece.num_splits; split++) {
        scratch.split_partials.resize(num_rows);
        scratch.split_values.resize(num_rows * value_dim);
        attend_split<T>(in, piece, split, scratch, scratch.split_partials.data(),
                        scratch.split_values.data());
        for (int row = 0; row < num_rows; row++)
            add_partial(scratch.partials[row], scratch.values.data() + row * value_dim,
                        scratch.split_partials[row], scratch.split_values.data() + row * value_dim,
                        value_dim);
    }
    for (int row = 0; row < num_rows; row++) {
        const int head = piece.kv_head * num_groups + row / piece.num_tokens;
        const int64_t token = first_row + row % piece.num_tokens;
        finish((T*)in.output + (token * in.num_heads + head) * value_dim, scratch.partials[row],
               scratch.values.data() + row * value_dim, value_dim);
    }
}

template <typename T>
void attend(const Attention& in) {
    const int num_groups = in.num_heads / in.num_kv_heads;
    std::vector<Piece> pieces;
    std::vector<const Chunk*> split_chunks;  // those whose splits are pieces of their own
    std::vector<int64_t> split_rows;         // where their partial sums begin
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
            for (int first = 0; first < chunk.num_tokens; first += TILE) {
                const int num_tokens = std::min<int64_t>(TILE, chunk.num_tokens - first);
                if (!is_split)
                    pieces.push_back({&chunk, head, first, num_tokens, 0, num_splits, -1});
                for (int split = 0; is_split && split < num_splits; split++) {
                    pieces.push_back({&chunk, head, first, num_tokens, split, 1, num_partials});
                    num_partials += num_groups;
                }
            }
        }
    }
    std::vector<Partial> partials(num_partials);
    std::vector<float> values(num_partials * in.value_dim);
#pragma omp parallel num_threads(in.num_threads)
    {
        static thread_local Scratch scratch;
#pragma omp for schedule(dynamic)
        for (size_t p = 0; p < pieces.size(); p++)
            attend_piece<T>(in, pieces[p], scratch, partials.data(), values.data());
#pragma omp for schedule(dynamic)
        for (size_t c = 0; c < split_chunks.size(); c++) {
            const int num_splits = num_splits_of(*split_chunks[c]);
            for (int head = 0; head < in.num_heads; head++) {
                const int64_t first = split_rows[c] + head / num_groups * num_splits * num_groups +
                                      head % num_groups;
                float* whole = values.data() + first * in.value_dim;
                for (int split = 1; split < num_splits; split++) {
                    const int64_t next = first + split * num_groups;
                    add_partial(partials[first], whole, partials[next],
                                values.data() + next * in.value_dim, in.value_dim);
                }
                T* output = (T*)in.output;
                finish(output + (split_chunks[c]->start * in.num_heads + head) * in.value_dim,
                       partials[first], whole, in.value_dim);
            }
        }
    }
}

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
