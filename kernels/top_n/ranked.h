// Scores in rank order, a chunk at a time, for callers that stop early: nothing beyond the chunk is ever sorted.
//
// For *_cpu_simd.cpp files: everything here lives in the instruction set's own namespace. A chunk is the scores within
// a range of values. Where the range ends is read from a small sorted sample, which may guess wrong (then chunks are
// longer or shorter than asked for) but never changes the order.
#pragma once
#include "top_n.h"
#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace frcnn_fast {
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

// Writes base + i for every set bit i of the mask, and maybe rubbish up to kScanWidth; returns how many.
inline int scan_store(uint32_t mask, uint32_t base, uint32_t* out) {
#if defined(__AVX512F__)
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i indices = _mm512_add_epi32(_mm512_set1_epi32(int(base)), lanes);
  _mm512_storeu_si512(out, _mm512_maskz_compress_epi32(__mmask16(mask), indices));
  return __builtin_popcount(mask);
#else
  int count = 0;
  for (; mask; mask &= mask - 1) out[count++] = base + uint32_t(__builtin_ctz(mask));
  return count;
#endif
}

// Appends to out the indices from `begin` on whose scores lie in [low, high], in order, until the scores or the room
// (at least kScanWidth + 1, and kRankedSlack of slack behind it) end. Returns the position reached; *count how many.
template <class T>
inline int64_t scan(const T* scores, int64_t begin, int64_t N, Compute<T> low, Compute<T> high, uint32_t* out,
                    int64_t room, int64_t* count) {
  int64_t found = 0, i = begin;
  for (; i + kScanWidth <= N && found <= room - kScanWidth; i += kScanWidth) {
    const uint32_t mask = scan_mask(scores + i, low, high);
    if (mask) found += scan_store(mask, uint32_t(i), out + found);
  }
  for (; i < N && i + kScanWidth > N && found < room; ++i) {
    const Compute<T> score = load(scores + i);
    out[found] = uint32_t(i);
    found += score >= low && score <= high;
  }
  *count = found;
  return i;
}

template <class T>
inline int64_t scan_count(const T* scores, int64_t N, Compute<T> low, Compute<T> high) {
  int64_t total = 0;
  for (int64_t begin = 0; begin < N; begin += 1 << 16) {
    const int end = int(N - begin < 1 << 16 ? N - begin : 1 << 16);
    int32_t count = 0;
    for (int i = 0; i < end; ++i) {
      const Compute<T> score = load(scores + begin + i);
      count += (score >= low) & (score <= high);
    }
    total += count;
  }
  return total;
}

// One stable counting pass a digit, over the `width * passes` bits of (key - least) from `low` up. The result is in
// entries or spare.
constexpr int kDigitBits = 11;
constexpr int kDigits = 6;  // of a 64-bit key
template <class Key>
inline Ranking<Key>* sort_digits(Ranking<Key>* entries, Ranking<Key>* spare, int64_t n, Key least, int low, int passes,
                                 int width) {
  uint32_t starts[kDigits][1 << kDigitBits];
  const uint32_t mask = (1u << width) - 1;
  for (int p = 0; p < passes; ++p)
    for (uint32_t d = 0; d <= mask; ++d) starts[p][d] = 0;
  for (int64_t i = 0; i < n; ++i) {
    Key digits = (entries[i].key - least) >> low;
    for (int p = 0; p < passes; ++p, digits >>= width) ++starts[p][uint32_t(digits) & mask];
  }
  for (int p = 0; p < passes; ++p) {
    uint32_t start = 0;
    for (uint32_t d = 0; d <= mask; ++d) {
      const uint32_t size = starts[p][d];
      starts[p][d] = start;
      start += size;
    }
    const int shift = low + p * width;
    for (int64_t i = 0; i < n; ++i) {
      const Ranking<Key> entry = entries[i];
      spare[starts[p][uint32_t((entry.key - least) >> shift) & mask]++] = entry;
    }
    Ranking<Key>* const sorted = spare;
    spare = entries;
    entries = sorted;
  }
  return entries;
}

// Sorts what is nearly sorted, stably; gives up, with equal keys still in order, after `moves`.
template <class Key>
inline bool sort_by_insertion(Ranking<Key>* entries, int64_t n, int64_t moves) {
  for (int64_t i = 1; i < n; ++i) {
    const Ranking<Key> entry = entries[i];
    int64_t hole = i;
    for (; hole > 0; --hole) {
      const Key before = entries[hole - 1].key;
      if (FF_MUTANT(ranked_stable, entry.key >= before, entry.key > before)) break;
      entries[hole] = entries[hole - 1];
    }
    entries[hole] = entry;
    moves -= i - hole;
    if (moves < 0) return false;
  }
  return true;
}

inline int bit_length(uint64_t value) { return value ? 64 - __builtin_clzll(value) : 0; }

// Sorts entries [n] by key, stably; spare [n] is scratch. The result is in entries or spare.
template <class Key>
inline Ranking<Key>* sort_rankings(Ranking<Key>* entries, Ranking<Key>* spare, int64_t n) {
  if (n <= 24) {
    sort_by_insertion(entries, n, n * n);
    return entries;
  }
  Key least = entries[0].key, most = least;
  for (int64_t i = 1; i < n; ++i) {
    const Key key = entries[i].key;
    least = key < least ? key : least;
    most = key > most ? key : most;
  }
  const int bits = bit_length(uint64_t(most - least));
  if (bits == 0) return entries;
  // The leading bits tell most keys apart; insertion does the rest, unless the keys crowd. Where as many passes can
  // take all bits, they do.
  const int distinct = bit_length(uint64_t(n)) + 8;
  const int passes = ((bits < distinct ? bits : distinct) + kDigitBits - 1) / kDigitBits;
  const int sorted_bits = passes * kDigitBits >= bits ? bits : distinct;
  const int width = (sorted_bits + passes - 1) / passes;
  const int low = bits > passes * width ? bits - passes * width : 0;
  Ranking<Key>* const sorted = sort_digits(entries, spare, n, least, low, passes, width);
  if (low == 0 || sort_by_insertion(sorted, n, 4 * n)) return sorted;
  const int all = (bits + kDigitBits - 1) / kDigitBits;
  return sort_digits(sorted, sorted == entries ? spare : entries, n, least, 0, all, (bits + all - 1) / all);
}

template <class T>
class Ranked {
 public:
  using U = Compute<T>;
  using Key = RankKey<U>;

  // scores [N]. budget: ranks to give out at most. chunk: ranks wanted at a time. buffers: for this N and chunk (or
  // more).
  Ranked(const T* scores, int64_t N, int64_t budget, int64_t chunk, const RankedBuffers<Key>& buffers)
      : scores_(scores), N_(N), left_(budget < N ? budget : N), chunk_(chunk), buffers_(buffers) {
    if (left_ > 0 && N_ > buffers_.capacity) draw_sample();
  }

  // The next candidates, best first; returns how many, 0 when the budget or the scores that are not NaN are spent.
  // *indices is valid until the next call.
  int64_t next_chunk(const uint32_t** indices) {
    *indices = buffers_.indices;
    while (left_ > 0 && next_ <= last_) {
      const int64_t count = tied_from_ >= 0 ? ties() : range();
      if (count == 0) continue;
      const int64_t given = count < left_ ? count : left_;
      left_ -= given;
      return given;
    }
    return 0;
  }

 private:
  static constexpr U kInfinity = U(__builtin_inf());
  static constexpr Key kZero = kNoRank<Key> >> 1;  // the key of 0.0; the one after it is -0.0's, which no score has

  // The scores with keys from next_ to about chunk_ ranks further.
  int64_t range() {
    const int64_t want = chunk_ < left_ ? chunk_ : left_;
    Key end = estimate(want);
    int64_t count;
    if (N_ <= buffers_.capacity) {
      count = N_;
      for (int64_t i = 0; i < N_; ++i) buffers_.indices[i] = uint32_t(i);
    } else if (scan(scores_, 0, N_, rank_score(end), rank_score(next_), buffers_.indices, buffers_.capacity, &count) <
               N_) {
      end = narrow(end);
      if (tied_from_ >= 0) return 0;
      scan(scores_, 0, N_, rank_score(end), rank_score(next_), buffers_.indices, buffers_.capacity, &count);
    }
    next_ = FF_MUTANT(ranked_after, after(end), end);
    int64_t found = 0;
    for (int64_t i = 0; i < count; ++i) {
      const uint32_t index = buffers_.indices[i];
      const Key key = rank_key(load(scores_ + index));
      buffers_.entries[found] = {key, index};
      found += key != kNoRank<Key>;
    }
    const Ranking<Key>* const sorted = sort_rankings(buffers_.entries, buffers_.spare, found);
    for (int64_t i = 0; i < found; ++i) buffers_.indices[i] = sorted[i].index;
    return found;
  }

  // One score's ties, in index order: too many to hold at once.
  int64_t ties() {
    const U score = rank_score(next_);
    int64_t count;
    tied_from_ = scan(scores_, FF_MUTANT(ranked_ties, tied_from_, 0), N_, score, score, buffers_.indices,
                      buffers_.capacity, &count);
    if (tied_from_ == N_) {
      tied_from_ = -1;
      next_ = after(next_);
    }
    return count;
  }

  // The key at which about `want` further scores have been passed, a little more rather than less.
  Key estimate(int64_t want) {
    while (sample_at_ < sample_size_ && sample_[sample_at_].key < next_) ++sample_at_;
    int64_t ranks = sample_size_ * want / N_ + 1, root = 1;
    while (root * root < ranks) ++root;
    const int64_t at = sample_at_ + ranks + root;
    return at < sample_size_ && sample_[at].key < last_ ? sample_[at].key : last_;
  }

  // Keys next_ to `end` hold more scores than there is room for: a shorter range that fits, or ties.
  Key narrow(Key end) {
    Key low = next_;  // nothing lies between next_ and low
    for (Key guess = end - 1; low < end; guess = low + (end - low) / 2) {
      const int64_t count = scan_count(scores_, N_, rank_score(guess), rank_score(next_));
      if (count > buffers_.capacity - kScanWidth) {
        end = guess;
      } else if (count > 0) {
        return guess;
      } else {
        low = after(guess);
      }
    }
    next_ = low;
    tied_from_ = 0;
    return low;
  }

  void draw_sample() {
    int64_t size = N_ / 32;
    size = size < 512 ? 512 : (size > kRankedSample ? kRankedSample : size);
    // One score at a scattered place of every stretch: a fixed stride could meet one anchor shape only.
    uint32_t scatter = 12345;
    for (int64_t i = 0; i < size; ++i) {
      const int64_t begin = N_ * i / size, length = N_ * (i + 1) / size - begin;
      scatter = scatter * 1664525u + 1013904223u;
      const int64_t at = begin + int64_t(uint64_t(scatter) * uint64_t(length) >> 32);
      buffers_.sample[i] = {rank_key(load(scores_ + at)), 0};
    }
    sample_ = sort_rankings(buffers_.sample, buffers_.spare, size);
    sample_size_ = size;
    if (sample_ != buffers_.sample) {
      for (int64_t i = 0; i < size; ++i) buffers_.sample[i] = sample_[i];
      sample_ = buffers_.sample;
    }
  }

  static Key after(Key key) { return key == kZero ? key + 2 : key + 1; }

  const T* scores_;
  int64_t N_, left_, chunk_;
  RankedBuffers<Key> buffers_;
  const Ranking<Key>* sample_ = nullptr;
  int64_t sample_size_ = 0, sample_at_ = 0;
  Key next_ = rank_key(kInfinity);   // the best key not yet given out
  Key last_ = rank_key(-kInfinity);  // the worst score's
  int64_t tied_from_ = -1;           // where the ties of next_ go on; -1: not among ties
};

}  // namespace FF_ISA
}  // namespace frcnn_fast
