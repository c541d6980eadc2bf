// Which boxes of a chunk greedy NMS keeps, given for each the earlier boxes that would suppress it. One block, a thread
// a box, a warp a word.
#pragma once
#include "../common/launch.cuh"
#include "../common/mutant.h"

namespace frcnn_fast::nms {

#if defined(FF_TEST_BUILD)
constexpr int kResolveRounds = 2;  // small cases need the slow way too
#else
constexpr int kResolveRounds = 24;
#endif

// The same within one word, by one warp: a lane has box 32 p + lane for each of the word's parts p, with the bits of
// the boxes before it in the word that would suppress it. From "all alive are kept", every round makes at least one
// more box final, in rank order: usually few rounds suffice, and as many as the word has bits always do.
template <class Word, int kParts>
__device__ __forceinline__ Word resolve_word(const bool (&alive)[kParts], const Word (&overlaps)[kParts]) {
  static_assert(8 * sizeof(Word) == 32 * kParts, "a bit for each box");
  Word kept = 0;
#pragma unroll
  for (int p = 0; p < kParts; ++p) kept |= Word(__ballot_sync(kFullMask, alive[p])) << 32 * p;
  for (;;) {
    Word next = 0;
#pragma unroll
    for (int p = 0; p < kParts; ++p)
      next |= Word(__ballot_sync(kFullMask, alive[p] && !(overlaps[p] & kept))) << 32 * p;
    if (FF_MUTANT(nms_word_rounds, next == kept, true)) return next;
    kept = next;
  }
}

// Thread i: whether box i is there, and the bits of the boxes before it that would suppress it, if kept: bit b of
// overlaps[v] is box 32 v + b. Returns the word of kept boxes of the thread's warp. kept: shared, 2 words a warp.
//
// A box is kept if no earlier kept one suppresses it: a fixed point, which is unique because "earlier" is an order. All
// boxes look for it at once, a barrier a round; a box whose chain of suppressors is d long is final after d rounds, and
// chains are short, save for boxes made to slide along. After kResolveRounds the words are settled one after the other.
template <int kWords>
__device__ unsigned resolve_chunk(bool alive, const unsigned (&overlaps)[kWords], unsigned (*kept)[kWords]) {
  const auto suppressed_by = [&](const unsigned* words, int end) {
    unsigned hits = 0;
#pragma unroll
    for (int v = 0; v < kWords; ++v) hits |= v < end ? overlaps[v] & words[v] : 0u;
    return hits != 0;
  };
  const int warp = warp_id();
  unsigned mine = __ballot_sync(kFullMask, alive);
  if (lane_id() == 0) kept[0][warp] = mine;
  __syncthreads();  // the first guess is there
  for (int round = 0; round < kResolveRounds; ++round) {
    const unsigned next = __ballot_sync(kFullMask, alive && !suppressed_by(kept[round % 2], kWords));
    if (lane_id() == 0) kept[(round + 1) % 2][warp] = next;
    const bool changes = next != mine;
    mine = next;
    if (!__syncthreads_or(FF_MUTANT(nms_chunk_rounds, changes, false))) return mine;  // and the next guess is there
  }
  unsigned own[] = {0};
#pragma unroll
  for (int v = 0; v < kWords; ++v) own[0] = v == warp ? overlaps[v] : own[0];  // a register has no run-time index
  for (int v = 0; v < kWords; ++v) {
    if (v == warp) {
      const bool open[] = {alive && FF_MUTANT(nms_chunk_words, !suppressed_by(kept[0], v), true)};
      mine = resolve_word(open, own);
      if (lane_id() == 0) kept[0][v] = mine;
    }
    __syncthreads();  // the word is settled
  }
  return mine;
}

}  // namespace frcnn_fast::nms
