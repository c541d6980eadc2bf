// The best n scores of every segment, in order: descending, -0.0 equal to 0.0, ties by lower index, NaN never.
//
// Every backend ranks by one integer, the rank key: smaller is better, and equal scores have equal keys.
#pragma once
#include "../common/anchor_maps.h"
#include "../common/dtype.h"
#include "../common/mutant.h"
#include "../common/status.h"
#include "../common/workspace.h"

namespace frcnn_fast::top_n {

template <class U>
struct RankKeyOf {
  using type = uint32_t;
};
template <>
struct RankKeyOf<double> {
  using type = uint64_t;
};
// uint32_t for float scores, uint64_t for double.
template <class U>
using RankKey = typename RankKeyOf<U>::type;

// A NaN's key: worse than every score's.
template <class Key>
constexpr Key kNoRank = ~Key(0);

FF_HD uint32_t rank_key(float score) {
  const uint32_t bits = FF_MUTANT(rank_zero, score == 0.0f, false) ? 0u : float_bits(score);
  const uint32_t key = bits >> 31 ? bits : bits ^ 0x7fffffffu;
  return FF_MUTANT(rank_nan, score == score, true) ? key : kNoRank<uint32_t>;
}
FF_HD uint64_t rank_key(double score) {
  const uint64_t bits = score == 0.0 ? 0ull : double_bits(score);
  const uint64_t key = bits >> 63 ? bits : bits ^ 0x7fffffffffffffffull;
  return score == score ? key : kNoRank<uint64_t>;
}

// The score of that key.
FF_HD float rank_score(uint32_t key) { return bits_float(key >> 31 ? key : key ^ 0x7fffffffu); }
FF_HD double rank_score(uint64_t key) { return bits_double(key >> 63 ? key : key ^ 0x7fffffffffffffffull); }

// A candidate.
template <class Key>
struct alignas(2 * sizeof(Key)) Ranking {
  Key key;
  uint32_t index;
};

// The rank order: by score descending, ties by lower index. Every comparison of two candidates is a comes_before.
// The radix sorts and the selection compare no pairs: they take candidates in index order and keep equal keys so.
template <class Index>
FF_HD bool wins_tie(Index a, Index b) {
  return FF_MUTANT(rank_tie, a < b, b < a);
}
template <class Key>
FF_HD bool comes_before(const Ranking<Key>& a, const Ranking<Key>& b) {
  return a.key < b.key || (a.key == b.key && wins_tie(a.index, b.index));
}
// The same by scores, none of them NaN.
template <class U, class Index>
FF_HD bool comes_before(U score_a, Index index_a, U score_b, Index index_b) {
  return score_a > score_b || (score_a == score_b && wins_tie(index_a, index_b));
}

// What Ranked (ranked.h) works in. One thread's; take_ranked_buffers() cuts it from a workspace.
template <class Key>
struct RankedBuffers {
  int64_t capacity;       // candidates sorted at once
  Ranking<Key>* entries;  // [capacity]
  Ranking<Key>* spare;    // [capacity]
  Ranking<Key>* sample;   // [kRankedSample]
  uint32_t* indices;      // [capacity + kRankedSlack]
};
constexpr int64_t kRankedSample = 2048;
constexpr int64_t kRankedSlack = 16;  // a vector is stored whole

// Ranks to ask Ranked for at a time when a caller may stop early: each chunk costs a pass over all N scores.
FF_HD int64_t ranked_chunk(int64_t N) { return N / 64 > 1024 ? N / 64 : 1024; }

// For at most N scores a segment, `chunk` ranks at a time.
template <class Key>
FF_HD RankedBuffers<Key> take_ranked_buffers(WorkspaceArena* arena, int64_t N, int64_t chunk) {
  const int64_t enough = 2 * chunk + kRankedSample;  // a chunk that the sample misjudged, or the sample itself
  RankedBuffers<Key> buffers = {};
  buffers.capacity = N < enough ? N : enough;
  buffers.entries = arena->take<Ranking<Key>>(buffers.capacity);
  buffers.spare = arena->take<Ranking<Key>>(buffers.capacity);
  buffers.sample = arena->take<Ranking<Key>>(N > buffers.capacity ? kRankedSample : 0);
  buffers.indices = arena->take<uint32_t>(buffers.capacity + kRankedSlack);
  return buffers;
}

// scores [B, N] -> values [B, n] (0 beyond the count), indices [B, n] (-1 beyond), counts [B].
// workspace: of top_n_workspace_*(dtype, B, N, n) bytes.
size_t top_n_workspace_cpu(DType dtype, int64_t B, int64_t N, int64_t n);
Status top_n_cpu(DType dtype, const void* scores, int64_t B, int64_t N, int64_t n, void* workspace, void* values,
                 int64_t* indices, int64_t* counts);
size_t top_n_workspace_cuda(DType dtype, int64_t B, int64_t N, int64_t n);
Status top_n_cuda(DType dtype, const void* scores, int64_t B, int64_t N, int64_t n, void* workspace, void* values,
                  int64_t* indices, int64_t* counts, Stream stream);

// The sorted best n of every segment (image b, level l); levels: host [L], where their scores lie, A an image in all.
// valid: [B, A], only those that are nonzero compete; null: all do. indices [B * L, n]: among the image's A, -1 beyond
// the count; counts [B * L]. A at most 2^30.
size_t top_n_segments_workspace_cuda(DType dtype, int64_t B, int64_t A, int64_t L, int64_t n);
Status top_n_segments_cuda(DType dtype, const MapLayout* levels, int64_t B, int64_t L, int64_t n, const uint8_t* valid,
                           void* workspace, int32_t* indices, int32_t* counts, Stream stream);

}  // namespace frcnn_fast::top_n
