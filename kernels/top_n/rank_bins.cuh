// Rank order a range at a time, for kernels that stop early: a cluster's candidates in bins by an estimate of their
// rank, so that the best few hundred are found, and each is ranked among the few of its bin, without sorting the rest.
#pragma once
#include "select.cuh"

namespace frcnn_fast::top_n {

// Which rank a key has, if keys that share the first digit are spread evenly. Never larger for a better key, which is
// all that correctness needs. starts: as find_cut leaves them.
template <class Key>
__device__ __forceinline__ uint32_t estimated_rank(Key key, const uint32_t* starts) {
  constexpr int kKeyBits = 8 * sizeof(Key);
  const uint32_t digit = uint32_t(key >> (kKeyBits - kSelectBits));
  const uint32_t rest = uint32_t(Key(key << kSelectBits) >> (kKeyBits - 32));
  const uint32_t start = starts[digit];
  return start + __umulhi(FF_MUTANT(rank_estimate, rest, ~rest), starts[digit + 1] - start);
}

// A cluster's candidates, bin after bin, and within a bin in no order that matters. They are dealt out to the blocks.
template <class Key, int kBlocks>
struct RankBins {
  Ranking<Key>* list;      // each block's
  const uint32_t* starts;  // replicated: candidates before each first digit
  const uint32_t* ends;    // replicated: candidates up to each bin's end
  int shift;               // of an estimated rank to its bin

  __device__ __forceinline__ int bin(Key key) const { return int(estimated_rank(key, starts) >> shift); }
  __device__ __forceinline__ int begin(int bin) const { return bin ? int(ends[bin - 1]) : 0; }
  __device__ __forceinline__ Ranking<Key>& at(uint32_t position) const {
    return cluster_map(list, position % kBlocks)[position / kBlocks];
  }
};

// The shift with which every estimated rank of a key up to `last` falls into one of `bins` bins.
template <class Key>
__device__ __forceinline__ int bin_shift(Key last, const uint32_t* starts, int bins) {
  const uint32_t ranks = starts[uint32_t(last >> (8 * sizeof(Key) - kSelectBits)) + 1];
  int shift = 0;
  while (ranks > uint32_t(bins) << shift) ++shift;
  return shift;
}

// Calls take(key, column) for all of the slice up to `last` in the rank order.
template <int kThreads, class Slice, class Key, class Take>
__device__ __forceinline__ void take_up_to(const Slice& slice, const Ranking<Key>& last, const Take& take) {
  constexpr int kBatch = kSelectBatch<kThreads, Slice>;
  for (int first = slice.begin + int(threadIdx.x); first < slice.end; first += kBatch * kThreads) {
    Key keys[kBatch];
    slice.keys(first, kThreads, slice.end, keys);
    uint32_t taken = 0;
#pragma unroll
    for (int j = 0; j < kBatch; ++j) taken |= uint32_t(keys[j] <= last.key) << j;
    if (last.index != ~0u) {  // not all that are equal to the last
#pragma unroll
      for (int j = 0; j < kBatch; ++j)
        taken &= ~(uint32_t(comes_before(last, {keys[j], uint32_t(first + j * kThreads)})) << j);
    }
    if (!taken) continue;  // where few of many are taken, mostly
#pragma unroll
    for (int j = 0; j < kBatch; ++j)
      if (taken >> j & 1u) take(keys[j], uint32_t(first + j * kThreads));
  }
}

// A candidate on its way to its bin.
template <class Key>
struct Arrival {
  static constexpr int kBinBits = 16;
  Key key;
  uint32_t column, place;  // place: the bin, and above it how many of the block came to it before
};

// Fills the lists and the ends [kBins] with all of the slices up to `last`. counts, before: shared [kBins]; scratch:
// shared, one a warp; arrivals: shared [room], where a block that takes no more than that lets them wait for their
// places. One that takes more passes over its slice once more.
template <int kThreads, int kBins, class Slice, class Key, int kBlocks>
__device__ __forceinline__ void fill_bins(const Slice& slice, const Ranking<Key>& last,
                                          const RankBins<Key, kBlocks>& bins, uint32_t* counts, uint32_t* before,
                                          uint32_t* ends, uint32_t* scratch, Arrival<Key>* arrivals, uint32_t room) {
  FF_SHARED(uint32_t, taken);
  constexpr int kOwn = kBins / kThreads, kBinBits = Arrival<Key>::kBinBits;
  for (int bin = int(threadIdx.x); bin < kBins; bin += kThreads) counts[bin] = 0;
  if (threadIdx.x == 0) taken = 0;
  __syncthreads();  // cleared
  take_up_to<kThreads>(slice, last, [&](Key key, uint32_t column) {
    const uint32_t bin = uint32_t(bins.bin(key)), earlier = atomicAdd(&counts[bin], 1u), at = atomicAdd(&taken, 1u);
    if (at < room) arrivals[at] = {key, column, earlier << kBinBits | bin};
  });
  sum_over_cluster<kThreads, kBins, kBlocks>(counts, ends, before);
  uint32_t own[kOwn], sum = 0, total;
  for (int j = 0; j < kOwn; ++j) sum += own[j] = ends[kOwn * int(threadIdx.x) + j];
  uint32_t end = block_exclusive_sum(sum, scratch, &total);
  for (int j = 0; j < kOwn; ++j) {
    const int bin = kOwn * int(threadIdx.x) + j;
    before[bin] += end;  // where the block's first of the bin goes
    ends[bin] = end += own[j];
  }
  __syncthreads();  // the ends and the places are there
  const uint32_t count = taken;
  if (FF_MUTANT(rank_arrivals, count <= room, true)) {
    for (uint32_t i = threadIdx.x; i < count; i += kThreads) {
      const Arrival<Key> own = arrivals[i];
      bins.at(before[own.place & ((1u << kBinBits) - 1)] + (own.place >> kBinBits)) = {own.key, own.column};
    }
  } else {
    take_up_to<kThreads>(
        slice, last, [&](Key key, uint32_t column) { bins.at(atomicAdd(&before[bins.bin(key)], 1u)) = {key, column}; });
  }
  cluster_sync();  // the lists are complete
}

// Of a slice, the columns that do not come before `first` in the rank order.
template <class Slice>
class RestOfSlice {
 public:
  using Key = typename Slice::Key;
  __device__ RestOfSlice(const Slice& slice, const Ranking<Key>& first)
      : begin(slice.begin), end(slice.end), slice_(slice), first_(first) {}
  template <int kBatch>
  __device__ __forceinline__ void keys(int first, int stride, int limit, Key (&keys)[kBatch]) const {
    slice_.keys(first, stride, limit, keys);
    if (first_.key == 0 && first_.index == 0) return;  // nothing comes before that: all of the slice
#pragma unroll
    for (int j = 0; j < kBatch; ++j)
      if (comes_before({keys[j], uint32_t(first + j * stride)}, first_)) keys[j] = kNoRank<Key>;
  }

  const int begin, end;

 private:
  const Slice slice_;
  const Ranking<Key> first_;
};

// A slice of which the threads hold the keys that they pass first, so that they are loaded once. For passes by kThreads
// threads, one column after the other.
template <class Slice, int kThreads>
class HeldSlice {
 public:
  using Key = typename Slice::Key;
  __device__ explicit HeldSlice(const Slice& slice) : begin(slice.begin), end(slice.end), slice_(slice) {
    if (begin < end) slice_.keys(begin + int(threadIdx.x), kThreads, end, held_);
  }
  template <int kBatch>
  __device__ __forceinline__ void keys(int first, int stride, int limit, Key (&keys)[kBatch]) const {
    static_assert(kBatch == kHeld);
    if (first < begin + kThreads) {
#pragma unroll
      for (int j = 0; j < kBatch; ++j) keys[j] = held_[j];
    } else {
      slice_.keys(first, stride, limit, keys);
    }
  }

  const int begin, end;

 private:
  static constexpr int kHeld = kSelectBatch<kThreads, Slice>;
  const Slice slice_;
  Key held_[kHeld];
};

// Of a slice, the columns with that key; they are ranked by themselves, as ties are.
template <class Slice>
class TiesOfSlice {
 public:
  using Key = typename Slice::Key;  // what is loaded; columns are what it is ranked by
  __device__ TiesOfSlice(const Slice& slice, Key key) : begin(slice.begin), end(slice.end), slice_(slice), key_(key) {}
  template <int kBatch>
  __device__ __forceinline__ void keys(int first, int stride, int limit, uint32_t (&columns)[kBatch]) const {
    Key keys[kBatch];
    slice_.keys(first, stride, limit, keys);
#pragma unroll
    for (int j = 0; j < kBatch; ++j) columns[j] = keys[j] == key_ ? uint32_t(first + j * stride) : kNoRank<uint32_t>;
  }

  const int begin, end;

 private:
  const Slice& slice_;
  const Key key_;
};

// The last candidate that a cut takes, in the rank order; all that follow it are left. As find_cut.
template <class Key, int kThreads, int kBlocks, class Slice>
__device__ __forceinline__ Ranking<Key> last_of_cut(const Slice& slice, const Cut<Key>& cut, uint32_t* counts,
                                                    uint32_t* totals, uint32_t* scratch) {
  if (cut.ties == 0) return {Key(cut.key - 1), ~0u};
  if (cut.ties == kAllTies) return {cut.key, ~0u};
  const TiesOfSlice<Slice> ties(slice, cut.key);
  return {cut.key,
          find_cut<uint32_t, kThreads, kBlocks>(ties, cut.ties, cut.ties, counts, totals, scratch, nullptr).key};
}

}  // namespace frcnn_fast::top_n
