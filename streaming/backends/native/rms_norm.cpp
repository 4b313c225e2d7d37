// Root mean square normalisation (Zhang and Sennrich 2019, arXiv:1910.07467):
//   output[d] = row[d] / sqrt(mean(row^2) + epsilon) * weight[d]
//
// The mean and the output are two loops over a row, so that the row is read from memory once and
// from the cache the second time. One thread computes a whole row, in an order that depends only on
// `dim`: the bits of a row depend neither on the other rows nor on the number of threads.

#include <cmath>
#include <cstdint>

#include "vectors.h"

extern "C" {

// Mirrors a ctypes structure in `rms_norm.py`.
struct RmsNorm {
    const void* rows;       // (num_rows, dim), contiguous
    const float* weight;    // (dim), float32 for rows of either type
    void* output;           // (num_rows, dim), contiguous, of the rows' type
    int64_t num_rows, dim;  // dim is a multiple of WIDTH
    double epsilon;         // added to the mean of the squares
    int64_t rounds_first;   // 1: round to the rows' type before the weight, too; 0: after it only
    int64_t is_bfloat16;    // 1: rows and output are bfloat16; 0: float32
    int64_t num_threads;
};

}  // extern "C"

namespace {

template <typename T>
void normalize(const RmsNorm& in) {
    // A few rows are not worth waking other threads.
#pragma omp parallel for num_threads(in.num_threads) if (in.num_rows > 4)
    for (int64_t r = 0; r < in.num_rows; r++) {
        const T* row = (const T*)in.rows + r * in.dim;
        T* output = (T*)in.output + r * in.dim;
        // WIDTH float32 accumulators, added up pairwise at the end.
        Vec squares = {};
        for (int64_t d = 0; d < in.dim; d += WIDTH) {
            Vec x = load(row + d);
            squares += x * x;
        }
        const Vec scale = broadcast(1.0f / std::sqrt(sum(squares) / in.dim + (float)in.epsilon));
        for (int64_t d = 0; d < in.dim; d += WIDTH) {
            Vec scaled = load(row + d) * scale;
            // Without effect on float32. In bfloat16, models differ in where they round.
            if (in.rounds_first) scaled = round_to(scaled, T());
            store(output + d, scaled * load(in.weight + d));
        }
    }
}

}  // namespace

extern "C" void tokenwire_rms_norm(const RmsNorm* in) {
    if (in->is_bfloat16)
        normalize<BFloat16>(*in);
    else
        normalize<float>(*in);
}
