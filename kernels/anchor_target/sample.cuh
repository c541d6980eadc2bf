// The exact sample of an image's labelled candidates, drawn by the last block of the image that labels them.
//
// Every block leaves bitmaps: positives, negatives, and those negatives whose key is likely to win. The last one lists
// the set bits in order, finds the key that parts the winners from the rest by a radix select of four digits, and
// writes the winners as they come, ascending. Where too few negatives were likely (hardly ever), it lists them all.
#pragma once
#include "../common/workspace.h"
#include "overlap.cuh"

namespace frcnn_fast {

struct DeviceSampler {
  const int64_t* rng;
  int64_t stream;
  int64_t M;      // candidates an image
  int64_t words;  // of a bitmap
  int32_t S, max_positive;
  unsigned *positive, *negative, *likely;  // [B, words]
  const unsigned* negatives_at_most;       // [B], or null: all are likely
  unsigned* tickets;                       // [B], 0: blocks that are done
  unsigned *list, *keys;                   // [B, M]
  unsigned* chosen;                        // [B, S]

  __device__ __forceinline__ unsigned key(int64_t image, int64_t index) const {
    return sampling_key(rng, index, image, stream);
  }
};

// In shared memory.
struct SelectScratch {
  int histogram[256];
  int sums[kWarps];
  int digit, before;
  bool is_last;
};

// Notes the label of candidate i = blockIdx.x * kThreads + threadIdx.x. Every thread of the block calls. True in every
// thread of the block that finishes its image: all of the image's bitmaps are then to be seen (by __ldcg).
__device__ __forceinline__ bool publish(const DeviceSampler& sampler, int64_t image, int64_t i, int8_t label,
                                        SelectScratch& scratch) {
  const bool is_negative = label == kNegative;
  bool is_likely = is_negative;
  if (is_negative && sampler.negatives_at_most)
    is_likely = sampler.key(image, i) <= likely_key(sampler.S, sampler.negatives_at_most[image]);
  const unsigned positive = __ballot_sync(kFullMask, label == kPositive);
  const unsigned negative = __ballot_sync(kFullMask, is_negative), likely = __ballot_sync(kFullMask, is_likely);
  const int64_t word = i / kWarp;
  if (lane_id() == 0 && word < sampler.words) {
    sampler.positive[image * sampler.words + word] = positive;
    sampler.negative[image * sampler.words + word] = negative;
    sampler.likely[image * sampler.words + word] = likely;
  }
  __threadfence();  // the words before the ticket
  __syncthreads();
  if (threadIdx.x == 0) scratch.is_last = atomicAdd(sampler.tickets + image, 1u) == gridDim.x - 1;
  __syncthreads();
  if (scratch.is_last) __threadfence();  // the ticket before what the others wrote
  return scratch.is_last;
}

// Each thread owns a run of words; how many bits are set in it.
__device__ __forceinline__ int count_bits(const unsigned* words, int64_t begin, int64_t end) {
  int count = 0;
  for (int64_t w = begin; w < end; ++w) count += __popc(__ldcg(words + w));
  return count;
}

// Lists the set bits of an image's bitmap, ascending, with their keys; how many there are. In step on return.
__device__ __forceinline__ int list_bits(const DeviceSampler& sampler, int64_t image, const unsigned* bitmap,
                                         SelectScratch& scratch) {
  const unsigned* words = bitmap + image * sampler.words;
  const int64_t each = (sampler.words + kThreads - 1) / kThreads;
  const int64_t begin = minimum(sampler.words, each * threadIdx.x), end = minimum(sampler.words, begin + each);
  int total;
  int64_t place = image * sampler.M + block_exclusive_sum(count_bits(words, begin, end), scratch.sums, &total);
  for (int64_t w = begin; w < end; ++w)
    for (unsigned bits = __ldcg(words + w); bits; bits &= bits - 1, ++place) {
      const unsigned index = unsigned(w) * kWarp + unsigned(__ffs(int(bits)) - 1);
      sampler.list[place] = index;
      sampler.keys[place] = sampler.key(image, index);
    }
  __syncthreads();
  return total;
}

// Of n listed candidates the k <= n with the smallest keys, ties by index, to chosen[first...], ascending.
__device__ __forceinline__ void pick(const DeviceSampler& sampler, int64_t image, int n, int k, int first,
                                     SelectScratch& scratch) {
  const unsigned *list = sampler.list + image * sampler.M, *keys = sampler.keys + image * sampler.M;
  // Keys below `limit` win, and the first `ties` of those that equal it.
  unsigned limit = 0;
  int ties = k;
  for (int shift = 24; shift >= 0; shift -= 8) {
    scratch.histogram[threadIdx.x] = 0;
    __syncthreads();
    for (int j = int(threadIdx.x); j < n; j += kThreads)
      if (uint64_t(keys[j]) >> (shift + 8) == uint64_t(limit) >> (shift + 8))
        atomicAdd(&scratch.histogram[keys[j] >> shift & 255u], 1);
    __syncthreads();
    const int here = scratch.histogram[threadIdx.x];
    int total;
    const int before = block_exclusive_sum(here, scratch.sums, &total);
    if (before < ties && ties <= before + here) {
      scratch.digit = int(threadIdx.x);
      scratch.before = before;
    }
    __syncthreads();
    limit |= unsigned(scratch.digit) << shift;
    ties -= scratch.before;
  }

  int below_seen = 0, ties_seen = 0;
  for (int start = 0; start < n; start += kThreads) {
    const int j = start + int(threadIdx.x);
    const bool below = j < n && FF_MUTANT(sample_limit, keys[j] < limit, keys[j] <= limit);
    const bool tied = j < n && keys[j] == limit;
    int total;
    const int before = block_exclusive_sum(int(below) | int(tied) << 16, scratch.sums, &total);
    const int ties_before = ties_seen + (before >> 16);
    if (below || (tied && ties_before < ties))
      sampler.chosen[image * sampler.S + first + below_seen + (before & 0xffff) + minimum(ties_before, ties)] = list[j];
    below_seen += total & 0xffff;
    ties_seen += total >> 16;
  }
}

// How many positives and negatives were drawn; they are in chosen, positives first, for the whole block to see.
struct Drawn {
  int positives, negatives;
};
__device__ __forceinline__ Drawn draw(const DeviceSampler& sampler, int64_t image, SelectScratch& scratch) {
  Drawn drawn;
  const int positives = list_bits(sampler, image, sampler.positive, scratch);
  const int cap = FF_MUTANT(sample_positive_cap, minimum(sampler.max_positive, sampler.S), sampler.S);
  drawn.positives = minimum(positives, cap);
  if (drawn.positives > 0) pick(sampler, image, positives, drawn.positives, 0, scratch);
  const int room = sampler.S - drawn.positives;
  __syncthreads();  // the list was read
  int negatives = list_bits(sampler, image, sampler.likely, scratch);
  if (FF_MUTANT(sample_likely, negatives < room, false) && sampler.negatives_at_most) {
    __syncthreads();
    negatives = list_bits(sampler, image, sampler.negative, scratch);
  }
  drawn.negatives = minimum(negatives, room);
  if (drawn.negatives > 0) pick(sampler, image, negatives, drawn.negatives, drawn.positives, scratch);
  __syncthreads();
  return drawn;
}

// Cuts the sampler's arrays, but for the tickets. capacity: candidates an image.
inline DeviceSampler carve_sampler(Carver& carver, int64_t B, int64_t capacity, const SampleOptions& options) {
  DeviceSampler sampler = {};
  sampler.rng = options.rng;
  sampler.stream = options.stream;
  sampler.M = capacity;
  sampler.words = (capacity + kWarp - 1) / kWarp;
  sampler.S = int32_t(options.batch_size);
  sampler.max_positive = int32_t(options.max_positive < options.batch_size ? options.max_positive : options.batch_size);
  sampler.positive = carver.take<unsigned>(B * sampler.words);
  sampler.negative = carver.take<unsigned>(B * sampler.words);
  sampler.likely = carver.take<unsigned>(B * sampler.words);
  sampler.list = carver.take<unsigned>(B * capacity);
  sampler.keys = carver.take<unsigned>(B * capacity);
  sampler.chosen = carver.take<unsigned>(B * options.batch_size);
  return sampler;
}

// Blocks of an image: at least one, which draws.
inline dim3 image_grid(int64_t candidates, int64_t B) {
  return dim3(candidates ? blocks_for(candidates, kThreads) : 1u, unsigned(B));
}
inline Status check_images(int64_t B) {
  return B <= 65535 ? kOk : invalid("%lld images given, at most 65535 are supported", (long long)B);
}

}  // namespace frcnn_fast
