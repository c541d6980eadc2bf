// The best proposals of an image over its levels.
#pragma once
#include "../common/anchors.h"
#include "../common/launch.cuh"
#include "../common/mutant.h"
#include "../top_n/top_n.h"

namespace frcnn_fast::proposals {
using namespace top_n;

constexpr int kMergeThreads = 256;

// Thread (b, l, i) places the i-th kept box of level l: i boxes of its own level come first, and of every other level
// those with a higher score, or an equal one in a lower level. The binary searches in the other levels go in step, so
// that their loads are in flight together. Threads beyond the last box write the padding.
//
// Kept tells of segment s = b * L + l: count(s), and score(s, i), index(s, i), box(s, i) of its i-th kept box, best
// first. k: the most that a level can have, at least 1.
template <class T, class Kept, class U = Compute<T>>
__global__ void __launch_bounds__(kMergeThreads)
    proposals_merge_kernel(const __grid_constant__ Kept kept, int L, int k, int64_t P, U* __restrict__ out_boxes,
                           T* __restrict__ out_scores, int64_t* __restrict__ out_indices,
                           int64_t* __restrict__ out_counts, unsigned blocks /* of an image */) {
  wait_for_launch_before();
  const int64_t b = blockIdx.x / blocks, thread = int64_t(blockIdx.x % blocks) * kMergeThreads + threadIdx.x;
  const int64_t first = b * L;
  int counts[kMaxLevels], total = 0;
#pragma unroll
  for (int l = 0; l < kMaxLevels; ++l) total += counts[l] = l < L ? kept.count(first + l) : 0;
  const int64_t count = total < P ? total : P;
  if (thread == 0) out_counts[b] = count;
  if (thread >= count && thread < P) {
    const int64_t row = b * P + thread;
    store_box(out_boxes + 4 * row, Box<U>{0, 0, 0, 0});
    store(out_scores + row, U(0));
    out_indices[row] = -1;
  }
  if (thread >= int64_t(L) * k) return;
  const int level = int(thread) / k, i = int(thread) % k;
  if (i >= kept.count(first + level)) return;

  const U score = load(kept.score(first + level, i));
  int before[kMaxLevels] = {};
  int step = 1;
  while (2 * step <= k) step *= 2;
  for (; step > 0; step /= 2) {
    U theirs[kMaxLevels];
#pragma unroll
    for (int l = 0; l < kMaxLevels; ++l)
      if (before[l] + step <= counts[l]) theirs[l] = load(kept.score(first + l, before[l] + step - 1));
#pragma unroll
    for (int l = 0; l < kMaxLevels; ++l)
      if (FF_MUTANT(proposals_merge_end, before[l] + step <= counts[l], before[l] + step < counts[l]) &&
          comes_before(theirs[l], l, score, level))
        before[l] += step;
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
