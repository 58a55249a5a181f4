// AdamW with its moments in 8 bits: formula, layouts and grid of ../cuda/adamw_8bit.cu.
#include "common.h"

constant constexpr int BLOCK = 256;
constant constexpr int EACH_LANE = BLOCK / SIMD;

/// The nearest value's place; of two equally near the lower.
inline uchar code(threadgroup const float* table, float value) {
  int low = 0;
  for (int step = BLOCK / 2; step > 0; step /= 2)
    if (low + step <= BLOCK - 1 && (table[low + step - 1] + table[low + step]) / 2.0f < value) low += step;
  return uchar(low);
}

/// Codes of `values`, every 32nd of which is this lane's, and their scale.
inline void quantise(device uchar* codes, device float* scale, threadgroup const float* table, thread const float* values,
                     int count, int lane) {
  float most = 0;
  for (int n = 0; n < EACH_LANE; n++)
    if (n * SIMD + lane < count) most = max(most, fabs(values[n]));
  most = warp_max(most);
  if (lane == 0) *scale = most;
  for (int n = 0; n < EACH_LANE; n++)
    if (n * SIMD + lane < count) codes[n * SIMD + lane] = code(table, most > 0 ? values[n] / most : values[n]);
}

inline void adamw_8bit(device float* p, device uchar* m, device float* m_scales, device uchar* v, device float* v_scales,
                       device const float* g, device const float* scale, device const float* tables, int blocks,
                       int last, float rate, float root, float keep, float beta1, float beta2, float rest1,
                       float rest2, float eps, Place place) {
  threadgroup float* shared = place.shared;
  for EACH (i, 2 * BLOCK, 1) shared[i] = tables[i];
  barrier();
  const int lane = place.index % SIMD;
  const int block = (place.block * place.threads + place.index) / SIMD;
  if (block >= blocks) return;
  const int count = block + 1 == blocks ? last : BLOCK;
  const size_t first = size_t(block) * BLOCK;
  const float factor = scale[0], m_scale = m_scales[block], v_scale = v_scales[block];
  float ms[EACH_LANE], vs[EACH_LANE];
  for (int n = 0; n < EACH_LANE; n++) {
    const int at = n * SIMD + lane;
    ms[n] = vs[n] = 0;
    if (at >= count) continue;
    const float gradient = g[first + at] * factor;
    ms[n] = beta1 * (shared[m[first + at]] * m_scale) + rest1 * gradient;
    vs[n] = beta2 * (shared[BLOCK + v[first + at]] * v_scale) + rest2 * gradient * gradient;
    p[first + at] = p[first + at] * keep - rate * ms[n] / (sqrt(vs[n]) * root + eps);
  }
  quantise(m + first, m_scales + block, shared, ms, count, lane);
  quantise(v + first, v_scales + block, shared + BLOCK, vs, count, lane);
}

KERNEL(adamw_8bit_step, 256,
       (device float* p [[buffer(0)]], device uchar* m [[buffer(1)]], device float* m_scales [[buffer(2)]],
        device uchar* v [[buffer(3)]], device float* v_scales [[buffer(4)]], device const float* g [[buffer(5)]],
        device const float* scale [[buffer(6)]], device const float* tables [[buffer(7)]],
        constant int& blocks [[buffer(8)]], constant int& last [[buffer(9)]], constant float& rate [[buffer(10)]],
        constant float& root [[buffer(11)]], constant float& keep [[buffer(12)]], constant float& beta1 [[buffer(13)]],
        constant float& beta2 [[buffer(14)]], constant float& rest1 [[buffer(15)]],
        constant float& rest2 [[buffer(16)]], constant float& eps [[buffer(17)]]),
       adamw_8bit(p, m, m_scales, v, v_scales, g, scale, tables, blocks, last, rate, root, keep, beta1, beta2, rest1,
                  rest2, eps, place))
