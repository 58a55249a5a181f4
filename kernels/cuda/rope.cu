// Rotary position embedding, in place on the first heads of rows [N, W].
//
// Half-split layout: for i < D/2, y[i] = x[i]·cos - x[i+D/2]·sin, y[i+D/2] = x[i+D/2]·cos + x[i]·sin; `sign` -1 turns back (the
// gradient). cos, sin [max positions, D/2] in f32, positions [N]. One block per row, a thread per pack of pairs. Bytes: heads · D values read
// and written per row. Source: Su et al. 2021.
#include "common.cuh"

template <class T, int N>
__device__ void rotate(T* qkv, const float* cos, const float* sin, const int* positions, int heads, int half, int width,
                       float sign) {
  T* row = qkv + size_t(blockIdx.x) * width;
  const size_t table = size_t(positions[blockIdx.x]) * half;
  for EACH (i, heads * half, N) {
    const int head = i / half, at = i % half;
    T* low = row + size_t(head) * 2 * half + at;
    auto a = load<N>(low), b = load<N>(low + half);
#pragma unroll
    for (int n = 0; n < N; n++) {
      const float c = cos[table + at + n], s = sign * sin[table + at + n];
      const float x = float(a.v[n]), y = float(b.v[n]);
      a.v[n] = T(x * c - y * s);
      b.v[n] = T(y * c + x * s);
    }
    store<N>(low, a);
    store<N>(low + half, b);
  }
}

template <class T>
__device__ void rope(T* qkv, const float* cos, const float* sin, const int* positions, int heads, int half, int width,
                     float sign) {
  if (half % WIDE<T> == 0 && wide<T>(width, address(qkv)))
    rotate<T, WIDE<T>>(qkv, cos, sin, positions, heads, half, width, sign);
  else
    rotate<T, 1>(qkv, cos, sin, positions, heads, half, width, sign);
}

#define KERNELS(T, suffix)                                                                                           \
  KERNEL(rope_##suffix, 256,                                                                                         \
         (T* qkv, const float* cos, const float* sin, const int* positions, int heads, int half, int width, float sign), \
         rope(qkv, cos, sin, positions, heads, half, width, sign))
KERNELS(float, f32)
KERNELS(bf16, bf16)
