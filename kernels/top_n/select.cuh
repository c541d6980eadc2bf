// Which scores of a segment are taken, and where each goes: radix select, then compaction in index order.
//
// A cluster of blocks works on a segment (one block where there are no clusters): each block on a contiguous slice,
// each warp on a contiguous piece of the slice, so that positions come from counts alone, whatever the timing.
#pragma once
#include "../common/anchors.h"
#include "../common/launch.cuh"
#include "top_n.h"

namespace frcnn_fast {

constexpr int kSelectThreads = 1024, kSelectWarps = kSelectThreads / kWarp;
constexpr int kSelectBits = 11, kSelectBins = 1 << kSelectBits;
constexpr int kSelectBatch = 4;  // loads in flight a thread
constexpr int kAllTies = 0x7fffffff;

// Segment b * levels + l is columns starts[l] up to starts[l + 1] of row b.
template <class T>
struct ScoreSegments {
  const T* scores;       // [B, A]
  const uint8_t* valid;  // [B, A] or null
  int64_t A;
  int32_t levels;
  int32_t starts[kMaxLevels + 1];

  __device__ __forceinline__ const T* row(int segment) const { return scores + segment / levels * A; }
};

// This block's part of a segment.
template <class T>
class SegmentSlice {
 public:
  using Key = RankKey<Compute<T>>;

  __device__ SegmentSlice(const ScoreSegments<T>& segments, int segment)
      : scores_(segments.row(segment)),
        valid_(segments.valid ? segments.valid + segment / segments.levels * segments.A : nullptr) {
    const int level = segment % segments.levels;
    const int first = segments.starts[level], size = segments.starts[level + 1] - first;
    const int share = (size + int(cluster_size()) - 1) / int(cluster_size());
    begin = first + min(size, share * int(cluster_rank()));
    end = first + min(size, share * (int(cluster_rank()) + 1));
  }
  // Of column, or kNoRank from `limit` on.
  __device__ __forceinline__ Key key(int column, int limit) const {
    if (column >= limit || (valid_ && !valid_[column])) return kNoRank<Key>;
    return rank_key(load(scores_ + column));
  }

  int begin, end;

 private:
  const T* scores_;
  const uint8_t* valid_;
};

// What is taken: the keys before `key`, and the first `ties` equal to it; total in all.
template <class Key>
struct Cut {
  Key key;
  int ties;
  int total;
};

// The cut behind the best n >= 1. Every block of the cluster comes to the same. histogram: shared [kSelectBins];
// scratch: shared [kSelectWarps].
template <class T, class Key = RankKey<Compute<T>>>
__device__ Cut<Key> find_cut(const SegmentSlice<T>& slice, int n, uint32_t* histogram, uint32_t* scratch) {
  FF_SHARED(uint32_t, found, [3]);  // a bin, the count before it, its count
  constexpr int kKeyBits = 8 * sizeof(Key), kOwn = kSelectBins / kSelectThreads;
  Key prefix = 0;  // the n-th key's bits from `high` up
  uint32_t need = uint32_t(n);
  for (int high = kKeyBits; high > 0;) {
    const int width = min(kSelectBits, high), shift = high - width;
    for (int bin = int(threadIdx.x); bin < kSelectBins; bin += kSelectThreads) histogram[bin] = 0;
    __syncthreads();  // cleared
    for (int first = slice.begin + int(threadIdx.x); first < slice.end; first += kSelectBatch * kSelectThreads) {
      Key keys[kSelectBatch];
#pragma unroll
      for (int j = 0; j < kSelectBatch; ++j) keys[j] = slice.key(first + j * kSelectThreads, slice.end);
#pragma unroll
      for (int j = 0; j < kSelectBatch; ++j) {
        const bool counts = high == kKeyBits ? keys[j] != kNoRank<Key> : (keys[j] >> high) == prefix;
        if (counts) atomicAdd(&histogram[uint32_t(keys[j] >> shift) & ((1u << width) - 1)], 1u);
      }
    }
    cluster_sync();  // every slice is counted: all blocks' histograms may be read
    uint32_t own[kOwn] = {}, sum = 0, total;
    for (unsigned rank = 0; rank < cluster_size(); ++rank) {
      const uint32_t* const theirs = cluster_map(histogram, rank);
      for (int j = 0; j < kOwn; ++j) own[j] += theirs[kOwn * int(threadIdx.x) + j];
    }
    for (int j = 0; j < kOwn; ++j) sum += own[j];
    uint32_t before = block_exclusive_sum(sum, scratch, &total);
    for (int j = 0; j < kOwn; ++j) {
      if (before < need && FF_MUTANT(top_n_boundary, need <= before + own[j], need < before + own[j])) {
        found[0] = kOwn * threadIdx.x + uint32_t(j);
        found[1] = before;
        found[2] = own[j];
      }
      before += own[j];
    }
    cluster_sync();                                          // found is written; no block reads this histogram any more
    if (total < need) return {kNoRank<Key>, 0, int(total)};  // the first round only: fewer than n in all
    prefix = Key(prefix << width) | Key(found[0]);
    need -= found[1];
    high = shift;
    if (need == found[2]) return {Key(prefix << shift) | ((Key(1) << shift) - 1), kAllTies, n};
  }
  return {prefix, int(FF_MUTANT(top_n_ties, need, need - 1)), n};
}

// Calls take(position, key, index) for all that the cut takes; positions are in index order.
template <class T, class Key, class Take>
__device__ void compact(const SegmentSlice<T>& slice, const Cut<Key>& cut, const Take& take) {
  FF_SHARED(int, warp_less, [kSelectWarps]);
  FF_SHARED(int, warp_ties, [kSelectWarps]);
  FF_SHARED(int, block_less);
  FF_SHARED(int, block_ties);
  constexpr int kStep = kSelectBatch * kWarp;
  const int size = slice.end - slice.begin, share = ((size + kSelectThreads - 1) / kSelectThreads) * kWarp;
  const int begin = slice.begin + min(size, share * warp_id()), end = min(slice.end, begin + share);
  const auto load_keys = [&](int first, Key* keys) {
#pragma unroll
    for (int j = 0; j < kSelectBatch; ++j) keys[j] = slice.key(first + j * kWarp + lane_id(), end);
  };

  int less = 0, ties = 0;
  for (int first = begin; first < end; first += kStep) {
    Key keys[kSelectBatch];
    load_keys(first, keys);
#pragma unroll
    for (int j = 0; j < kSelectBatch; ++j) {
      less += __popc(__ballot_sync(kFullMask, keys[j] < cut.key));
      ties += __popc(__ballot_sync(kFullMask, keys[j] == cut.key));
    }
  }
  if (lane_id() == 0) {
    warp_less[warp_id()] = less;
    warp_ties[warp_id()] = ties;
  }
  __syncthreads();  // every warp's counts are there
  less = ties = 0;
  int all_less = 0, all_ties = 0;
  for (int w = 0; w < kSelectWarps; ++w) {
    if (w == warp_id()) {
      less = all_less;
      ties = all_ties;
    }
    all_less += warp_less[w];
    all_ties += warp_ties[w];
  }
  if (threadIdx.x == 0) {
    block_less = all_less;
    block_ties = all_ties;
  }
  cluster_sync();  // every block's counts are there
  for (unsigned rank = 0; rank < cluster_rank(); ++rank) {
    less += *cluster_map(&block_less, rank);
    ties += *cluster_map(&block_ties, rank);
  }

  for (int first = begin; first < end; first += kStep) {
    Key keys[kSelectBatch];
    load_keys(first, keys);
#pragma unroll
    for (int j = 0; j < kSelectBatch; ++j) {
      const unsigned votes_less = __ballot_sync(kFullMask, keys[j] < cut.key);
      const unsigned votes_ties = __ballot_sync(kFullMask, keys[j] == cut.key);
      const int less_before = less + __popc(votes_less & lanes_below());
      const int ties_before = ties + __popc(votes_ties & lanes_below());
      if (keys[j] < cut.key || (keys[j] == cut.key && ties_before < cut.ties))
        take(less_before + min(ties_before, cut.ties), keys[j], uint32_t(first + j * kWarp + lane_id()));
      less += __popc(votes_less);
      ties += __popc(votes_ties);
    }
  }
}

}  // namespace frcnn_fast
