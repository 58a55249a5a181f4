// Losses of rows of logits, and the logits' gradient in their own place.
//
// logits [N, V] → losses [N] = logsumexp - logit of the target; with gradients, logits become weight · (softmax - onehot). A chunk of rows at a
// time, between the head's product and its gradients, so that [all rows, V] never exist. One block per row; largest and
// sum in one pass. Bytes: one read, and one read and one write more with gradients (a row of 152k in bf16 is found in the second-level cache).
#include "common.cuh"

/// The largest of a part of a row, and the sum of e^(value - largest).
struct Part {
  float largest, sum;
};

__device__ __forceinline__ void add(Part& part, float value) {
  if (value > part.largest) {
    part.sum = part.sum * __expf(part.largest - value) + 1.0f;
    part.largest = value;
  } else if (value > -INFINITY) {
    part.sum += __expf(value - part.largest);
  }
}

template <class T, int N>
__device__ void losses_and_gradients(T* logits, float* losses, const int* targets, int width, float weight,
                                     bool gradients) {
  T* row = logits + size_t(blockIdx.x) * width;
  const int target = targets[blockIdx.x];
  float* scratch = shared_memory<float>();
  Part part = {-INFINITY, 0};
  for EACH (i, width, N) {
    const auto values = load<N>(row + i);
#pragma unroll
    for (int n = 0; n < N; n++) add(part, float(values.v[n]));
  }
  const float largest = block_max(part.largest, scratch);
  const float sum = block_sum(part.sum > 0 ? part.sum * __expf(part.largest - largest) : 0.0f, scratch);
  const float shift = largest + __logf(sum);
  // Read before the barrier: the row is written over from here on.
  if (threadIdx.x == 0) losses[blockIdx.x] = shift - float(row[target]);
  if (!gradients) return;
  __syncthreads();
  for EACH (i, width, N) {
    auto values = load<N>(row + i);
#pragma unroll
    for (int n = 0; n < N; n++) {
      const float p = __expf(float(values.v[n]) - shift) * weight;
      values.v[n] = T(i + n == target ? p - weight : p);
    }
    store<N>(row + i, values);
  }
}

template <class T>
__device__ void cross_entropy(T* logits, float* losses, const int* targets, int width, float weight, int gradients) {
  if (wide<T>(width, address(logits)))
    losses_and_gradients<T, WIDE<T>>(logits, losses, targets, width, weight, gradients);
  else
    losses_and_gradients<T, 1>(logits, losses, targets, width, weight, gradients);
}

#define KERNELS(T, suffix)                                                                                        \
  KERNEL(cross_entropy_##suffix, 1024,                                                                            \
         (T* logits, float* losses, const int* targets, int width, float weight, int gradients),                  \
         cross_entropy(logits, losses, targets, width, weight, gradients))
KERNELS(float, f32)
KERNELS(bf16, bf16)
