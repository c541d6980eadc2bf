// Greedy NMS of one segment's candidates by one cluster of blocks, in one launch, from scores in no order: nothing is
// ranked, read or compared before it is needed, and all stops when enough boxes are kept.
//
//   select   which scores are the best n, or a few more (kernels/top_n/select.cuh); they are put in bins by estimated
//            rank, and dealt out to the blocks (kernels/top_n/rank_bins.cuh)            5 cluster barriers or more
//   then, bins after bins, kClusterChunk candidates at most at a time:
//   sort     every block reads the chunk and ranks it, each candidate among those of its bin
//   read     each block takes every kCluster-th rank: its box, if it has one
//   meet     against the boxes kept so far, four rows by a warp that stops when all are hit; where many are kept, rows
//            that reach the same go together, and meet only what they reach
//   publish  verdict and box, to its rank in every block                                           1 cluster barrier
//   cross    of those alive, who suppresses whom: 16 rows x 32 columns over all warps              1 cluster barrier
//   settle   every block finds what greedy NMS keeps (resolve_chunk.cuh)
//   append   every block to its own copy of the kept list; where many are kept, it is sorted into strips (strips.cuh)
//   until the segment has its boxes or its candidates are spent; select goes on behind the last candidate where
//   candidates that take no part do not count among the n, and where ties crowd a bin that no chunk can hold (then so
//   many are selected at a time as a chunk holds)
//   at last  the rows of the output are shared out over the cluster
//
// The order in which threads come never shows: ranks come from a comparison of (key, index).
//
// A Segment says where candidates come from and where the kept ones go:
//
//   Score                         the type of its scores in memory; U, that they are computed in
//   ClassId                       the type of class ids, if boxes suppress those of their own class alone; else NoClass
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

// A thread's view of its cluster's work. Every branch that contains a barrier depends on replicated values alone.
template <class Segment, bool kLegacy>
class GreedyCluster {
 public:
  using T = typename Segment::Score;
  using U = Compute<T>;
  using Key = RankKey<U>;
  using Id = typename Segment::ClassId;
  static constexpr int kBins = kRankBins<U>;
  static constexpr bool kClasses = kHasClasses<Id>;
  static constexpr int kRowsAtOnce = sizeof(U) == 8 ? 2 : 4;  // that a warp compares with the kept boxes
  static constexpr int kKeptAtOnce = sizeof(U) == 8 ? 1 : 2;  // of these, by a lane
  static constexpr int kTileRows = kWarp / 2;                 // that a warp compares with a word of boxes before them
  static constexpr int kMoves = sizeof(U) == 8 ? 1 : 2;       // kept boxes that a thread moves at a time
  static constexpr bool kHolds = sizeof(U) < 8;               // keys, while it selects: doubles have no registers
  static constexpr bool kSorts = !(kClasses && sizeof(U) == 8);  // for these there are no registers

  // scratch: shared, one a warp.
  __device__ __forceinline__ GreedyCluster(const Segment& segment, const ClusterSettings<U>& set,
                                           const ClusterMemory<U, Id>& memory, uint32_t* scratch)
      : segment_(segment), set_(set), m_(memory), scratch_(scratch), left_(set.n) {}

  __device__ __forceinline__ void run() {
    const int thread = int(threadIdx.x);
    if (thread < kStrips) m_.arrivals[thread] = 0;
    for (int i = thread; i <= kStrips; i += kClusterChunk) m_.strip_begins[i] = 0;
    while (wants_more() && !spent_) {
      const RankBins<Key, kCluster> bins = select();
      const int candidates = int(m_.ends[kBins - 1]);
      int given = 0;
      while (given < candidates && wants_more()) {
        const int gathered = whole_bins(given);
        if (gathered == 0) break;  // the next bin alone holds more than a chunk
        sort(bins, given, gathered);
        read(gathered);
        if (sorted() && kept_ > 0) deal_rows();
        meet();
        publish(gathered);
        close_gaps(gathered);
        cross();
        settle();
        append();
        given += gathered;
      }
      crowded_ |= given < candidates;
    }
    finish();
  }

 private:
  __device__ __forceinline__ bool wants_more() const { return kept_ < set_.most_kept && left_ > 0; }
  __device__ __forceinline__ bool sorted() const { return kSorts && set_.reach > U(0); }

  // Fills the lists with the best of those that were not yet given.
  __device__ __forceinline__ RankBins<Key, kCluster> select() {
    const auto all = segment_.slice();
    using Rest = RestOfSlice<std::decay_t<decltype(all)>>;
    const std::conditional_t<kHolds, HeldSlice<Rest, kClusterChunk>, Rest> slice(Rest(all, next()));
    const int room = crowded_ ? kClusterChunk : kCluster * set_.list_room;
    const Cut<Key> cut = find_cut<Key, kClusterChunk, kCluster>(slice, min(left_, room), room, m_.counts, m_.totals,
                                                                scratch_, m_.starts);
    spent_ = cut.ties == 0;
    const Ranking<Key> last = last_of_cut<Key, kClusterChunk, kCluster>(slice, cut, m_.counts, m_.totals, scratch_);
    const RankBins<Key, kCluster> bins = {m_.list, m_.starts, m_.ends, bin_shift(last.key, m_.starts, kBins)};
    fill_bins<kClusterChunk, kBins>(slice, last, bins, m_.counts, m_.totals, m_.ends, scratch_, m_.waiting,
                                    ClusterMemory<U, Id>::kWaitingRoom);
    return bins;
  }

  // How many candidates the next bins have, kClusterChunk at most. Each warp finds out for itself: ends never fall,
  // so it looks at the last of 32 parts of them first, and then into one part.
  __device__ __forceinline__ int whole_bins(int given) const {
    constexpr int kEach = kBins / kWarp;
    const int lane = lane_id(), most = given + kClusterChunk;
    const int first = kEach * __popc(__ballot_sync(kFullMask, int(m_.ends[kEach * lane + kEach - 1]) <= most));
    int end = first;
    if (first < kBins) {
#pragma unroll
      for (int i = 0; i < kEach; i += kWarp)
        end += __popc(__ballot_sync(kFullMask, i + lane < kEach && int(m_.ends[first + i + lane]) <= most));
    }
    return end > 0 ? int(m_.ends[end - 1]) - given : 0;
  }

  // Brings the next candidates to every block, in order.
  __device__ __forceinline__ void sort(const RankBins<Key, kCluster>& bins, int given, int gathered) {
    const int thread = int(threadIdx.x);
    Ranking<Key> own = {};
    if (thread < gathered) m_.entries[thread] = own = bins.at(uint32_t(given + thread));
    __syncthreads();  // the chunk is here
    if (thread < gathered) {
      const int bin = bins.bin(own.key), begin = bins.begin(bin) - given, end = int(m_.ends[bin]) - given;
      int place = begin;
#pragma unroll 4
      for (int i = begin; i < end; ++i) place += comes_before(m_.entries[i], own);
      m_.ranked[place] = own;
    }
    __syncthreads();  // and in order
    ranked_ = gathered;
  }

  // The first candidate that was not yet given is this one, or comes after it.
  __device__ __forceinline__ Ranking<Key> next() const {
    if (ranked_ == 0) return {};
    const Ranking<Key> last = m_.ranked[ranked_ - 1];
    return {last.key, FF_MUTANT(cluster_next, last.index + 1, last.index + 2)};
  }

  // Row e of this block has rank e * kCluster + cluster_rank().
  __device__ __forceinline__ void read(int gathered) {
    const int row = int(threadIdx.x);
    if (row < kOwnRows) {
      const int rank = row * kCluster + int(cluster_rank());
      Box<U> box = {};
      const bool valid = rank < gathered && segment_.read(m_.ranked[rank].index, &box);
      const PretestBox<U> pretest = make_pretest_box<kLegacy>(box, set_.suppression);
      m_.rows[row] = pretest.box;
      m_.row_shares[row] = sure_share(pretest.share, set_.sure_factor);
      m_.row_verdicts[row] = valid ? kAlive : kTakesNoPart;
      (sorted() && kept_ > 0 ? m_.row_reaches : m_.row_order)[row] =
          valid ? row_reach(row, box) : RowReach::of(row, 0, 0);
      if constexpr (kClasses) m_.row_ids[row] = valid ? segment_.class_id(m_.ranked[rank].index) : 0;
    }
    __syncthreads();  // the rows are read
  }

  __device__ __forceinline__ RowReach row_reach(int row, const Box<U>& box) const {
    if (!sorted() || kept_ == 0 || !FF_MUTANT(cluster_strip_tiny, has_reach(area<kLegacy>(box)), true))
      return RowReach::of(row, 0, unsigned(kept_));
    const Strips<U> strips = *m_.strips;
    const U centre = strips.centre(box), reach = reach_of(set_.reach, centre, strips.template length<kLegacy>(box));
    const int first = strips.from(centre - reach), last = strips.up_to(centre + reach);
    return RowReach::of(row, m_.strip_begins[FF_MUTANT(cluster_strip_first, first, first + 1)],
                        m_.strip_begins[FF_MUTANT(cluster_strip_last, last + 1, last)]);
  }

  // In the order of what they reach, so that what a warp's rows reach together is little more than what each does. A
  // warp places its share of them, each by a comparison with all.
  __device__ __forceinline__ void deal_rows() {
    constexpr int kEach = kOwnRows / kChunkWarps, kWords = (kOwnRows + kWarp - 1) / kWarp;
    unsigned all[kWords];
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      const int row = w * kWarp + lane_id();
      all[w] = row < kOwnRows ? m_.row_reaches[row].word : ~0u;
    }
#pragma unroll
    for (int r = 0; r < kEach; ++r) {
      const RowReach own = m_.row_reaches[kEach * warp_id() + r];
      int place = 0;
#pragma unroll
      for (int w = 0; w < kWords; ++w) place += __popc(__ballot_sync(kFullMask, all[w] < own.word));
      if (lane_id() == 0) m_.row_order[place] = own;
    }
    __syncthreads();  // the rows are dealt out
  }

  // A warp takes kRowsAtOnce rows through the kept boxes that one of them reaches, kKeptAtOnce times 32 at a time,
  // until all its rows are dead. The few pairs that the division-free test lets through are looked at afterwards, lane
  // by lane.
  __device__ __forceinline__ void meet() {
    for (int first = kRowsAtOnce * warp_id(); first < kOwnRows; first += kRowsAtOnce * kChunkWarps) {
      PretestBox<U> rows[kRowsAtOnce];
      Id ids[kRowsAtOnce] = {};
      int begin = int(RowReach::kMostKept), end = 0;
      unsigned dead = 0;  // or with nothing to meet
#pragma unroll
      for (int r = 0; r < kRowsAtOnce; ++r) {
        const RowReach reach = m_.row_order[first + r];
        rows[r] = {m_.rows[reach.row()], m_.row_shares[reach.row()]};
        if constexpr (kClasses) ids[r] = m_.row_ids[reach.row()];
        begin = min(begin, reach.begin());
        end = max(end, reach.end());
        dead |= unsigned(reach.end() == 0) << r;
      }
      const unsigned dead_before = dead;
      for (int base = begin; base < end && dead != (1u << kRowsAtOnce) - 1; base += kKeptAtOnce * kWarp) {
        // Beyond the end a lane takes the last once more.
        const auto place = [&](int c) {
          return min(base + c * kWarp + lane_id(), FF_MUTANT(cluster_kept_tail, end - 1, end - 2));
        };
        unsigned likely = 0;
#pragma unroll
        for (int c = 0; c < kKeptAtOnce; ++c) {
          const PretestBox<U> kept = {m_.kept_boxes[place(c)], m_.kept_shares[place(c)]};
          const Id id = kClasses ? m_.kept_ids[place(c)] : Id{};
#pragma unroll
          for (int r = 0; r < kRowsAtOnce; ++r) {
            const bool same = FF_MUTANT(cluster_class_kept, id == ids[r], true);
            likely |= unsigned(same && pretest_overlap<kLegacy>(kept.box, rows[r].box) >= kept.share + rows[r].share)
                      << (c * kRowsAtOnce + r);
          }
        }
        static_assert(kKeptAtOnce <= 2);
        for (likely &= ~(kKeptAtOnce > 1 ? dead << kRowsAtOnce | dead : dead); likely; likely &= likely - 1) {
          const int pair = __ffs(int(likely)) - 1, r = pair % kRowsAtOnce;
          const Box<U> row = m_.rows[m_.row_order[first + r].row()];
          dead |=
              unsigned(exceeds(iou<kLegacy>(m_.kept_boxes[place(pair / kRowsAtOnce)], row), set_.suppression.threshold))
              << r;
        }
        dead = __reduce_or_sync(kFullMask, dead);
      }
      if (lane_id() < kRowsAtOnce && FF_MUTANT(cluster_meet, (dead & ~dead_before) >> lane_id() & 1u, 0u))
        m_.row_verdicts[m_.row_order[first + lane_id()].row()] = kSuppressed;
    }
    __syncthreads();  // the rows have met all kept boxes
  }

  // kCluster threads a row, which serve a block each.
  __device__ __forceinline__ void publish(int gathered) {
    const int row = int(threadIdx.x) / kCluster, rank = row * kCluster + int(cluster_rank());
    const unsigned block = threadIdx.x % kCluster;
    if (rank < gathered) {
      const unsigned verdict = m_.row_verdicts[row];
      cluster_map(m_.verdicts, block)[rank] = verdict;
      if (verdict == kAlive) {
        cluster_map(m_.boxes, block)[rank] = m_.rows[row];
        cluster_map(m_.shares, block)[rank] = m_.row_shares[row];
        if constexpr (kClasses) cluster_map(m_.ids, block)[rank] = m_.row_ids[row];
      }
    }
    cluster_sync();  // every block has the chunk
  }

  // Brings those alive together, in every block. More candidates than are left of the n may have been gathered: the
  // worst go.
  __device__ __forceinline__ void close_gaps(int gathered) {
    const int thread = int(threadIdx.x);
    const unsigned verdict = thread < gathered ? m_.verdicts[thread] : unsigned(kTakesNoPart);
    int counted = gathered, place = thread;
    if (set_.counts_valid_alone)
      place = block_exclusive_count(FF_MUTANT(cluster_valid, verdict != kTakesNoPart, verdict == kAlive),
                                    reinterpret_cast<int*>(scratch_), &counted);
    const bool alive = verdict == kAlive && FF_MUTANT(cluster_left, place < left_, true);
    left_ -= counted;
    place = block_exclusive_count(alive, reinterpret_cast<int*>(scratch_), &alive_);
    if (alive) {
      m_.alive_boxes[place] = m_.boxes[thread];
      m_.alive_shares[place] = m_.shares[thread];
      if constexpr (kClasses) m_.alive_ids[place] = m_.ids[thread];
      m_.alive_order[place] = m_.ranked[thread].index;
    }
    __syncthreads();  // the gaps are closed
  }

  // Tile (g, v), v <= g: which of the boxes 32 v + i suppress the boxes of word g; a warp takes half of its rows. A
  // lane has a row and half of the columns. The tiles go around the blocks, then around their warps; word g shares a
  // line of them with word words - 1 - g. Boxes beyond the last one are only ever compared for bits that are dropped.
  __device__ __forceinline__ void cross() {
    const int words = (alive_ + kWarp - 1) / kWarp, halves = words * (words + 1);
    const int own = lane_id() % kTileRows, column = lane_id() / kTileRows * kTileRows;
    constexpr int kHanded = kCluster / 2;  // a lane hands the bits of its row to half of the blocks
    for (int half = warp_id() * kCluster + int(cluster_rank()); half < halves; half += kChunkWarps * kCluster) {
      const int line = half / 2 / (words + 1), at = half / 2 % (words + 1);
      const int g = at <= line ? line : words - 1 - line, v = at <= line ? at : at - line - 1;
      const int place = half % 2 * kTileRows + own, row = g * kWarp + place, first = v * kWarp + column;
      const PretestBox<U> mine = {m_.alive_boxes[row], m_.alive_shares[row]};
      const Id my_id = kClasses ? m_.alive_ids[row] : Id{};
      unsigned unlikely = 0, sure = 0;  // the last column's bit is shifted in first
#pragma unroll 4
      for (int i = kTileRows - 1; i >= 0; --i) {
        const U overlap = pretest_overlap<kLegacy>(m_.alive_boxes[first + i], mine.box),
                share = m_.alive_shares[first + i] + mine.share;
        const bool same = !kClasses || FF_MUTANT(cluster_class_chunk, m_.alive_ids[first + i] == my_id, true);
        unlikely = shift_in_sign(unlikely, same ? overlap - share : U(-1));
        sure = shift_in_sign(sure, lifted_share(share, set_.sure_factor) - overlap);
      }
      const unsigned likely = ~unlikely & ((1u << kTileRows) - 1);
      sure = pairs_are_sure(set_.sure_factor) ? sure & likely : 0u;
      for (unsigned open = likely & ~sure; open; open &= open - 1) {
        const int i = __ffs(int(open)) - 1;
        sure |= unsigned(exceeds(iou<kLegacy>(m_.alive_boxes[first + i], mine.box), set_.suppression.threshold)) << i;
      }
      unsigned bits = sure << column;
      bits |= __shfl_xor_sync(kFullMask, bits, kTileRows);
      if (v == g) bits &= FF_MUTANT(cluster_nearest, (1u << place) - 1, ((1u << place) - 1) >> 1);
#pragma unroll
      for (int i = 0; i < kHanded; ++i)
        cluster_map(m_.matrix, unsigned(lane_id() / kTileRows * kHanded + i))[v * kClusterChunk + row] = bits;
    }
    cluster_sync();  // every block has the whole matrix
  }

  __device__ __forceinline__ void settle() {
    const int thread = int(threadIdx.x);
    unsigned overlaps[kChunkWords];
#pragma unroll
    for (int v = 0; v < kChunkWords; ++v)
      overlaps[v] = v <= warp_id() && thread < alive_ ? m_.matrix[v * kClusterChunk + thread] : 0u;
    resolve_chunk<kChunkWords>(thread < alive_, overlaps, m_.kept_words);
  }

  __device__ __forceinline__ void append() {
    const int lane = lane_id(), warp = warp_id(), thread = int(threadIdx.x);
    const unsigned word = m_.kept_words[0][warp];
    const int count = lane < kChunkWords ? __popc(m_.kept_words[0][lane]) : 0;
    const int before = __reduce_add_sync(kFullMask, lane < warp ? count : 0);
    const int rank = kept_ + before + __popc(word & lanes_below());
    const bool kept = word >> lane & 1u && rank < FF_MUTANT(cluster_most_kept, set_.most_kept, set_.most_kept - 1);
    const int place = sorted() ? make_room(kept) : rank;
    if (kept) {
      m_.kept_boxes[place] = m_.alive_boxes[thread];
      m_.kept_shares[place] = m_.alive_shares[thread];
      if constexpr (kClasses) m_.kept_ids[place] = m_.alive_ids[thread];
      m_.kept_ranks[place] = uint16_t(rank);
      m_.kept_order[rank] = m_.alive_order[thread];
    }
    kept_ = min(kept_ + __reduce_add_sync(kFullMask, count), set_.most_kept);
  }

  // Moves the boxes kept before, so that each strip has room behind its own for those that come to it. Where the
  // thread's box goes, if it has one: the order in which they come to a strip shows in nothing. The first time it says
  // where strips are.
  __device__ __forceinline__ int make_room(bool comes) {
    const int lane = lane_id(), thread = int(threadIdx.x);
    const Strips<U> strips = kept_ > 0 ? *m_.strips : strips_over(m_.alive_boxes, alive_);
    if (kept_ == 0 && thread == 0) *m_.strips = strips;
    const int own = comes ? strips.from(strips.centre(m_.alive_boxes[thread])) : 0;
    int place = comes ? int(m_.strip_begins[own + 1] + atomicAdd(&m_.arrivals[own], 1u)) : 0;
    __syncthreads();  // those that come are counted
    const unsigned even = m_.arrivals[2 * lane], odd = m_.arrivals[2 * lane + 1];
    const unsigned through = warp_inclusive_scan(even + odd, Plus()), before = through - even - odd;
    const unsigned shifts = before | (before + even) << 16;  // how far the boxes of the lane's two strips move
    const auto shift = [&](int strip) {
      return int(__shfl_sync(kFullMask, shifts, strip / 2) >> 16 * (strip % 2) & 0xffffu);
    };
    place += FF_MUTANT(cluster_strip_shift, shift(own), 0);
    int rest = kept_;
    do {  // from the last: nobody writes before the place that he has read
      PretestBox<U> boxes[kMoves];
      Id ids[kMoves] = {};
      uint16_t ranks[kMoves] = {};
      int to[kMoves];
#pragma unroll
      for (int j = 0; j < kMoves; ++j) {
        const int from = rest - 1 - j * kClusterChunk - thread;
        int strip = 0;
        if (from >= 0) {
          boxes[j] = {m_.kept_boxes[from], m_.kept_shares[from]};
          if constexpr (kClasses) ids[j] = m_.kept_ids[from];
          ranks[j] = m_.kept_ranks[from];
          strip = strips.from(strips.centre(boxes[j].box));
        }
        to[j] = from + shift(strip);
      }
      __syncthreads();  // these are read; so are, in the last round, the counts
#pragma unroll
      for (int j = 0; j < kMoves; ++j) {
        if (rest - 1 - j * kClusterChunk - thread < 0) continue;
        m_.kept_boxes[to[j]] = boxes[j].box;
        m_.kept_shares[to[j]] = boxes[j].share;
        if constexpr (kClasses) m_.kept_ids[to[j]] = ids[j];
        m_.kept_ranks[to[j]] = ranks[j];
      }
      rest -= kMoves * kClusterChunk;
    } while (rest > 0);
    if (thread < kWarp) {
      m_.strip_begins[2 * lane + 1] += before + even;
      m_.strip_begins[2 * lane + 2] += through;
      m_.arrivals[2 * lane] = m_.arrivals[2 * lane + 1] = 0;
    }
    return place;
  }

  // The rows of the output are shared out. They are written last because a cluster barrier waits for every write to
  // global memory before it.
  __device__ __forceinline__ void finish() {
    __syncthreads();  // the last chunk is appended
    const int thread = int(cluster_rank()) * kClusterChunk + int(threadIdx.x), step = kClusterChunk * kCluster;
    if (thread == 0) segment_.write_count(kept_);
    for (int i = int(threadIdx.x); i < kept_; i += kClusterChunk) {
      const int rank = FF_MUTANT(cluster_strip_rank, m_.kept_ranks[i], i);
      // By rank: which box of a strip is where, each block has for itself.
      if (rank / kClusterChunk % kCluster == int(cluster_rank()))
        segment_.write(rank, m_.kept_order[rank], m_.kept_boxes[i]);
    }
    const int64_t rows = segment_.rows();
    for (int64_t i = FF_MUTANT(cluster_padding, kept_, kept_ + 1) + thread; i < rows; i += step) segment_.pad(i);
  }

  const Segment& segment_;
  const ClusterSettings<U>& set_;
  const ClusterMemory<U, Id>& m_;
  uint32_t* const scratch_;
  int kept_ = 0;
  int left_;              // of the n
  int ranked_ = 0;        // of the last chunk
  int alive_ = 0;         // of them, after the kept boxes
  bool crowded_ = false;  // a bin held more than a chunk
  bool spent_ = false;    // all candidates were selected
};

}  // namespace frcnn_fast::nms
