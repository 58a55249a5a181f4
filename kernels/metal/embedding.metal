// Rows of a table, and the gradient added back without races: layouts and grid of ../cuda/embedding.cu.
#include "common.h"

template <class T>
inline void embedding(device T* y, device const T* table, device const int* tokens, int width, Place place) {
  device const T* from = table + size_t(tokens[place.block]) * width;
  device T* to = y + size_t(place.block) * width;
  if (width % 4 == 0) {
    for EACH (i, width, 4) store<4>(to + i, load<4>(from + i));
  } else {
    for EACH (i, width, 1) to[i] = from[i];
  }
}

template <class T>
inline void embedding_backward(device float* dtable, device const T* dy, device const int* order,
                               device const int* starts, device const int* tokens, int width, Place place) {
  const int first = starts[place.block], end = starts[place.block + 1];
  device float* to = dtable + size_t(tokens[place.block]) * width;
  for EACH (i, width, 1) {
    float sum = to[i];
    for (int k = first; k < end; k++) sum += float(dy[size_t(order[k]) * width + i]);
    to[i] = sum;
  }
}

#define KERNELS(T, suffix)                                                                                           \
  KERNEL(embedding_##suffix, 1024,                                                                                   \
         (device T * y [[buffer(0)]], device const T* table [[buffer(1)]], device const int* tokens [[buffer(2)]],   \
          constant int& width [[buffer(3)]]),                                                                        \
         embedding(y, table, tokens, width, place))                                                                  \
  KERNEL(embedding_backward_##suffix, 1024,                                                                          \
         (device float* dtable [[buffer(0)]], device const T* dy [[buffer(1)]], device const int* order [[buffer(2)]], \
          device const int* starts [[buffer(3)]], device const int* tokens [[buffer(4)]],                            \
          constant int& width [[buffer(5)]]),                                                                        \
         embedding_backward(dtable, dy, order, starts, tokens, width, place))
KERNELS(float, f32)
KERNELS(bf16, bf16)
