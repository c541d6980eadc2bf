// Random keys for a whole image's candidates.
#include "anchor_target_cpu.h"
#include "lanes.h"

namespace frcnn_fast::anchor_target {
namespace FF_ISA {
using namespace frcnn_fast::FF_ISA;
namespace {

// Vectors that are computed abreast, to hide the multiplier's latency; as many as there are registers for.
constexpr int kChains = kVectorBytes >= 32 ? 8 : 2;

// philox() of common/philox.h in place: from indices to keys, one in the low half of each word. The high halves hold
// rubbish all along, which the multiplication ignores.
FF_SIMD void key_lanes(Words (&word)[kChains], const KeyWords& words) {
  const Words multiplier0 = Words{} + 0xD2511F53u, multiplier1 = Words{} + 0xCD9E8D57u;
  Words c1[kChains], c2[kChains], c3[kChains];
  for (int c = 0; c < kChains; ++c) {
    c1[c] = Words{} + words.image;
    c2[c] = Words{} + words.step;
    c3[c] = Words{} + words.stream;
  }
  uint32_t k0 = words.seed_low, k1 = words.seed_high;
#pragma GCC unroll 10
  for (int round = 0; round < 10; ++round) {
#pragma GCC unroll 8
    for (int c = 0; c < kChains; ++c) {
      const Words product0 = multiply_low_halves(multiplier0, word[c]);
      const Words product1 = multiply_low_halves(multiplier1, c2[c]);
      word[c] = (product1 >> 32) ^ c1[c] ^ (Words{} + k0);
      c1[c] = product1;
      c2[c] = (product0 >> 32) ^ c3[c] ^ (Words{} + k1);
      c3[c] = product0;
    }
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
}

FF_SIMD Words first_words() {
  Words words;
  for (int i = 0; i < kLanes<uint64_t>; ++i) words[i] = uint64_t(i);
  return words;
}

FF_SIMD void offer(uint64_t bits, const uint64_t* keys, int64_t base, Draw* draw) {
  uint64_t* items = draw->items + draw->size;
  draw->size += __builtin_popcountll(bits);
  for (; bits; bits &= bits - 1) {
    const int i = __builtin_ctzll(bits);
    *items++ = draw_item(uint32_t(keys[i]), uint32_t(base + i));
  }
}

}  // namespace

int64_t draw_keys(const int8_t* labels, int64_t begin, int64_t end, const KeyWords& words, Draw* positives,
                  Draw* negatives) {
  const Words first = first_words();
  const uint32_t positive_limit = positives->limit, negative_limit = negatives->limit;
  static_assert(kBlock % (kChains * kLanes<uint64_t>) == 0, "a block is cut into whole vectors");
  int64_t base = begin;
  for (; base < end; base += kBlock) {
    if (positives->capacity - positives->size < kBlock || negatives->capacity - negatives->size < kBlock) return base;
    int8_t last[kBlock];
    const int8_t* block = labels + base;
    if (end - base < kBlock) {
      memset(last, kIgnored, kBlock);
      memcpy(last, block, size_t(end - base));
      block = last;
    }
    uint64_t positive = equal_bytes(block, kPositive), negative = equal_bytes(block, kNegative);
    if (!(positive | negative)) continue;
    uint64_t keys[kBlock];
    uint64_t positive_in = 0, negative_in = 0;
    for (int start = 0; start < kBlock; start += kChains * kLanes<uint64_t>) {
      Words key[kChains];
      for (int c = 0; c < kChains; ++c) key[c] = first + uint64_t(base + start + c * kLanes<uint64_t>);
      key_lanes(key, words);
      for (int c = 0; c < kChains; ++c) {
        const int i = start + c * kLanes<uint64_t>;
        store_raw(keys + i, key[c]);
        positive_in |= uint64_t(low_halves_at_most(key[c], positive_limit)) << i;
        negative_in |= uint64_t(low_halves_at_most(key[c], negative_limit)) << i;
      }
    }
    if (positive &= positive_in) offer(positive, keys, base, positives);
    if (negative &= negative_in) offer(negative, keys, base, negatives);
  }
  return base;
}

void count_labels(const int8_t* labels, int64_t n, int64_t* counts) {
  int64_t base = 0;
  for (; base + kBlock <= n; base += kBlock) {
    counts[0] += __builtin_popcountll(equal_bytes(labels + base, kPositive));
    counts[1] += __builtin_popcountll(equal_bytes(labels + base, kNegative));
  }
  for (; base < n; ++base) {
    counts[0] += labels[base] == kPositive;
    counts[1] += labels[base] == kNegative;
  }
}

}  // namespace FF_ISA
}  // namespace frcnn_fast::anchor_target
