// A segment's best n in order: select, compact, sort.
//
// select_kernel: a cluster of blocks a segment. Shared memory a block: the digit table (32 KB, also the histograms); in
// the first block of the cluster also the selected candidates (8 bytes each, 16 for double) and their order (2 bytes),
// which that block sorts. Where they do not fit, the candidates go to the workspace and are sorted by three launches a
// digit.
#include "select.cuh"
#include "sort.cuh"

namespace frcnn_fast::top_n {
namespace {

// Where results go; null where not wanted. [segments, n] and [segments].
template <class T>
struct Output {
  T* values;
  int64_t *indices, *counts;
  int32_t *short_indices, *short_counts;

  __device__ __forceinline__ void write(int64_t at, const ScoreSegments<T>& segments, int64_t segment,
                                        uint32_t index) const {
    if (values) values[at] = *segments.at(segment, index);
    if (indices) indices[at] = int64_t(index);
    if (short_indices) short_indices[at] = int32_t(index);
  }
  __device__ __forceinline__ void pad(int64_t at) const {
    if (values) values[at] = T{};
    if (indices) indices[at] = -1;
    if (short_indices) short_indices[at] = -1;
  }
  __device__ __forceinline__ void write_count(int64_t segment, int count) const {
    if (counts) counts[segment] = count;
    if (short_counts) short_counts[segment] = count;
  }
};

// candidates: where they are sorted later; entries null: they are sorted here. room: candidates of a segment at most.
template <class T>
__global__ void __launch_bounds__(kSelectThreads)
    select_kernel(const __grid_constant__ ScoreSegments<T> segments, int room, int64_t n,
                  Candidates<RankKey<Compute<T>>> candidates, Output<T> output) {
  using Key = RankKey<Compute<T>>;
  FF_SHARED(uint32_t, scratch, [kSelectWarps]);
  FF_SHARED(Key, key_scratch, [kSelectWarps]);
  FF_DYN_SHARED(unsigned char, memory);
  DigitTable& table = *reinterpret_cast<DigitTable*>(memory);
  Ranking<Key>* const items = reinterpret_cast<Ranking<Key>*>(memory + sizeof(DigitTable));
  uint16_t* const order = reinterpret_cast<uint16_t*>(items + room);
  const int segment = int(blockIdx.x / cluster_size());
  const SegmentSlice<T> slice(segments, segment);
  uint32_t* const counts = &table[0][0];
  const Cut<Key> cut =
      find_cut<Key, kSelectThreads, 0>(slice, room, room, counts, counts + kSelectBins, scratch, nullptr);
  const bool here = !candidates.entries;
  Ranking<Key>* const target = here ? cluster_map(items, 0) : candidates.entries + int64_t(segment) * room;
  compact<kSelectThreads>(slice, cut,
                          [target](int position, Key key, uint32_t index) { target[position] = {key, index}; });
  cluster_sync();  // the candidates are complete, and no block reads another's memory from here on
  if (cluster_rank() != 0) return;
  if (threadIdx.x == 0) {
    output.write_count(segment, cut.total);
    if (!here) candidates.counts[segment] = cut.total;
  }
  if (!here) return;

  Key least = kNoRank<Key>, most = 0;
  for (int i = int(threadIdx.x); i < cut.total; i += kSelectThreads) {
    least = min(least, items[i].key);
    most = max(most, items[i].key);
  }
  least = block_reduce(least, Smaller(), key_scratch);
  most = block_reduce(most, Larger(), key_scratch);
  if (cut.total <= kSortThreads) {
    sort_shared<1>(items, cut.total, least, most, order, table, scratch);
  } else if (cut.total <= 4 * kSortThreads) {
    sort_shared<4>(items, cut.total, least, most, order, table, scratch);
  } else {
    sort_shared<16>(items, cut.total, least, most, order, table, scratch);
  }
  for (int64_t i = threadIdx.x; i < n; i += kSelectThreads) {
    if (i < cut.total)
      output.write(segment * n + i, segments, segment, items[order[i]].index);
    else
      output.pad(segment * n + i);
  }
}

// No segment has a score.
template <class T>
__global__ void __launch_bounds__(256) write_empty_kernel(int64_t count, int64_t n, Output<T> output) {
  const int64_t at = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (at < count) output.write_count(at, 0);
  if (at < count * n) output.pad(at);
}

template <class T>
__global__ void __launch_bounds__(256)
    write_kernel(const __grid_constant__ ScoreSegments<T> segments, int room, int64_t n,
                 Candidates<RankKey<Compute<T>>> candidates, int64_t size, Output<T> output) {
  const int64_t at = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (at >= size) return;
  const int segment = int(at / n);
  const int64_t rank = at % n;
  if (rank < candidates.counts[segment])
    output.write(at, segments, segment, candidates.entries[int64_t(segment) * room + rank].index);
  else
    output.pad(at);
}

// What a launch of select_kernel may ask for; its static shared memory is within the rest.
size_t most_shared() { return max_dynamic_shared() - 1024; }

// Where candidates are sorted: in shared memory, if the device has enough, else here.
template <class Key>
struct SortSpace {
  size_t shared = sizeof(DigitTable);  // select_kernel's dynamic shared memory, in bytes
  Candidates<Key> candidates = {};
  Ranking<Key>* spare = nullptr;
  uint32_t* starts = nullptr;
  size_t bytes = 0;

  SortSpace(void* workspace, int64_t segments, int64_t room) {
    const size_t sorted = size_t(room) * (sizeof(Ranking<Key>) + sizeof(uint16_t));
    if (room <= kMostShared && shared + sorted <= most_shared()) {
      shared += sorted;
      return;
    }
    WorkspaceArena arena(workspace);
    candidates.entries = arena.take<Ranking<Key>>(segments * room);
    candidates.counts = arena.take<int32_t>(segments);
    spare = arena.take<Ranking<Key>>(segments * room);
    starts = arena.take<uint32_t>(segments * kDigits * blocks_for(room, kTile));
    bytes = arena.used();
  }
};

template <class T>
Status select(const ScoreSegments<T>& segments, int64_t count, int64_t n, void* workspace, const Output<T>& output,
              Stream stream) {
  using Key = RankKey<Compute<T>>;
  int longest = 0;
  const int64_t* const starts = segments.scores.starts;
  for (int l = 0; l < segments.levels; ++l) longest = std::max(longest, int(starts[l + 1] - starts[l]));
  const int room = int(std::min<int64_t>(n, longest));
  if (count == 0) return kOk;
  if (room == 0) {
    FF_LAUNCH(write_empty_kernel<T>, dim3(blocks_for(count * (n + 1), 256)), dim3(256), 0, stream, count, n, output);
    return launched();
  }
  // A block of its own for every 2,048 scores, up to the 8 blocks that every device with clusters can run together.
  unsigned cluster = 1;
  if (code_has_clusters())
    while (cluster < 8 && longest > int(cluster) * 2 * kSelectThreads) cluster *= 2;
  SortSpace<Key> space(workspace, count, room);
  FF_TRY(allow_dynamic_shared(select_kernel<T>, most_shared()));  // not space.shared: threads would race for it
  FF_LAUNCH_CLUSTER(select_kernel<T>, cluster, dim3(unsigned(count) * cluster), dim3(kSelectThreads), space.shared,
                    stream, segments, room, n, space.candidates, output);
  if (space.candidates.entries) {
    sort_candidates(&space.candidates, space.spare, count, room, space.starts, stream);
    FF_LAUNCH(write_kernel<T>, dim3(blocks_for(count * n, 256)), dim3(256), 0, stream, segments, room, n,
              space.candidates, count * n, output);
  }
  return launched();
}

size_t workspace_bytes(DType dtype, int64_t segments, int64_t room) {
  return visit(dtype, [&](auto tag) {
    return SortSpace<RankKey<Compute<typename decltype(tag)::type>>>(nullptr, segments, room).bytes;
  });
}

Status check_size(int64_t A) {
  if (A <= 1 << 30) return kOk;
  return invalid("scores: rows of more than 2^30 scores are not supported on CUDA, got %lld", (long long)A);
}

}  // namespace

size_t top_n_workspace_cuda(DType dtype, int64_t B, int64_t N, int64_t n) {
  return workspace_bytes(dtype, B, std::min(N, n));
}

Status top_n_cuda(DType dtype, const void* scores, int64_t B, int64_t N, int64_t n, void* workspace, void* values,
                  int64_t* indices, int64_t* counts, Stream stream) {
  FF_TRY(check_size(N));
  return visit(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const MapLayout row = row_layout(scores, N);
    const ScoreSegments<T> segments = make_segments<T>(&row, 1, nullptr);
    const Output<T> output = {static_cast<T*>(values), indices, counts, nullptr, nullptr};
    return select(segments, B, n, workspace, output, stream);
  });
}

size_t top_n_segments_workspace_cuda(DType dtype, int64_t B, int64_t A, int64_t L, int64_t n) {
  return workspace_bytes(dtype, B * L, std::min(A, n));
}

Status top_n_segments_cuda(DType dtype, const MapLayout* levels, int64_t B, int64_t L, int64_t n, const uint8_t* valid,
                           void* workspace, int32_t* indices, int32_t* counts, Stream stream) {
  if (L < 1 || L > kMaxLevels) return invalid("scores: %lld levels, expected 1 to %d", (long long)L, kMaxLevels);
  return visit(dtype, [&](auto tag) -> Status {
    using T = typename decltype(tag)::type;
    const ScoreSegments<T> segments = make_segments<T>(levels, L, valid);
    FF_TRY(check_size(segments.A));
    const Output<T> output = {nullptr, nullptr, nullptr, indices, counts};
    return select(segments, B * L, n, workspace, output, stream);
  });
}

}  // namespace frcnn_fast::top_n
