// Gradients of packed causal grouped-query attention, without atomics: one kernel for queries, one for keys and values.
//
// With p = e^(s - lse), s = q·k·scale, dp = d_o·v, delta = d_o·o: ds = p · (dp - delta) · scale, dq = Σ_j ds·k, dk = Σ_i ds·q,
// dv = Σ_i p·d_o. qkv, dqkv [N, (H + 2K)·D], o, d_o [N, H·D], lse, delta [N, H]. `units` and `rows` are those of the forward
// (attention.cu); `keys` [U, 4]: position of the first key, number of keys (16 at most), first row of the sequence, its length. Grids: rows; units, K ·
// chunks of a group; key units, K. Source: Dao 2023, with recomputed scores. Operations: 10·D per head, row and visible
// key, plus 4·D for computing scores twice. Plain multiply-adds, every sum in one fixed order.
#include "common.cuh"

constexpr int MOST = 16;  // queries, or keys, of a unit
constexpr int TILE = 32;
constexpr int WARPS = 4;
constexpr int EACH_WARP = MOST / WARPS;
constexpr int MOST_COLUMNS = 8;  // of a lane: heads of up to 256 values
constexpr int PAD = 4;

struct Heads {
  int query, key_value, dim, window;
  __device__ size_t width() const { return size_t(query + 2 * key_value) * dim; }
};

/// delta [N, H]; a warp per head at a time.
template <class T>
__device__ void delta_of(float* delta, const T* d_o, const T* o, int heads, int dim) {
  const int lane = threadIdx.x % WARP;
  for (int head = threadIdx.x / WARP; head < heads; head += blockDim.x / WARP) {
    const size_t at = size_t(blockIdx.x) * heads + head;
    float sum = 0;
    for (int d = lane; d < dim; d += WARP) sum += float(d_o[at * dim + d]) * float(o[at * dim + d]);
    sum = warp_sum(sum);
    if (lane == 0) delta[at] = sum;
  }
}

/// dot[n] = rows of this warp times the lane's row, both in shared memory.
__device__ __forceinline__ void dots(float (&dot)[EACH_WARP], const float* own, const float* tile, int dim, int stride) {
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
#pragma unroll
  for (int n = 0; n < EACH_WARP; n++) dot[n] = 0;
  for (int d = 0; d < dim; d += 4) {
    const auto other = load<4>(tile + lane * stride + d);
#pragma unroll
    for (int n = 0; n < EACH_WARP; n++) {
      const auto mine = load<4>(own + (warp * EACH_WARP + n) * stride + d);
#pragma unroll
      for (int e = 0; e < 4; e++) dot[n] += mine.v[e] * other.v[e];
    }
  }
}

/// acc[n] += Σ_j weights[n] of lane j · row j of the tile.
__device__ __forceinline__ void add_rows(float (&acc)[EACH_WARP][MOST_COLUMNS], const float (&weights)[EACH_WARP],
                                         const float* tile, int dim, int stride) {
  const int lane = threadIdx.x % WARP;
  for (int j = 0; j < TILE; j++) {
    float weight[EACH_WARP];
#pragma unroll
    for (int n = 0; n < EACH_WARP; n++) weight[n] = __shfl_sync(ALL, weights[n], j);
#pragma unroll
    for (int c = 0; c < MOST_COLUMNS; c++) {
      if (c * WARP + lane >= dim) continue;
      const float value = tile[j * stride + c * WARP + lane];
#pragma unroll
      for (int n = 0; n < EACH_WARP; n++) acc[n][c] += weight[n] * value;
    }
  }
}

__device__ __forceinline__ void clear(float (&acc)[EACH_WARP][MOST_COLUMNS]) {
#pragma unroll
  for (int n = 0; n < EACH_WARP; n++)
#pragma unroll
    for (int c = 0; c < MOST_COLUMNS; c++) acc[n][c] = 0;
}

/// Shared memory of both: own rows twice [MOST, D + PAD], tiles twice [TILE, D + PAD].
struct Shared {
  float *own, *own_too, *tile, *tile_too;
  __device__ Shared(int stride)
      : own(shared_memory<float>()), own_too(own + MOST * stride), tile(own_too + MOST * stride),
        tile_too(tile + TILE * stride) {}
};

template <class T>
__device__ void query_gradients(T* dqkv, const T* d_o, const T* qkv, const float* lse, const float* delta,
                                const int* units, const int* rows, const Heads& heads, int chunk, float scale) {
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  const int dim = heads.dim, stride = dim + PAD, group = heads.query / heads.key_value;
  const int chunks = (group + chunk - 1) / chunk;
  const int kv_head = blockIdx.y / chunks, first_head = blockIdx.y % chunks * chunk;
  const int in_chunk = min(chunk, group - first_head);
  const int* unit = units + size_t(blockIdx.x) * 8;
  const int count = unit[1] * in_chunk, start = unit[2], first_key = unit[3], end_key = unit[4];
  const Shared shared(stride);
  // Row and head of query q.
  auto row_of = [&](int q) { return rows[(size_t(unit[0]) + q / in_chunk) * 4]; };
  auto head_of = [&](int q) { return kv_head * group + first_head + q % in_chunk; };
  for EACH (i, MOST * dim, 1) {
    const int q = i / dim, d = i % dim;
    const bool there = q < count;
    shared.own[q * stride + d] = there ? float(qkv[row_of(q) * heads.width() + size_t(head_of(q)) * dim + d]) : 0;
    shared.own_too[q * stride + d] = there ? float(d_o[(size_t(row_of(q)) * heads.query + head_of(q)) * dim + d]) : 0;
  }
  float shift[EACH_WARP], inner[EACH_WARP], acc[EACH_WARP][MOST_COLUMNS];
  int from[EACH_WARP], to[EACH_WARP];
  clear(acc);
#pragma unroll
  for (int n = 0; n < EACH_WARP; n++) {
    const int q = warp * EACH_WARP + n;
    shift[n] = inner[n] = 0;
    from[n] = to[n] = 0;
    if (q < count) {
      const size_t at = size_t(row_of(q)) * heads.query + head_of(q);
      const int position = row_of(q) - start;
      shift[n] = lse[at];
      inner[n] = delta[at];
      from[n] = heads.window > 0 ? max(first_key, position + 1 - heads.window) : first_key;
      to[n] = min(end_key, position + 1);
    }
  }
  for (int tile = first_key; tile < end_key; tile += TILE) {
    __syncthreads();
    for EACH (i, TILE * dim, 1) {
      const int j = tile + i / dim, d = i % dim;
      const size_t key = (start + size_t(j)) * heads.width() + (size_t(heads.query) + kv_head) * dim + d;
      shared.tile[i / dim * stride + d] = j < end_key ? float(qkv[key]) : 0;
      shared.tile_too[i / dim * stride + d] = j < end_key ? float(qkv[key + size_t(heads.key_value) * dim]) : 0;
    }
    __syncthreads();
    float scores[EACH_WARP], outer[EACH_WARP], weights[EACH_WARP];
    dots(scores, shared.own, shared.tile, dim, stride);
    dots(outer, shared.own_too, shared.tile_too, dim, stride);
    const int j = tile + lane;
#pragma unroll
    for (int n = 0; n < EACH_WARP; n++)
      weights[n] = j >= from[n] && j < to[n] ? __expf(scores[n] * scale - shift[n]) * (outer[n] - inner[n]) * scale : 0;
    add_rows(acc, weights, shared.tile, dim, stride);
  }
#pragma unroll
  for (int n = 0; n < EACH_WARP; n++) {
    const int q = warp * EACH_WARP + n;
    if (q >= count) continue;
#pragma unroll
    for (int c = 0; c < MOST_COLUMNS; c++) {
      const int d = c * WARP + lane;
      if (d < dim) dqkv[row_of(q) * heads.width() + size_t(head_of(q)) * dim + d] = T(acc[n][c]);
    }
  }
}

template <class T>
__device__ void key_gradients(T* dqkv, const T* d_o, const T* qkv, const float* lse, const float* delta, const int* keys,
                              const Heads& heads, float scale) {
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, kv_head = blockIdx.y;
  const int dim = heads.dim, stride = dim + PAD, group = heads.query / heads.key_value;
  const int* unit = keys + size_t(blockIdx.x) * 4;
  const int first = unit[0], count = unit[1], start = unit[2];
  // Rows that see at least one of the keys.
  const int end = heads.window > 0 ? min(unit[3], first + count - 1 + heads.window) : unit[3];
  const Shared shared(stride);
  auto key_at = [&](int j) {
    return (start + size_t(first + j)) * heads.width() + (size_t(heads.query) + kv_head) * dim;
  };
  for EACH (i, MOST * dim, 1) {
    const int j = i / dim, d = i % dim;
    shared.own[j * stride + d] = j < count ? float(qkv[key_at(j) + d]) : 0;
    shared.own_too[j * stride + d] = j < count ? float(qkv[key_at(j) + size_t(heads.key_value) * dim + d]) : 0;
  }
  float of_keys[EACH_WARP][MOST_COLUMNS], of_values[EACH_WARP][MOST_COLUMNS];
  clear(of_keys);
  clear(of_values);
  for (int head = kv_head * group; head < (kv_head + 1) * group; head++) {
    for (int tile = first; tile < end; tile += TILE) {
      __syncthreads();
      for EACH (i, TILE * dim, 1) {
        const int row = tile + i / dim, d = i % dim;
        const size_t at = start + size_t(row);
        shared.tile[i / dim * stride + d] = row < end ? float(qkv[at * heads.width() + size_t(head) * dim + d]) : 0;
        shared.tile_too[i / dim * stride + d] =
            row < end ? float(d_o[(at * heads.query + head) * dim + d]) : 0;
      }
      __syncthreads();
      float scores[EACH_WARP], outer[EACH_WARP], p[EACH_WARP], ds[EACH_WARP];
      dots(scores, shared.own, shared.tile, dim, stride);
      dots(outer, shared.own_too, shared.tile_too, dim, stride);
      const int row = tile + lane;
      const size_t at = (start + size_t(min(row, end - 1))) * heads.query + head;
      const float shift = lse[at], inner = delta[at];
#pragma unroll
      for (int n = 0; n < EACH_WARP; n++) {
        const int j = warp * EACH_WARP + n, position = first + j;
        const bool sees = j < count && row < end && row >= position && (heads.window == 0 || row - position < heads.window);
        p[n] = sees ? __expf(scores[n] * scale - shift) : 0;
        ds[n] = p[n] * (outer[n] - inner) * scale;
      }
      add_rows(of_keys, ds, shared.tile, dim, stride);
      add_rows(of_values, p, shared.tile_too, dim, stride);
    }
  }
#pragma unroll
  for (int n = 0; n < EACH_WARP; n++) {
    const int j = warp * EACH_WARP + n;
    if (j >= count) continue;
#pragma unroll
    for (int c = 0; c < MOST_COLUMNS; c++) {
      const int d = c * WARP + lane;
      if (d >= dim) continue;
      dqkv[key_at(j) + d] = T(of_keys[n][c]);
      dqkv[key_at(j) + size_t(heads.key_value) * dim + d] = T(of_values[n][c]);
    }
  }
}

#define KERNELS(T, suffix)                                                                                            \
  KERNEL(attention_delta_##suffix, 256, (float* delta, const T* d_o, const T* o, int heads, int dim),                 \
         delta_of(delta, d_o, o, heads, dim))                                                                         \
  KERNEL(attention_backward_queries_##suffix, 128,                                                                    \
         (T* dqkv, const T* d_o, const T* qkv, const float* lse, const float* delta, const int* units,                \
          const int* rows, int query_heads, int kv_heads, int dim, int window, int chunk, float scale),               \
         query_gradients(dqkv, d_o, qkv, lse, delta, units, rows, {query_heads, kv_heads, dim, window}, chunk, scale)) \
  KERNEL(attention_backward_keys_##suffix, 128,                                                                       \
         (T* dqkv, const T* d_o, const T* qkv, const float* lse, const float* delta, const int* keys, int query_heads, \
          int kv_heads, int dim, int window, float scale),                                                            \
         key_gradients(dqkv, d_o, qkv, lse, delta, keys, {query_heads, kv_heads, dim, window}, scale))
KERNELS(float, f32)
KERNELS(bf16, bf16)
