// What this family's *_cpu_simd.cpp files need beside ../common/vectors.h.
#pragma once
#include "../common/box.h"
#include "../common/vectors.h"

namespace frcnn_fast::anchor_target {
namespace FF_ISA {
using namespace frcnn_fast::FF_ISA;

using Words = Vector<uint64_t>;

template <class V>
FF_SIMD auto highest_lane(V v) {
  auto most = v[0];
  for (int i = 1; i < int(sizeof(V) / sizeof(v[0])); ++i) most = v[i] > most ? v[i] : most;
  return most;
}
// The lowest n bits, at most 32.
FF_SIMD uint32_t low_bits(int64_t n) { return n >= 32 ? ~0u : (1u << n) - 1u; }
// Bit i: lane i of a comparison's result is true.
template <class U, class Mask>
FF_SIMD uint32_t true_lanes(Mask mask) {
  return above(mask ? splat(U(1)) : Vector<U>{}, Vector<U>{});
}

// The shared part of two intervals, at least 0, in every lane.
template <bool kLegacy, class U>
FF_SIMD Vector<U> shared_lanes(Vector<U> low, Vector<U> high, U other_low, U other_high) {
  const Vector<U> side = min_lanes(high, splat(other_high)) - max_lanes(low, splat(other_low));
  return max_lanes(Vector<U>{}, kLegacy ? side + U(1) : side);
}

// The products of the low halves of each pair of words; what the high halves hold does not matter.
FF_SIMD Words multiply_low_halves(Words a, Words b) {
#if defined(FF_X86_ISA) && defined(__AVX512F__)
  return Words(_mm512_mul_epu32(__m512i(a), __m512i(b)));
#elif defined(FF_X86_ISA) && defined(__AVX2__)
  return Words(_mm256_mul_epu32(__m256i(a), __m256i(b)));
#elif defined(FF_X86_ISA)
  return Words(_mm_mul_epu32(__m128i(a), __m128i(b)));
#else
  return (a & 0xffffffffu) * (b & 0xffffffffu);
#endif
}

// Bit i: the low half of words[i] is at most `limit`.
FF_SIMD uint32_t low_halves_at_most(Words words, uint32_t limit) {
#if defined(FF_X86_ISA) && defined(__AVX512F__)
  return _mm512_cmple_epu64_mask(__m512i(words & 0xffffffffu), _mm512_set1_epi64(int64_t(limit)));
#elif defined(FF_X86_ISA) && defined(__AVX2__)
  const __m256i low = __m256i(words & 0xffffffffu), end = _mm256_set1_epi64x(int64_t(limit) + 1);
  return uint32_t(_mm256_movemask_pd(_mm256_castsi256_pd(_mm256_cmpgt_epi64(end, low))));
#else
  uint32_t bits = 0;
  for (int i = 0; i < kLanes<uint64_t>; ++i) bits |= uint32_t(uint32_t(words[i]) <= limit) << i;
  return bits;
#endif
}

// Bit i: p[i] == value, for 64 bytes.
FF_SIMD uint64_t equal_bytes(const int8_t* p, int8_t value) {
#if defined(FF_X86_ISA) && defined(__AVX512BW__)
  return _mm512_cmpeq_epi8_mask(_mm512_loadu_si512(p), _mm512_set1_epi8(value));
#elif defined(FF_X86_ISA)
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
}  // namespace frcnn_fast::anchor_target
