// What the blocks of a cluster that runs greedy NMS (greedy_cluster.cuh) agree on, and how each lays out its shared
// memory.
#pragma once
#include "../common/workspace.h"
#include "../top_n/rank_bins.cuh"
#include "strips.cuh"

namespace frcnn_fast::nms {
using namespace top_n;

#if defined(FF_TEST_BUILD)  // small cases cross chunks and blocks too
constexpr int kCluster = 4, kClusterChunk = 64, kMostRankBins = 64, kListRoom = 96, kStripsFrom = 80, kMostWaiting = 40;
#else
constexpr int kCluster = 8;          // blocks: what every device with clusters can run together
constexpr int kClusterChunk = 512;   // candidates at a time; a block has a thread for each
constexpr int kMostRankBins = 2048;  // by estimated rank: a chunk ends at a bin's end
constexpr int kListRoom = 2048;      // candidates a block may hold
constexpr int kStripsFrom = 1024;    // boxes to keep, from which on it pays to sort them
constexpr int kMostWaiting = 4096;   // candidates that a block may let wait while they are selected, if there is room
#endif
// Doubles have half as many, and with them room for 2,000 kept boxes.
template <class U>
constexpr int kRankBins = sizeof(U) == 8 && kMostRankBins > kClusterChunk ? kMostRankBins / 2 : kMostRankBins;
constexpr int kChunkWarps = kClusterChunk / kWarp, kChunkWords = kChunkWarps;  // a word: a bit for each of 32 boxes
constexpr int kOwnRows = kClusterChunk / kCluster;  // candidates of a chunk that a block ranks and reads

// A row of the block and the part of the kept list that it has to meet, in one word, by whose order rows are dealt out
// to the warps. A row that has nothing to meet comes last.
struct RowReach {
  static constexpr int kRowBits = 6, kPlaceBits = 13;
  static constexpr unsigned kMostKept = (1u << kPlaceBits) - 1;
  static_assert(kOwnRows <= 1 << kRowBits && kRowBits + 2 * kPlaceBits <= 32);
  unsigned word;

  static FF_HD RowReach of(int row, unsigned begin, unsigned end) {
    return {(begin < end ? begin << kPlaceBits | end : kMostKept << kPlaceBits) << kRowBits | unsigned(row)};
  }
  FF_HD int row() const { return int(word & ((1u << kRowBits) - 1)); }
  FF_HD int begin() const { return int(word >> (kRowBits + kPlaceBits)); }
  FF_HD int end() const { return int(word >> kRowBits & kMostKept); }
};

// What has become of a candidate of the chunk.
enum Verdict : unsigned { kTakesNoPart, kSuppressed, kAlive };

// In place of a class id's type, where boxes have no classes.
struct NoClass {
  FF_HD bool operator==(NoClass) const { return true; }
};
template <class Id>
constexpr bool kHasClasses = !std::is_same_v<Id, NoClass>;

// What all blocks of a launch share.
template <class U>
struct ClusterSettings {
  int n, most_kept;         // of a segment: candidates, the best of all; boxes to keep
  int list_room;            // of a block
  bool counts_valid_alone;  // whether candidates that take no part do not count among the n
  Suppression<U> suppression;
  U sure_factor;  // of must_exceed()
  U reach;        // of reach_of(); 0: the kept boxes are not sorted
};

// longest: scores of a segment, at most.
template <class U>
ClusterSettings<U> cluster_settings(int64_t longest, int64_t n, int64_t most_kept, double threshold,
                                    bool counts_valid_alone) {
  const int64_t slice = (longest + kCluster - 1) / kCluster;
  ClusterSettings<U> set = {};
  set.n = int(n);
  set.most_kept = int(most_kept);
  set.list_room = int(slice < kListRoom ? slice : kListRoom);
  set.counts_valid_alone = counts_valid_alone;
  set.suppression = make_suppression<U>(threshold);
  set.sure_factor = sure_factor(U(threshold));
  set.reach = most_kept >= kStripsFrom ? reach_in_lengths(U(threshold)) : U(0);
  return set;
}

// A block's shared memory. "Replicated": the same in every block of the cluster. What has a fixed size comes first: a
// fixed offset costs no register. Id: of a class; NoClass where there are none.
template <class U, class Id>
struct ClusterMemory {
  using Key = RankKey<U>;
  static constexpr int kRoom = kClusterChunk * int(2 * (sizeof(Box<U>) + sizeof(U)) + sizeof(uint32_t)) /
                               int(sizeof(Arrival<Key>)),
                       kWaitingRoom = kRoom < kMostWaiting ? kRoom : kMostWaiting;
  uint32_t* starts;        // [kSelectBins + 1] replicated: candidates before each first digit
  uint32_t* ends;          // [kRankBins<U>] replicated: candidates up to each bin's end
  Ranking<Key>* ranked;    // [kClusterChunk] replicated: the chunk, in the rank order
  Box<U>* rows;            // [kOwnRows] of ranks cluster_rank(), cluster_rank() + kCluster, ...
  U* row_shares;           // [kOwnRows]
  unsigned* row_verdicts;  // [kOwnRows]
  Id* row_ids;             // [kOwnRows]
  RowReach* row_reaches;   // [kOwnRows] by row
  RowReach* row_order;     // [kOwnRows] in the order in which they are dealt out
  unsigned* verdicts;      // [kClusterChunk] replicated: by rank
  Box<U>* boxes;           // [kClusterChunk] replicated: by rank
  U* shares;               // [kClusterChunk] replicated
  Id* ids;                 // [kClusterChunk] replicated
  Box<U>* alive_boxes;    // [kClusterChunk] replicated: those alive, without gaps. Not in the place of `boxes`: a block
                          // appends them while others publish the next chunk
  U* alive_shares;        // [kClusterChunk] replicated
  Id* alive_ids;          // [kClusterChunk] replicated
  uint32_t* alive_order;  // [kClusterChunk] replicated: their indices
  Arrival<Key>* waiting;  // [kWaitingRoom] candidates while they are selected, in the place of these, from `boxes` on
  unsigned (*kept_words)[kChunkWords];  // [2], the same: replicated: which of those alive are kept
  // One place, three uses: counting while candidates are selected, in `sort`, and from `cross` to `settle`.
  uint32_t *counts, *totals;  // [kSelectBins] each
  Ranking<Key>* entries;      // [kClusterChunk] replicated: the chunk, bin after bin
  unsigned* matrix;           // [kChunkWords][kClusterChunk] replicated: bit i of word v of box j: 32 v + i
                              // suppresses j
  Ranking<Key>* list;         // [list_room] candidates: RankBins
  Strips<U>* strips;          // replicated
  uint32_t* strip_begins;     // [kStrips + 1] replicated: kept boxes before each strip
  uint32_t* arrivals;         // [kStrips] replicated: boxes that come to each strip
  Box<U>* kept_boxes;         // [most_kept] replicated, but for the order within a strip, strip after strip; without
                              // strips best first
  U* kept_shares;             // [most_kept] of these
  Id* kept_ids;               // [most_kept] of these
  uint16_t* kept_ranks;       // [most_kept] of these, among the kept
  uint32_t* kept_order;       // [most_kept] replicated: their indices, best first
  size_t bytes;

  FF_HD ClusterMemory(void* base, const ClusterSettings<U>& set) {
    constexpr int kCounts = 2 * kSelectBins, kMatrix = kChunkWords * kClusterChunk;
    WorkspaceArena arena(base);
    starts = arena.take<uint32_t>(kSelectBins + 1);
    ends = arena.take<uint32_t>(kRankBins<U>);
    ranked = arena.take<Ranking<Key>>(kClusterChunk);
    rows = arena.take<Box<U>>(kOwnRows);
    row_shares = arena.take<U>(kOwnRows);
    row_verdicts = arena.take<unsigned>(kOwnRows);
    row_ids = arena.take<Id>(kHasClasses<Id> ? kOwnRows : 0);
    row_reaches = arena.take<RowReach>(kOwnRows);
    row_order = arena.take<RowReach>(kOwnRows);
    verdicts = arena.take<unsigned>(kClusterChunk);
    boxes = arena.take<Box<U>>(kClusterChunk);
    shares = arena.take<U>(kClusterChunk);
    ids = arena.take<Id>(kHasClasses<Id> ? kClusterChunk : 0);
    alive_boxes = arena.take<Box<U>>(kClusterChunk);
    alive_shares = arena.take<U>(kClusterChunk);
    alive_ids = arena.take<Id>(kHasClasses<Id> ? kClusterChunk : 0);
    alive_order = arena.take<uint32_t>(kClusterChunk);
    waiting = reinterpret_cast<Arrival<Key>*>(boxes);
    kept_words = arena.take<unsigned[kChunkWords]>(2);
    counts = arena.take<uint32_t>(kCounts > kMatrix ? kCounts : kMatrix);
    totals = counts + kSelectBins;
    entries = reinterpret_cast<Ranking<Key>*>(counts);
    matrix = counts;
    strips = arena.take<Strips<U>>(1);
    strip_begins = arena.take<uint32_t>(kStrips + 1);
    arrivals = arena.take<uint32_t>(kStrips);
    list = arena.take<Ranking<Key>>(set.list_room);
    kept_boxes = arena.take<Box<U>>(set.most_kept);
    kept_shares = arena.take<U>(set.most_kept);
    kept_ids = arena.take<Id>(kHasClasses<Id> ? set.most_kept : 0);
    kept_ranks = arena.take<uint16_t>(set.most_kept);
    kept_order = arena.take<uint32_t>(set.most_kept);
    bytes = arena.used();
  }
};

}  // namespace frcnn_fast::nms
