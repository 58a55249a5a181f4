// What all Metal kernels share: types, loads, sums over a simdgroup and a threadgroup. The counterpart of ../cuda/common.cuh.
//
// A kernel is `KERNEL(name, threads at most, (parameters), body)` with the parameters of its CUDA twin, in the same order and at
// the buffers of that order; `place` says where the thread stands. All threadgroup memory is dynamic: the launch says how much.
// Views begin at multiples of 16 bytes.
#include <metal_stdlib>
using namespace metal;

#ifndef KERNEL
struct Place {
  int block, blocks, block_y, index, threads;
  threadgroup float* shared;
};
#define UNPACK(...) __VA_ARGS__
#define KERNEL(name, most, params, call)                                                                          \
  [[max_total_threads_per_threadgroup(most)]] kernel void name(                                                   \
      UNPACK params, threadgroup float* shared_ [[threadgroup(0)]], uint3 group_ [[threadgroup_position_in_grid]], \
      uint3 groups_ [[threadgroups_per_grid]], uint3 thread_ [[thread_position_in_threadgroup]],                  \
      uint3 threads_ [[threads_per_threadgroup]]) {                                                               \
    const Place place = {int(group_.x), int(groups_.x), int(group_.y), int(thread_.x), int(threads_.x), shared_}; \
    call;                                                                                                         \
  }
#endif

typedef bfloat bf16;

constant constexpr int SIMD = 32;
/// Floats that sums over a threadgroup need: one per simdgroup.
constant constexpr int SCRATCH = 32;

/// Neighbouring values that one instruction reads or writes.
template <class T, int N>
struct alignas(sizeof(T) * N) Pack {
  T v[N];
};

template <int N, class T>
inline Pack<T, N> load(device const T* from) {
  return *reinterpret_cast<device const Pack<T, N>*>(from);
}
template <int N, class T>
inline void store(device T* to, Pack<T, N> pack) {
  *reinterpret_cast<device Pack<T, N>*>(to) = pack;
}

inline float warp_sum(float value) {
  for (int mask = SIMD / 2; mask > 0; mask /= 2) value += simd_shuffle_xor(value, mask);
  return value;
}
inline float warp_max(float value) {
  for (int mask = SIMD / 2; mask > 0; mask /= 2) value = max(value, simd_shuffle_xor(value, mask));
  return value;
}

inline void barrier() { threadgroup_barrier(mem_flags::mem_threadgroup); }

/// The sum over the threadgroup, for every thread, in one fixed order; its memory may be used again.
inline float block_sum(float value, Place place) {
  const int lane = place.index % SIMD, warp = place.index / SIMD;
  value = warp_sum(value);
  if (lane == 0) place.shared[warp] = value;
  barrier();
  value = warp_sum(lane < place.threads / SIMD ? place.shared[lane] : 0.0f);
  barrier();
  return value;
}
inline float block_max(float value, Place place) {
  const int lane = place.index % SIMD, warp = place.index / SIMD;
  value = warp_max(value);
  if (lane == 0) place.shared[warp] = value;
  barrier();
  value = warp_max(lane < place.threads / SIMD ? place.shared[lane] : -INFINITY);
  barrier();
  return value;
}

/// The first value of this thread and the distance to its next, for a loop over `N` values at a time.
#define EACH(i, width, N) (int i = place.index * N; i < (width); i += place.threads * N)
