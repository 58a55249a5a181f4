// What our kernels use of CUDA, in plain C++, so that the host runs them: see ../fibers.h.
#pragma once
#include <cmath>

#include "../fibers.h"

#define __global__
#define __device__ inline
#define __forceinline__
#define __restrict__
#define __launch_bounds__(...)
#define threadIdx (fibers::grid.current->thread)
#define blockIdx (fibers::grid.block)
#define blockDim (fibers::grid.threads)
#define gridDim (fibers::grid.blocks)

/// A kernel is a plain function here, beside one that runs it over a grid.
#define KERNEL(name, threads, params, call)                                                                            \
  static void kernel_##name params { call; }                                                                           \
  extern "C" __attribute__((visibility("default"))) int name(const unsigned* blocks, const unsigned* size, size_t shared, uint64_t seed, void** args,         \
                      unsigned count) {                                                                                \
    return size[0] * size[1] * size[2] > threads                                                                       \
               ? 4                                                                                                     \
               : fibers::launch_kernel(kernel_##name, blocks, size, shared, seed, args, count);                        \
  }

template <class T>
T* shared_memory() {
  return reinterpret_cast<T*>(fibers::shared_start());
}

inline void __syncthreads() { fibers::yield(fibers::State::AtBlock); }
inline void __syncwarp() { fibers::exchange(0, 0); }
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return fibers::exchange(value, fibers::lane() ^ unsigned(mask));
}
template <class T>
T __shfl_sync(unsigned, T value, int lane) {
  return fibers::exchange(value, unsigned(lane));
}
template <class T>
T atomicAdd(T* address, T value) {
  T old = *address;
  *address += value;
  return old;
}

struct __nv_bfloat16 {
  uint16_t bits;
  __nv_bfloat16() = default;
  __nv_bfloat16(float value) {
    uint32_t wide;
    memcpy(&wide, &value, 4);
    if (value != value)
      wide |= 0x400000;
    else
      wide += 0x7fff + (wide >> 16 & 1);
    bits = uint16_t(wide >> 16);
  }
  operator float() const {
    uint32_t wide = uint32_t(bits) << 16;
    float value;
    memcpy(&value, &wide, 4);
    return value;
  }
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct float2 {
  float x, y;
};
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline unsigned __float_as_uint(float x) {
  unsigned bits;
  memcpy(&bits, &x, 4);
  return bits;
}
inline float __uint_as_float(unsigned bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}
using std::max;
using std::min;
