// Four elements in one access. A tensor may start anywhere, so the address is looked at; it is the same way for all.
#pragma once
#include "dtype.h"

namespace frcnn_fast {

template <class T>
struct alignas(4 * sizeof(T) > 16 ? 16 : 4 * sizeof(T)) Quad {
  T v[4];
};
template <class T>
__device__ __forceinline__ bool holds_quad(const T* p) {
  return reinterpret_cast<uintptr_t>(p) % alignof(Quad<T>) == 0;
}

template <class T>
__device__ __forceinline__ void load_quad(const T* p, Compute<T> (&values)[4]) {
  Quad<T> q;
  if (holds_quad(p)) {
    q = *reinterpret_cast<const Quad<T>*>(p);
  } else {
    for (int k = 0; k < 4; ++k) q.v[k] = p[k];
  }
  for (int k = 0; k < 4; ++k) values[k] = load(q.v + k);
}

template <class T>
__device__ __forceinline__ void store_quad(T* p, const Compute<T> (&values)[4]) {
  Quad<T> q;
  for (int k = 0; k < 4; ++k) store(q.v + k, values[k]);
  if (holds_quad(p)) {
    *reinterpret_cast<Quad<T>*>(p) = q;
  } else {
    for (int k = 0; k < 4; ++k) p[k] = q.v[k];
  }
}

}  // namespace frcnn_fast
