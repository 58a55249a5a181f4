// SwiGLU forward and backward: formula, layouts and grid of ../cuda/swiglu.cu.
#include "common.h"

inline float sigmoid(float x) { return 1.0f / (1.0f + exp(-x)); }

/// The launch counts with as many values per thread as 16 bytes hold; a thread takes them one after the other.
template <class T>
inline int at_once(int width) {
  const int wide = 16 / sizeof(T);
  return width % wide == 0 ? wide : 1;
}

template <class T>
inline void swiglu(device T* y, device const T* gate_up, int width, Place place) {
  const int count = at_once<T>(width), first = (place.block_y * place.threads + place.index) * count;
  device const T* row = gate_up + size_t(place.block) * 2 * width;
  for (int i = first; i < min(first + count, width); i++) {
    const float g = float(row[i]);
    y[size_t(place.block) * width + i] = T(g * sigmoid(g) * float(row[width + i]));
  }
}

template <class T>
inline void swiglu_backward(device T* gradient, device const T* dy, device const T* gate_up, int width, Place place) {
  const int count = at_once<T>(width), first = (place.block_y * place.threads + place.index) * count;
  const size_t row = size_t(place.block) * 2 * width;
  for (int i = first; i < min(first + count, width); i++) {
    const float g = float(gate_up[row + i]), u = float(gate_up[row + width + i]), s = sigmoid(g);
    const float outer = float(dy[size_t(place.block) * width + i]);
    gradient[row + i] = T(outer * u * s * (1.0f + g * (1.0f - s)));
    gradient[row + width + i] = T(outer * g * s);
  }
}

#define KERNELS(T, suffix)                                                                                           \
  KERNEL(swiglu_##suffix, 256,                                                                                       \
         (device T * y [[buffer(0)]], device const T* gate_up [[buffer(1)]], constant int& width [[buffer(2)]]),      \
         swiglu(y, gate_up, width, place))                                                                            \
  KERNEL(swiglu_backward_##suffix, 256,                                                                              \
         (device T * gradient [[buffer(0)]], device const T* dy [[buffer(1)]], device const T* gate_up [[buffer(2)]], \
          constant int& width [[buffer(3)]]),                                                                         \
         swiglu_backward(gradient, dy, gate_up, width, place))
KERNELS(float, f32)
KERNELS(bf16, bf16)
