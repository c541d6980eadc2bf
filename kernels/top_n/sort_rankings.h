// A radix sort of candidates by rank key; equal keys stay in index order, in which they come.
//
// For *_cpu_simd.cpp files: everything here lives in the instruction set's own namespace.
#pragma once
#include "top_n.h"

namespace frcnn_fast::top_n {
namespace FF_ISA {

constexpr int kDigitBits = 11;
constexpr int kMostDigits = 6;  // of a 64-bit key

// One stable counting pass a digit, over the `width * passes` bits of (key - least) from `low` up. The result is in
// entries or spare.
template <class Key>
inline Ranking<Key>* sort_digits(Ranking<Key>* entries, Ranking<Key>* spare, int64_t n, Key least, int low, int passes,
                                 int width) {
  uint32_t starts[kMostDigits][1 << kDigitBits];
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

// Sorts what is nearly sorted; gives up, with equal keys still in index order, after `moves`.
template <class Key>
inline bool sort_by_insertion(Ranking<Key>* entries, int64_t n, int64_t moves) {
  for (int64_t i = 1; i < n; ++i) {
    const Ranking<Key> entry = entries[i];
    int64_t hole = i;
    for (; hole > 0 && comes_before(entry, entries[hole - 1]); --hole) entries[hole] = entries[hole - 1];
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

}  // namespace FF_ISA
}  // namespace frcnn_fast::top_n
