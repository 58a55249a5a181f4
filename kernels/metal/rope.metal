// Rotary position embedding in place: formula, layouts and grid of ../cuda/rope.cu.
#include "common.h"

template <class T>
inline void rope(device T* qkv, device const float* cosines, device const float* sines, device const int* positions,
                 int heads, int pairs, int width, float sign, Place place) {
  device T* row = qkv + size_t(place.block) * width;
  const size_t table = size_t(positions[place.block]) * pairs;
  for EACH (i, heads * pairs, 1) {
    const int head = i / pairs, at = i % pairs;
    device T* low = row + size_t(head) * 2 * pairs + at;
    const float c = cosines[table + at], s = sign * sines[table + at];
    const float x = float(low[0]), y = float(low[pairs]);
    low[0] = T(x * c - y * s);
    low[pairs] = T(y * c + x * s);
  }
}

#define KERNELS(T, suffix)                                                                                            \
  KERNEL(rope_##suffix, 256,                                                                                          \
         (device T * qkv [[buffer(0)]], device const float* cosines [[buffer(1)]],                                    \
          device const float* sines [[buffer(2)]], device const int* positions [[buffer(3)]],                         \
          constant int& heads [[buffer(4)]], constant int& pairs [[buffer(5)]], constant int& width [[buffer(6)]],    \
          constant float& sign [[buffer(7)]]),                                                                        \
         rope(qkv, cosines, sines, positions, heads, pairs, width, sign, place))
KERNELS(float, f32)
KERNELS(bf16, bf16)
