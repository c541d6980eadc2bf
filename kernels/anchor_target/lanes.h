// Vectors of the instruction set this file is compiled for. For *_cpu_simd.cpp files only, inside namespace FF_ISA.
#pragma once
#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace frcnn_fast {
namespace FF_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

typedef float FloatLanes __attribute__((vector_size(kVectorBytes)));
typedef double DoubleLanes __attribute__((vector_size(kVectorBytes)));
typedef uint64_t WordLanes __attribute__((vector_size(kVectorBytes)));

template <class U>
struct LanesOf;
template <>
struct LanesOf<float> {
  using type = FloatLanes;
};
template <>
struct LanesOf<double> {
  using type = DoubleLanes;
};
template <class U>
using Lanes = typename LanesOf<U>::type;
template <class U>
constexpr int kLanes = kVectorBytes / int(sizeof(U));

#define FF_INLINE inline __attribute__((always_inline))
#define FF_INLINE_LAMBDA __attribute__((always_inline))

template <class U>
FF_INLINE Lanes<U> load_lanes(const U* p) {
  Lanes<U> v;
  memcpy(&v, p, sizeof v);
  return v;
}
FF_INLINE void store_words(uint64_t* p, WordLanes v) { memcpy(p, &v, sizeof v); }
template <class U>
FF_INLINE Lanes<U> splat(U x) {
  return Lanes<U>{} + x;
}

// Bit i: a[i] >= b[i].
FF_INLINE uint32_t at_least(FloatLanes a, FloatLanes b) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask(__m512(a), __m512(b), _CMP_GE_OQ);
#elif defined(__AVX2__)
  return uint32_t(_mm256_movemask_ps(_mm256_cmp_ps(__m256(a), __m256(b), _CMP_GE_OQ)));
#elif defined(__SSE2__)
  return uint32_t(_mm_movemask_ps(_mm_cmpge_ps(__m128(a), __m128(b))));
#else
  uint32_t bits = 0;
  for (int i = 0; i < kLanes<float>; ++i) bits |= uint32_t(a[i] >= b[i]) << i;
  return bits;
#endif
}
FF_INLINE uint32_t at_least(DoubleLanes a, DoubleLanes b) {
#if defined(__AVX512F__)
  return _mm512_cmp_pd_mask(__m512d(a), __m512d(b), _CMP_GE_OQ);
#elif defined(__AVX2__)
  return uint32_t(_mm256_movemask_pd(_mm256_cmp_pd(__m256d(a), __m256d(b), _CMP_GE_OQ)));
#elif defined(__SSE2__)
  return uint32_t(_mm_movemask_pd(_mm_cmpge_pd(__m128d(a), __m128d(b))));
#else
  uint32_t bits = 0;
  for (int i = 0; i < kLanes<double>; ++i) bits |= uint32_t(a[i] >= b[i]) << i;
  return bits;
#endif
}
// The lowest n bits.
FF_INLINE uint32_t low_bits(int64_t n) { return n >= 32 ? ~0u : (1u << n) - 1u; }
// Bit i: a[i] > b[i], or either is NaN.
template <class V>
FF_INLINE uint32_t above(V a, V b) {
  return ~at_least(b, a) & low_bits(int64_t(sizeof(V) / sizeof(a[0])));
}
// Bit i: lane i of a comparison's result is true.
template <class U, class Mask>
FF_INLINE uint32_t true_lanes(Mask mask) {
  return at_least(mask ? splat(U(1)) : Lanes<U>{}, splat(U(1)));
}

template <class V>
FF_INLINE auto highest_lane(V v) {
  auto most = v[0];
  for (int i = 1; i < int(sizeof(V) / sizeof(v[0])); ++i) most = v[i] > most ? v[i] : most;
  return most;
}

// The products of the low halves of each pair of words; what the high halves hold does not matter.
FF_INLINE WordLanes multiply_low_halves(WordLanes a, WordLanes b) {
#if defined(__AVX512F__)
  return WordLanes(_mm512_mul_epu32(__m512i(a), __m512i(b)));
#elif defined(__AVX2__)
  return WordLanes(_mm256_mul_epu32(__m256i(a), __m256i(b)));
#elif defined(__SSE2__)
  return WordLanes(_mm_mul_epu32(__m128i(a), __m128i(b)));
#else
  return (a & 0xffffffffull) * (b & 0xffffffffull);
#endif
}

// Bit i: the low half of a[i] is at most `limit`.
FF_INLINE uint32_t low_halves_at_most(WordLanes a, uint32_t limit) {
#if defined(__AVX512F__)
  return _mm512_cmple_epu64_mask(_mm512_and_si512(__m512i(a), _mm512_set1_epi64(0xffffffffll)),
                                 _mm512_set1_epi64(int64_t(limit)));
#elif defined(__AVX2__)
  const __m256i low = _mm256_and_si256(__m256i(a), _mm256_set1_epi64x(0xffffffffll));
  return uint32_t(_mm256_movemask_pd(_mm256_castsi256_pd(_mm256_cmpgt_epi64(_mm256_set1_epi64x(int64_t(limit) + 1), low))));
#else
  uint32_t bits = 0;
  for (int i = 0; i < kLanes<uint64_t>; ++i) bits |= uint32_t(uint32_t(a[i]) <= limit) << i;
  return bits;
#endif
}

// Bit i: p[i] == value, for 64 bytes.
FF_INLINE uint64_t equal_bytes(const int8_t* p, int8_t value) {
#if defined(__AVX512BW__)
  return _mm512_cmpeq_epi8_mask(_mm512_loadu_si512(p), _mm512_set1_epi8(value));
#elif defined(__SSE2__)
  uint64_t bits = 0;
  for (int i = 0; i < 4; ++i) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p) + i);
    bits |= uint64_t(uint32_t(_mm_movemask_epi8(_mm_cmpeq_epi8(bytes, _mm_set1_epi8(value))))) << (16 * i);
  }
  return bits;
#else
  uint64_t bits = 0;
  for (int i = 0; i < 64; ++i) bits |= uint64_t(p[i] == value) << i;
  return bits;
#endif
}

}  // namespace FF_ISA
}  // namespace frcnn_fast
