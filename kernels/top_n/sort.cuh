// Stable radix sorts of candidates by key: in shared memory by one block, or in global memory by three launches a
// digit.
#pragma once
#include "../common/launch.cuh"
#include "top_n.h"

namespace frcnn_fast::top_n {

constexpr int kSortThreads = 1024, kSortWarps = kSortThreads / kWarp;
constexpr int kSortBits = 8, kDigits = 1 << kSortBits;
constexpr int kMostShared = 16 * kSortThreads;                    // candidates that sort_shared takes
constexpr int kTileItems = 4, kTile = kTileItems * kSortThreads;  // of the sort in global memory

// [warp][digit]
using DigitTable = uint32_t[kSortWarps][kDigits];

template <class Key>
__device__ __forceinline__ uint32_t digit_of(Key key, int shift) {
  return uint32_t(key >> shift) & (kDigits - 1);
}

// The index within the tile of the thread's k-th item: warp w owns items [w * 32 * kItems, ...), 32 after 32.
template <int kItems>
__device__ __forceinline__ int tile_item(int k) {
  return (warp_id() * kItems + k) * kWarp + lane_id();
}

// The stable order of a tile's items [count] by digit; an item is a number below 2^16, item(i), and has a digit,
// digit(item). On return held[k] is the thread's k-th item and, in the upper half, its rank among its warp's items of
// that digit; table[w][d] counts the items of digit d in the warps before w, and the return value, in thread d, those
// in all warps. Every item has been read, but the table is not yet for others to read.
template <int kItems, class Item, class Digit>
__device__ __forceinline__ uint32_t rank_tile(int count, const Item& item, const Digit& digit, DigitTable& table,
                                              uint32_t (&held)[kItems]) {
  uint32_t* const mine = table[warp_id()];
  for (int d = lane_id(); d < kDigits; d += kWarp) mine[d] = 0;
  __syncwarp();
#pragma unroll
  for (int k = 0; k < kItems; ++k) {
    const int i = tile_item<kItems>(k);
    const uint32_t id = i < count ? item(i) : 0;
    const uint32_t d = i < count ? digit(id) : uint32_t(kDigits - 1);  // what is not there comes last
    const unsigned peers = __match_any_sync(kFullMask, d);
    const uint32_t before = mine[d];
    __syncwarp();  // all have read
    if ((peers & lanes_below()) == 0) mine[d] = before + uint32_t(__popc(peers));
    __syncwarp();  // the next 32 see the count
    const unsigned earlier =
        FF_MUTANT(top_n_stable, peers & lanes_below(), peers & ~lanes_below() & ~(1u << lane_id()));
    held[k] = id | (before + uint32_t(__popc(earlier))) << 16;
  }
  __syncthreads();  // the tile is counted, and every item has been read
  uint32_t sum = 0;
  if (threadIdx.x < kDigits) {
    for (int w = 0; w < kSortWarps; ++w) {
      const uint32_t own = table[w][threadIdx.x];
      table[w][threadIdx.x] = sum;
      sum += own;
    }
  }
  return sum;
}

// Puts the stable order by key of items [count], count <= kItems * kSortThreads, into order [count]. least and most
// bound the keys. All in shared memory; only the order moves. scratch: shared [kSortWarps].
template <int kItems, class Key>
__device__ void sort_shared(const Ranking<Key>* items, int count, Key least, Key most, uint16_t* order,
                            DigitTable& table, uint32_t* scratch) {
  for (int i = int(threadIdx.x); i < count; i += kSortThreads) order[i] = uint16_t(i);
  __syncthreads();
  int bits = 0;  // that differ
  while (bits < int(8 * sizeof(Key)) && (most - least) >> bits) bits += kSortBits;
  for (int shift = 0; shift < bits; shift += kSortBits) {
    const auto digit = [&](uint32_t item) { return digit_of(Key(items[item].key - least), shift); };
    uint32_t held[kItems];
    const uint32_t sum = rank_tile<kItems>(count, [&](int i) { return uint32_t(order[i]); }, digit, table, held);
    uint32_t start = warp_inclusive_scan(sum, Plus());
    if (lane_id() == kWarp - 1) scratch[warp_id()] = start;
    start -= sum;
    __syncthreads();  // the sums of the warps are there
    if (threadIdx.x < kDigits) {
#pragma unroll
      for (int w = 0; w < kDigits / kWarp; ++w) start += w < warp_id() ? scratch[w] : 0u;
#pragma unroll 4
      for (int w = 0; w < kSortWarps; ++w) table[w][threadIdx.x] += start;
    }
    __syncthreads();  // table[w][d] is where warp w's items of digit d go
#pragma unroll
    for (int k = 0; k < kItems; ++k) {
      if (tile_item<kItems>(k) >= count) continue;
      const uint32_t item = held[k] & 0xffffu;
      order[table[warp_id()][digit(item)] + (held[k] >> 16)] = uint16_t(item);
    }
    __syncthreads();  // sorted by this digit; the table may be cleared
  }
}

// In global memory: several segments, n entries' room each, of which the first counts[segment] are there.
template <class Key>
struct Candidates {
  Ranking<Key>* entries;  // [segments, n]
  int32_t* counts;        // [segments]
};

// Grids: segments x tiles. starts: [segments, kDigits, tiles].
template <class Key>
__global__ void __launch_bounds__(kSortThreads)
    count_digits_kernel(Candidates<Key> candidates, int n, int tiles, int shift, uint32_t* starts) {
  FF_SHARED(uint32_t, counts, [kDigits]);
  const int segment = int(blockIdx.x) / tiles, tile = int(blockIdx.x) % tiles;
  const int count = min(kTile, candidates.counts[segment] - tile * kTile);
  const Ranking<Key>* const entries = candidates.entries + int64_t(segment) * n + tile * kTile;
  if (threadIdx.x < kDigits) counts[threadIdx.x] = 0;
  __syncthreads();
  for (int i = int(threadIdx.x); i < count; i += kSortThreads) atomicAdd(&counts[digit_of(entries[i].key, shift)], 1u);
  __syncthreads();
  if (threadIdx.x < kDigits) starts[(int64_t(segment) * kDigits + threadIdx.x) * tiles + tile] = counts[threadIdx.x];
}

// Counts to starts, in place. One block a segment. A template so that several files may have it.
template <class Key>
__global__ void __launch_bounds__(kSortThreads) scan_digits_kernel(int tiles, uint32_t* starts) {
  FF_SHARED(uint32_t, scratch, [kSortWarps]);
  uint32_t* const mine = starts + int64_t(blockIdx.x) * kDigits * tiles;
  uint32_t base = 0;
  for (int i = 0; i < kDigits * tiles; i += kSortThreads) {
    const int at = i + int(threadIdx.x);
    uint32_t total;
    const uint32_t before = block_exclusive_sum(at < kDigits * tiles ? mine[at] : 0u, scratch, &total);
    if (at < kDigits * tiles) mine[at] = base + before;
    base += total;
  }
}

template <class Key>
__global__ void __launch_bounds__(kSortThreads) scatter_kernel(Candidates<Key> candidates, int n, int tiles, int shift,
                                                               const uint32_t* starts, Ranking<Key>* sorted) {
  FF_SHARED(DigitTable, table);
  const int segment = int(blockIdx.x) / tiles, tile = int(blockIdx.x) % tiles;
  const int count = min(kTile, candidates.counts[segment] - tile * kTile);
  if (count <= 0) return;
  const Ranking<Key>* const entries = candidates.entries + int64_t(segment) * n + tile * kTile;
  uint32_t held[kTileItems];
  rank_tile<kTileItems>(
      count, [](int i) { return uint32_t(i); }, [&](uint32_t item) { return digit_of(entries[item].key, shift); },
      table, held);
  __syncthreads();  // table[w][d] counts this tile's items of digit d before warp w
#pragma unroll
  for (int k = 0; k < kTileItems; ++k) {
    if (tile_item<kTileItems>(k) >= count) continue;
    const Ranking<Key> entry = entries[held[k] & 0xffffu];
    const uint32_t digit = digit_of(entry.key, shift);
    const uint32_t start = starts[(int64_t(segment) * kDigits + digit) * tiles + tile];
    sorted[int64_t(segment) * n + start + table[warp_id()][digit] + (held[k] >> 16)] = entry;
  }
}

// starts: kDigits * blocks_for(n, kTile) a segment. Leaves the sorted entries in *candidates.
template <class Key>
void sort_candidates(Candidates<Key>* candidates, Ranking<Key>* spare, int64_t segments, int64_t n, uint32_t* starts,
                     Stream stream) {
  const int tiles = int(blocks_for(n, kTile));
  const unsigned grid = unsigned(segments * tiles);
  for (int shift = 0; shift < int(8 * sizeof(Key)); shift += kSortBits) {
    FF_LAUNCH(count_digits_kernel<Key>, dim3(grid), dim3(kSortThreads), 0, stream, *candidates, int(n), tiles, shift,
              starts);
    FF_LAUNCH(scan_digits_kernel<Key>, dim3(unsigned(segments)), dim3(kSortThreads), 0, stream, tiles, starts);
    FF_LAUNCH(scatter_kernel<Key>, dim3(grid), dim3(kSortThreads), 0, stream, *candidates, int(n), tiles, shift,
              static_cast<const uint32_t*>(starts), spare);
    std::swap(candidates->entries, spare);
  }
}

}  // namespace frcnn_fast::top_n
