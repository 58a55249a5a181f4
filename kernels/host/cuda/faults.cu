// Kernels that are wrong on purpose: what plays the GPU must notice.
#include "../../cuda/common.cuh"

__device__ void neighbour(float* y, const float* x, bool wait) {
  float* shared = shared_memory<float>();
  shared[threadIdx.x] = x[threadIdx.x];
  if (wait) __syncthreads();
  y[threadIdx.x] = shared[(threadIdx.x + 1) % blockDim.x];
}

__device__ void half_waits() {
  if (threadIdx.x < 32) __syncthreads();
}

KERNEL(faults_barrier, 64, (float* y, const float* x, int wait), neighbour(y, x, wait))
KERNEL(faults_half_waits, 64, (float* y), (void)y; half_waits())
KERNEL(faults_shared, 64, (float* y), y[0] = 0; shared_memory<float>()[threadIdx.x + 1] = 1)
KERNEL(faults_array, 64, (float* y), y[threadIdx.x] = 0)
