// What all CUDA kernels share: types, wide loads, sums over a warp and a block.
//
// A kernel is `KERNEL(name, threads at most, (parameters), body)`: outputs, inputs, sizes, scalars. Numbers are int and
// float, so that a launch is the same list of arguments in every dialect. All shared memory is dynamic: the launch says
// how much. Shape letters: `N` rows, `C` hidden, `F` feed-forward, `H` query heads, `K` key/value heads, `D` head dim,
// `V` vocabulary, `P` cache blocks, `Z` block size.
#pragma once
#include <cuda_bf16.h>
#include <stdint.h>

#ifndef KERNEL
#define KERNEL(name, threads, params, call) \
  extern "C" __global__ void __launch_bounds__(threads) name params { call; }

extern __shared__ uint4 dynamic_shared_memory[];
template <class T>
__device__ __forceinline__ T* shared_memory() {
  return reinterpret_cast<T*>(dynamic_shared_memory);
}
#endif

typedef __nv_bfloat16 bf16;

constexpr int WARP = 32;
constexpr unsigned ALL = 0xffffffffu;
/// Floats that `block_sum` and `block_max` need: one per warp.
constexpr int SCRATCH = 32;

/// Neighbouring values that one instruction reads or writes.
template <class T, int N>
struct alignas(sizeof(T) * N) Pack {
  T v[N];
};
/// Values in 16 bytes, the widest access.
template <class T>
constexpr int WIDE = 16 / sizeof(T);

template <int N, class T>
__device__ __forceinline__ Pack<T, N> load(const T* from) {
  return *reinterpret_cast<const Pack<T, N>*>(from);
}
template <int N, class T>
__device__ __forceinline__ void store(T* to, const Pack<T, N>& pack) {
  *reinterpret_cast<Pack<T, N>*>(to) = pack;
}

/// Whether rows of `width` values can be read in 16 bytes: buffers begin at multiples of 256 bytes, views may not.
template <class T>
__device__ __forceinline__ bool wide(int width, uintptr_t addresses) {
  return width % WIDE<T> == 0 && addresses % 16 == 0;
}
template <class T>
__device__ __forceinline__ uintptr_t address(const T* pointer) {
  return reinterpret_cast<uintptr_t>(pointer);
}

__device__ __forceinline__ float warp_sum(float value) {
  for (int mask = WARP / 2; mask > 0; mask /= 2) value += __shfl_xor_sync(ALL, value, mask);
  return value;
}
__device__ __forceinline__ double warp_sum(double value) {
  for (int mask = WARP / 2; mask > 0; mask /= 2) value += __shfl_xor_sync(ALL, value, mask);
  return value;
}
__device__ __forceinline__ float warp_max(float value) {
  for (int mask = WARP / 2; mask > 0; mask /= 2) value = fmaxf(value, __shfl_xor_sync(ALL, value, mask));
  return value;
}

/// The sum over the block, for every thread, in one fixed order; `scratch` holds SCRATCH values and may be used again.
template <class S>
__device__ __forceinline__ S block_sum(S value, S* scratch) {
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
  value = warp_sum(value);
  if (lane == 0) scratch[warp] = value;
  __syncthreads();
  value = warp_sum(lane < warps ? scratch[lane] : S(0));
  __syncthreads();
  return value;
}
__device__ __forceinline__ float block_max(float value, float* scratch) {
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
  value = warp_max(value);
  if (lane == 0) scratch[warp] = value;
  __syncthreads();
  value = warp_max(lane < warps ? scratch[lane] : -INFINITY);
  __syncthreads();
  return value;
}

/// The first value of this thread and the distance to its next, for a loop over `N` values at a time.
#define EACH(i, width, N) (int i = threadIdx.x * N; i < (width); i += blockDim.x * N)
