// What the blocks of a cluster that runs greedy NMS (greedy_cluster.cuh) agree on, and how each lays out its shared
// memory.
#pragma once
#include "../common/workspace.h"
#include "../top_n/rank_bins.cuh"
#include "nms.h"

namespace frcnn_fast::nms {
using namespace top_n;

#if defined(FF_TEST_BUILD)  // small cases cross chunks and blocks too
constexpr int kCluster = 4, kClusterChunk = 64, kRankBins = 64, kListRoom = 96;
#else
constexpr int kCluster = 8;         // blocks: what every device with clusters can run together
constexpr int kClusterChunk = 512;  // candidates at a time; a block has a thread for each
constexpr int kRankBins = 1024;     // by estimated rank: a chunk ends at a bin's end
constexpr int kListRoom = 2048;     // candidates a block may hold
#endif
constexpr int kChunkWarps = kClusterChunk / kWarp, kChunkWords = kChunkWarps;  // a word: a bit for each of 32 boxes
constexpr int kOwnRows = kClusterChunk / kCluster;  // candidates of a chunk that a block ranks and reads
constexpr uint32_t kDropped = ~0u;                  // in place of a candidate's index

// In place of a class id's type, where boxes have no classes.
struct NoClass {
  FF_HD bool operator==(NoClass) const { return true; }
};
template <class Id>
constexpr bool kHasClasses = !std::is_same_v<Id, NoClass>;

// What all blocks of a launch share.
template <class U>
struct ClusterSettings {
  int n, most_kept;    // of a segment: candidates, the best of all; boxes to keep
  int list_room;       // of a block
  int competes_words;  // of a block; 0: all compete (boxes are judged after the selection)
  Suppression<U> suppression;
};

// longest: scores of a segment, at most. judge_first: whether boxes are judged before the selection.
template <class U>
ClusterSettings<U> cluster_settings(int64_t longest, int64_t n, int64_t most_kept, double threshold, bool judge_first) {
  const int64_t slice = (longest + kCluster - 1) / kCluster;
  ClusterSettings<U> set = {};
  set.n = int(n);
  set.most_kept = int(most_kept);
  set.list_room = int(slice < kListRoom ? slice : kListRoom);
  set.competes_words = judge_first ? int((slice + kWarp - 1) / kWarp) : 0;
  set.suppression = make_suppression<U>(threshold);
  return set;
}

// A block's shared memory. "Replicated": the same in every block of the cluster. What has a fixed size comes first: a
// fixed offset costs no register. Id: of a class; NoClass where there are none.
template <class U, class Id>
struct ClusterMemory {
  using Key = RankKey<U>;
  uint32_t* starts;       // [kSelectBins + 1] replicated: candidates before each first digit
  uint32_t* ends;         // [kRankBins] replicated: candidates up to each bin's end
  Ranking<Key>* entries;  // [kClusterChunk] replicated: the chunk, in no order that matters
  Box<U>* rows;           // [kOwnRows] of entries cluster_rank(), cluster_rank() + kCluster, ...
  U* row_shares;          // [kOwnRows]
  unsigned* row_alive;    // [kOwnRows]
  Id* row_ids;            // [kOwnRows]
  Box<U>* boxes;          // [kClusterChunk] replicated: by rank, then those alive without gaps
  U* shares;              // [kClusterChunk] replicated
  Id* ids;                // [kClusterChunk] replicated
  uint32_t* order;        // [kClusterChunk] replicated: their indices, or kDropped
  unsigned* kept_words;   // [kChunkWords] replicated: which of those alive are kept
  // One place, two uses: counting (at the start, and before a chunk whose bin overflows it), and from `cross` to
  // `settle`.
  uint32_t *counts, *totals;  // [kSelectBins] each
  unsigned* matrix;           // [kChunkWords][kClusterChunk], the first block's: bit i of word v of box j: 32 v + i may
                              // suppress j
  Ranking<Key>* list;         // [list_room] candidates, in index order, block after block
  Box<U>* kept_boxes;         // [most_kept] replicated
  U* kept_shares;             // [most_kept] replicated
  Id* kept_ids;               // [most_kept] replicated
  uint32_t* kept_order;       // [most_kept] replicated: their indices
  unsigned* competes;         // [competes_words] a bit a column of the slice
  size_t bytes;

  FF_HD ClusterMemory(void* base, const ClusterSettings<U>& set) {
    constexpr int kCounts = 2 * kSelectBins, kMatrix = kChunkWords * kClusterChunk;
    WorkspaceArena arena(base);
    starts = arena.take<uint32_t>(kSelectBins + 1);
    ends = arena.take<uint32_t>(kRankBins);
    entries = arena.take<Ranking<Key>>(kClusterChunk);
    rows = arena.take<Box<U>>(kOwnRows);
    row_shares = arena.take<U>(kOwnRows);
    row_alive = arena.take<unsigned>(kOwnRows);
    row_ids = arena.take<Id>(kHasClasses<Id> ? kOwnRows : 0);
    boxes = arena.take<Box<U>>(kClusterChunk);
    shares = arena.take<U>(kClusterChunk);
    ids = arena.take<Id>(kHasClasses<Id> ? kClusterChunk : 0);
    order = arena.take<uint32_t>(kClusterChunk);
    kept_words = arena.take<unsigned>(kChunkWords);
    counts = arena.take<uint32_t>(kCounts > kMatrix ? kCounts : kMatrix);
    totals = counts + kSelectBins;
    matrix = counts;
    list = arena.take<Ranking<Key>>(set.list_room);
    kept_boxes = arena.take<Box<U>>(set.most_kept);
    kept_shares = arena.take<U>(set.most_kept);
    kept_ids = arena.take<Id>(kHasClasses<Id> ? set.most_kept : 0);
    kept_order = arena.take<uint32_t>(set.most_kept);
    competes = arena.take<unsigned>(set.competes_words);
    bytes = arena.used();
  }
};

}  // namespace frcnn_fast::nms
