// Finding the scores within a range of values.
//
// For *_cpu_simd.cpp files: everything here lives in the instruction set's own namespace.
#pragma once
#include "top_n.h"
#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace frcnn_fast::top_n {
namespace FF_ISA {

constexpr int kScanWidth = 16;

// Bit i: low <= scores[i] <= high.
inline uint32_t scan_mask(const float* scores, float low, float high) {
#if defined(__AVX512F__)
  const __m512 s = _mm512_loadu_ps(scores);
  return _mm512_mask_cmp_ps_mask(_mm512_cmp_ps_mask(s, _mm512_set1_ps(low), _CMP_GE_OQ), s, _mm512_set1_ps(high),
                                 _CMP_LE_OQ);
#elif defined(__AVX2__)
  uint32_t mask = 0;
  for (int i = 0; i < kScanWidth; i += 8) {
    const __m256 s = _mm256_loadu_ps(scores + i);
    const __m256 inside = _mm256_and_ps(_mm256_cmp_ps(s, _mm256_set1_ps(low), _CMP_GE_OQ),
                                        _mm256_cmp_ps(s, _mm256_set1_ps(high), _CMP_LE_OQ));
    mask |= uint32_t(_mm256_movemask_ps(inside)) << i;
  }
  return mask;
#elif defined(__SSE2__)
  uint32_t mask = 0;
  for (int i = 0; i < kScanWidth; i += 4) {
    const __m128 s = _mm_loadu_ps(scores + i);
    const __m128 inside = _mm_and_ps(_mm_cmpge_ps(s, _mm_set1_ps(low)), _mm_cmple_ps(s, _mm_set1_ps(high)));
    mask |= uint32_t(_mm_movemask_ps(inside)) << i;
  }
  return mask;
#else
  uint32_t mask = 0;
  for (int i = 0; i < kScanWidth; ++i) mask |= uint32_t((scores[i] >= low) & (scores[i] <= high)) << i;
  return mask;
#endif
}
inline uint32_t scan_mask(const double* scores, double low, double high) {
  uint32_t mask = 0;
#if defined(__AVX512F__)
  for (int i = 0; i < kScanWidth; i += 8) {
    const __m512d s = _mm512_loadu_pd(scores + i);
    const __mmask8 above = _mm512_cmp_pd_mask(s, _mm512_set1_pd(low), _CMP_GE_OQ);
    mask |= uint32_t(_mm512_mask_cmp_pd_mask(above, s, _mm512_set1_pd(high), _CMP_LE_OQ)) << i;
  }
#elif defined(__AVX2__)
  for (int i = 0; i < kScanWidth; i += 4) {
    const __m256d s = _mm256_loadu_pd(scores + i);
    const __m256d inside = _mm256_and_pd(_mm256_cmp_pd(s, _mm256_set1_pd(low), _CMP_GE_OQ),
                                         _mm256_cmp_pd(s, _mm256_set1_pd(high), _CMP_LE_OQ));
    mask |= uint32_t(_mm256_movemask_pd(inside)) << i;
  }
#else
  for (int i = 0; i < kScanWidth; ++i) mask |= uint32_t((scores[i] >= low) & (scores[i] <= high)) << i;
#endif
  return mask;
}
template <class T>
inline void widen(const T* scores, float* widened) {
  for (int i = 0; i < kScanWidth; ++i) widened[i] = load(scores + i);
}
#if defined(__AVX512F__)
inline void widen(const Half* scores, float* widened) {
  _mm512_storeu_ps(widened, _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(scores))));
}
#elif defined(__AVX2__)
inline void widen(const Half* scores, float* widened) {
  for (int i = 0; i < kScanWidth; i += 8)
    _mm256_storeu_ps(widened + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(scores + i))));
}
#endif
template <class T>
inline uint32_t scan_mask(const T* scores, float low, float high) {
  float widened[kScanWidth];
  widen(scores, widened);
  return scan_mask(widened, low, high);
}

// Writes base + i * step for every set bit i of the mask, and maybe rubbish up to kScanWidth; returns how many.
inline int scan_store(uint32_t mask, uint32_t base, uint32_t step, uint32_t* out) {
#if defined(__AVX512F__)
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i places = _mm512_mullo_epi32(lanes, _mm512_set1_epi32(int(step)));
  const __m512i indices = _mm512_add_epi32(_mm512_set1_epi32(int(base)), places);
  _mm512_storeu_si512(out, _mm512_maskz_compress_epi32(__mmask16(mask), indices));
  return __builtin_popcount(mask);
#else
  int count = 0;
  for (; mask; mask &= mask - 1) out[count++] = base + step * uint32_t(__builtin_ctz(mask));
  return count;
#endif
}

// Scores at equal distances in memory whose indices are at equal distances too.
template <class T>
struct ScoreRun {
  const T* scores;
  int64_t stride, length;
  uint32_t first, step;  // index of the first score, and from score to score

  // The kScanWidth scores from i on, which are copied to `near` unless they are neighbours.
  const T* vector(int64_t i, T* near) const {
    if (stride == 1) return scores + i;
    for (int j = 0; j < kScanWidth; ++j) near[j] = scores[(i + j) * stride];
    return near;
  }
};

// Run r of an image's scores. Where a cell has one anchor, the runs follow each other in index order.
template <class T>
inline ScoreRun<T> score_run(const AnchorMap<T>& map, const T* scores, uint32_t r) {
  const uint32_t y = r / map.per_cell, a = r - y * map.per_cell;
  return {scores + y * map.row_stride + a * map.anchor_stride, map.cell_stride, map.width,
          y * map.width * map.per_cell + a, map.per_cell};
}

// Appends to out the indices of the run's scores from `begin` on that lie in [low, high], in order, until the scores or
// the room (and kRankedSlack of slack behind it) end. Returns the position reached; *count how many.
template <class T>
inline int64_t scan(const ScoreRun<T>& run, int64_t begin, Compute<T> low, Compute<T> high, uint32_t* out, int64_t room,
                    int64_t* count) {
  T near[kScanWidth];
  const int64_t N = run.length;
  int64_t found = 0, i = begin;
  for (; i + kScanWidth <= N && found <= room - kScanWidth; i += kScanWidth) {
    const uint32_t mask = scan_mask(run.vector(i, near), low, high);
    if (mask) found += scan_store(mask, run.first + uint32_t(i) * run.step, run.step, out + found);
  }
  for (; i < N && i + kScanWidth > N && found < room; ++i) {
    const Compute<T> score = load(run.scores + i * run.stride);
    out[found] = run.first + uint32_t(i) * run.step;
    found += score >= low && score <= high;
  }
  *count = found;
  return i;
}

template <class T>
inline int64_t scan_count(const ScoreRun<T>& run, Compute<T> low, Compute<T> high) {
  T near[kScanWidth];
  int64_t total = 0, i = 0;
  for (; i + kScanWidth <= run.length; i += kScanWidth)
    total += __builtin_popcount(scan_mask(run.vector(i, near), low, high));
  for (; i < run.length; ++i) {
    const Compute<T> score = load(run.scores + i * run.stride);
    total += score >= low && score <= high;
  }
  return total;
}

}  // namespace FF_ISA
}  // namespace frcnn_fast::top_n
