// Scores in rank order, a chunk at a time, for callers that stop early: nothing beyond the chunk is ever sorted.
//
// For *_cpu_simd.cpp files: everything here lives in the instruction set's own namespace. A chunk is the scores within
// a range of values. Where the range ends is read from a small sorted sample, which may guess wrong (then chunks are
// longer or shorter than asked for) but never changes the order.
#pragma once
#include "scan.h"
#include "sort_rankings.h"

namespace frcnn_fast::top_n {
namespace FF_ISA {

template <class T>
class Ranked {
 public:
  using U = Compute<T>;
  using Key = RankKey<U>;

  // map: where the scores of N anchors lie, of which `scores` is the image's first. budget: ranks to give out at most.
  // chunk: ranks wanted at a time. buffers: for this N and chunk (or more).
  Ranked(const AnchorMap<T>& map, const T* scores, int64_t N, int64_t budget, int64_t chunk,
         const RankedBuffers<Key>& buffers)
      : map_(map), scores_(scores), N_(N), left_(budget < N ? budget : N), chunk_(chunk), buffers_(buffers) {
    if (left_ > 0 && N_ > buffers_.capacity) draw_sample();
  }
  // scores [N]
  Ranked(const T* scores, int64_t N, int64_t budget, int64_t chunk, const RankedBuffers<Key>& buffers)
      : Ranked(row_map(scores, N), scores, N, budget, chunk, buffers) {}

  // Where the score of that index lies.
  const T* at(uint32_t index) const { return scores_ + map_.offset(index); }

  // The next candidates, best first; returns how many, 0 when the budget or the scores that are not NaN are spent.
  // *indices is valid until the next call.
  int64_t next_chunk(const uint32_t** indices) {
    *indices = buffers_.indices;
    while (left_ > 0 && next_ <= last_) {
      const int64_t count = tied_from_ >= 0 ? ties() : range();
      if (count == 0) continue;
      const int64_t given = count < left_ ? count : left_;
      left_ -= given;
      return given;
    }
    return 0;
  }

 private:
  static constexpr U kInfinity = U(__builtin_inf());
  static constexpr Key kZero = kNoRank<Key> >> 1;  // the key of 0.0; the one after it is -0.0's, which no score has

  // The scores with keys from next_ to about chunk_ ranks further.
  int64_t range() {
    const int64_t want = chunk_ < left_ ? chunk_ : left_;
    Key end = estimate(want);
    int64_t count;
    if (N_ <= buffers_.capacity) {
      count = N_;
      for (int64_t i = 0; i < N_; ++i) buffers_.indices[i] = uint32_t(i);
    } else if (!collect(end, &count)) {
      end = narrow(end);
      if (tied_from_ >= 0) return 0;
      collect(end, &count);
    }
    next_ = FF_MUTANT(ranked_after, after(end), end);
    int64_t found = 0;
    for (int64_t i = 0; i < count; ++i) {
      const uint32_t index = buffers_.indices[i];
      const Key key = rank_key(load(at(index)));
      buffers_.entries[found] = {key, index};
      found += key != kNoRank<Key>;
    }
    Ranking<Key>* const sorted = sort_rankings(buffers_.entries, buffers_.spare, found);
    if (FF_MUTANT(ranked_runs, map_.per_cell > 1, false)) order_ties(sorted, found);
    for (int64_t i = 0; i < found; ++i) buffers_.indices[i] = sorted[i].index;
    return found;
  }

  uint32_t runs() const { return map_.rows * map_.per_cell; }

  // The indices with keys from next_ to `end`, run after run; false where there is no room for all.
  bool collect(Key end, int64_t* count) {
    *count = 0;
    for (uint32_t r = 0; r < runs(); ++r) {
      const ScoreRun<T> run = score_run(map_, scores_, r);
      int64_t found;
      if (scan(run, 0, rank_score(end), rank_score(next_), buffers_.indices + *count, buffers_.capacity - *count,
               &found) < run.length)
        return false;
      *count += found;
    }
    return true;
  }

  int64_t count_between(Key begin, Key end) const {
    int64_t count = 0;
    for (uint32_t r = 0; r < runs(); ++r)
      count += scan_count(score_run(map_, scores_, r), rank_score(end), rank_score(begin));
    return count;
  }

  // Brings equal keys, of which those of one run came after those of another, into index order.
  void order_ties(Ranking<Key>* sorted, int64_t n) {
    Ranking<Key>* const spare = sorted == buffers_.entries ? buffers_.spare : buffers_.entries;
    for (int64_t begin = 0, end; begin < n; begin = end) {
      for (end = begin + 1; end < n && sorted[end].key == sorted[begin].key;) ++end;
      if (end - begin == 1) continue;
      const Key key = sorted[begin].key;
      for (int64_t i = begin; i < end; ++i) sorted[i].key = Key(sorted[i].index);
      const Ranking<Key>* const ordered = sort_rankings(sorted + begin, spare, end - begin);
      for (int64_t i = begin; i < end; ++i) sorted[i] = {key, ordered[i - begin].index};
    }
  }

  // One score's ties, in index order: too many to hold at once.
  int64_t ties() {
    const U score = rank_score(next_);
    int64_t count = 0;
    tied_from_ = FF_MUTANT(ranked_ties, tied_from_, 0);
    if (runs() == 1) {
      tied_from_ =
          scan(score_run(map_, scores_, 0), tied_from_, score, score, buffers_.indices, buffers_.capacity, &count);
    } else {
      for (; tied_from_ < N_ && count < buffers_.capacity; ++tied_from_) {
        buffers_.indices[count] = uint32_t(tied_from_);
        count += load(at(uint32_t(tied_from_))) == score;
      }
    }
    if (tied_from_ == N_) {
      tied_from_ = -1;
      next_ = after(next_);
    }
    return count;
  }

  // The key at which about `want` further scores have been passed, a little more rather than less.
  Key estimate(int64_t want) {
    while (sample_at_ < sample_size_ && sample_[sample_at_].key < next_) ++sample_at_;
    int64_t ranks = sample_size_ * want / N_ + 1, root = 1;
    while (root * root < ranks) ++root;
    const int64_t at = sample_at_ + ranks + root;
    return at < sample_size_ && sample_[at].key < last_ ? sample_[at].key : last_;
  }

  // Keys next_ to `end` hold more scores than there is room for: the end of a shorter range that fits and is no less
  // than half full if it can, or ties. Halving the keys, so at most as many passes as a key has bits.
  Key narrow(Key end) {
    const int64_t room = buffers_.capacity - kScanWidth;
    Key low = next_, fitting = 0;  // next_ to the key before low fit, next_ to end do not
    int64_t held = 0;              // by next_ to fitting
    for (Key guess = end - 1; low < end && held < room / 2; guess = low + (end - low) / 2) {
      const int64_t count = count_between(next_, guess);
      if (count > room) {
        end = guess;
      } else {
        low = after(guess);
        fitting = guess;
        held = count;
      }
    }
    if (held > 0) return fitting;
    next_ = low;
    tied_from_ = 0;
    return low;
  }

  void draw_sample() {
    int64_t size = N_ / 32;
    size = size < 512 ? 512 : (size > kRankedSample ? kRankedSample : size);
    // One score at a scattered place of every stretch: a fixed stride could meet one anchor shape only.
    uint32_t scatter = 12345;
    for (int64_t i = 0; i < size; ++i) {
      const int64_t begin = N_ * i / size, length = N_ * (i + 1) / size - begin;
      scatter = scatter * 1664525u + 1013904223u;
      const int64_t place = begin + int64_t(uint64_t(scatter) * uint64_t(length) >> 32);
      buffers_.sample[i] = {rank_key(load(at(uint32_t(place)))), 0};
    }
    sample_ = sort_rankings(buffers_.sample, buffers_.spare, size);
    sample_size_ = size;
    if (sample_ != buffers_.sample) {
      for (int64_t i = 0; i < size; ++i) buffers_.sample[i] = sample_[i];
      sample_ = buffers_.sample;
    }
  }

  static Key after(Key key) { return key == kZero ? key + 2 : key + 1; }

  AnchorMap<T> map_;
  const T* scores_;  // the image's first
  int64_t N_, left_, chunk_;
  RankedBuffers<Key> buffers_;
  const Ranking<Key>* sample_ = nullptr;
  int64_t sample_size_ = 0, sample_at_ = 0;
  Key next_ = rank_key(kInfinity);   // the best key not yet given out
  Key last_ = rank_key(-kInfinity);  // the worst score's
  int64_t tied_from_ = -1;           // where the ties of next_ go on; -1: not among ties
};

}  // namespace FF_ISA
}  // namespace frcnn_fast::top_n
