// AdamW over flat arenas and the gradient's norm: formula, layouts and grid of ../cuda/adamw.cu.
//
// Metal has no f64: a sum of squares is two floats, the sum and what rounding left out of it, in the 8 bytes of CUDA's double.
#include "common.h"

struct Settings {
  float rate, root, keep, beta1, beta2, rest1, rest2, eps;
};

inline Settings settings(float rate, float root, float keep, float beta1, float beta2, float rest1, float rest2,
                         float eps) {
  const Settings with = {rate, root, keep, beta1, beta2, rest1, rest2, eps};
  return with;
}

inline void adamw(device float* p, device bf16* copy, device float* m, device float* v, device const float* g,
                  device const float* scale, int quads, int rest, int narrow, Settings with, Place place) {
  const float factor = scale[0];
  const size_t count = 4 * size_t(quads) + rest;
  for (size_t i = size_t(place.block) * place.threads + place.index; i < count;
       i += size_t(place.blocks) * place.threads) {
    const float gradient = g[i] * factor;
    m[i] = with.beta1 * m[i] + with.rest1 * gradient;
    v[i] = with.beta2 * v[i] + with.rest2 * gradient * gradient;
    p[i] = p[i] * with.keep - with.rate * m[i] / (sqrt(v[i]) * with.root + with.eps);
    if (narrow) copy[i] = bf16(p[i]);
  }
}

/// The sum of two floats and the error of its rounding (Knuth); fast-math must be off for this file.
inline float2 two_sum(float a, float b) {
  const float sum = a + b, part = sum - a;
  float2 result;
  result.x = sum;
  result.y = (a - (sum - part)) + (b - part);
  return result;
}

/// Adds b to a sum of two floats.
inline float2 add(float2 a, float2 b) {
  float2 sum = two_sum(a.x, b.x);
  sum.y += a.y + b.y;
  return two_sum(sum.x, sum.y);
}

/// The sum over the threadgroup of both halves, for thread 0.
inline float2 block_add(float2 value, Place place) {
  for (int mask = SIMD / 2; mask > 0; mask /= 2) {
    float2 other;
    other.x = simd_shuffle_xor(value.x, mask);
    other.y = simd_shuffle_xor(value.y, mask);
    value = add(value, other);
  }
  const int lane = place.index % SIMD, warp = place.index / SIMD;
  if (lane == 0) {
    place.shared[2 * warp] = value.x;
    place.shared[2 * warp + 1] = value.y;
  }
  barrier();
  float2 sum;
  sum.x = sum.y = 0;
  if (place.index == 0) {
    for (int i = 0; i < place.threads / SIMD; i++) {
      float2 part;
      part.x = place.shared[2 * i];
      part.y = place.shared[2 * i + 1];
      sum = add(sum, part);
    }
  }
  return sum;
}

inline void sum_of_squares(device float2* sums, device const float* g, int quads, int rest, Place place) {
  float2 sum;
  sum.x = sum.y = 0;
  const size_t count = 4 * size_t(quads) + rest;
  for (size_t i = size_t(place.block) * place.threads + place.index; i < count;
       i += size_t(place.blocks) * place.threads) {
    float2 square;
    square.x = g[i] * g[i];
    square.y = fma(g[i], g[i], -square.x);
    sum = add(sum, square);
  }
  sum = block_add(sum, place);
  if (place.index == 0) sums[place.block] = sum;
}

inline void norm_and_scale(device float* result, device const float2* sums, int blocks, float largest, Place place) {
  float2 sum;
  sum.x = sum.y = 0;
  for EACH (i, blocks, 1) sum = add(sum, sums[i]);
  sum = block_add(sum, place);
  if (place.index == 0) {
    const float norm = sqrt(sum.x + sum.y);
    result[0] = norm;
    result[1] = norm > largest ? largest / norm : 1.0f;
  }
}

KERNEL(adamw_step, 256,
       (device float* p [[buffer(0)]], device bf16* copy [[buffer(1)]], device float* m [[buffer(2)]],
        device float* v [[buffer(3)]], device const float* g [[buffer(4)]], device const float* scale [[buffer(5)]],
        constant int& quads [[buffer(6)]], constant int& rest [[buffer(7)]], constant int& narrow [[buffer(8)]],
        constant float& rate [[buffer(9)]], constant float& root [[buffer(10)]], constant float& keep [[buffer(11)]],
        constant float& beta1 [[buffer(12)]], constant float& beta2 [[buffer(13)]],
        constant float& rest1 [[buffer(14)]], constant float& rest2 [[buffer(15)]],
        constant float& eps [[buffer(16)]]),
       adamw(p, copy, m, v, g, scale, quads, rest, narrow, settings(rate, root, keep, beta1, beta2, rest1, rest2, eps),
             place))
KERNEL(adamw_sum_of_squares, 256,
       (device float2* sums [[buffer(0)]], device const float* g [[buffer(1)]], constant int& quads [[buffer(2)]],
        constant int& rest [[buffer(3)]]),
       sum_of_squares(sums, g, quads, rest, place))
KERNEL(adamw_norm, 256,
       (device float* result [[buffer(0)]], device const float2* sums [[buffer(1)]], constant int& blocks [[buffer(2)]],
        constant float& largest [[buffer(3)]]),
       norm_and_scale(result, sums, blocks, largest, place))
