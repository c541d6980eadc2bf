// The exact sample of an image's labelled candidates, drawn by the last block of the image that labels them.
//
// Every block leaves bitmaps: positives, negatives, and those negatives whose key is likely to win. The last one lists
// the set bits in order, finds the key that parts the winners from the rest by a radix select of four digits, and
// writes the winners as they come, ascending. Where too few negatives were likely (hardly ever), it lists them all.
//
// No launch needs zeroed memory but for the tickets: the launch before sets them, or a fill.
#pragma once
#include "../common/workspace.h"
#include "overlap.cuh"

namespace frcnn_fast::anchor_target {

constexpr int kWordsAChunk = kThreads / kWarp;  // of a bitmap; a chunk: kThreads candidates
constexpr uint32_t kAllLikely = 0xffffffffu;

struct DeviceSampler {
  const int64_t* rng;
  int64_t stream;
  int64_t M;      // candidates an image
  int64_t words;  // of a bitmap: whole chunks
  int32_t S, max_positive;
  unsigned *positive, *negative, *likely;  // [B, words]
  unsigned* tickets;                       // [B], 0 before: blocks that are done
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
  int64_t parts[kWarps];
  int digit, before;
  bool is_last;
};

// The key up to which negatives are likely, in every thread, from how many there are, counted in parts. Every thread of
// the block calls.
__device__ __forceinline__ uint32_t likely_of(const DeviceSampler& sampler, const int64_t* negatives, int64_t parts,
                                              SelectScratch& scratch) {
  int64_t mine = 0;
  for (int64_t p = threadIdx.x; p < parts; p += kThreads) mine += negatives[p];
  return likely_key(sampler.S, block_reduce(mine, Plus(), scratch.parts));
}

// Notes the label of the thread's candidate of a chunk. likely: the key up to which negatives are likely. Whole warps
// call.
__device__ __forceinline__ void note(const DeviceSampler& sampler, int64_t image, int64_t chunk, int8_t label,
                                     uint32_t likely) {
  const bool is_negative = label == kNegative;
  bool is_likely = is_negative;
  if (is_negative && likely != kAllLikely) is_likely = sampler.key(image, chunk * kThreads + threadIdx.x) <= likely;
  const unsigned positive = __ballot_sync(kFullMask, label == kPositive);
  const unsigned negative = __ballot_sync(kFullMask, is_negative), is_listed = __ballot_sync(kFullMask, is_likely);
  if (lane_id()) return;
  const int64_t word = image * sampler.words + chunk * kWordsAChunk + warp_id();
  sampler.positive[word] = positive;
  sampler.negative[word] = negative;
  sampler.likely[word] = is_listed;
}

// Every thread of the block calls when its chunks are noted. True in every thread of the block that finishes its image:
// all of the image's bitmaps are then to be seen (by __ldcg).
__device__ __forceinline__ bool is_last_block(const DeviceSampler& sampler, int64_t image, SelectScratch& scratch) {
  __threadfence();  // the words before the ticket
  __syncthreads();
  if (threadIdx.x == 0) scratch.is_last = atomicAdd(sampler.tickets + image, 1u) == gridDim.x - 1;
  __syncthreads();
  if (scratch.is_last) __threadfence();  // the ticket before what the others wrote
  return scratch.is_last;
}

// Lists the set bits of an image's bitmap, ascending, with their keys; how many there are. A thread owns a run of
// words, and reads it twice, four at a time: to count them, and to list them. In step on return.
__device__ __forceinline__ int list_bits(const DeviceSampler& sampler, int64_t image, const unsigned* bitmap,
                                         SelectScratch& scratch) {
  const uint4* words = reinterpret_cast<const uint4*>(bitmap + image * sampler.words);
  const int64_t quads = sampler.words / 4, each = (quads + kThreads - 1) / kThreads;
  const int64_t begin = minimum(quads, each * threadIdx.x), end = minimum(quads, begin + each);
  int count = 0;
#pragma unroll 4
  for (int64_t q = begin; q < end; ++q) {
    const uint4 four = __ldcg(words + q);
    count += __popc(four.x) + __popc(four.y) + __popc(four.z) + __popc(four.w);
  }
  int total;
  int64_t place = image * sampler.M + block_exclusive_sum(count, scratch.sums, &total);
  for (int64_t q = begin; q < end; ++q) {
    const uint4 four = __ldcg(words + q);
    const unsigned part[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
    for (int w = 0; w < 4; ++w)
      for (unsigned bits = part[w]; bits; bits &= bits - 1, ++place) {
        const unsigned index = (unsigned(q) * 4 + w) * kWarp + unsigned(__ffs(int(bits)) - 1);
        sampler.list[place] = index;
        sampler.keys[place] = sampler.key(image, index);
      }
  }
  __syncthreads();
  return total;
}

// Writes the k smallest keys' candidates of the n listed (k <= n), ties by index, to chosen[first...], ascending.
__device__ __forceinline__ void pick(const DeviceSampler& sampler, int64_t image, int n, int k, int first,
                                     SelectScratch& scratch) {
  const unsigned *list = sampler.list + image * sampler.M, *keys = sampler.keys + image * sampler.M;
  unsigned* chosen = sampler.chosen + image * sampler.S + first;
  if (n == k) {  // as a rule the positives: there are few
    for (int j = int(threadIdx.x); j < n; j += kThreads) chosen[j] = list[j];
    return;
  }
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
      chosen[below_seen + (before & 0xffff) + minimum(ties_before, ties)] = list[j];
    below_seen += total & 0xffff;
    ties_seen += total >> 16;
  }
}

// How many positives and negatives were drawn; they are in chosen, positives first, for the whole block to see.
struct Drawn {
  int positives, negatives;
};
__device__ __forceinline__ Drawn draw(const DeviceSampler& sampler, int64_t image, uint32_t likely,
                                      SelectScratch& scratch) {
  Drawn drawn;
  const int positives = list_bits(sampler, image, sampler.positive, scratch);
  const int cap = FF_MUTANT(sample_positive_cap, minimum(sampler.max_positive, sampler.S), sampler.S);
  drawn.positives = minimum(positives, cap);
  if (drawn.positives > 0) pick(sampler, image, positives, drawn.positives, 0, scratch);
  const int room = sampler.S - drawn.positives;
  __syncthreads();  // the list was read
  int negatives = list_bits(sampler, image, sampler.likely, scratch);
  if (FF_MUTANT(sample_likely, negatives < room, false) && likely != kAllLikely) {
    __syncthreads();
    negatives = list_bits(sampler, image, sampler.negative, scratch);
  }
  drawn.negatives = minimum(negatives, room);
  if (drawn.negatives > 0) pick(sampler, image, negatives, drawn.negatives, drawn.positives, scratch);
  __syncthreads();
  return drawn;
}

// Chunks of an image: at least one, so that there is a block, which draws.
inline int64_t chunks_of(int64_t candidates) { return candidates ? blocks_for(candidates, kThreads) : 1; }

// Cuts the sampler's arrays, but for the tickets. capacity: candidates an image.
inline DeviceSampler take_sampler(WorkspaceArena& arena, int64_t B, int64_t capacity, const SampleOptions& options) {
  DeviceSampler sampler = {};
  sampler.rng = options.rng;
  sampler.stream = options.stream_id;
  sampler.M = capacity;
  sampler.words = chunks_of(capacity) * kWordsAChunk;
  sampler.S = int32_t(options.batch_size);
  sampler.max_positive = int32_t(options.max_positive());
  sampler.positive = arena.take<unsigned>(B * sampler.words);
  sampler.negative = arena.take<unsigned>(B * sampler.words);
  sampler.likely = arena.take<unsigned>(B * sampler.words);
  sampler.list = arena.take<unsigned>(B * capacity);
  sampler.keys = arena.take<unsigned>(B * capacity);
  sampler.chosen = arena.take<unsigned>(B * options.batch_size);
  return sampler;
}

// Blocks of an image that take every so many-th of its chunks, and leave each its part of what is counted. Every block
// of the next launch reads all parts: so as many as keep a large device busy, and no more.
#if defined(FF_TEST_BUILD)
constexpr int64_t kMostShares = 2;  // small cases have more chunks than blocks too
#else
constexpr int64_t kMostShares = 256;
#endif
inline int64_t shares_of(int64_t candidates) { return minimum(kMostShares, chunks_of(candidates)); }
inline Status check_images(int64_t B) {
  return B <= 65535 ? kOk : invalid("%lld images given, at most 65535 are supported", (long long)B);
}

}  // namespace frcnn_fast::anchor_target
