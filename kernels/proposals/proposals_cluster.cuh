// The proposal step of one level of one image by one cluster of blocks, in one launch: nothing is ranked, decoded or
// compared before it is needed, and all stops when enough boxes are kept.
//
//   select   which scores are the best n, or a few more (kernels/top_n/select.cuh); they are spread evenly over the
//            blocks, in index order, and counted by estimated rank (kernels/top_n/rank_bins.cuh)
//   then, chunk by chunk in rank order, until the level has its boxes or its candidates are spent:
//   gather   the next kChunk candidates at most, to every block                                  2 cluster barriers
//   rank     each block takes every kCluster-th of them: its place by counting those before it; decode, clip, judge
//   meet     against the boxes kept so far, each row by a warp that stops at the first hit
//   publish  box or "dropped", to its rank in every block                                          1 cluster barrier
//   cross    of those alive, who suppresses whom: tiles of 32 x 32 over all warps of the cluster  1 cluster barrier
//   settle   the first block finds what greedy NMS keeps (kernels/nms/resolve_chunk.cuh)           1 cluster barrier
//   append   every block to its own copy of the kept list
//   at last  the rows of the output are shared out over the cluster
//
// The order in which threads come never shows: positions come from counts, ranks from a comparison of (key, index).
#pragma once
#include "../common/workspace.h"
#include "../nms/nms.h"
#include "../nms/resolve_chunk.cuh"
#include "../top_n/rank_bins.cuh"
#include "decoder.cuh"

namespace frcnn_fast::proposals {
using namespace nms;
using namespace top_n;

#if defined(FF_TEST_BUILD)  // small cases cross chunks and blocks too
constexpr int kCluster = 4, kChunk = 64, kRankBins = 64, kListRoom = 96;
#else
constexpr int kCluster = 8;      // blocks: what every device with clusters can run together
constexpr int kChunk = 512;      // candidates at a time; a block has a thread for each
constexpr int kRankBins = 1024;  // by estimated rank: a chunk ends at a bin's end
constexpr int kListRoom = 2048;  // candidates a block may hold
#endif
constexpr int kChunkWords = kChunk / kWarp, kChunkWarps = kChunk / kWarp;
constexpr int kOwnRows = kChunk / kCluster;  // candidates of a chunk that a block ranks and decodes
constexpr uint32_t kDropped = ~0u;           // in place of an anchor's index

// What all blocks of the launch share.
template <class U>
struct ClusterSettings {
  int n, most_kept;
  int list_room;       // of a block
  int competes_words;  // of a block; 0: all compete (boxes are judged after the selection)
  Suppression<U> suppression;
};

// Where the results go: rows [S, stride].
template <class T>
struct ProposalRows {
  Compute<T>* boxes;
  T* scores;
  int64_t *indices, *counts;
  int64_t stride;
  bool padded;

  __device__ __forceinline__ void write(int64_t row, const Box<Compute<T>>& box, T score, int64_t index) const {
    store_box(boxes + 4 * row, box);
    scores[row] = score;
    indices[row] = index;
  }
};

// A block's shared memory. "Replicated": the same in every block of the cluster. What has a fixed size comes first: a
// fixed offset costs no register.
template <class U>
struct ClusterMemory {
  using Key = RankKey<U>;
  uint32_t* starts;       // [kSelectBins + 1] replicated: candidates before each first digit
  uint32_t* ends;         // [kRankBins] replicated: candidates up to each bin's end
  Ranking<Key>* entries;  // [kChunk] replicated: the chunk, in no order that matters
  Box<U>* rows;           // [kOwnRows] of entries cluster_rank(), cluster_rank() + kCluster, ...
  U* row_shares;          // [kOwnRows]
  unsigned* row_alive;    // [kOwnRows]
  Box<U>* boxes;          // [kChunk] replicated: by rank, then those alive without gaps
  U* shares;              // [kChunk] replicated
  uint32_t* order;        // [kChunk] replicated: their anchors, or kDropped
  unsigned* kept_words;   // [kChunkWords] replicated: which of those alive are kept
  // One place, two uses: counting (at the start, and before a chunk whose bin overflows it), and from `cross` to
  // `settle`.
  uint32_t *counts, *totals;  // [kSelectBins] each
  unsigned* matrix;           // [kChunkWords][kChunk], the first block's: bit i of word v of box j: 32 v + i may
                              // suppress j
  Ranking<Key>* list;         // [list_room] candidates, in index order, block after block
  Box<U>* kept_boxes;         // [most_kept] replicated
  U* kept_shares;             // [most_kept] replicated
  uint32_t* kept_order;       // [most_kept] replicated: their anchors
  unsigned* competes;         // [competes_words] a bit a column of the slice
  size_t bytes;

  FF_HD ClusterMemory(void* base, const ClusterSettings<U>& set) {
    constexpr int kCounts = 2 * kSelectBins, kMatrix = kChunkWords * kChunk;
    WorkspaceArena arena(base);
    starts = arena.take<uint32_t>(kSelectBins + 1);
    ends = arena.take<uint32_t>(kRankBins);
    entries = arena.take<Ranking<Key>>(kChunk);
    rows = arena.take<Box<U>>(kOwnRows);
    row_shares = arena.take<U>(kOwnRows);
    row_alive = arena.take<unsigned>(kOwnRows);
    boxes = arena.take<Box<U>>(kChunk);
    shares = arena.take<U>(kChunk);
    order = arena.take<uint32_t>(kChunk);
    kept_words = arena.take<unsigned>(kChunkWords);
    counts = arena.take<uint32_t>(kCounts > kMatrix ? kCounts : kMatrix);
    totals = counts + kSelectBins;
    matrix = counts;
    list = arena.take<Ranking<Key>>(set.list_room);
    kept_boxes = arena.take<Box<U>>(set.most_kept);
    kept_shares = arena.take<U>(set.most_kept);
    kept_order = arena.take<uint32_t>(set.most_kept);
    competes = arena.take<unsigned>(set.competes_words);
    bytes = arena.used();
  }
};

// A slice of which the columns with a bit compete.
template <class T>
class CompetingSlice : public SegmentSlice<T> {
 public:
  using Key = RankKey<Compute<T>>;
  // competes: null where all do.
  __device__ CompetingSlice(const SegmentSlice<T>& slice, const unsigned* competes)
      : SegmentSlice<T>(slice), competes_(competes) {}
  template <int kBatch>
  __device__ __forceinline__ void keys(int first, int stride, int limit, Key (&keys)[kBatch]) const {
    SegmentSlice<T>::keys(first, stride, limit, keys);
    if (!FF_MUTANT(proposals_competes, competes_, nullptr)) return;
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      const unsigned place = unsigned(min(first + j * stride, limit - 1) - this->begin);
      if (!(competes_[place / kWarp] >> place % kWarp & 1u)) keys[j] = kNoRank<Key>;
    }
  }

 private:
  const unsigned* competes_;
};

// A thread's view of its cluster's work. Every branch that contains a barrier depends on replicated values alone.
template <class T, bool kLegacy>
class ClusterStep {
 public:
  using U = Compute<T>;
  using Key = RankKey<U>;
  static constexpr int kRowsAtOnce = sizeof(U) == 8 ? 2 : 4;  // that a warp compares with the kept boxes

  __device__ __forceinline__ ClusterStep(const Decoder<T, kLegacy>& decoder, const ClusterSettings<U>& set,
                                         const ProposalRows<T>& out, const T* scores, int64_t segment, int64_t image,
                                         const ClusterMemory<U>& memory, uint32_t* scratch)
      : decoder_(decoder),
        set_(set),
        out_(out),
        scores_(scores),
        segment_(segment),
        image_(image),
        m_(memory),
        scratch_(scratch) {}

  __device__ __forceinline__ void run(const SegmentSlice<T>& slice) {
    RankBins<Key> bins;
    const int candidates = select(slice, &bins);
    int given = 0, first_bin = 0;
    while (given < candidates && kept_ < set_.most_kept) {
      const int gathered = gather(bins, candidates - given, &given, &first_bin);
      const int left = candidates - (given - gathered);
      const int wanted = FF_MUTANT(proposals_wanted, min(gathered, left), gathered);
      rank(gathered, wanted);
      cross(close_gaps(wanted));
      settle();
      append();
    }
    finish();
  }

 private:
  // Fills the lists; returns how many candidates there are, n at most.
  __device__ __forceinline__ int select(const SegmentSlice<T>& slice, RankBins<Key>* bins) {
    if (set_.competes_words) {
      for (int first = slice.begin; first < slice.end; first += kChunk) {
        const int column = first + int(threadIdx.x);
        Box<U> box;
        const unsigned votes = __ballot_sync(kFullMask, column < slice.end && decoder_(image_, column, &box));
        if (lane_id() == 0 && column < slice.end) m_.competes[(column - slice.begin) / kWarp] = votes;
      }
      __syncthreads();  // all columns are judged
    }
    const CompetingSlice<T> competing(slice, set_.competes_words ? m_.competes : nullptr);
    const Cut<Key> cut =
        find_cut<Key, kChunk>(competing, set_.n, kCluster * set_.list_room, m_.counts, m_.totals, scratch_, m_.starts);
    const int share = (cut.total + kCluster - 1) / kCluster;
    compact<kChunk>(competing, cut, [&](int position, Key key, uint32_t index) {
      cluster_map(m_.list, unsigned(position / share))[position % share] = {key, index};
    });
    cluster_sync();  // the lists are complete
    const int begin = min(cut.total, share * int(cluster_rank()));
    *bins = {m_.list, min(share, cut.total - begin), m_.starts, bin_shift(cut.key, m_.starts, kRankBins)};
    count_bins<kChunk, kRankBins>(*bins, m_.counts, m_.ends, scratch_);
    return min(set_.n, cut.total);
  }

  // Brings the next candidates, all of some bins or the best of one, to every block's `entries`; returns how many,
  // kChunk at most. They are marked as given in the lists.
  __device__ __forceinline__ int gather(const RankBins<Key>& bins, int left, int* given, int* first_bin) {
    int bin_end = 0;
    for (int i = 0; i < kRankBins; i += kChunk)
      bin_end += __syncthreads_count(int(m_.ends[i + int(threadIdx.x)]) <= *given + kChunk);
    const int fitting = bin_end > 0 ? int(m_.ends[bin_end - 1]) - *given : 0;
    const bool overflows = fitting <= 0;  // the next bin alone holds more than a chunk
    Cut<Key> cut = {kNoRank<Key>, 0, fitting};
    const BinSlice<Key> slice(bins, *first_bin, overflows ? bin_end + 1 : bin_end);
    if (overflows)
      cut = find_cut<Key, kChunk>(slice, min(kChunk, left), kChunk, m_.counts, m_.totals, scratch_, nullptr);
    compact<kChunk>(slice, cut, [&](int position, Key key, uint32_t at) {
      const Ranking<Key> entry = m_.list[at];
      m_.list[at].key = FF_MUTANT(proposals_given, kNoRank<Key>, key);
      for (unsigned other = 0; other < kCluster; ++other) cluster_map(m_.entries, other)[position] = entry;
    });
    cluster_sync();  // every block has all entries
    *given += cut.total;
    *first_bin = bin_end;
    return cut.total;
  }

  // Entry e * kCluster + cluster_rank() is this block's row e. Decodes the rows, finds their ranks, compares them with
  // the kept boxes and publishes them.
  __device__ __forceinline__ void rank(int gathered, int wanted) {
    const int thread = int(threadIdx.x);
    if (thread < kOwnRows) {
      const int entry = thread * kCluster + int(cluster_rank());
      Box<U> box = {};
      const bool valid = entry < gathered && decoder_(image_, m_.entries[entry].index, &box);
      const PretestBox<U> pretest = make_pretest_box<kLegacy>(box, set_.suppression);
      m_.rows[thread] = pretest.box;
      m_.row_shares[thread] = pretest.share;
      m_.row_alive[thread] = valid;
    }
    // kCluster threads a row, each of which compares it with every kCluster-th entry.
    const int row = thread / kCluster, part = thread % kCluster, entry = row * kCluster + int(cluster_rank());
    int place = 0;
    if (entry < gathered) {
      const Ranking<Key> own = m_.entries[entry];
      for (int i = part; i < gathered; i += kCluster) {
        const Ranking<Key> other = m_.entries[i];
        place += comes_before(other, own);
      }
    }
#pragma unroll
    for (int d = kCluster / 2; d > 0; d /= 2) place += __shfl_xor_sync(kFullMask, place, d);
    __syncthreads();  // the rows are decoded
    meet();
    __syncthreads();  // the rows have met all kept boxes
    // The threads of a row now serve a block each. More candidates than wanted may have been gathered: the worst go.
    if (entry < gathered && place < wanted) {
      const bool alive = m_.row_alive[row];
      cluster_map(m_.order, unsigned(part))[place] = alive ? m_.entries[entry].index : kDropped;
      if (alive) {
        cluster_map(m_.boxes, unsigned(part))[place] = m_.rows[row];
        cluster_map(m_.shares, unsigned(part))[place] = m_.row_shares[row];
      }
    }
    cluster_sync();  // every block has the chunk, in order
  }

  // A warp takes kRowsAtOnce rows through the kept boxes, 32 of them at a time, until all its rows are dead.
  __device__ __forceinline__ void meet() {
    for (int first = kRowsAtOnce * warp_id(); first < kOwnRows; first += kRowsAtOnce * kChunkWarps) {
      PretestBox<U> rows[kRowsAtOnce];
      unsigned dead = 0;
#pragma unroll
      for (int r = 0; r < kRowsAtOnce; ++r) {
        rows[r] = {m_.rows[first + r], m_.row_shares[first + r]};
        dead |= unsigned(m_.row_alive[first + r] == 0) << r;
      }
      const unsigned dead_before = dead;
      for (int base = 0; base < kept_ && dead != (1u << kRowsAtOnce) - 1; base += kWarp) {
        const int at = base + lane_id();
        if (FF_MUTANT(proposals_kept_tail, at < kept_, at + 1 < kept_)) {
          const PretestBox<U> kept = {m_.kept_boxes[at], m_.kept_shares[at]};
#pragma unroll
          for (int r = 0; r < kRowsAtOnce; ++r)
            dead |= unsigned(suppresses<kLegacy>(kept, rows[r], set_.suppression)) << r;
        }
        dead = __reduce_or_sync(kFullMask, dead);
      }
      if (lane_id() < kRowsAtOnce && FF_MUTANT(proposals_meet, (dead & ~dead_before) >> lane_id() & 1u, 0u))
        m_.row_alive[first + lane_id()] = 0;
    }
  }

  // Moves those alive together, in every block; returns how many.
  __device__ __forceinline__ int close_gaps(int wanted) {
    const int thread = int(threadIdx.x);
    const uint32_t index = thread < wanted ? m_.order[thread] : kDropped;
    const bool alive = index != kDropped;
    const Box<U> box = alive ? m_.boxes[thread] : Box<U>{};
    const U share = alive ? m_.shares[thread] : U(0);
    int count;
    const int place = block_exclusive_count(alive, reinterpret_cast<int*>(scratch_), &count);  // all have read
    if (alive) {
      m_.boxes[place] = box;
      m_.shares[place] = share;
      m_.order[place] = index;
    }
    __syncthreads();  // the gaps are closed
    return alive_ = count;
  }

  // Tile (g, v), v <= g: which of the boxes 32 v + i may suppress box 32 g + lane. The tiles go around the blocks, then
  // around their warps. Boxes beyond the last one are only ever compared for bits that are dropped.
  __device__ __forceinline__ void cross(int alive) {
    const int words = (alive + kWarp - 1) / kWarp, tiles = words * (words + 1) / 2;
    unsigned* const matrix = cluster_map(m_.matrix, 0);
    for (int tile = warp_id() * kCluster + int(cluster_rank()); tile < tiles; tile += kChunkWarps * kCluster) {
      int g = 0;
      while ((g + 1) * (g + 2) / 2 <= tile) ++g;
      const int v = tile - g * (g + 1) / 2, row = g * kWarp + lane_id();
      const PretestBox<U> mine = {m_.boxes[row], m_.shares[row]};
      unsigned bits = 0;
#pragma unroll 8
      for (int i = 0; i < kWarp; ++i) {
        const PretestBox<U> other = {m_.boxes[v * kWarp + i], m_.shares[v * kWarp + i]};
        if (suppresses<kLegacy>(other, mine, set_.suppression)) bits |= 1u << i;
      }
      if (v == g) bits &= FF_MUTANT(proposals_later, lanes_below(), ~(1u << lane_id()));
      matrix[v * kChunk + row] = bits;
    }
    cluster_sync();  // the first block has the whole matrix
  }

  __device__ __forceinline__ void settle() {
    FF_SHARED(unsigned, guesses, [2][kChunkWords]);
    if (cluster_rank() == 0) {
      const int thread = int(threadIdx.x);
      unsigned overlaps[kChunkWords];
#pragma unroll
      for (int v = 0; v < kChunkWords; ++v)
        overlaps[v] = v <= warp_id() && thread < alive_ ? m_.matrix[v * kChunk + thread] : 0u;
      const unsigned word = resolve_chunk<kChunkWords>(thread < alive_, overlaps, guesses);
      if (lane_id() < kCluster) cluster_map(m_.kept_words, unsigned(lane_id()))[warp_id()] = word;
    }
    cluster_sync();  // every block knows what is kept
  }

  __device__ __forceinline__ void append() {
    const int lane = lane_id(), warp = warp_id(), thread = int(threadIdx.x);
    const unsigned word = m_.kept_words[warp];
    const int through = warp_inclusive_scan(lane < kChunkWords ? __popc(m_.kept_words[lane]) : 0, Plus());
    const int before = __shfl_sync(kFullMask, through, warp) - __popc(word);
    const int position = kept_ + before + __popc(word & lanes_below());
    if (word >> lane & 1u && position < FF_MUTANT(proposals_most_kept, set_.most_kept, set_.most_kept - 1)) {
      m_.kept_boxes[position] = m_.boxes[thread];
      m_.kept_shares[position] = m_.shares[thread];
      m_.kept_order[position] = m_.order[thread];
    }
    kept_ = min(kept_ + __shfl_sync(kFullMask, through, kWarp - 1), set_.most_kept);
  }

  // The rows of the output are shared out. They are written last because a cluster barrier waits for every write to
  // global memory before it.
  __device__ __forceinline__ void finish() {
    __syncthreads();  // the last chunk is appended
    const int thread = int(cluster_rank()) * kChunk + int(threadIdx.x), step = kChunk * kCluster;
    const int64_t first = segment_ * out_.stride;
    if (thread == 0) out_.counts[segment_] = kept_;
    for (int i = thread; i < kept_; i += step) {
      const uint32_t index = m_.kept_order[i];
      out_.write(first + i, m_.kept_boxes[i], scores_[index], index);
    }
    if (!out_.padded) return;
    for (int64_t i = FF_MUTANT(proposals_padding, kept_, kept_ + 1) + thread; i < out_.stride; i += step)
      out_.write(first + i, Box<U>{}, T{}, -1);
  }

  const Decoder<T, kLegacy>& decoder_;
  const ClusterSettings<U>& set_;
  const ProposalRows<T>& out_;
  const T* const scores_;  // of the image
  const int64_t segment_, image_;
  const ClusterMemory<U>& m_;
  uint32_t* const scratch_;  // shared, one a warp
  int kept_ = 0;
  int alive_ = 0;  // of the chunk, after the kept boxes
};

// Grid: a cluster a segment. Never launched, and so empty, on devices without clusters.
template <class T, bool kLegacy>
__global__ void __launch_bounds__(kChunk)
    proposals_cluster_kernel(const __grid_constant__ Decoder<T, kLegacy> decoder,
                             const __grid_constant__ ScoreSegments<T> segments,
                             const __grid_constant__ ClusterSettings<Compute<T>> set,
                             const __grid_constant__ ProposalRows<T> out) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  FF_SHARED(uint32_t, scratch, [kChunkWarps]);
  FF_DYN_SHARED(unsigned char, memory);
  // proposals_merge_kernel waits for this one's end before it does anything. With one level it does not come, and what
  // comes instead is none of ours.
  if (segments.levels > 1) let_next_launch_start();
  const int segment = int(blockIdx.x) / kCluster;
  const ClusterMemory<Compute<T>> arrays(memory, set);
  ClusterStep<T, kLegacy>(decoder, set, out, segments.row(segment), segment, segment / segments.levels, arrays, scratch)
      .run(SegmentSlice<T>(segments, segment));
#endif
}

}  // namespace frcnn_fast::proposals
