// Gradients of packed causal grouped-query attention: formulas, layouts and grids of ../cuda/attention_backward.cu.
#include "common.h"

constant constexpr int MOST = 16;  // queries, or keys, of a unit
constant constexpr int TILE = 32;
constant constexpr int WARPS = 4;
constant constexpr int EACH_WARP = MOST / WARPS;
constant constexpr int MOST_COLUMNS = 8;  // of a lane: heads of up to 256 values
constant constexpr int PAD = 4;

struct Heads {
  int query, key_value, dim, window;
};

inline Heads heads_of(int query, int key_value, int dim, int window) {
  Heads heads;
  heads.query = query;
  heads.key_value = key_value;
  heads.dim = dim;
  heads.window = window;
  return heads;
}

inline size_t width_of(Heads heads) { return size_t(heads.query + 2 * heads.key_value) * heads.dim; }

template <class T>
inline void delta_of(device float* delta, device const T* d_o, device const T* o, int heads, int dim, Place place) {
  const int lane = place.index % SIMD;
  for (int head = place.index / SIMD; head < heads; head += place.threads / SIMD) {
    const size_t at = size_t(place.block) * heads + head;
    float sum = 0;
    for (int d = lane; d < dim; d += SIMD) sum += float(d_o[at * dim + d]) * float(o[at * dim + d]);
    sum = warp_sum(sum);
    if (lane == 0) delta[at] = sum;
  }
}

/// A row of this warp times the lane's row of the tile.
inline float dot_of(threadgroup const float* own, threadgroup const float* row, int dim) {
  float sum = 0;
  for (int d = 0; d < dim; d++) sum += own[d] * row[d];
  return sum;
}

/// acc += Σ_j weight of lane j · row j of the tile.
inline void add_rows(thread float* acc, float weight, threadgroup const float* tile, int dim, int stride, int lane) {
  for (int j = 0; j < TILE; j++) {
    const float of_row = simd_shuffle(weight, j);
    for (int c = 0; c < MOST_COLUMNS; c++)
      if (c * SIMD + lane < dim) acc[c] += of_row * tile[j * stride + c * SIMD + lane];
  }
}

template <class T>
inline void query_gradients(device T* dqkv, device const T* d_o, device const T* qkv, device const float* lse,
                            device const float* delta, device const int* units, device const int* rows, Heads heads,
                            int chunk, float scale, Place place) {
  const int lane = place.index % SIMD, warp = place.index / SIMD;
  const int dim = heads.dim, stride = dim + PAD, group = heads.query / heads.key_value;
  const int chunks = (group + chunk - 1) / chunk;
  const int kv_head = place.block_y / chunks, first_head = place.block_y % chunks * chunk;
  const int in_chunk = min(chunk, group - first_head), head = kv_head * group + first_head;
  device const int* unit = units + size_t(place.block) * 8;
  device const int* unit_rows = rows + size_t(unit[0]) * 4;
  const int count = unit[1] * in_chunk, start = unit[2], first_key = unit[3], end_key = unit[4];
  const size_t width = width_of(heads);
  threadgroup float* own = place.shared;
  threadgroup float* own_too = own + MOST * stride;
  threadgroup float* tiles = own_too + MOST * stride;
  threadgroup float* tiles_too = tiles + TILE * stride;
  for EACH (i, MOST * dim, 1) {
    const int q = i / dim, d = i % dim;
    const size_t row = q < count ? unit_rows[q / in_chunk * 4] : 0, of_head = head + q % in_chunk;
    own[q * stride + d] = q < count ? float(qkv[row * width + of_head * dim + d]) : 0.0f;
    own_too[q * stride + d] = q < count ? float(d_o[(row * heads.query + of_head) * dim + d]) : 0.0f;
  }
  float acc[EACH_WARP][MOST_COLUMNS];
  for (int n = 0; n < EACH_WARP; n++)
    for (int c = 0; c < MOST_COLUMNS; c++) acc[n][c] = 0;
  for (int tile = first_key; tile < end_key; tile += TILE) {
    barrier();
    for EACH (i, TILE * dim, 1) {
      const int j = tile + i / dim, d = i % dim;
      const size_t key = (start + size_t(j)) * width + (size_t(heads.query) + kv_head) * dim + d;
      tiles[i / dim * stride + d] = j < end_key ? float(qkv[key]) : 0.0f;
      tiles_too[i / dim * stride + d] = j < end_key ? float(qkv[key + size_t(heads.key_value) * dim]) : 0.0f;
    }
    barrier();
    const int j = tile + lane;
    for (int n = 0; n < EACH_WARP; n++) {
      const int q = warp * EACH_WARP + n;
      float weight = 0;
      if (q < count) {
        const int row = unit_rows[q / in_chunk * 4], position = row - start;
        const size_t at = size_t(row) * heads.query + head + q % in_chunk;
        const int from = heads.window > 0 ? max(first_key, position + 1 - heads.window) : first_key;
        if (j >= from && j < min(end_key, position + 1))
          weight = exp(dot_of(own + q * stride, tiles + lane * stride, dim) * scale - lse[at]) *
                   (dot_of(own_too + q * stride, tiles_too + lane * stride, dim) - delta[at]) * scale;
      }
      add_rows(acc[n], weight, tiles, dim, stride, lane);
    }
  }
  for (int n = 0; n < EACH_WARP; n++) {
    const int q = warp * EACH_WARP + n;
    if (q >= count) continue;
    const size_t at = unit_rows[q / in_chunk * 4] * width + size_t(head + q % in_chunk) * dim;
    for (int c = 0; c < MOST_COLUMNS; c++)
      if (c * SIMD + lane < dim) dqkv[at + c * SIMD + lane] = T(acc[n][c]);
  }
}

template <class T>
inline void key_gradients(device T* dqkv, device const T* d_o, device const T* qkv, device const float* lse,
                          device const float* delta, device const int* keys, Heads heads, float scale, Place place) {
  const int lane = place.index % SIMD, warp = place.index / SIMD, kv_head = place.block_y;
  const int dim = heads.dim, stride = dim + PAD, group = heads.query / heads.key_value;
  device const int* unit = keys + size_t(place.block) * 4;
  const int first = unit[0], count = unit[1], start = unit[2];
  const int end = heads.window > 0 ? min(unit[3], first + count - 1 + heads.window) : unit[3];
  const size_t width = width_of(heads), to_value = size_t(heads.key_value) * dim;
  const size_t first_at = (start + size_t(first)) * width + (size_t(heads.query) + kv_head) * dim;
  threadgroup float* own = place.shared;
  threadgroup float* own_too = own + MOST * stride;
  threadgroup float* tiles = own_too + MOST * stride;
  threadgroup float* tiles_too = tiles + TILE * stride;
  for EACH (i, MOST * dim, 1) {
    const int j = i / dim, d = i % dim;
    own[j * stride + d] = j < count ? float(qkv[first_at + j * width + d]) : 0.0f;
    own_too[j * stride + d] = j < count ? float(qkv[first_at + j * width + to_value + d]) : 0.0f;
  }
  float of_keys[EACH_WARP][MOST_COLUMNS], of_values[EACH_WARP][MOST_COLUMNS];
  for (int n = 0; n < EACH_WARP; n++)
    for (int c = 0; c < MOST_COLUMNS; c++) of_keys[n][c] = of_values[n][c] = 0;
  for (int head = kv_head * group; head < (kv_head + 1) * group; head++) {
    for (int tile = first; tile < end; tile += TILE) {
      barrier();
      for EACH (i, TILE * dim, 1) {
        const int row = tile + i / dim, d = i % dim;
        const size_t at = start + size_t(row);
        tiles[i / dim * stride + d] = row < end ? float(qkv[at * width + size_t(head) * dim + d]) : 0.0f;
        tiles_too[i / dim * stride + d] = row < end ? float(d_o[(at * heads.query + head) * dim + d]) : 0.0f;
      }
      barrier();
      const int row = tile + lane;
      const size_t at = (start + size_t(min(row, end - 1))) * heads.query + head;
      for (int n = 0; n < EACH_WARP; n++) {
        const int j = warp * EACH_WARP + n, position = first + j;
        float p = 0, ds = 0;
        if (j < count && row < end && row >= position && (heads.window == 0 || row - position < heads.window)) {
          p = exp(dot_of(own + j * stride, tiles + lane * stride, dim) * scale - lse[at]);
          ds = p * (dot_of(own_too + j * stride, tiles_too + lane * stride, dim) - delta[at]) * scale;
        }
        add_rows(of_keys[n], ds, tiles, dim, stride, lane);
        add_rows(of_values[n], p, tiles_too, dim, stride, lane);
      }
    }
  }
  for (int n = 0; n < EACH_WARP; n++) {
    const int j = warp * EACH_WARP + n;
    if (j >= count) continue;
    for (int c = 0; c < MOST_COLUMNS; c++) {
      const int d = c * SIMD + lane;
      if (d >= dim) continue;
      dqkv[first_at + j * width + d] = T(of_keys[n][c]);
      dqkv[first_at + j * width + to_value + d] = T(of_values[n][c]);
    }
  }
}

#define KERNELS(T, suffix)                                                                                              \
  KERNEL(attention_delta_##suffix, 256,                                                                                 \
         (device float* delta [[buffer(0)]], device const T* d_o [[buffer(1)]], device const T* o [[buffer(2)]],        \
          constant int& heads [[buffer(3)]], constant int& dim [[buffer(4)]]),                                          \
         delta_of(delta, d_o, o, heads, dim, place))                                                                    \
  KERNEL(attention_backward_queries_##suffix, 128,                                                                      \
         (device T * dqkv [[buffer(0)]], device const T* d_o [[buffer(1)]], device const T* qkv [[buffer(2)]],          \
          device const float* lse [[buffer(3)]], device const float* delta [[buffer(4)]],                               \
          device const int* units [[buffer(5)]], device const int* rows [[buffer(6)]],                                  \
          constant int& query_heads [[buffer(7)]], constant int& kv_heads [[buffer(8)]], constant int& dim [[buffer(9)]], \
          constant int& window [[buffer(10)]], constant int& chunk [[buffer(11)]], constant float& scale [[buffer(12)]]), \
         query_gradients(dqkv, d_o, qkv, lse, delta, units, rows, heads_of(query_heads, kv_heads, dim, window), chunk,  \
                         scale, place))                                                                                 \
  KERNEL(attention_backward_keys_##suffix, 128,                                                                         \
         (device T * dqkv [[buffer(0)]], device const T* d_o [[buffer(1)]], device const T* qkv [[buffer(2)]],          \
          device const float* lse [[buffer(3)]], device const float* delta [[buffer(4)]],                               \
          device const int* keys [[buffer(5)]], constant int& query_heads [[buffer(6)]],                                \
          constant int& kv_heads [[buffer(7)]], constant int& dim [[buffer(8)]], constant int& window [[buffer(9)]],    \
          constant float& scale [[buffer(10)]]),                                                                        \
         key_gradients(dqkv, d_o, qkv, lse, delta, keys, heads_of(query_heads, kv_heads, dim, window), scale, place))
KERNELS(float, f32)
KERNELS(bf16, bf16)
