// What this family's *_cpu_simd.cpp files need beside ../common/vectors.h: elements of every type as vectors of their
// compute type, and a transposition.
#pragma once
#include "../common/cpu.h"
#include "../common/numeric.h"
#include "../common/vectors.h"

namespace frcnn_fast::roi_pool {
namespace FF_ISA {
using namespace frcnn_fast::FF_ISA;

typedef uint16_t Vec16 __attribute__((vector_size(kVectorBytes / 2)));     // as many elements as Vector<float>
typedef int32_t NarrowInt __attribute__((vector_size(kVectorBytes / 2)));  // as many elements as Vector<double>

// The integer vector of a comparison of Vector<U>.
template <class U>
struct MaskOf {
  using type = Vector<int32_t>;
};
template <>
struct MaskOf<double> {
  using type = Vector<int64_t>;
};
template <class U>
using Mask = typename MaskOf<U>::type;

using frcnn_fast::load;
using frcnn_fast::store;
FF_HD int32_t load(const int32_t* p) { return *p; }
FF_HD void store(int32_t* p, int32_t v) { *p = v; }

// As many elements of T as its compute type has lanes.
template <class T>
struct ElementsOf {
  using type = Vector<T>;
};
template <>
struct ElementsOf<Half> {
  using type = Vec16;
};
template <>
struct ElementsOf<BFloat16> {
  using type = Vec16;
};
template <class T>
using Elements = typename ElementsOf<T>::type;

FF_HD Vector<float> load_vec(const float* p) { return load_raw<Vector<float>>(p); }
FF_HD Vector<double> load_vec(const double* p) { return load_raw<Vector<double>>(p); }
FF_HD Vector<int32_t> load_vec(const int32_t* p) { return load_raw<Vector<int32_t>>(p); }
FF_HD Vector<float> load_vec(const BFloat16* p) {
  return (Vector<float>)(__builtin_convertvector(load_raw<Vec16>(p), Vector<uint32_t>) << 16);
}
FF_HD Vector<float> load_vec(const Half* p) {
#if defined(__AVX512F__)
  return (Vector<float>)_mm512_maskz_cvtph_ps(0xffff, load_raw<__m256i>(p));
#elif defined(__F16C__)
  return (Vector<float>)_mm256_cvtph_ps(load_raw<__m128i>(p));
#else
  Vector<float> v;
  for (int i = 0; i < kLanes<float>; ++i) v[i] = load(p + i);
  return v;
#endif
}

FF_HD void store_vec(float* p, Vector<float> v) { store_raw(p, v); }
FF_HD void store_vec(double* p, Vector<double> v) { store_raw(p, v); }
FF_HD void store_vec(int32_t* p, Vector<int32_t> v) { store_raw(p, v); }
FF_HD void store_vec(BFloat16* p, Vector<float> v) {
  const Vector<uint32_t> bits = (Vector<uint32_t>)v;
  const Vector<uint32_t> rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  const Vector<uint32_t> nan = bits >> 16 | 0x40u;
  const Vector<int32_t> is_nan = v != v;
  store_raw(p, __builtin_convertvector(is_nan ? nan : rounded, Vec16));
}
FF_HD void store_vec(Half* p, Vector<float> v) {
#if defined(__AVX512F__)
  store_raw(p, _mm512_maskz_cvtps_ph(0xffff, (__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#elif defined(__F16C__)
  store_raw(p, _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#else
  for (int i = 0; i < kLanes<float>; ++i) store(p + i, v[i]);
#endif
}

// a0 b0 a1 b1 ... of the lower, and of the upper halves.
FF_HD void interleave(Vector<double> a, Vector<double> b, Vector<double>* low, Vector<double>* high) {
#if defined(__AVX512F__)
  *low = __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
  *high = __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
#elif defined(__AVX2__)
  *low = __builtin_shufflevector(a, b, 0, 4, 1, 5);
  *high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
#else
  *low = __builtin_shufflevector(a, b, 0, 2);
  *high = __builtin_shufflevector(a, b, 1, 3);
#endif
}
FF_HD void interleave(Vector<int32_t> a, Vector<int32_t> b, Vector<int32_t>* low, Vector<int32_t>* high) {
#if defined(__AVX512F__)
  *low = __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  *high = __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
#elif defined(__AVX2__)
  *low = __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
  *high = __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
#else
  *low = __builtin_shufflevector(a, b, 0, 4, 1, 5);
  *high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
#endif
}
FF_HD void interleave(Vector<float> a, Vector<float> b, Vector<float>* low, Vector<float>* high) {
  Vector<int32_t> l, h;
  interleave((Vector<int32_t>)a, (Vector<int32_t>)b, &l, &h);
  *low = (Vector<float>)l;
  *high = (Vector<float>)h;
}

// A square of kLanes rows. Interleaving row i with row i + half, log2 times, rotates the bits of (row, column) until
// they have changed places.
template <class U>
FF_HD void transpose(Vector<U>* rows) {
  constexpr int n = kLanes<U>;
  Vector<U> other[n];
#pragma GCC unroll 4
  for (int stage = 1; stage < n; stage *= 2) {
#pragma GCC unroll 16
    for (int i = 0; i < n / 2; ++i) interleave(rows[i], rows[i + n / 2], &other[2 * i], &other[2 * i + 1]);
#pragma GCC unroll 16
    for (int i = 0; i < n; ++i) rows[i] = other[i];
  }
}

}  // namespace FF_ISA
}  // namespace frcnn_fast::roi_pool
