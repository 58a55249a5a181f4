// SwiGLU: y = silu(gate) · up on rows [gate | up], forward and backward.
//
// gate_up and its gradient [N, 2F], y and dy [N, F]. Grid (N, parts of a row). Bytes: forward reads 2F and
// writes F values per row, backward reads 3F and writes 2F. Source: Shazeer 2020; silu'(g) = σ(g)·(1 + g·(1 - σ(g))).
#include "common.cuh"

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + __expf(-x)); }

template <class T, int N>
__device__ void forward(T* y, const T* gate_up, int half) {
  const int i = (blockIdx.y * blockDim.x + threadIdx.x) * N;
  if (i >= half) return;
  const T* row = gate_up + size_t(blockIdx.x) * 2 * half;
  auto gate = load<N>(row + i);
  const auto up = load<N>(row + half + i);
#pragma unroll
  for (int n = 0; n < N; n++) {
    const float g = float(gate.v[n]);
    gate.v[n] = T(g * sigmoid(g) * float(up.v[n]));
  }
  store<N>(y + size_t(blockIdx.x) * half + i, gate);
}

template <class T, int N>
__device__ void backward(T* gradient, const T* dy, const T* gate_up, int half) {
  const int i = (blockIdx.y * blockDim.x + threadIdx.x) * N;
  if (i >= half) return;
  const size_t row = size_t(blockIdx.x) * 2 * half;
  auto gate = load<N>(gate_up + row + i), up = load<N>(gate_up + row + half + i);
  const auto d = load<N>(dy + size_t(blockIdx.x) * half + i);
#pragma unroll
  for (int n = 0; n < N; n++) {
    const float g = float(gate.v[n]), u = float(up.v[n]), s = sigmoid(g), outer = float(d.v[n]);
    gate.v[n] = T(outer * u * s * (1.0f + g * (1.0f - s)));
    up.v[n] = T(outer * g * s);
  }
  store<N>(gradient + row + i, gate);
  store<N>(gradient + row + half + i, up);
}

template <class T>
__device__ void swiglu(T* y, const T* gate_up, int half) {
  if (wide<T>(half, address(y) | address(gate_up)))
    forward<T, WIDE<T>>(y, gate_up, half);
  else
    forward<T, 1>(y, gate_up, half);
}

template <class T>
__device__ void swiglu_backward(T* gradient, const T* dy, const T* gate_up, int half) {
  if (wide<T>(half, address(gradient) | address(dy) | address(gate_up)))
    backward<T, WIDE<T>>(gradient, dy, gate_up, half);
  else
    backward<T, 1>(gradient, dy, gate_up, half);
}

#define KERNELS(T, suffix)                                                                                            \
  KERNEL(swiglu_##suffix, 256, (T* y, const T* gate_up, int half), swiglu(y, gate_up, half))                          \
  KERNEL(swiglu_backward_##suffix, 256, (T* gradient, const T* dy, const T* gate_up, int half),                       \
         swiglu_backward(gradient, dy, gate_up, half))
KERNELS(float, f32)
KERNELS(bf16, bf16)
