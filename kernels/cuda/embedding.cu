// Rows of a table, and the gradient added back without races.
//
// Forward: y [N, C] = table [V, C] at tokens [N]; one block per token, C values read and written. Backward: a block per different token adds up
// its rows of dy in the order of the tokens, in f32, so that the sum is the same on every run: `order` [N] lists the rows by
// token, `starts` [U + 1] where each token's rows begin, `tokens` [U] which. Bytes: reads N·C of dy, reads and writes U·C of
// dtable.
#include "common.cuh"

template <class T, int N>
__device__ void copy_row(T* y, const T* table, const int* tokens, int width) {
  const T* from = table + size_t(tokens[blockIdx.x]) * width;
  T* to = y + size_t(blockIdx.x) * width;
  for EACH (i, width, N) store<N>(to + i, load<N>(from + i));
}

template <class T>
__device__ void embedding(T* y, const T* table, const int* tokens, int width) {
  if (wide<T>(width, address(y) | address(table)))
    copy_row<T, WIDE<T>>(y, table, tokens, width);
  else
    copy_row<T, 1>(y, table, tokens, width);
}

template <class T>
__device__ void embedding_backward(float* dtable, const T* dy, const int* order, const int* starts, const int* tokens,
                                   int width) {
  const int first = starts[blockIdx.x], end = starts[blockIdx.x + 1];
  float* to = dtable + size_t(tokens[blockIdx.x]) * width;
  for EACH (i, width, 1) {
    float sum = to[i];
    for (int k = first; k < end; k++) sum += float(dy[size_t(order[k]) * width + i]);
    to[i] = sum;
  }
}

#define KERNELS(T, suffix)                                                                                        \
  KERNEL(embedding_##suffix, 1024, (T* y, const T* table, const int* tokens, int width),                          \
         embedding(y, table, tokens, width))                                                                      \
  KERNEL(embedding_backward_##suffix, 1024,                                                                       \
         (float* dtable, const T* dy, const int* order, const int* starts, const int* tokens, int width),         \
         embedding_backward(dtable, dy, order, starts, tokens, width))
KERNELS(float, f32)
KERNELS(bf16, bf16)
