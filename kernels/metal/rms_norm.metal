// RMSNorm with the addition of the residual before it, and its gradients: formula, layouts and grid of ../cuda/rms_norm.cu.
#include "common.h"

template <class T, int N>
inline void normalise(device T* y, device T* sum, device float* rstd, device const T* x, device const T* residual,
                      device const T* w, int width, float eps, bool add, bool keep, Place place) {
  const size_t row = size_t(place.block) * width;
  float squares = 0;
  for EACH (i, width, N) {
    auto values = load<N>(x + row + i);
    if (add) {
      const auto more = load<N>(residual + row + i);
      for (int n = 0; n < N; n++) values.v[n] = T(float(values.v[n]) + float(more.v[n]));
      store<N>(sum + row + i, values);
    }
    for (int n = 0; n < N; n++) squares += float(values.v[n]) * float(values.v[n]);
  }
  const float scale = rsqrt(block_sum(squares, place) / width + eps);
  if (keep && place.index == 0) rstd[place.block] = scale;
  for EACH (i, width, N) {
    auto values = add ? load<N>(static_cast<device const T*>(sum) + row + i) : load<N>(x + row + i);
    const auto weights = load<N>(w + i);
    for (int n = 0; n < N; n++) values.v[n] = T(float(values.v[n]) * scale * float(weights.v[n]));
    store<N>(y + row + i, values);
  }
}

template <class T>
inline void rms_norm(device T* y, device T* sum, device float* rstd, device const T* x, device const T* residual,
                     device const T* w, int width, float eps, int add, int keep, Place place) {
  if (width % 4 == 0)
    normalise<T, 4>(y, sum, rstd, x, residual, w, width, eps, add, keep, place);
  else
    normalise<T, 1>(y, sum, rstd, x, residual, w, width, eps, add, keep, place);
}

/// Threadgroup memory: SCRATCH + C floats. Block b takes rows b, b + blocks, …
template <class T>
inline void rms_norm_backward(device T* dx, device float* partial, device const T* dy, device const T* x,
                              device const T* w, device const float* rstd, device const T* residual, int rows,
                              int width, int add, Place place) {
  threadgroup float* sums = place.shared + SCRATCH;
  for EACH (i, width, 1) sums[i] = 0;
  for (int r = place.block; r < rows; r += place.blocks) {
    const size_t row = size_t(r) * width;
    float dot = 0;
    for EACH (i, width, 1) dot += float(dy[row + i]) * float(w[i]) * float(x[row + i]);
    const float scale = rstd[r];
    const float mean = block_sum(dot, place) * scale * scale / width;
    for EACH (i, width, 1) {
      const float d = float(dy[row + i]), value = float(x[row + i]);
      const float gradient = (d * float(w[i]) - mean * value) * scale;
      dx[row + i] = T(add ? float(residual[row + i]) + gradient : gradient);
      sums[i] += d * value * scale;
    }
  }
  for EACH (i, width, 1) partial[size_t(place.block) * width + i] = sums[i];
}

inline void add_partials(device float* dw, device const float* partial, int blocks, int width, Place place) {
  const int i = place.block * place.threads + place.index;
  if (i >= width) return;
  float sum = 0;
  for (int b = 0; b < blocks; b++) sum += partial[size_t(b) * width + i];
  dw[i] += sum;
}

#define KERNELS(T, suffix)                                                                                            \
  KERNEL(rms_norm_##suffix, 1024,                                                                                     \
         (device T * y [[buffer(0)]], device T * sum [[buffer(1)]], device float* rstd [[buffer(2)]],                 \
          device const T* x [[buffer(3)]], device const T* residual [[buffer(4)]], device const T* w [[buffer(5)]],   \
          constant int& width [[buffer(6)]], constant float& eps [[buffer(7)]], constant int& add [[buffer(8)]],      \
          constant int& keep [[buffer(9)]]),                                                                          \
         rms_norm(y, sum, rstd, x, residual, w, width, eps, add, keep, place))                                        \
  KERNEL(rms_norm_backward_##suffix, 1024,                                                                            \
         (device T * dx [[buffer(0)]], device float* partial [[buffer(1)]], device const T* dy [[buffer(2)]],         \
          device const T* x [[buffer(3)]], device const T* w [[buffer(4)]], device const float* rstd [[buffer(5)]],   \
          device const T* residual [[buffer(6)]], constant int& rows [[buffer(7)]],                                   \
          constant int& width [[buffer(8)]], constant int& add [[buffer(9)]]),                                        \
         rms_norm_backward(dx, partial, dy, x, w, rstd, residual, rows, width, add, place))
KERNELS(float, f32)
KERNELS(bf16, bf16)
KERNEL(rms_norm_add_partials, 256,
       (device float* dw [[buffer(0)]], device const float* partial [[buffer(1)]], constant int& blocks [[buffer(2)]],
        constant int& width [[buffer(3)]]),
       add_partials(dw, partial, blocks, width, place))
