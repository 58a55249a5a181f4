// AdamW over flat arenas in one pass, and the gradient's global norm; nothing waits for the host.
//
// p, g, m, v [P] in f32; `copy` [P], where wanted, gets the new parameters in bf16. One thread per four values. Bytes: 28·P, 2·P more with the
// copy. Settings as in kernels/src/adamw.rs: rate = lr / (1 - β1ᵗ), root = 1 / sqrt(1 - β2ᵗ), keep = 1 - lr·decay. `scale` [1] is
// what gradients are multiplied by first. Norm: sums of squares in f64, per block and then over the blocks, in one fixed order; from it
// [norm, scale], scale = min(1, largest / norm). Source: Loshchilov & Hutter 2019, algorithm 2, in PyTorch's order.
#include "common.cuh"

struct Settings {
  float rate, root, keep, beta1, beta2, rest1, rest2, eps;
};

__device__ __forceinline__ float updated(float p, float g, float& m, float& v, const Settings& with) {
  m = with.beta1 * m + with.rest1 * g;
  v = with.beta2 * v + with.rest2 * g * g;
  return p * with.keep - with.rate * m / (sqrtf(v) * with.root + with.eps);
}

template <int N>
__device__ void update(float* p, bf16* copy, float* m, float* v, const float* g, size_t i, float scale, bool narrow,
                       const Settings& with) {
  auto ps = load<N>(p + i), ms = load<N>(m + i), vs = load<N>(v + i);
  const auto gs = load<N>(g + i);
  Pack<bf16, N> rounded;
#pragma unroll
  for (int n = 0; n < N; n++) {
    ps.v[n] = updated(ps.v[n], gs.v[n] * scale, ms.v[n], vs.v[n], with);
    rounded.v[n] = bf16(ps.v[n]);
  }
  store<N>(p + i, ps);
  store<N>(m + i, ms);
  store<N>(v + i, vs);
  if (narrow) store<N>(copy + i, rounded);
}

/// Grid-stride; the arenas are longer than 31 bits: `quads` · 4 + `rest` values.
__device__ void adamw(float* p, bf16* copy, float* m, float* v, const float* g, const float* scale, int quads, int rest,
                      int narrow, const Settings& with) {
  const float factor = *scale;
  const int first = blockIdx.x * blockDim.x + threadIdx.x;
  for (size_t i = first; i < size_t(quads); i += size_t(gridDim.x) * blockDim.x)
    update<4>(p, copy, m, v, g, 4 * i, factor, narrow, with);
  if (first < rest) update<1>(p, copy, m, v, g, 4 * size_t(quads) + first, factor, narrow, with);
}

/// Shared memory: SCRATCH doubles. sums [blocks]
__device__ void sum_of_squares(double* sums, const float* g, int quads, int rest) {
  double sum = 0;
  const int first = blockIdx.x * blockDim.x + threadIdx.x;
  for (size_t i = first; i < size_t(quads); i += size_t(gridDim.x) * blockDim.x) {
    const auto gs = load<4>(g + 4 * i);
#pragma unroll
    for (int n = 0; n < 4; n++) sum += double(gs.v[n]) * double(gs.v[n]);
  }
  if (first < rest) sum += double(g[4 * size_t(quads) + first]) * double(g[4 * size_t(quads) + first]);
  sum = block_sum(sum, shared_memory<double>());
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

/// One block. result [2]: the norm, and what brings it to `largest` at most.
__device__ void norm_and_scale(float* result, const double* sums, int blocks, float largest) {
  double sum = 0;
  for (int i = threadIdx.x; i < blocks; i += blockDim.x) sum += sums[i];
  sum = block_sum(sum, shared_memory<double>());
  if (threadIdx.x == 0) {
    const float norm = float(sqrt(sum));
    result[0] = norm;
    result[1] = norm > largest ? largest / norm : 1.0f;
  }
}

KERNEL(adamw_step, 256,
       (float* p, bf16* copy, float* m, float* v, const float* g, const float* scale, int quads, int rest, int narrow,
        float rate, float root, float keep, float beta1, float beta2, float rest1, float rest2, float eps),
       adamw(p, copy, m, v, g, scale, quads, rest, narrow, {rate, root, keep, beta1, beta2, rest1, rest2, eps}))
KERNEL(adamw_sum_of_squares, 256, (double* sums, const float* g, int quads, int rest),
       sum_of_squares(sums, g, quads, rest))
KERNEL(adamw_norm, 256, (float* result, const double* sums, int blocks, float largest),
       norm_and_scale(result, sums, blocks, largest))
