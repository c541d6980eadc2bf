// Which boxes of a chunk greedy NMS keeps, given for each the earlier boxes that would suppress it. One block, a thread
// a box, a warp a word.
#pragma once
#include "../common/launch.cuh"
#include "../common/mutant.h"

namespace frcnn_fast::nms {

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

// From shared memory, where they begin at a multiple of 16 bytes, as they do in a workspace.
template <int kWords>
__device__ __forceinline__ void load_words(const unsigned* from, unsigned (&words)[kWords]) {
  if constexpr (kWords % 4 == 0) {  // all lanes read the same: a quarter of the accesses
#pragma unroll
    for (int v = 0; v < kWords; v += 4) {
      const uint4 four = reinterpret_cast<const uint4*>(from)[v / 4];
      words[v] = four.x, words[v + 1] = four.y, words[v + 2] = four.z, words[v + 3] = four.w;
    }
  } else {
#pragma unroll
    for (int v = 0; v < kWords; ++v) words[v] = from[v];
  }
}

// Thread i: whether box i is there, and the bits of the boxes before it that would suppress it, if kept: bit b of
// overlaps[v] is box 32 v + b. Returns the word of kept boxes of the thread's warp. kept: shared, 2 words a warp; on
// return either half of it has the words of all warps, for every thread to read.
//
// A box is kept if no earlier kept one suppresses it: a fixed point, which is unique because "earlier" is an order. All
// warps look for it at once, a barrier a round: each settles its word, given what the words before it are taken to
// keep. A word is final one round after those before it are, so that there are kWords + 1 rounds at most; suppressors
// of suppressors are mostly in the same word or few words away, and then it is a handful.
template <int kWords>
__device__ __forceinline__ unsigned resolve_chunk(bool alive, const unsigned (&overlaps)[kWords],
                                                  unsigned (*kept)[kWords]) {
  const int warp = warp_id();
  unsigned own[] = {0}, before[kWords];
#pragma unroll
  for (int v = 0; v < kWords; ++v) {  // a register has no run-time index
    own[0] = v == warp ? overlaps[v] : own[0];
    before[v] = v < warp ? overlaps[v] : 0u;
  }
  unsigned mine = __ballot_sync(kFullMask, alive);
  if (lane_id() == 0) kept[0][warp] = mine;
  __syncthreads();  // the first guess is there
  const bool any = mine;
  for (int round = 0;; ++round) {
    unsigned next = 0;
    if (any) {
      unsigned hits = 0, words[kWords];
      load_words(kept[round % 2], words);
#pragma unroll
      for (int v = 0; v < kWords; ++v) hits |= before[v] & words[v];
      const bool open[] = {alive && FF_MUTANT(nms_chunk_words, !hits, true)};
      next = resolve_word(open, own);
    }
    if (lane_id() == 0) kept[(round + 1) % 2][warp] = next;
    const bool changes = next != mine;
    mine = next;
    if (!__syncthreads_or(FF_MUTANT(nms_chunk_rounds, changes, false))) return mine;  // and the next guess is there
  }
}

}  // namespace frcnn_fast::nms
