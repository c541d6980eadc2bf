// The best proposals of an image over its levels.
#pragma once
#include "../common/anchors.h"
#include "../common/launch.cuh"
#include "../common/mutant.h"
#include "../top_n/top_n.h"

namespace frcnn_fast::proposals {
using namespace top_n;

constexpr int kMergeThreads = 512;

// Keys of the largest lists that a block takes into shared memory; static, so that a launch asks for nothing.
#if defined(FF_TEST_BUILD)
constexpr int kMergeShared = 1 << 8;
#else
constexpr int kMergeShared = 40 << 10;
#endif

// A power of two, above k.
inline int merge_room(int64_t k) {
  int room = 1;
  while (room <= k) room *= 2;
  return room;
}

// Thread (b, l, i) places the i-th kept box of level l: i boxes of its own level come first, and of every other level
// those with a higher score, or an equal one in a lower level. The binary searches in the other levels go in step, so
// that their loads are in flight together; where kShared, a block has all scores' keys in shared memory for them, each
// level's in the first of `room` places, with kNoRank behind. Threads beyond the last box write the padding.
//
// Kept tells of segment s = b * L + l: count(s), and score(s, i), index(s, i), box(s, i) of its i-th kept box, best
// first. k: the most that a level can have, at least 1.
template <class T, class Kept, bool kShared, class U = Compute<T>>
__global__ void __launch_bounds__(kMergeThreads)
    proposals_merge_kernel(const __grid_constant__ Kept kept, int L, int k, int room, int64_t P,
                           U* __restrict__ out_boxes, T* __restrict__ out_scores, int64_t* __restrict__ out_indices,
                           int64_t* __restrict__ out_counts, unsigned blocks /* of an image */) {
  wait_for_launch_before();
  const int64_t b = blockIdx.x / blocks, thread = int64_t(blockIdx.x % blocks) * kMergeThreads + threadIdx.x;
  const int64_t first = b * L;
  int counts[kMaxLevels] = {}, total = 0;
  if (L > 0) {
#pragma unroll
    for (int l = 0; l < kMaxLevels; ++l) counts[l] = kept.count(first + min(l, L - 1));
  }
#pragma unroll
  for (int l = 0; l < kMaxLevels; ++l) total += counts[l] = l < L ? counts[l] : 0;
  const int64_t count = total < P ? total : P;
  if (thread == 0) out_counts[b] = count;
  if (thread >= count && thread < P) {
    const int64_t row = b * P + thread;
    store_box(out_boxes + 4 * row, Box<U>{0, 0, 0, 0});
    store(out_scores + row, U(0));
    out_indices[row] = -1;
  }
  using Key = RankKey<U>;
  FF_SHARED(Key, keys, [kShared ? kMergeShared / int(sizeof(Key)) : 1]);
  if constexpr (kShared) {
    for (int j = int(threadIdx.x); j < room; j += kMergeThreads) {
      T scores[kMaxLevels] = {};
#pragma unroll
      for (int l = 0; l < kMaxLevels; ++l)
        if (j < counts[l]) scores[l] = *kept.score(first + l, j);
#pragma unroll
      for (int l = 0; l < kMaxLevels; ++l)
        if (l < L)
          keys[l * room + j] = FF_MUTANT(proposals_merge_end, j < counts[l], j + 1 < counts[l])
                                   ? rank_key(load(&scores[l]))
                                   : kNoRank<Key>;
    }
    __syncthreads();  // the keys are here
  }
  if (thread >= int64_t(L) * k) return;
  const int level = int(thread) / k, i = int(thread) % k;
  int own = 0;
#pragma unroll
  for (int l = 0; l < kMaxLevels; ++l) own = l == level ? counts[l] : own;
  if (i >= own) return;

  int before[kMaxLevels] = {};
  if constexpr (kShared) {
    const Key key = keys[level * room + i];
    for (int step = room / 2; step > 0; step /= 2) {
#pragma unroll
      for (int l = 0; l < kMaxLevels; ++l) {
        if (l >= L) break;
        // What wins a tie comes before an equal one, that is before the next key.
        if (keys[l * room + before[l] + step - 1] < key + Key(wins_tie(l, level))) before[l] += step;
      }
    }
  } else {
    const U score = load(kept.score(first + level, i));
    for (int step = room / 2; step > 0; step /= 2) {
      U theirs[kMaxLevels];
#pragma unroll
      for (int l = 0; l < kMaxLevels; ++l) {  // without a branch: where a level ends, its own score is loaded once more
        const bool there = before[l] + step <= counts[l];
        theirs[l] = load(kept.score(first + (there ? l : level), there ? before[l] + step - 1 : i));
      }
#pragma unroll
      for (int l = 0; l < kMaxLevels; ++l)
        if (FF_MUTANT(proposals_merge_step, before[l] + step <= counts[l], before[l] + step < counts[l]) &&
            comes_before(theirs[l], l, score, level))
          before[l] += step;
    }
  }
  int64_t place = i;
#pragma unroll
  for (int l = 0; l < kMaxLevels; ++l) place += l == level ? 0 : before[l];
  if (place >= P) return;
  const int64_t row = b * P + place;
  store_box(out_boxes + 4 * row, kept.box(first + level, i));
  out_scores[row] = *kept.score(first + level, i);
  out_indices[row] = kept.index(first + level, i);
}

}  // namespace frcnn_fast::proposals
