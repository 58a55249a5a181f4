// Losses of rows of logits, and their gradient in their own place: formula, layouts and grid of ../cuda/cross_entropy.cu.
#include "common.h"

template <class T>
inline void cross_entropy(device T* logits, device float* losses, device const int* targets, int width, float weight,
                          int gradients, Place place) {
  device T* row = logits + size_t(place.block) * width;
  const int target = targets[place.block];
  float own = -INFINITY, sum = 0;
  for EACH (i, width, 1) {
    const float value = float(row[i]);
    if (value > own) {
      sum = sum * exp(own - value) + 1.0f;
      own = value;
    } else if (value > -INFINITY) {
      sum += exp(value - own);
    }
  }
  const float largest = block_max(own, place);
  const float all = block_sum(sum > 0 ? sum * exp(own - largest) : 0.0f, place);
  const float shift = largest + log(all);
  if (place.index == 0) losses[place.block] = shift - float(row[target]);
  if (!gradients) return;
  threadgroup_barrier(mem_flags::mem_device);
  for EACH (i, width, 1) {
    const float p = exp(float(row[i]) - shift) * weight;
    row[i] = T(i == target ? p - weight : p);
  }
}

#define KERNELS(T, suffix)                                                                                            \
  KERNEL(cross_entropy_##suffix, 1024,                                                                                \
         (device T * logits [[buffer(0)]], device float* losses [[buffer(1)]], device const int* targets [[buffer(2)]], \
          constant int& width [[buffer(3)]], constant float& weight [[buffer(4)]],                                    \
          constant int& gradients [[buffer(5)]]),                                                                     \
         cross_entropy(logits, losses, targets, width, weight, gradients, place))
KERNELS(float, f32)
KERNELS(bf16, bf16)
