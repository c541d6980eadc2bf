// Rank order a range at a time, for kernels that stop early: a cluster's unsorted candidates, counted by an estimate of
// their rank, so that the best few hundred that are left are found without sorting the rest.
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

// One block's list of candidates, in index order; those that were handed out have the key kNoRank.
template <class Key>
struct RankBins {
  const Ranking<Key>* list;
  int size;
  const uint32_t* starts;
  int shift;  // of an estimated rank to its bin

  __device__ __forceinline__ int bin(Key key) const { return int(estimated_rank(key, starts) >> shift); }
};

// The shift with which every estimated rank of a key up to `last` falls into one of `bins` bins.
template <class Key>
__device__ __forceinline__ int bin_shift(Key last, const uint32_t* starts, int bins) {
  const uint32_t ranks = starts[uint32_t(last >> (8 * sizeof(Key) - kSelectBits)) + 1];
  int shift = 0;
  while (ranks > uint32_t(bins) << shift) ++shift;
  return shift;
}

// ends [kBins], in every block of the cluster: how many candidates of all its lists are in the bin or a better one.
// counts: shared [kBins]; scratch: shared, one a warp.
template <int kThreads, int kBins, class Key>
__device__ void count_bins(const RankBins<Key>& bins, uint32_t* counts, uint32_t* ends, uint32_t* scratch) {
  constexpr int kOwn = kBins / kThreads;
  for (int bin = int(threadIdx.x); bin < kBins; bin += kThreads) counts[bin] = 0;
  __syncthreads();  // cleared
  for (int i = int(threadIdx.x); i < bins.size; i += kThreads) atomicAdd(&counts[bins.bin(bins.list[i].key)], 1u);
  sum_over_cluster<kThreads, kBins>(counts, ends);
  uint32_t own[kOwn], sum = 0, total;
  for (int j = 0; j < kOwn; ++j) sum += own[j] = ends[kOwn * int(threadIdx.x) + j];
  uint32_t end = block_exclusive_sum(sum, scratch, &total);
  for (int j = 0; j < kOwn; ++j) ends[kOwn * int(threadIdx.x) + j] = end += own[j];
  __syncthreads();  // the ends are there
}

// The candidates of the bins [first, end), as find_cut and compact take them; columns are places in the list.
template <class Key>
class BinSlice {
 public:
  __device__ BinSlice(const RankBins<Key>& bins, int first, int bin_end)
      : begin(0), end(bins.size), bins_(bins), first_(first), bin_end_(bin_end) {}

  template <int kBatch>
  __device__ __forceinline__ void keys(int first, int stride, int limit, Key (&keys)[kBatch]) const {
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      const int column = first + j * stride;
      keys[j] = column < limit ? bins_.list[column].key : kNoRank<Key>;
      if (keys[j] == kNoRank<Key>) continue;
      const int bin = bins_.bin(keys[j]);
      if (bin < first_ || bin >= bin_end_) keys[j] = kNoRank<Key>;
    }
  }

  const int begin, end;

 private:
  const RankBins<Key> bins_;
  const int first_, bin_end_;
};

}  // namespace frcnn_fast::top_n
