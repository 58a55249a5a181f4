// Causal grouped-query attention by units of work: layouts, units and grid of ../cuda/attention.cu.
#include "common.h"

constant constexpr int MOST_QUERIES = 16;
constant constexpr int TILE = 32;
constant constexpr int WARPS = 4;
constant constexpr int EACH_WARP = MOST_QUERIES / WARPS;
constant constexpr int MOST_COLUMNS = 8;  // of a lane: heads of up to 256 values
constant constexpr int PAD = 4;

/// Head counts, as the kernels are told them.
struct Heads {
  int query, key_value, dim, window;
};

/// Keys and values in the paged cache.
template <class T>
struct Paged {
  device const T* keys;
  device const T* values;
  device const int* tables;
  int block_size;
  size_t at(int first, int j, int kv_head, Heads heads) const {
    const size_t block = tables[first + j / block_size];
    return ((block * heads.key_value + kv_head) * block_size + j % block_size) * heads.dim;
  }
  device const T* key(int first, int j, int kv_head, Heads heads) const { return keys + at(first, j, kv_head, heads); }
  device const T* value(int first, int j, int kv_head, Heads heads) const {
    return values + at(first, j, kv_head, heads);
  }
};

/// Keys and values in the rows themselves.
template <class T>
struct Packed {
  device const T* qkv;
  device const T* key(int first, int j, int kv_head, Heads heads) const {
    return qkv + (size_t(first + j) * (heads.query + 2 * heads.key_value) + heads.query + kv_head) * heads.dim;
  }
  device const T* value(int first, int j, int kv_head, Heads heads) const {
    return key(first, j, kv_head, heads) + size_t(heads.key_value) * heads.dim;
  }
};

/// Which query stands at place `q` of a unit: its row, its head.
struct Query {
  int row, position, part, head;
};

inline Query query_at(device const int* rows, int q, int in_chunk, int head) {
  device const int* row = rows + size_t(q / in_chunk) * 4;
  Query query;
  query.row = row[0];
  query.position = row[1];
  query.part = row[2];
  query.head = head + q % in_chunk;
  return query;
}

/// Threadgroup memory: queries [MOST_QUERIES, D + PAD], keys and values [TILE, D + PAD] each.
template <class T, class Source>
inline void attend(device T* o, device float* lse, device float* partial, device float* sums, device const T* qkv,
                   Source source, device const int* units, device const int* rows, Heads heads, int chunk, float scale,
                   bool keep, Place place) {
  const int lane = place.index % SIMD, warp = place.index / SIMD;
  const int dim = heads.dim, stride = dim + PAD, group = heads.query / heads.key_value;
  const int chunks = (group + chunk - 1) / chunk;
  const int kv_head = place.block_y / chunks, first_head = place.block_y % chunks * chunk;
  const int in_chunk = min(chunk, group - first_head), head = kv_head * group + first_head;
  device const int* unit = units + size_t(place.block) * 8;
  device const int* unit_rows = rows + size_t(unit[0]) * 4;
  const int count = unit[1] * in_chunk, where = unit[2], first_key = unit[3], end_key = unit[4];
  threadgroup float* queries = place.shared;
  threadgroup float* keys = queries + MOST_QUERIES * stride;
  threadgroup float* values = keys + TILE * stride;
  const size_t width = size_t(heads.query + 2 * heads.key_value) * dim;
  for EACH (i, MOST_QUERIES * dim, 1) {
    const int q = i / dim;
    float value = 0;
    if (q < count) {
      const Query it = query_at(unit_rows, q, in_chunk, head);
      value = float(qkv[it.row * width + size_t(it.head) * dim + i % dim]) * scale;
    }
    queries[q * stride + i % dim] = value;
  }
  float largest[EACH_WARP], sum[EACH_WARP], acc[EACH_WARP][MOST_COLUMNS], weights[EACH_WARP];
  int from[EACH_WARP], to[EACH_WARP];
  for (int n = 0; n < EACH_WARP; n++) {
    largest[n] = -INFINITY;
    sum[n] = 0;
    for (int c = 0; c < MOST_COLUMNS; c++) acc[n][c] = 0;
    from[n] = to[n] = 0;
    const int q = warp * EACH_WARP + n;
    if (q < count) {
      const int position = query_at(unit_rows, q, in_chunk, head).position;
      from[n] = heads.window > 0 ? max(first_key, position + 1 - heads.window) : first_key;
      to[n] = min(end_key, position + 1);
    }
  }
  for (int tile = first_key; tile < end_key; tile += TILE) {
    barrier();
    for EACH (i, TILE * dim, 1) {
      const int j = tile + i / dim;
      const bool there = j < end_key;
      keys[i / dim * stride + i % dim] = there ? float(source.key(where, j, kv_head, heads)[i % dim]) : 0.0f;
      values[i / dim * stride + i % dim] = there ? float(source.value(where, j, kv_head, heads)[i % dim]) : 0.0f;
    }
    barrier();
    for (int n = 0; n < EACH_WARP; n++) {
      float score = 0;
      for (int d = 0; d < dim; d++) score += queries[(warp * EACH_WARP + n) * stride + d] * keys[lane * stride + d];
      const int j = tile + lane;
      score = j >= from[n] && j < to[n] ? score : -INFINITY;
      const float most = max(largest[n], warp_max(score));
      const float keep_up = most == -INFINITY ? 1.0f : exp(largest[n] - most);
      weights[n] = score == -INFINITY ? 0.0f : exp(score - most);
      sum[n] = sum[n] * keep_up + warp_sum(weights[n]);
      largest[n] = most;
      for (int c = 0; c < MOST_COLUMNS; c++) acc[n][c] *= keep_up;
    }
    for (int j = 0; j < min(TILE, end_key - tile); j++) {
      for (int n = 0; n < EACH_WARP; n++) {
        const float weight = simd_shuffle(weights[n], j);
        for (int c = 0; c < MOST_COLUMNS; c++)
          if (c * SIMD + lane < dim) acc[n][c] += weight * values[j * stride + c * SIMD + lane];
      }
    }
  }
  for (int n = 0; n < EACH_WARP; n++) {
    const int q = warp * EACH_WARP + n;
    if (q >= count) continue;
    const Query it = query_at(unit_rows, q, in_chunk, head);
    const bool whole = it.part < 0;
    const size_t to_partial = size_t(whole ? 0 : it.part) * heads.query + it.head;
    const size_t to_o = size_t(it.row) * heads.query + it.head;
    for (int c = 0; c < MOST_COLUMNS; c++) {
      const int d = c * SIMD + lane;
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
      lse[to_o] = largest[n] + log(sum[n]);
    }
  }
}

/// Parts of a row put together, in their order.
template <class T>
inline void merge(device T* o, device const float* partial, device const float* sums, device const int* merges,
                  int query_heads, int dim, Place place) {
  device const int* it = merges + size_t(place.block) * 4;
  const int head = place.block_y;
  const size_t first = size_t(it[1]) * query_heads + head;
  float largest = -INFINITY;
  for (int k = 0; k < it[2]; k++) largest = max(largest, sums[2 * (first + size_t(k) * query_heads)]);
  float sum = 0;
  for (int k = 0; k < it[2]; k++) {
    const size_t at = first + size_t(k) * query_heads;
    sum += sums[2 * at + 1] * exp(sums[2 * at] - largest);
  }
  for (int d = place.index; d < dim; d += SIMD) {
    float value = 0;
    for (int k = 0; k < it[2]; k++) {
      const size_t at = first + size_t(k) * query_heads;
      value += partial[at * dim + d] * exp(sums[2 * at] - largest);
    }
    o[(size_t(it[0]) * query_heads + head) * dim + d] = T(value / sum);
  }
}

template <class T>
inline Paged<T> paged(device const T* keys, device const T* values, device const int* tables, int block_size) {
  Paged<T> source;
  source.keys = keys;
  source.values = values;
  source.tables = tables;
  source.block_size = block_size;
  return source;
}

template <class T>
inline Packed<T> packed(device const T* qkv) {
  Packed<T> source;
  source.qkv = qkv;
  return source;
}

inline Heads heads_of(int query, int key_value, int dim, int window) {
  Heads heads;
  heads.query = query;
  heads.key_value = key_value;
  heads.dim = dim;
  heads.window = window;
  return heads;
}

#define KERNELS(T, suffix)                                                                                             \
  KERNEL(attention_paged_##suffix, 128,                                                                                \
         (device T * o [[buffer(0)]], device float* partial [[buffer(1)]], device float* sums [[buffer(2)]],           \
          device const T* qkv [[buffer(3)]], device const T* keys [[buffer(4)]], device const T* values [[buffer(5)]], \
          device const int* tables [[buffer(6)]], device const int* units [[buffer(7)]],                               \
          device const int* rows [[buffer(8)]], constant int& query_heads [[buffer(9)]],                               \
          constant int& kv_heads [[buffer(10)]], constant int& dim [[buffer(11)]], constant int& window [[buffer(12)]], \
          constant int& block_size [[buffer(13)]], constant int& chunk [[buffer(14)]],                                 \
          constant float& scale [[buffer(15)]]),                                                                       \
         attend(o, partial, partial, sums, qkv, paged(keys, values, tables, block_size), units, rows,                  \
                heads_of(query_heads, kv_heads, dim, window), chunk, scale, false, place))                             \
  KERNEL(attention_packed_##suffix, 128,                                                                               \
         (device T * o [[buffer(0)]], device float* lse [[buffer(1)]], device const T* qkv [[buffer(2)]],              \
          device const int* units [[buffer(3)]], device const int* rows [[buffer(4)]],                                 \
          constant int& query_heads [[buffer(5)]], constant int& kv_heads [[buffer(6)]], constant int& dim [[buffer(7)]], \
          constant int& window [[buffer(8)]], constant int& chunk [[buffer(9)]], constant float& scale [[buffer(10)]]), \
         attend(o, lse, lse, lse, qkv, packed(qkv), units, rows, heads_of(query_heads, kv_heads, dim, window), chunk,  \
                scale, true, place))                                                                                   \
  KERNEL(attention_merge_##suffix, 32,                                                                                 \
         (device T * o [[buffer(0)]], device const float* partial [[buffer(1)]],                                       \
          device const float* sums [[buffer(2)]], device const int* merges [[buffer(3)]],                              \
          constant int& query_heads [[buffer(4)]], constant int& dim [[buffer(5)]]),                                   \
         merge(o, partial, sums, merges, query_heads, dim, place))
KERNELS(float, f32)
KERNELS(bf16, bf16)
