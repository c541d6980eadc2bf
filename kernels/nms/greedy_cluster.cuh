// Greedy NMS of one segment's candidates by one cluster of blocks, in one launch, from scores in no order: nothing is
// ranked, read or compared before it is needed, and all stops when enough boxes are kept.
//
//   select   which scores are the best n, or a few more (kernels/top_n/select.cuh); they are spread evenly over the
//            blocks, in index order, and counted by estimated rank (kernels/top_n/rank_bins.cuh)
//   then, chunk by chunk in rank order, until the segment has its boxes or its candidates are spent:
//   gather   the next kClusterChunk candidates at most, to every block                           2 cluster barriers
//   rank     each block takes every kCluster-th of them: its place by counting those before it; its box, if it has one
//   meet     against the boxes kept so far, each row by a warp that stops at the first hit
//   publish  box or "dropped", to its rank in every block                                          1 cluster barrier
//   cross    of those alive, who suppresses whom: tiles of 32 x 32 over all warps of the cluster  1 cluster barrier
//   settle   the first block finds what greedy NMS keeps (resolve_chunk.cuh)                       1 cluster barrier
//   append   every block to its own copy of the kept list
//   at last  the rows of the output are shared out over the cluster
//
// The order in which threads come never shows: positions come from counts, ranks from a comparison of (key, index).
//
// A Segment says where candidates come from and where the kept ones go:
//
//   Score                         the type of its scores in memory; U, that they are computed in
//   ClassId                       the type of class ids, if boxes suppress those of their own class alone; else NoClass
//   kJudgesFirst                  whether boxes may be judged before the selection (ClusterSettings::competes_words)
//   slice()                       this block's part of its scores: a SegmentSlice of Score
//   read(index, &box)             a candidate's box; false where it may not take part
//   class_id(index)               its class, if there are any
//   rows()                        of the output that are filled: where fewer boxes are kept, with padding
//   write_count(kept), write(row, index, box), pad(row)
#pragma once
#include "../common/launch.cuh"
#include "cluster_memory.cuh"
#include "resolve_chunk.cuh"

namespace frcnn_fast::nms {

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
    if (!FF_MUTANT(cluster_competes, competes_, nullptr)) return;
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
template <class Segment, bool kLegacy>
class GreedyCluster {
 public:
  using T = typename Segment::Score;
  using U = Compute<T>;
  using Key = RankKey<U>;
  using Id = typename Segment::ClassId;
  static constexpr bool kClasses = kHasClasses<Id>;
  static constexpr int kRowsAtOnce = sizeof(U) == 8 ? 2 : 4;  // that a warp compares with the kept boxes

  // scratch: shared, one a warp.
  __device__ __forceinline__ GreedyCluster(const Segment& segment, const ClusterSettings<U>& set,
                                           const ClusterMemory<U, Id>& memory, uint32_t* scratch)
      : segment_(segment), set_(set), m_(memory), scratch_(scratch) {}

  __device__ __forceinline__ void run() {
    RankBins<Key> bins;
    const int candidates = select(&bins);
    int given = 0, first_bin = 0;
    while (given < candidates && kept_ < set_.most_kept) {
      const int gathered = gather(bins, candidates - given, &given, &first_bin);
      const int left = candidates - (given - gathered);
      const int wanted = FF_MUTANT(cluster_wanted, min(gathered, left), gathered);
      rank(gathered, wanted);
      cross(close_gaps(wanted));
      settle();
      append();
    }
    finish();
  }

 private:
  // Fills the lists; returns how many candidates there are, n at most.
  __device__ __forceinline__ int select(RankBins<Key>* bins) {
    const auto slice = segment_.slice();
    if constexpr (Segment::kJudgesFirst) {
      if (set_.competes_words) judge(slice);
      return select_from(CompetingSlice<T>(slice, set_.competes_words ? m_.competes : nullptr), bins);
    } else {
      return select_from(slice, bins);
    }
  }

  __device__ __forceinline__ void judge(const SegmentSlice<T>& slice) {
    for (int first = slice.begin; first < slice.end; first += kClusterChunk) {
      const int column = first + int(threadIdx.x);
      Box<U> box;
      const unsigned votes = __ballot_sync(kFullMask, column < slice.end && segment_.read(column, &box));
      if (lane_id() == 0 && column < slice.end) m_.competes[(column - slice.begin) / kWarp] = votes;
    }
    __syncthreads();  // all columns are judged
  }

  template <class Slice>
  __device__ __forceinline__ int select_from(const Slice& slice, RankBins<Key>* bins) {
    const Cut<Key> cut = find_cut<Key, kClusterChunk>(slice, set_.n, kCluster * set_.list_room, m_.counts, m_.totals,
                                                      scratch_, m_.starts);
    const int share = (cut.total + kCluster - 1) / kCluster;
    compact<kClusterChunk>(slice, cut, [&](int position, Key key, uint32_t index) {
      cluster_map(m_.list, unsigned(position / share))[position % share] = {key, index};
    });
    cluster_sync();  // the lists are complete
    const int begin = min(cut.total, share * int(cluster_rank()));
    *bins = {m_.list, min(share, cut.total - begin), m_.starts, bin_shift(cut.key, m_.starts, kRankBins)};
    count_bins<kClusterChunk, kRankBins>(*bins, m_.counts, m_.ends, scratch_);
    return min(set_.n, cut.total);
  }

  // Brings the next candidates, all of some bins or the best of one, to every block's `entries`; returns how many,
  // kClusterChunk at most. They are marked as given in the lists.
  __device__ __forceinline__ int gather(const RankBins<Key>& bins, int left, int* given, int* first_bin) {
    int bin_end = 0;
    for (int i = 0; i < kRankBins; i += kClusterChunk)
      bin_end += __syncthreads_count(int(m_.ends[i + int(threadIdx.x)]) <= *given + kClusterChunk);
    const int fitting = bin_end > 0 ? int(m_.ends[bin_end - 1]) - *given : 0;
    const bool overflows = fitting <= 0;  // the next bin alone holds more than a chunk
    Cut<Key> cut = {kNoRank<Key>, 0, fitting};
    const BinSlice<Key> slice(bins, *first_bin, overflows ? bin_end + 1 : bin_end);
    if (overflows)
      cut = find_cut<Key, kClusterChunk>(slice, min(kClusterChunk, left), kClusterChunk, m_.counts, m_.totals, scratch_,
                                         nullptr);
    compact<kClusterChunk>(slice, cut, [&](int position, Key key, uint32_t at) {
      const Ranking<Key> entry = m_.list[at];
      m_.list[at].key = FF_MUTANT(cluster_given, kNoRank<Key>, key);
      for (unsigned other = 0; other < kCluster; ++other) cluster_map(m_.entries, other)[position] = entry;
    });
    cluster_sync();  // every block has all entries
    *given += cut.total;
    *first_bin = bin_end;
    return cut.total;
  }

  // Entry e * kCluster + cluster_rank() is this block's row e. Reads the rows, finds their ranks, compares them with
  // the kept boxes and publishes them.
  __device__ __forceinline__ void rank(int gathered, int wanted) {
    const int thread = int(threadIdx.x);
    if (thread < kOwnRows) {
      const int entry = thread * kCluster + int(cluster_rank());
      Box<U> box = {};
      const bool valid = entry < gathered && segment_.read(m_.entries[entry].index, &box);
      const PretestBox<U> pretest = make_pretest_box<kLegacy>(box, set_.suppression);
      m_.rows[thread] = pretest.box;
      m_.row_shares[thread] = pretest.share;
      m_.row_alive[thread] = valid;
      if constexpr (kClasses) m_.row_ids[thread] = valid ? segment_.class_id(m_.entries[entry].index) : 0;
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
    __syncthreads();  // the rows are read
    meet();
    __syncthreads();  // the rows have met all kept boxes
    // The threads of a row now serve a block each. More candidates than wanted may have been gathered: the worst go.
    if (entry < gathered && place < wanted) {
      const bool alive = m_.row_alive[row];
      cluster_map(m_.order, unsigned(part))[place] = alive ? m_.entries[entry].index : kDropped;
      if (alive) {
        cluster_map(m_.boxes, unsigned(part))[place] = m_.rows[row];
        cluster_map(m_.shares, unsigned(part))[place] = m_.row_shares[row];
        if constexpr (kClasses) cluster_map(m_.ids, unsigned(part))[place] = m_.row_ids[row];
      }
    }
    cluster_sync();  // every block has the chunk, in order
  }

  // A warp takes kRowsAtOnce rows through the kept boxes, 32 of them at a time, until all its rows are dead.
  __device__ __forceinline__ void meet() {
    for (int first = kRowsAtOnce * warp_id(); first < kOwnRows; first += kRowsAtOnce * kChunkWarps) {
      PretestBox<U> rows[kRowsAtOnce];
      Id ids[kRowsAtOnce] = {};
      unsigned dead = 0;
#pragma unroll
      for (int r = 0; r < kRowsAtOnce; ++r) {
        rows[r] = {m_.rows[first + r], m_.row_shares[first + r]};
        if constexpr (kClasses) ids[r] = m_.row_ids[first + r];
        dead |= unsigned(m_.row_alive[first + r] == 0) << r;
      }
      const unsigned dead_before = dead;
      for (int base = 0; base < kept_ && dead != (1u << kRowsAtOnce) - 1; base += kWarp) {
        const int at = base + lane_id();
        if (FF_MUTANT(cluster_kept_tail, at < kept_, at + 1 < kept_)) {
          const PretestBox<U> kept = {m_.kept_boxes[at], m_.kept_shares[at]};
          const Id id = kClasses ? m_.kept_ids[at] : Id{};
#pragma unroll
          for (int r = 0; r < kRowsAtOnce; ++r) {
            const bool same = FF_MUTANT(cluster_class_kept, id == ids[r], true);
            dead |= unsigned(same && suppresses<kLegacy>(kept, rows[r], set_.suppression)) << r;
          }
        }
        dead = __reduce_or_sync(kFullMask, dead);
      }
      if (lane_id() < kRowsAtOnce && FF_MUTANT(cluster_meet, (dead & ~dead_before) >> lane_id() & 1u, 0u))
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
    const Id id = kClasses && alive ? m_.ids[thread] : Id{};
    int count;
    const int place = block_exclusive_count(alive, reinterpret_cast<int*>(scratch_), &count);  // all have read
    if (alive) {
      m_.boxes[place] = box;
      m_.shares[place] = share;
      if constexpr (kClasses) m_.ids[place] = id;
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
      const Id my_id = kClasses ? m_.ids[row] : Id{};
      unsigned bits = 0;
#pragma unroll 8
      for (int i = 0; i < kWarp; ++i) {
        const PretestBox<U> other = {m_.boxes[v * kWarp + i], m_.shares[v * kWarp + i]};
        const Id other_id = kClasses ? m_.ids[v * kWarp + i] : Id{};
        const bool same = FF_MUTANT(cluster_class_chunk, other_id == my_id, true);
        if (same && suppresses<kLegacy>(other, mine, set_.suppression)) bits |= 1u << i;
      }
      if (v == g) bits &= FF_MUTANT(cluster_nearest, lanes_below(), lanes_below() >> 1);
      matrix[v * kClusterChunk + row] = bits;
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
        overlaps[v] = v <= warp_id() && thread < alive_ ? m_.matrix[v * kClusterChunk + thread] : 0u;
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
    if (word >> lane & 1u && position < FF_MUTANT(cluster_most_kept, set_.most_kept, set_.most_kept - 1)) {
      m_.kept_boxes[position] = m_.boxes[thread];
      m_.kept_shares[position] = m_.shares[thread];
      if constexpr (kClasses) m_.kept_ids[position] = m_.ids[thread];
      m_.kept_order[position] = m_.order[thread];
    }
    kept_ = min(kept_ + __shfl_sync(kFullMask, through, kWarp - 1), set_.most_kept);
  }

  // The rows of the output are shared out. They are written last because a cluster barrier waits for every write to
  // global memory before it.
  __device__ __forceinline__ void finish() {
    __syncthreads();  // the last chunk is appended
    const int thread = int(cluster_rank()) * kClusterChunk + int(threadIdx.x), step = kClusterChunk * kCluster;
    if (thread == 0) segment_.write_count(kept_);
    for (int i = thread; i < kept_; i += step) segment_.write(i, m_.kept_order[i], m_.kept_boxes[i]);
    const int64_t rows = segment_.rows();
    for (int64_t i = FF_MUTANT(cluster_padding, kept_, kept_ + 1) + thread; i < rows; i += step) segment_.pad(i);
  }

  const Segment& segment_;
  const ClusterSettings<U>& set_;
  const ClusterMemory<U, Id>& m_;
  uint32_t* const scratch_;
  int kept_ = 0;
  int alive_ = 0;  // of the chunk, after the kept boxes
};

}  // namespace frcnn_fast::nms
