#include "../common/cpu.h"
#include "top_n.h"

namespace frcnn_fast::top_n {

FF_ISA_DECLARE(template <class T> void top_n_rows(const T* scores, int64_t rows, int64_t N, int64_t n, int64_t chunk,
                                                  const RankedBuffers<RankKey<Compute<T>>>& buffers, T* values,
                                                  int64_t* indices, int64_t* counts))

namespace {

// Rows are shared out in as many parts as there are threads and work for them.
int64_t parts(int64_t B, int64_t N) {
  const int64_t useful = B * N / 4096 + 1;
  return std::min({B, useful, int64_t(max_threads())});
}

// Small rows are ranked on the stack.
constexpr int64_t kStackBytes = 32 << 10;

// Chunks sort within the cache; a row that is wanted whole needs no other pass.
int64_t chunk_for(int64_t N, int64_t n) { return 4 * n >= 3 * N ? N : std::min(n, ranked_chunk(N)); }

template <class T>
RankedBuffers<RankKey<Compute<T>>> take(WorkspaceArena* arena, int64_t N, int64_t n) {
  return take_ranked_buffers<RankKey<Compute<T>>>(arena, N, chunk_for(N, n));
}

template <class T>
int64_t bytes_for_one(int64_t N, int64_t n) {
  WorkspaceArena arena(nullptr);
  take<T>(&arena, N, n);
  return int64_t(arena.used());
}

template <class T>
void top_n(const T* scores, int64_t B, int64_t N, int64_t n, char* workspace, T* values, int64_t* indices,
           int64_t* counts) {
  const int64_t each = bytes_for_one<T>(N, n), count = parts(B, N);
  parallel_for(count, 1, [&](int64_t first, int64_t last) {
    alignas(64) char stack[kStackBytes];
    for (int64_t part = first; part < last; ++part) {
      const int64_t begin = B * part / count, rows = B * (part + 1) / count - begin;
      WorkspaceArena arena(each <= kStackBytes ? stack : workspace + part * each);
      FF_ISA_CALL(top_n_rows, scores + begin * N, rows, N, n, chunk_for(N, n), take<T>(&arena, N, n),
                  values + begin * n, indices + begin * n, counts + begin);
    }
  });
}

}  // namespace

size_t top_n_workspace_cpu(DType dtype, int64_t B, int64_t N, int64_t n) {
  return visit(dtype, [&](auto tag) {
    const int64_t each = bytes_for_one<typename decltype(tag)::type>(N, n);
    return size_t(each <= kStackBytes ? 0 : parts(B, N) * each);
  });
}

Status top_n_cpu(DType dtype, const void* scores, int64_t B, int64_t N, int64_t n, void* workspace, void* values,
                 int64_t* indices, int64_t* counts) {
  if (N > 0xffffffffll) return invalid("scores: rows of 2^32 scores or more are not supported, got %lld", (long long)N);
  visit(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    top_n(static_cast<const T*>(scores), B, N, n, static_cast<char*>(workspace), static_cast<T*>(values), indices,
          counts);
  });
  return kOk;
}

}  // namespace frcnn_fast::top_n
