// AdamW with its moments in 8 bits: blocks of 256 values share a scale, codes are places in a table of 256 values.
//
// p, g [P] in f32; codes m, v [P], scales [P / 256]; tables [2, 256] ascending, first moments then second; `scale` [1] multiplies the
// gradients. A warp per block of values, eight per lane. Bytes: 16·P. Source: Dettmers et al. 2021, arXiv 2110.02861; tables and rounding are
// those of kernels/src/adamw_8bit.rs.
#include "common.cuh"

constexpr int BLOCK = 256;
constexpr int EACH_LANE = BLOCK / WARP;

/// The nearest value's place; of two equally near the lower.
__device__ __forceinline__ uint8_t code(const float* table, float value) {
  int low = 0;  // the first place whose middle to the next one is not below the value
#pragma unroll
  for (int step = BLOCK / 2; step > 0; step /= 2)
    if (low + step <= BLOCK - 1 && (table[low + step - 1] + table[low + step]) / 2.0f < value) low += step;
  return uint8_t(low);
}

/// Writes a lane's codes of a block and the block's scale.
__device__ __forceinline__ void quantise(uint8_t* codes, float* scale, const float* table, const float* values,
                                         size_t first, int count, int lane) {
  float most = 0;
#pragma unroll
  for (int n = 0; n < EACH_LANE; n++)
    if (n * WARP + lane < count) most = fmaxf(most, fabsf(values[n]));
  most = warp_max(most);
  if (lane == 0) *scale = most;
#pragma unroll
  for (int n = 0; n < EACH_LANE; n++)
    if (n * WARP + lane < count)
      codes[first + n * WARP + lane] = code(table, most > 0 ? values[n] / most : values[n]);
}

/// Shared memory: 512 floats, the tables.
__device__ void adamw_8bit(float* p, uint8_t* m, float* m_scales, uint8_t* v, float* v_scales, const float* g,
                           const float* scale, const float* tables, int blocks, int last, float rate, float root,
                           float keep, float beta1, float beta2, float rest1, float rest2, float eps) {
  float* shared = shared_memory<float>();
  for EACH (i, 2 * BLOCK, 1) shared[i] = tables[i];
  __syncthreads();
  const int lane = threadIdx.x % WARP;
  const int block = (blockIdx.x * blockDim.x + threadIdx.x) / WARP;
  if (block >= blocks) return;
  const int count = block + 1 == blocks ? last : BLOCK;
  const size_t first = size_t(block) * BLOCK;
  const float factor = *scale, m_scale = m_scales[block], v_scale = v_scales[block];
  float ms[EACH_LANE], vs[EACH_LANE];
#pragma unroll
  for (int n = 0; n < EACH_LANE; n++) {
    const int at = n * WARP + lane;
    if (at >= count) continue;
    const float gradient = g[first + at] * factor;
    ms[n] = beta1 * (shared[m[first + at]] * m_scale) + rest1 * gradient;
    vs[n] = beta2 * (shared[BLOCK + v[first + at]] * v_scale) + rest2 * gradient * gradient;
    p[first + at] = p[first + at] * keep - rate * ms[n] / (sqrtf(vs[n]) * root + eps);
  }
  quantise(m, m_scales + block, shared, ms, first, count, lane);
  quantise(v, v_scales + block, shared + BLOCK, vs, first, count, lane);
}

KERNEL(adamw_8bit_step, 256,
       (float* p, uint8_t* m, float* m_scales, uint8_t* v, float* v_scales, const float* g, const float* scale,
        const float* tables, int blocks, int last, float rate, float root, float keep, float beta1, float beta2,
        float rest1, float rest2, float eps),
       adamw_8bit(p, m, m_scales, v, v_scales, g, scale, tables, blocks, last, rate, root, keep, beta1, beta2, rest1,
                  rest2, eps))
