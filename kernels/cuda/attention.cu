// Causal grouped-query attention by units of work: decode and prefill over the paged cache, and packed sequences.
//
// A unit is up to MOST_QUERIES queries (rows of one or several sequences, times the query heads of one key/value head) against one range of keys
// that all of them may see: a part of a long context, a prefix that several sequences share (read once for all of them),
// or the neighbourhood of a few rows of a prompt. `units` [U, 8]: first row in `rows`, number of rows, where the keys lie (paged: first entry in
// `tables`; packed: first row of the sequence), first key, end of the keys. `rows` [R, 4]: row of qkv, its position, its part. Part -1 is the whole
// answer and goes to o and lse; others go to partial [parts, H, D] and largest/sum [parts, H, 2], which a second kernel merges.
//
// qkv [N, (H + 2K)·D], o [N, H·D], lse [N, H], keys, values [P, K, Z, D]. Grid (units, K · chunks of a group), 128
// threads. Softmax on the way in f32 (Dao et al. 2022, 2023). Operations 4·D per query head, row and visible key; bytes: the keys and
// values of each unit once. Plain multiply-adds: right for decode, whose floor is memory; prompts wait for a version
// on tensor cores.
#include "common.cuh"

constexpr int MOST_QUERIES = 16;
constexpr int TILE = 32;
constexpr int WARPS = 4;
constexpr int EACH_WARP = MOST_QUERIES / WARPS;
constexpr int MOST_COLUMNS = 8;  // of a lane: heads of up to 256 values
constexpr int PAD = 4;           // floats between rows, against conflicts of banks

/// Head counts, as the kernels are told them.
struct Heads {
  int query, key_value, dim, window;
};

/// Keys and values in the paged cache.
template <class T>
struct Paged {
  const T *keys, *values;
  const int* tables;
  int block_size;
  __device__ size_t at(int first, int j, int kv_head, const Heads& heads) const {
    const size_t block = tables[first + j / block_size];
    return ((block * heads.key_value + kv_head) * block_size + j % block_size) * heads.dim;
  }
  __device__ const T* key(int first, int j, int kv_head, const Heads& heads) const {
    return keys + at(first, j, kv_head, heads);
  }
  __device__ const T* value(int first, int j, int kv_head, const Heads& heads) const {
    return values + at(first, j, kv_head, heads);
  }
};

/// Keys and values in the rows themselves.
template <class T>
struct Packed {
  const T* qkv;
  __device__ const T* key(int first, int j, int kv_head, const Heads& heads) const {
    return qkv + (size_t(first + j) * (heads.query + 2 * heads.key_value) + heads.query + kv_head) * heads.dim;
  }
  __device__ const T* value(int first, int j, int kv_head, const Heads& heads) const {
    return key(first, j, kv_head, heads) + size_t(heads.key_value) * heads.dim;
  }
};

/// Which query stands at place `q` of a unit: its row, its head.
struct Query {
  int row, position, part, head;
};

/// Shared memory: queries [MOST_QUERIES, D + PAD], keys and values [TILE, D + PAD] each, in f32.
template <class T, class Source>
__device__ void attend(T* o, float* lse, float* partial, float* sums, const T* qkv, const Source& source,
                       const int* units, const int* rows, const Heads& heads, int chunk, float scale, bool keep) {
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  const int dim = heads.dim, stride = dim + PAD, group = heads.query / heads.key_value;
  const int chunks = (group + chunk - 1) / chunk;
  const int kv_head = blockIdx.y / chunks, first_head = blockIdx.y % chunks * chunk;
  const int in_chunk = min(chunk, group - first_head);
  const int* unit = units + size_t(blockIdx.x) * 8;
  const int count = unit[1] * in_chunk, place = unit[2], first_key = unit[3], end_key = unit[4];
  auto query = [&](int q) -> Query {
    const int* row = rows + size_t(unit[0] + q / in_chunk) * 4;
    return {row[0], row[1], row[2], kv_head * group + first_head + q % in_chunk};
  };
  float* queries = shared_memory<float>();
  float* keys = queries + MOST_QUERIES * stride;
  float* values = keys + TILE * stride;
  const size_t width = size_t(heads.query + 2 * heads.key_value) * dim;
  for EACH (i, MOST_QUERIES * dim, 1) {
    const int q = i / dim;
    float value = 0;
    if (q < count) {
      const Query it = query(q);
      value = float(qkv[it.row * width + size_t(it.head) * dim + i % dim]) * scale;
    }
    queries[q * stride + i % dim] = value;
  }
  float largest[EACH_WARP], sum[EACH_WARP], acc[EACH_WARP][MOST_COLUMNS];
  int from[EACH_WARP], to[EACH_WARP];  // the keys that each query sees
#pragma unroll
  for (int n = 0; n < EACH_WARP; n++) {
    largest[n] = -INFINITY;
    sum[n] = 0;
    for (int c = 0; c < MOST_COLUMNS; c++) acc[n][c] = 0;
    from[n] = to[n] = 0;
    const int q = warp * EACH_WARP + n;
    if (q < count) {
      const int position = query(q).position;
      from[n] = heads.window > 0 ? max(first_key, position + 1 - heads.window) : first_key;
      to[n] = min(end_key, position + 1);
    }
  }
  for (int tile = first_key; tile < end_key; tile += TILE) {
    __syncthreads();
    for EACH (i, TILE * dim, 1) {
      const int j = tile + i / dim;
      const bool there = j < end_key;
      keys[i / dim * stride + i % dim] = there ? float(source.key(place, j, kv_head, heads)[i % dim]) : 0;
      values[i / dim * stride + i % dim] = there ? float(source.value(place, j, kv_head, heads)[i % dim]) : 0;
    }
    __syncthreads();
    float scores[EACH_WARP] = {};
    for (int d = 0; d < dim; d += 4) {
      const auto key = load<4>(keys + lane * stride + d);
#pragma unroll
      for (int n = 0; n < EACH_WARP; n++) {
        const auto q = load<4>(queries + (warp * EACH_WARP + n) * stride + d);
#pragma unroll
        for (int e = 0; e < 4; e++) scores[n] += q.v[e] * key.v[e];
      }
    }
    float weights[EACH_WARP];
#pragma unroll
    for (int n = 0; n < EACH_WARP; n++) {
      const int j = tile + lane;
      const float score = j >= from[n] && j < to[n] ? scores[n] : -INFINITY;
      const float most = fmaxf(largest[n], warp_max(score));
      const float keep_up = most == -INFINITY ? 1.0f : __expf(largest[n] - most);
      weights[n] = score == -INFINITY ? 0.0f : __expf(score - most);
      sum[n] = sum[n] * keep_up + warp_sum(weights[n]);
      largest[n] = most;
#pragma unroll
      for (int c = 0; c < MOST_COLUMNS; c++) acc[n][c] *= keep_up;
    }
    for (int j = 0; j < min(TILE, end_key - tile); j++) {
      float weight[EACH_WARP];
#pragma unroll
      for (int n = 0; n < EACH_WARP; n++) weight[n] = __shfl_sync(ALL, weights[n], j);
#pragma unroll
      for (int c = 0; c < MOST_COLUMNS; c++) {
        if (c * WARP + lane >= dim) continue;
        const float value = values[j * stride + c * WARP + lane];
#pragma unroll
        for (int n = 0; n < EACH_WARP; n++) acc[n][c] += weight[n] * value;
      }
    }
  }
#pragma unroll
  for (int n = 0; n < EACH_WARP; n++) {
    const int q = warp * EACH_WARP + n;
    if (q >= count) continue;
    const Query it = query(q);
    const bool whole = it.part < 0;
    const size_t to_partial = size_t(it.part) * heads.query + it.head, to_o = size_t(it.row) * heads.query + it.head;
#pragma unroll
    for (int c = 0; c < MOST_COLUMNS; c++) {
      const int d = c * WARP + lane;
      if (d >= dim) continue;
      if (whole)
        o[to_o * dim + d] = T(acc[n][c] / sum[n]);
      else
        partial[to_partial * dim + d] = acc[n][c];
    }
    if (lane > 0) continue;
    if (!whole) {
      sums[2 * to_partial] = largest[n];
      sums[2 * to_partial + 1] = sum[n];
    } else if (keep) {
      lse[to_o] = largest[n] + __logf(sum[n]);
    }
  }
}

/// Parts of a row put together, in their order: merges [R, 4] are a row, its first part, their number. Grid (R, H), one warp.
template <class T>
__device__ void merge(T* o, const float* partial, const float* sums, const int* merges, const Heads& heads) {
  const int* it = merges + size_t(blockIdx.x) * 4;
  const int head = blockIdx.y, lane = threadIdx.x;
  auto at = [&](int k) { return size_t(it[1] + k) * heads.query + head; };
  float largest = -INFINITY;
  for (int k = 0; k < it[2]; k++) largest = fmaxf(largest, sums[2 * at(k)]);
  float sum = 0;
  for (int k = 0; k < it[2]; k++) sum += sums[2 * at(k) + 1] * __expf(sums[2 * at(k)] - largest);
  for (int d = lane; d < heads.dim; d += WARP) {
    float value = 0;
    for (int k = 0; k < it[2]; k++) value += partial[at(k) * heads.dim + d] * __expf(sums[2 * at(k)] - largest);
    o[(size_t(it[0]) * heads.query + head) * heads.dim + d] = T(value / sum);
  }
}

#define KERNELS(T, suffix)                                                                                              \
  KERNEL(attention_paged_##suffix, 128,                                                                                 \
         (T* o, float* partial, float* sums, const T* qkv, const T* keys, const T* values, const int* tables,           \
          const int* units, const int* rows, int query_heads, int kv_heads, int dim, int window, int block_size,        \
          int chunk, float scale),                                                                                      \
         attend(o, nullptr, partial, sums, qkv, Paged<T>{keys, values, tables, block_size}, units, rows,                \
                {query_heads, kv_heads, dim, window}, chunk, scale, false))                                             \
  KERNEL(attention_packed_##suffix, 128,                                                                                \
         (T* o, float* lse, const T* qkv, const int* units, const int* rows, int query_heads, int kv_heads, int dim,    \
          int window, int chunk, float scale),                                                                          \
         attend(o, lse, nullptr, nullptr, qkv, Packed<T>{qkv}, units, rows, {query_heads, kv_heads, dim, window}, chunk, \
                scale, true))                                                                                           \
  KERNEL(attention_merge_##suffix, 32,                                                                                  \
         (T* o, const float* partial, const float* sums, const int* merges, int query_heads, int dim),                  \
         merge(o, partial, sums, merges, {query_heads, 0, dim, 0}))
KERNELS(float, f32)
KERNELS(bf16, bf16)
