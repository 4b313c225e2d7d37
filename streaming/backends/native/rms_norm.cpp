// Root mean square normalisation (Zhang and Sennrich 2019, arXiv:1910.07467), in one pass a row.

#include <cmath>
#include <cstdint>

#include "vectors.h"

extern "C" {

struct RmsNorm {
    const void* rows;     // (num_rows, dim), contiguous
    const float* weight;  // (dim,)
    void* output;         // like the rows
    int64_t num_rows, dim;
    double epsilon;
    int64_t rounds_first;  // to the rows' type before the weight comes in, and not only after
    int64_t is_bfloat16;  // rows and output are, or else float32
    int64_t num_threads;
};

}  // extern "C"

namespace {

template <typename T>
void normalize(const RmsNorm& in) {
#pragma omp parallel for num_threads(in.num_threads) if (in.num_rows > 4)
    for (int64_t r = 0; r < in.num_rows; r++) {
        const T* row = (const T*)in.rows + r * in.dim;
        T* output = (T*)in.output + r * in.dim;
        Vec squares = {};
        for (int64_t d = 0; d < in.dim; d += WIDTH) {
            Vec x = load(row + d);
            squares += x * x;
        }
        const Vec scale = broadcast(1.0f / std::sqrt(sum(squares) / in.dim + (float)in.epsilon));
        for (int64_t d = 0; d < in.dim; d += WIDTH) {
            Vec scaled = load(row + d) * scale;
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
