// RMSNorm, with the addition of the residual before it: y = h / sqrt(mean(h²) + eps) · w, h = x + residual.
//
// One block per row of x, residual, sum, y [N, C]; w [C]; rstd [N]. Sums in f32. Bytes: 2 reads and 2 writes of a row
// with a residual, 1 and 1 without (the second pass finds the row in the first-level cache). Source: Zhang & Sennrich
// 2019, eq. 4. Backward: g = dy · w, dx = (g - x·rstd² · mean(g·x)) · rstd + residual, dw = Σ_rows dy · x · rstd, in partial
// sums per block and then over the blocks, both in one fixed order.
#include "common.cuh"

template <class T, int N>
__device__ void normalise(T* y, T* sum, float* rstd, const T* x, const T* residual, const T* w, int width, float eps,
                          bool add, bool keep) {
  const size_t row = size_t(blockIdx.x) * width;
  float squares = 0;
  for EACH (i, width, N) {
    auto values = load<N>(x + row + i);
    if (add) {
      const auto more = load<N>(residual + row + i);
#pragma unroll
      for (int n = 0; n < N; n++) values.v[n] = T(float(values.v[n]) + float(more.v[n]));
      store<N>(sum + row + i, values);
    }
#pragma unroll
    for (int n = 0; n < N; n++) squares += float(values.v[n]) * float(values.v[n]);
  }
  const float scale = rsqrtf(block_sum(squares, shared_memory<float>()) / width + eps);
  if (keep && threadIdx.x == 0) rstd[blockIdx.x] = scale;
  const T* from = add ? sum : x;
  for EACH (i, width, N) {
    auto values = load<N>(from + row + i);
    const auto weights = load<N>(w + i);
#pragma unroll
    for (int n = 0; n < N; n++) values.v[n] = T(float(values.v[n]) * scale * float(weights.v[n]));
    store<N>(y + row + i, values);
  }
}

template <class T>
__device__ void rms_norm(T* y, T* sum, float* rstd, const T* x, const T* residual, const T* w, int width, float eps,
                         int add, int keep) {
  if (wide<T>(width, address(y) | address(sum) | address(x) | address(residual) | address(w)))
    normalise<T, WIDE<T>>(y, sum, rstd, x, residual, w, width, eps, add, keep);
  else
    normalise<T, 1>(y, sum, rstd, x, residual, w, width, eps, add, keep);
}

/// Shared memory: SCRATCH + C floats. Block b takes rows b, b + blocks, …
template <class T, int N>
__device__ void gradients(T* dx, float* partial, const T* dy, const T* x, const T* w, const float* rstd,
                          const T* residual, int rows, int width, bool add) {
  float* sums = shared_memory<float>() + SCRATCH;
  for EACH (i, width, N)
    for (int n = 0; n < N; n++) sums[i + n] = 0;
  for (int r = blockIdx.x; r < rows; r += gridDim.x) {
    const size_t row = size_t(r) * width;
    float dot = 0;
    for EACH (i, width, N) {
      const auto d = load<N>(dy + row + i), values = load<N>(x + row + i), weights = load<N>(w + i);
#pragma unroll
      for (int n = 0; n < N; n++) dot += float(d.v[n]) * float(weights.v[n]) * float(values.v[n]);
    }
    const float scale = rstd[r];
    const float mean = block_sum(dot, shared_memory<float>()) * scale * scale / width;
    for EACH (i, width, N) {
      const auto d = load<N>(dy + row + i), values = load<N>(x + row + i), weights = load<N>(w + i);
      Pack<T, N> out;
      if (add) out = load<N>(residual + row + i);
#pragma unroll
      for (int n = 0; n < N; n++) {
        const float value = float(values.v[n]);
        const float gradient = (float(d.v[n]) * float(weights.v[n]) - mean * value) * scale;
        out.v[n] = T(add ? float(out.v[n]) + gradient : gradient);
        sums[i + n] += float(d.v[n]) * value * scale;
      }
      store<N>(dx + row + i, out);
    }
  }
  for EACH (i, width, N)
    for (int n = 0; n < N; n++) partial[size_t(blockIdx.x) * width + i + n] = sums[i + n];
}

template <class T>
__device__ void rms_norm_backward(T* dx, float* partial, const T* dy, const T* x, const T* w, const float* rstd,
                                  const T* residual, int rows, int width, int add) {
  if (wide<T>(width, address(dx) | address(dy) | address(x) | address(w) | address(residual)))
    gradients<T, WIDE<T>>(dx, partial, dy, x, w, rstd, residual, rows, width, add);
  else
    gradients<T, 1>(dx, partial, dy, x, w, rstd, residual, rows, width, add);
}

/// dw [C] += Σ_b partial [blocks, C]; one thread per column.
__device__ void add_partials(float* dw, const float* partial, int blocks, int width) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= width) return;
  float sum = 0;
  for (int b = 0; b < blocks; b++) sum += partial[size_t(b) * width + i];
  dw[i] += sum;
}

#define KERNELS(T, suffix)                                                                                             \
  KERNEL(rms_norm_##suffix, 1024,                                                                                      \
         (T* y, T* sum, float* rstd, const T* x, const T* residual, const T* w, int width, float eps, int add, int keep), \
         rms_norm(y, sum, rstd, x, residual, w, width, eps, add, keep))                                                \
  KERNEL(rms_norm_backward_##suffix, 1024,                                                                             \
         (T* dx, float* partial, const T* dy, const T* x, const T* w, const float* rstd, const T* residual, int rows,  \
          int width, int add),                                                                                         \
         rms_norm_backward(dx, partial, dy, x, w, rstd, residual, rows, width, add))
KERNELS(float, f32)
KERNELS(bf16, bf16)
KERNEL(rms_norm_add_partials, 256, (float* dw, const float* partial, int blocks, int width),
       add_partials(dw, partial, blocks, width))
