// Queries and keys normalised and rotated, keys and values written into the paged cache: one pass over the rows.
//
// qkv [N, (H + 2K)·D]: queries are changed in place, keys and values go to slots [N] of keys, values [P, K, Z, D] and stay
// as they are in qkv. q_norm, k_norm [D] (RMSNorm of each head, before the rotation; Qwen3), cos, sin [max positions, D/2],
// positions [N]. A block per row, a warp per head at a time, D up to 512. Bytes: (2H + 4K)·D per row. A slot below 0 is not written.
#include "common.cuh"

constexpr int MOST_PAIRS = 8;  // of a lane: heads of up to 2 · 8 · 32 values

template <class T>
__device__ void write_cache(T* qkv, T* keys, T* values, const T* q_norm, const T* k_norm, const float* cos,
                            const float* sin, const int* positions, const int* slots, int heads, int kv_heads, int half,
                            int block_size, float eps, int norm) {
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
  const int dim = 2 * half;
  T* row = qkv + size_t(blockIdx.x) * (heads + 2 * kv_heads) * dim;
  const size_t table = size_t(positions[blockIdx.x]) * half;
  const int slot = slots[blockIdx.x];
  const size_t block = slot < 0 ? 0 : slot / block_size, at = slot < 0 ? 0 : slot % block_size;
  for (int head = warp; head < heads + 2 * kv_heads; head += warps) {
    const T* from = row + size_t(head) * dim;
    const int kv_head = head < heads ? 0 : (head - heads) % kv_heads;
    const size_t place = ((block * kv_heads + kv_head) * block_size + at) * dim;
    if (head >= heads && slot < 0) continue;
    if (head >= heads + kv_heads) {
      for (int i = lane; i < dim; i += WARP) values[place + i] = from[i];
      continue;
    }
    T* to = head < heads ? row + size_t(head) * dim : keys + place;
    const T* w = head < heads ? q_norm : k_norm;
    float low[MOST_PAIRS], high[MOST_PAIRS], squares = 0;
#pragma unroll
    for (int n = 0; n < MOST_PAIRS; n++) {
      const int i = n * WARP + lane;
      low[n] = i < half ? float(from[i]) : 0;
      high[n] = i < half ? float(from[half + i]) : 0;
      squares += low[n] * low[n] + high[n] * high[n];
    }
    const float scale = norm ? rsqrtf(warp_sum(squares) / dim + eps) : 1.0f;
#pragma unroll
    for (int n = 0; n < MOST_PAIRS; n++) {
      const int i = n * WARP + lane;
      if (i >= half) continue;
      const float c = cos[table + i], s = sin[table + i];
      // Rounded as the norm's own output would be.
      const float x = norm ? float(T(low[n] * scale * float(w[i]))) : low[n];
      const float y = norm ? float(T(high[n] * scale * float(w[half + i]))) : high[n];
      to[i] = T(x * c - y * s);
      to[half + i] = T(y * c + x * s);
    }
  }
}

/// Copies whole blocks: pairs [copies, 2], from and to, that do not depend on one another; `words` of 16 bytes per block.
__device__ void copy_pairs(uint4* cache, const int* pairs, int words) {
  const uint4* from = cache + size_t(pairs[2 * blockIdx.x]) * words;
  uint4* to = cache + size_t(pairs[2 * blockIdx.x + 1]) * words;
  for EACH (i, words, 1) to[i] = from[i];
}

#define KERNELS(T, suffix)                                                                                            \
  KERNEL(write_cache_##suffix, 256,                                                                                   \
         (T* qkv, T* keys, T* values, const T* q_norm, const T* k_norm, const float* cos, const float* sin,           \
          const int* positions, const int* slots, int heads, int kv_heads, int half, int block_size, float eps,       \
          int norm),                                                                                                  \
         write_cache(qkv, keys, values, q_norm, k_norm, cos, sin, positions, slots, heads, kv_heads, half, block_size, \
                     eps, norm))
KERNELS(float, f32)
KERNELS(bf16, bf16)
KERNEL(copy_blocks, 256, (uint4* cache, const int* pairs, int words), copy_pairs(cache, pairs, words))
