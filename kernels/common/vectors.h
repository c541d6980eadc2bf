// Vectors of the instruction set's own width, for *_cpu_simd.cpp files. + - * / are the compiler's; what it has no
// operator for is here.
#pragma once
#include "dtype.h"
#if defined(FF_X86_ISA)
#include <immintrin.h>
#endif

namespace frcnn_fast {
namespace FF_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <class U>
struct VectorOf {
  typedef U type __attribute__((vector_size(kVectorBytes), may_alias));
};
template <class U>
using Vector = typename VectorOf<U>::type;
template <class U>
constexpr int kLanes = kVectorBytes / int(sizeof(U));

#define FF_SIMD inline __attribute__((always_inline))

template <class U>
FF_SIMD Vector<U> splat(U value) {
  return value - Vector<U>{};
}

// maximum() and minimum() of numeric.h lane by lane; a bit a lane for a >= b and a > b.
#if defined(FF_X86_ISA) && defined(__AVX512F__)
FF_SIMD Vector<float> max_lanes(Vector<float> a, Vector<float> b) { return _mm512_max_ps(a, b); }
FF_SIMD Vector<float> min_lanes(Vector<float> a, Vector<float> b) { return _mm512_min_ps(a, b); }
FF_SIMD unsigned at_least(Vector<float> a, Vector<float> b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
FF_SIMD unsigned above(Vector<float> a, Vector<float> b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
FF_SIMD Vector<double> max_lanes(Vector<double> a, Vector<double> b) { return _mm512_max_pd(a, b); }
FF_SIMD Vector<double> min_lanes(Vector<double> a, Vector<double> b) { return _mm512_min_pd(a, b); }
FF_SIMD unsigned at_least(Vector<double> a, Vector<double> b) { return _mm512_cmp_pd_mask(a, b, _CMP_GE_OQ); }
FF_SIMD unsigned above(Vector<double> a, Vector<double> b) { return _mm512_cmp_pd_mask(a, b, _CMP_GT_OQ); }
#elif defined(FF_X86_ISA) && defined(__AVX__)
FF_SIMD Vector<float> max_lanes(Vector<float> a, Vector<float> b) { return _mm256_max_ps(a, b); }
FF_SIMD Vector<float> min_lanes(Vector<float> a, Vector<float> b) { return _mm256_min_ps(a, b); }
FF_SIMD unsigned at_least(Vector<float> a, Vector<float> b) {
  return unsigned(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GE_OQ)));
}
FF_SIMD unsigned above(Vector<float> a, Vector<float> b) {
  return unsigned(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)));
}
FF_SIMD Vector<double> max_lanes(Vector<double> a, Vector<double> b) { return _mm256_max_pd(a, b); }
FF_SIMD Vector<double> min_lanes(Vector<double> a, Vector<double> b) { return _mm256_min_pd(a, b); }
FF_SIMD unsigned at_least(Vector<double> a, Vector<double> b) {
  return unsigned(_mm256_movemask_pd(_mm256_cmp_pd(a, b, _CMP_GE_OQ)));
}
FF_SIMD unsigned above(Vector<double> a, Vector<double> b) {
  return unsigned(_mm256_movemask_pd(_mm256_cmp_pd(a, b, _CMP_GT_OQ)));
}
#elif defined(FF_X86_ISA)
FF_SIMD Vector<float> max_lanes(Vector<float> a, Vector<float> b) { return _mm_max_ps(a, b); }
FF_SIMD Vector<float> min_lanes(Vector<float> a, Vector<float> b) { return _mm_min_ps(a, b); }
FF_SIMD unsigned at_least(Vector<float> a, Vector<float> b) { return unsigned(_mm_movemask_ps(_mm_cmpge_ps(a, b))); }
FF_SIMD unsigned above(Vector<float> a, Vector<float> b) { return unsigned(_mm_movemask_ps(_mm_cmpgt_ps(a, b))); }
FF_SIMD Vector<double> max_lanes(Vector<double> a, Vector<double> b) { return _mm_max_pd(a, b); }
FF_SIMD Vector<double> min_lanes(Vector<double> a, Vector<double> b) { return _mm_min_pd(a, b); }
FF_SIMD unsigned at_least(Vector<double> a, Vector<double> b) { return unsigned(_mm_movemask_pd(_mm_cmpge_pd(a, b))); }
FF_SIMD unsigned above(Vector<double> a, Vector<double> b) { return unsigned(_mm_movemask_pd(_mm_cmpgt_pd(a, b))); }
#else
template <class V>
FF_SIMD V max_lanes(V a, V b) {
  return a > b ? a : b;
}
template <class V>
FF_SIMD V min_lanes(V a, V b) {
  return a < b ? a : b;
}
template <class V>
FF_SIMD unsigned at_least(V a, V b) {
  unsigned bits = 0;
  for (unsigned l = 0; l < sizeof(V) / sizeof(a[0]); ++l) bits |= unsigned(a[l] >= b[l]) << l;
  return bits;
}
template <class V>
FF_SIMD unsigned above(V a, V b) {
  unsigned bits = 0;
  for (unsigned l = 0; l < sizeof(V) / sizeof(a[0]); ++l) bits |= unsigned(a[l] > b[l]) << l;
  return bits;
}
#endif

template <class V, class U>
FF_SIMD V load_aligned(const U* p) {  // p: as aligned as a vector
  return *reinterpret_cast<const V*>(p);
}
template <class V, class U>
FF_SIMD V load_raw(const U* p) {  // any p
  V lanes;
  __builtin_memcpy(&lanes, p, sizeof lanes);
  return lanes;
}
template <class V, class U>
FF_SIMD void store_raw(U* p, V lanes) {
  __builtin_memcpy(p, &lanes, sizeof lanes);
}
// Of 64 bytes, past the caches: for what nobody reads soon. to: a multiple of 64. Other threads see it after a fence.
constexpr int kLineBytes = 64;
FF_SIMD void stream_line(void* to, const void* from) {
#if defined(FF_X86_ISA) && defined(__AVX512F__)
  _mm512_stream_si512(static_cast<__m512i*>(to), _mm512_loadu_si512(from));
#elif defined(FF_X86_ISA)
  for (int i = 0; i < kLineBytes / 16; ++i)
    _mm_stream_si128(static_cast<__m128i*>(to) + i, _mm_loadu_si128(static_cast<const __m128i*>(from) + i));
#else
  __builtin_memcpy(to, from, kLineBytes);
#endif
}

template <class U>
FF_SIMD Vector<U> lanes_at(const U* p) {
  return load_raw<Vector<U>>(p);
}

}  // namespace FF_ISA
}  // namespace frcnn_fast
