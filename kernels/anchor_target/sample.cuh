// The exact sample of an image's labelled candidates, in two launches: blocks that label leave bitmaps, and then one
// block an image draws.
//
// The bitmaps: positives, and of the negatives those whose key is likely to win (how many negatives there are nobody
// knows yet: so two guesses), and all. The block that draws lists the set bits in order, finds the key that parts the
// winners from the rest by a radix select, of which one digit is mostly enough, and writes the winners as they come,
// ascending. Where a guess was too low, it lists by the next.
#pragma once
#include "../common/workspace.h"
#include "overlap.cuh"

namespace frcnn_fast::anchor_target {

constexpr uint32_t kAllLikely = 0xffffffffu;
constexpr int kGuesses = 3;  // the last: all

constexpr int kDrawThreads = 512, kDrawWarps = kDrawThreads / kWarp;
constexpr int kDigitBits = 9;  // a bin a thread
#if defined(FF_TEST_BUILD)
constexpr int kRoom = 96;  // small cases have more than fits too
#else
constexpr int kRoom = 2048;  // candidates that are listed in shared memory
#endif

struct DeviceSampler {
  const int64_t* rng;
  int64_t stream;
  int64_t M;      // candidates an image
  int64_t words;  // of a bitmap, an even number
  int32_t S, max_positive;
  uint32_t likely[kGuesses];  // the key up to which negatives are
  int64_t step;               // from bitmap to bitmap
  unsigned* bitmaps;          // [1 + kGuesses][B, words]: positives; negatives by each guess
  // Where shared memory has no room:
  unsigned *listed, *keys;  // [B, M]: positives, then negatives
  unsigned* chosen;         // [B, S]

  __device__ __forceinline__ unsigned key(int64_t image, int64_t index) const {
    return sampling_key(rng, index, image, stream);
  }
  __device__ __forceinline__ unsigned* bitmap(int which, int64_t image) const {
    return bitmaps + which * step + image * words;
  }
};

// Notes the label of the thread's candidate. Whole warps call; their lanes' candidates are neighbours.
__device__ __forceinline__ void note(const DeviceSampler& sampler, int64_t image, int64_t candidate, int8_t label) {
  const bool is_negative = label == kNegative;
  unsigned key = 0;
  if (is_negative && sampler.likely[0] != kAllLikely) key = sampler.key(image, candidate);
  unsigned word = __ballot_sync(kFullMask, label == kPositive);
#pragma unroll
  for (int guess = 0; guess < kGuesses; ++guess) {
    const unsigned likely = __ballot_sync(kFullMask, is_negative && key <= sampler.likely[guess]);
    if (lane_id() == 1 + guess) word = likely;
  }
  if (lane_id() <= kGuesses) sampler.bitmap(lane_id(), image)[candidate / kWarp] = word;
}

// Of the block that draws, in shared memory. [2]: of positives, of negatives.
struct DrawScratch {
  int bins[2][kDrawThreads];
  uint64_t sums[kDrawWarps];
  int digit[2], before[2], here[2];
  unsigned listed[kRoom], keys[kRoom], chosen[kRoom];
};

// Candidates in index order, positives first, and their keys.
struct Listed {
  int positives, negatives;
  bool is_near;  // in shared memory
};

// How many positives and negatives were drawn; they are chosen, positives first, for the whole block to see.
struct Drawn {
  int positives, negatives;

  __device__ __forceinline__ unsigned index(const DeviceSampler& sampler, const DrawScratch& scratch, int64_t image,
                                            int32_t s) const {
    return sampler.S <= kRoom ? scratch.chosen[s] : sampler.chosen[image * sampler.S + s];
  }
};

__device__ __forceinline__ uint64_t pack(unsigned low, unsigned high) { return uint64_t(high) << 32 | low; }

// The sum over the warps below this one, and *total over all, of a value that is the warp's, in each of its lanes.
// Every warp adds up for itself, by shuffles. sums: shared, one a warp; free to reuse on return.
__device__ __forceinline__ uint64_t sum_of_warps_below(uint64_t value, uint64_t* sums, uint64_t* total) {
  if (lane_id() == 0) sums[warp_id()] = value;
  __syncthreads();
  const uint64_t through = warp_inclusive_scan(lane_id() < kDrawWarps ? sums[lane_id()] : 0, Plus());
  __syncthreads();
  *total = __shfl_sync(kFullMask, through, kWarp - 1);
  return __shfl_sync(kFullMask, through, warp_id()) - value;
}

// The sum over the threads below this one, and *total over all; sums as above.
__device__ __forceinline__ uint64_t sum_of_threads_below(uint64_t value, uint64_t* sums, uint64_t* total) {
  const uint64_t through = warp_inclusive_scan(value, Plus());
  return sum_of_warps_below(__shfl_sync(kFullMask, through, kWarp - 1), sums, total) + through - value;
}

// By value, so that what is chosen from may stay in registers.
template <class A>
__device__ __forceinline__ A either(bool second, A a, A b) {
  return second ? A(b) : A(a);
}

// Lists an image's positives, and the negatives by a guess: what an object made positive after it was noted is none. A
// thread has a run of words, kHeld of them at a time, and goes through it twice: to count, the first words last, and
// to list, the first words first, which it holds by then. In step on return.
__device__ __forceinline__ Listed list_bits(const DeviceSampler& sampler, int64_t image, int guess,
                                            DrawScratch& scratch) {
  using Word = uint64_t;
  constexpr int kHeld = 3;
  const Word* const positive = reinterpret_cast<const Word*>(sampler.bitmap(0, image));
  const Word* const negative = reinterpret_cast<const Word*>(sampler.bitmap(1 + guess, image));
  const int64_t words = sampler.words / 2, each = (words + kDrawThreads - 1) / kDrawThreads;
  const int64_t begin = minimum(words, each * threadIdx.x), end = minimum(words, begin + each);
  Word p[kHeld], n[kHeld];
  const auto fetch = [&](int64_t first) {
#pragma unroll
    for (int k = 0; k < kHeld; ++k) {
      const int64_t w = begin + first + k;
      p[k] = w < end ? __ldcg(positive + w) : 0;
      n[k] = w < end ? __ldcg(negative + w) & ~p[k] : 0;
    }
  };
  unsigned positives = 0, negatives = 0;
  for (int64_t first = (each - 1) / kHeld * kHeld; first >= 0; first -= kHeld) {
    fetch(first);
#pragma unroll
    for (int k = 0; k < kHeld; ++k) {
      positives += __popcll(p[k]);
      negatives += __popcll(n[k]);
    }
  }
  uint64_t total;
  const uint64_t before = sum_of_threads_below(pack(positives, negatives), scratch.sums, &total);
  const Listed list = {int(unsigned(total)), int(total >> 32), unsigned(total) + unsigned(total >> 32) <= kRoom};
  unsigned next_positive = unsigned(before), next_negative = unsigned(total) + unsigned(before >> 32);
  for (int64_t first = 0; first < each; first += kHeld) {
    if (first > 0) fetch(first);
#pragma unroll 1  // much code for few bits
    for (int k = 0; k < kHeld; ++k) {
      const Word kp = either(k == 0, either(k == 1, p[2], p[1]), p[0]);
      const Word kn = either(k == 0, either(k == 1, n[2], n[1]), n[0]);
#pragma unroll 1
      for (int half = 0; half < 64; half += 32) {
        const unsigned negatives_here = unsigned(kn >> half);
        for (unsigned left = unsigned((kp | kn) >> half); left; left &= left - 1) {
          const unsigned bit = left & (0u - left);
          const unsigned index = unsigned(begin + first + k) * 64 + half + 31 - __clz(int(bit));
          const unsigned place = negatives_here & bit ? next_negative++ : next_positive++;
          if (list.is_near)
            scratch.listed[place] = index;
          else
            sampler.listed[image * sampler.M + place] = index;
        }
      }
    }
  }
  __syncthreads();  // the list is complete
  return list;
}

// Chooses the candidates of the smallest keys, ties by index, so many positives and so many negatives, each ascending.
// likely: what no negative's key is above. In step on return.
//
// A key wins whose bits from `shift` up are below those of the limit of its kind, and the first `ties` of those that
// equal them. Both kinds look for theirs at once, digit by digit, until all that tie win; a bin a thread and kind.
__device__ __forceinline__ void pick(const DeviceSampler& sampler, int64_t image, const Listed& list,
                                     const Drawn& drawn, uint32_t likely, DrawScratch& scratch) {
  const int all = list.positives + list.negatives, thread = int(threadIdx.x);
  const auto listed = [&](int j) { return list.is_near ? scratch.listed[j] : sampler.listed[image * sampler.M + j]; };
  const auto key = [&](int j) { return list.is_near ? scratch.keys[j] : sampler.keys[image * sampler.M + j]; };
  for (int j = thread; j < all; j += kDrawThreads) {
    const unsigned k = sampler.key(image, listed(j));
    if (list.is_near)
      scratch.keys[j] = k;
    else
      sampler.keys[image * sampler.M + j] = k;
  }

  const int wanted[2] = {drawn.positives, drawn.negatives}, there[2] = {list.positives, list.negatives};
  uint64_t limit[2] = {0, 0};
  int ties[2], shift[2] = {32, 32 - __clz(int(likely))};
  bool open[2];
#pragma unroll
  for (int kind = 0; kind < 2; ++kind) {
    ties[kind] = wanted[kind];
    open[kind] = wanted[kind] > 0 && wanted[kind] < there[kind];
    if (!open[kind]) limit[kind] = uint64_t(wanted[kind] > 0) << 32, shift[kind] = 0;  // all win, or none
  }
  while (open[0] || open[1]) {
    int above[2];
#pragma unroll
    for (int kind = 0; kind < 2; ++kind) {
      above[kind] = shift[kind];
      if (open[kind]) shift[kind] = maximum(shift[kind] - kDigitBits, 0);
      scratch.bins[kind][thread] = 0;
    }
    __syncthreads();  // no bin holds anything
    for (int j = thread; j < all; j += kDrawThreads) {
      const bool is_negative = j >= list.positives;
      const uint64_t mine = key(j), edge = either(is_negative, limit[0], limit[1]);
      const int from = either(is_negative, above[0], above[1]), to = either(is_negative, shift[0], shift[1]);
      if (either(is_negative, open[0], open[1]) && mine >> from == edge >> from)
        atomicAdd(&scratch.bins[is_negative][(mine >> to) & (kDrawThreads - 1)], 1);
    }
    __syncthreads();  // all are counted
    uint64_t total;
    const int here[2] = {scratch.bins[0][thread], scratch.bins[1][thread]};
    const uint64_t before = sum_of_threads_below(pack(unsigned(here[0]), unsigned(here[1])), scratch.sums, &total);
#pragma unroll
    for (int kind = 0; kind < 2; ++kind) {
      const int below = int(unsigned(before >> 32 * kind));
      if (below < ties[kind] && ties[kind] <= below + here[kind]) {
        scratch.digit[kind] = thread;
        scratch.before[kind] = below;
        scratch.here[kind] = here[kind];
      }
    }
    __syncthreads();  // the digits are known
#pragma unroll
    for (int kind = 0; kind < 2; ++kind) {
      if (!open[kind]) continue;
      limit[kind] |= uint64_t(scratch.digit[kind]) << shift[kind];
      ties[kind] -= scratch.before[kind];
      open[kind] = shift[kind] > 0 && ties[kind] < scratch.here[kind];
    }
  }

  // Below the limit, and tied with it: positives, then negatives, 16 bits each of a round.
  int seen[4] = {0, 0, 0, 0};
  for (int start = 0; start < all; start += kDrawThreads) {
    const int j = start + thread;
    const bool is_negative = j >= list.positives;
    const uint64_t mine = j < all ? key(j) : ~uint64_t(0);
    const uint64_t mine_up = mine >> either(is_negative, shift[0], shift[1]);
    const uint64_t edge = either(is_negative, limit[0] >> shift[0], limit[1] >> shift[1]);
    const bool below = FF_MUTANT(sample_limit, mine_up < edge, mine_up <= edge), tied = mine_up == edge;
    const unsigned negatives = __ballot_sync(kFullMask, is_negative);
    const unsigned belows = __ballot_sync(kFullMask, below), tieds = __ballot_sync(kFullMask, tied);
    uint64_t total;
    const uint64_t before =
        sum_of_warps_below(pack(unsigned(__popc(belows & ~negatives) | __popc(tieds & ~negatives) << 16),
                                unsigned(__popc(belows & negatives) | __popc(tieds & negatives) << 16)),
                           scratch.sums, &total);
    const unsigned own = unsigned(before >> (is_negative ? 32 : 0)),
                   alike = lanes_below() & (is_negative ? negatives : ~negatives);
    const int limit_ties = either(is_negative, ties[0], ties[1]);
    const int below_before = either(is_negative, seen[0], seen[2]) + int(own & 0xffff) + __popc(belows & alike);
    const int ties_before = either(is_negative, seen[1], seen[3]) + int(own >> 16) + __popc(tieds & alike);
    if (below || (tied && ties_before < limit_ties)) {
      const int s = (is_negative ? drawn.positives : 0) + below_before + minimum(ties_before, limit_ties);
      if (sampler.S <= kRoom)
        scratch.chosen[s] = listed(j);
      else
        sampler.chosen[image * sampler.S + s] = listed(j);
    }
#pragma unroll
    for (int f = 0; f < 4; ++f) seen[f] += int(total >> 16 * f & 0xffff);
  }
  __syncthreads();  // all are chosen
}

// Draws an image's sample. The sampler is a __grid_constant__, whose likely[guess] needs no copy of it.
__device__ __forceinline__ Drawn draw(const DeviceSampler& sampler, int64_t image, DrawScratch& scratch) {
  const int cap = FF_MUTANT(sample_positive_cap, minimum(sampler.max_positive, sampler.S), sampler.S);
  Listed list;
  Drawn drawn;
  int guess = 0;
  for (;; ++guess) {
    list = list_bits(sampler, image, guess, scratch);
    drawn.positives = minimum(list.positives, cap);
    const int room = sampler.S - drawn.positives;
    drawn.negatives = minimum(list.negatives, room);
    if (FF_MUTANT(sample_likely, list.negatives >= room, true) || sampler.likely[guess] == kAllLikely) break;
  }
  pick(sampler, image, list, drawn, sampler.likely[guess], scratch);
  return drawn;
}

// Of an image, a thread of so many a candidate.
inline int64_t chunks_of(int64_t candidates, int threads) { return blocks_for(candidates, threads); }

// Cuts the sampler's arrays. capacity: candidates an image; threads: of the blocks that label; guesses: whether to look
// at likely keys first.
inline DeviceSampler take_sampler(WorkspaceArena& arena, int64_t B, int64_t capacity, int threads,
                                  const SampleOptions& options, bool guesses) {
  DeviceSampler sampler = {};
  sampler.rng = options.rng;
  sampler.stream = options.stream_id;
  sampler.M = capacity;
  sampler.words = chunks_of(capacity, threads) * (threads / kWarp);
  sampler.S = int32_t(options.batch_size);
  sampler.max_positive = int32_t(options.max_positive());
  // As if three quarters were negatives, then as if an eighth were.
  const int64_t guessed[] = {capacity - capacity / 4, capacity / 8};
  for (int guess = 0; guess < kGuesses; ++guess)
    sampler.likely[guess] = guesses && guess + 1 < kGuesses ? likely_key(sampler.S, guessed[guess]) : kAllLikely;
  sampler.step = B * sampler.words;
  sampler.bitmaps = arena.take<unsigned>((1 + kGuesses) * sampler.step);
  sampler.listed = arena.take<unsigned>(B * capacity);
  sampler.keys = arena.take<unsigned>(B * capacity);
  sampler.chosen = arena.take<unsigned>(options.batch_size > kRoom ? B * options.batch_size : 0);
  return sampler;
}

inline Status check_images(int64_t B) {
  return B <= 65535 ? kOk : invalid("%lld images given, at most 65535 are supported", (long long)B);
}

}  // namespace frcnn_fast::anchor_target
