// Queries and keys normalised and rotated, keys and values written into the paged cache: layouts and grid of ../cuda/cache.cu.
#include "common.h"

constant constexpr int MOST_PAIRS = 8;  // of a lane: heads of up to 2 · 8 · 32 values

template <class T>
inline void write_cache(device T* qkv, device T* keys, device T* values, device const T* q_norm, device const T* k_norm,
                        device const float* cosines, device const float* sines, device const int* positions,
                        device const int* slots, int heads, int kv_heads, int pairs, int block_size, float eps, int norm,
                        Place place) {
  const int lane = place.index % SIMD, warp = place.index / SIMD, warps = place.threads / SIMD;
  const int dim = 2 * pairs;
  device T* row = qkv + size_t(place.block) * (heads + 2 * kv_heads) * dim;
  const size_t table = size_t(positions[place.block]) * pairs;
  const int slot = slots[place.block];
  const size_t block = slot < 0 ? 0 : slot / block_size, at = slot < 0 ? 0 : slot % block_size;
  for (int head = warp; head < heads + 2 * kv_heads; head += warps) {
    device const T* from = row + size_t(head) * dim;
    const int kv_head = head < heads ? 0 : (head - heads) % kv_heads;
    const size_t to_cache = ((block * kv_heads + kv_head) * block_size + at) * dim;
    if (head >= heads && slot < 0) continue;
    if (head >= heads + kv_heads) {
      for (int i = lane; i < dim; i += SIMD) values[to_cache + i] = from[i];
      continue;
    }
    device T* to = head < heads ? row + size_t(head) * dim : keys + to_cache;
    device const T* w = head < heads ? q_norm : k_norm;
    float low[MOST_PAIRS], high[MOST_PAIRS], squares = 0;
    for (int n = 0; n < MOST_PAIRS; n++) {
      const int i = n * SIMD + lane;
      low[n] = i < pairs ? float(from[i]) : 0;
      high[n] = i < pairs ? float(from[pairs + i]) : 0;
      squares += low[n] * low[n] + high[n] * high[n];
    }
    const float scale = norm ? rsqrt(warp_sum(squares) / dim + eps) : 1.0f;
    for (int n = 0; n < MOST_PAIRS; n++) {
      const int i = n * SIMD + lane;
      if (i >= pairs) continue;
      const float c = cosines[table + i], s = sines[table + i];
      const float x = norm ? float(T(low[n] * scale * float(w[i]))) : low[n];
      const float y = norm ? float(T(high[n] * scale * float(w[pairs + i]))) : high[n];
      to[i] = T(x * c - y * s);
      to[pairs + i] = T(y * c + x * s);
    }
  }
}

inline void copy_pairs(device uint* cache, device const int* pairs, int words, Place place) {
  device const uint* from = cache + size_t(pairs[2 * place.block]) * 4 * words;
  device uint* to = cache + size_t(pairs[2 * place.block + 1]) * 4 * words;
  for EACH (i, 4 * words, 1) to[i] = from[i];
}

#define KERNELS(T, suffix)                                                                                            \
  KERNEL(write_cache_##suffix, 256,                                                                                   \
         (device T * qkv [[buffer(0)]], device T * keys [[buffer(1)]], device T * values [[buffer(2)]],               \
          device const T* q_norm [[buffer(3)]], device const T* k_norm [[buffer(4)]],                                 \
          device const float* cosines [[buffer(5)]], device const float* sines [[buffer(6)]],                         \
          device const int* positions [[buffer(7)]], device const int* slots [[buffer(8)]],                           \
          constant int& heads [[buffer(9)]], constant int& kv_heads [[buffer(10)]], constant int& pairs [[buffer(11)]], \
          constant int& block_size [[buffer(12)]], constant float& eps [[buffer(13)]],                                \
          constant int& norm [[buffer(14)]]),                                                                         \
         write_cache(qkv, keys, values, q_norm, k_norm, cosines, sines, positions, slots, heads, kv_heads, pairs,     \
                     block_size, eps, norm, place))
KERNELS(float, f32)
KERNELS(bf16, bf16)
KERNEL(copy_blocks, 256,
       (device uint* cache [[buffer(0)]], device const int* pairs [[buffer(1)]], constant int& words [[buffer(2)]]),
       copy_pairs(cache, pairs, words, place))
