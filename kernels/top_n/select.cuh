// Which scores of a segment are taken, and where each goes: radix select, then compaction in index order.
//
// A cluster of blocks works on a segment (one block where there are no clusters): each block on a contiguous slice,
// each warp on a contiguous piece of the slice, so that positions come from counts alone, whatever the timing.
#pragma once
#include "../common/launch.cuh"
#include "top_n.h"

namespace frcnn_fast::top_n {

constexpr int kSelectThreads = 1024, kSelectWarps = kSelectThreads / kWarp;
constexpr int kSelectBits = 11, kSelectBins = 1 << kSelectBits;
// Loads in flight a thread: as many as registers allow. Slice: what is loaded from.
template <int kThreads, class Slice>
constexpr int kSelectBatch = kThreads >= 1024 ? 2 : 32 / int(sizeof(typename Slice::Key));
constexpr int kAllTies = 0x7fffffff;

// Segment b * levels + l is level l of image b: columns starts[l] up to starts[l + 1] of its A.
template <class T>
struct ScoreSegments {
  AnchorMaps<T> scores;
  const uint8_t* valid;  // [B, A] or null
  int64_t A;
  int32_t levels;

  __device__ __forceinline__ const T* at(int64_t segment, int64_t column) const {
    return scores.at(segment / levels, int(segment % levels), column);
  }
};

template <class T>
ScoreSegments<T> make_segments(const MapLayout* levels, int64_t L, const uint8_t* valid) {
  const AnchorMaps<T> scores = make_anchor_maps<T>(levels, L);
  return {scores, valid, scores.starts[L], int32_t(L)};
}

// This block's part of a segment. Map: an AnchorMap or AnchorRow.
template <class T, class Map = AnchorMap<T>>
class SegmentSlice {
 public:
  using Key = RankKey<Compute<T>>;

  __device__ SegmentSlice(const ScoreSegments<T>& segments, int segment)
      : SegmentSlice(segments.scores.maps[segment % segments.levels], segment / segments.levels,
                     segments.valid ? segments.valid + segment / segments.levels * segments.A : nullptr,
                     int(segments.scores.starts[segment % segments.levels]),
                     int(segments.scores.starts[segment % segments.levels + 1])) {}
  // Of columns `first` up to `last` of an image, which are the map's. valid: as in ScoreSegments, of the image.
  __device__ SegmentSlice(const Map& map, int64_t image, const uint8_t* valid, int first, int last)
      : map_(map), scores_(map.data + image * map.image_stride), valid_(valid), first_(first) {
    const int size = last - first, share = (size + int(cluster_size()) - 1) / int(cluster_size());
    begin = first + min(size, share * int(cluster_rank()));
    end = first + min(size, share * (int(cluster_rank()) + 1));
  }
  // keys[j]: of column first + j * stride, or kNoRank from `limit` on, which is beyond this block's `begin`. All are
  // loaded before the first is looked at.
  template <int kBatch>
  __device__ __forceinline__ void keys(int first, int stride, int limit, Key (&keys)[kBatch]) const {
    T scores[kBatch] = {};
    const int left = limit - first;
    if (map_.flat()) {  // one address for all
      const T* const from = scores_ + (first - first_);
#pragma unroll
      for (int j = 0; j < kBatch; ++j)
        if (j * stride < left) scores[j] = from[j * stride];
    } else {
#pragma unroll
      for (int j = 0; j < kBatch; ++j)
        scores[j] = scores_[map_.offset(uint32_t(min(first + j * stride, limit - 1) - first_))];
    }
#pragma unroll
    for (int j = 0; j < kBatch; ++j) keys[j] = j * stride < left ? rank_key(load(&scores[j])) : kNoRank<Key>;
    if (valid_) {
      uint8_t valid[kBatch];
#pragma unroll
      for (int j = 0; j < kBatch; ++j) valid[j] = valid_[min(first + j * stride, limit - 1)];
#pragma unroll
      for (int j = 0; j < kBatch; ++j)
        if (!valid[j]) keys[j] = kNoRank<Key>;
    }
  }

  int begin, end;

 private:
  const Map& map_;         // a kernel's argument
  const T* const scores_;  // the image's first
  const uint8_t* const valid_;
  const int first_;
};

// What is taken: the keys before `key`, and the first `ties` equal to it; total in all.
template <class Key>
struct Cut {
  Key key;
  int ties;
  int total;
};

// What the blocks of the cluster counted in counts [kBins] each, added up in the totals [kBins] of every block; before
// [kBins] or null: what the blocks of lower rank counted. All shared. Each block adds its share of the bins: a thread
// reads one block's count of a bin, neighbouring threads the other blocks', and each hands the sums to a block. All
// counts are read before the first is added. kBlocks: the cluster's size; 0: known at run time.
template <int kThreads, int kBins, int kBlocks>
__device__ __forceinline__ void sum_over_cluster(uint32_t* counts, uint32_t* totals, uint32_t* before) {
  constexpr int kSums = kBins / kThreads;
  static_assert(kBins % kThreads == 0, "every thread of a warp takes part in each sum");
  const int size = kBlocks ? kBlocks : int(cluster_size()), other = int(threadIdx.x) % size;
  const int first = int(cluster_rank()) * (kBins / size) + int(threadIdx.x) / size, step = kThreads / size;
  cluster_sync();  // every block has counted
  uint32_t own[kSums];
#pragma unroll
  for (int j = 0; j < kSums; ++j) own[j] = cluster_map(counts, unsigned(other))[first + j * step];
#pragma unroll
  for (int j = 0; j < kSums; ++j) {
    uint32_t through = own[j];
    for (int d = 1; d < size; d *= 2) {
      const uint32_t below = __shfl_up_sync(kFullMask, through, d);
      if (other >= d) through += below;
    }
    const uint32_t total = __shfl_sync(kFullMask, through, lane_id() | (size - 1));
    cluster_map(totals, unsigned(other))[first + j * step] = total;
    if (before) cluster_map(before, unsigned(other))[first + j * step] = through - own[j];
  }
  cluster_sync();  // the sums are complete, and the counts may be overwritten
}

// A cut behind the best n >= 1 at least, and `room` >= n at most: the less room, the more passes over the slice. Every
// block of the cluster comes to the same. A slice has begin, end and keys(), as SegmentSlice does. Shared
// memory: counts, totals [kSelectBins], scratch [a warp each]; starts [kSelectBins + 1] or null: on return, in every
// block, how many keys of the cluster have a smaller first digit (the highest kSelectBits bits).
template <class Key, int kThreads, int kBlocks, class Slice>
__device__ __forceinline__ Cut<Key> find_cut(const Slice& slice, int n, int room, uint32_t* counts, uint32_t* totals,
                                             uint32_t* scratch, uint32_t* starts) {
  FF_SHARED(uint32_t, found, [3]);  // a bin, the count before it, its count
  constexpr int kKeyBits = 8 * sizeof(Key), kOwn = kSelectBins / kThreads, kBatch = kSelectBatch<kThreads, Slice>;
  Key prefix = 0;  // the n-th key's bits from `high` up
  uint32_t need = uint32_t(n);
  for (int high = kKeyBits; high > 0;) {
    const int width = min(kSelectBits, high), shift = high - width;
    for (int bin = int(threadIdx.x); bin < kSelectBins; bin += kThreads) counts[bin] = 0;
    __syncthreads();  // cleared
    for (int first = slice.begin + int(threadIdx.x); first < slice.end; first += kBatch * kThreads) {
      Key keys[kBatch];
      slice.keys(first, kThreads, slice.end, keys);
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
        const bool matters = keys[j] != kNoRank<Key> && (high == kKeyBits || (keys[j] >> high) == prefix);
        if (matters) atomicAdd(&counts[uint32_t(keys[j] >> shift) & ((1u << width) - 1)], 1u);
      }
    }
    sum_over_cluster<kThreads, kSelectBins, kBlocks>(counts, totals, nullptr);
    uint32_t own[kOwn], sum = 0, total;
    for (int j = 0; j < kOwn; ++j) sum += own[j] = totals[kOwn * int(threadIdx.x) + j];
    uint32_t before = block_exclusive_sum(sum, scratch, &total);
    const bool first_digit = starts && high == kKeyBits;
    for (int j = 0; j < kOwn; ++j) {
      const uint32_t bin = kOwn * threadIdx.x + uint32_t(j);
      if (first_digit) starts[bin] = before;
      if (before < need && FF_MUTANT(top_n_boundary, need <= before + own[j], need < before + own[j])) {
        found[0] = bin;
        found[1] = before;
        found[2] = own[j];
      }
      before += own[j];
    }
    if (first_digit && threadIdx.x == 0) starts[kSelectBins] = total;
    __syncthreads();  // found and starts are written
    const uint32_t bin = found[0], less = found[1], equal = found[2];
    __syncthreads();                                         // all have read found
    if (total < need) return {kNoRank<Key>, 0, int(total)};  // the first round only: fewer than n in all
    prefix = Key(prefix << width) | Key(bin);
    need -= less;
    high = shift;
    const int taken = n + int(equal - need);
    if (FF_MUTANT(top_n_room, taken <= room, taken <= room + 1)) {
      const Key last = Key(prefix << shift) | ((Key(1) << shift) - 1);  // of the bin; a double's last bin has NaN's key
      return {FF_MUTANT(top_n_last_bin, min(last, Key(kNoRank<Key> - 1)), last), kAllTies, taken};
    }
  }
  return {prefix, int(FF_MUTANT(top_n_ties, need, need - 1)), n};
}

// Calls take(position, key, index) for all that the cut takes; positions are in index order.
template <int kThreads, class Slice, class Key, class Take>
__device__ __forceinline__ void compact(const Slice& slice, const Cut<Key>& cut, const Take& take) {
  constexpr int kWarps = kThreads / kWarp, kBatch = kSelectBatch<kThreads, Slice>;
  FF_SHARED(int, warp_less, [kWarps]);
  FF_SHARED(int, warp_ties, [kWarps]);
  FF_SHARED(int, block_less);
  FF_SHARED(int, block_ties);
  constexpr int kStep = kBatch * kWarp;
  const int size = slice.end - slice.begin, share = ((size + kThreads - 1) / kThreads) * kWarp;
  const int begin = slice.begin + min(size, share * warp_id()), end = min(slice.end, begin + share);

  int less = 0, ties = 0;
  for (int first = begin; first < end; first += kStep) {
    Key keys[kBatch];
    slice.keys(first + lane_id(), kWarp, end, keys);
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      less += __popc(__ballot_sync(kFullMask, keys[j] < cut.key));
      ties += __popc(__ballot_sync(kFullMask, keys[j] == cut.key));
    }
  }
  if (lane_id() == 0) {
    warp_less[warp_id()] = less;
    warp_ties[warp_id()] = ties;
  }
  __syncthreads();  // every warp's counts are there
  int all_less, all_ties;
  less = sum_over_warps(warp_less, &all_less);
  ties = sum_over_warps(warp_ties, &all_ties);
  if (threadIdx.x == 0) {
    block_less = all_less;
    block_ties = all_ties;
  }
  cluster_sync();                                       // every block's counts are there
  const bool before = lane_id() < int(cluster_rank());  // a lane reads a block's
  less += __reduce_add_sync(kFullMask, before ? *cluster_map(&block_less, unsigned(lane_id())) : 0);
  ties += __reduce_add_sync(kFullMask, before ? *cluster_map(&block_ties, unsigned(lane_id())) : 0);

  for (int first = begin; first < end; first += kStep) {
    Key keys[kBatch];
    slice.keys(first + lane_id(), kWarp, end, keys);
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
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

}  // namespace frcnn_fast::top_n
