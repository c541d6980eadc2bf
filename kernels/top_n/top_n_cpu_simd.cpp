// Rows of top_n, in each instruction set.
#include "ranked.h"

namespace frcnn_fast::top_n {
namespace FF_ISA {

template <class T>
void top_n_rows(const T* scores, int64_t rows, int64_t N, int64_t n, int64_t chunk,
                const RankedBuffers<RankKey<Compute<T>>>& buffers, T* values, int64_t* indices, int64_t* counts) {
  for (int64_t row = 0; row < rows; ++row, scores += N, values += n, indices += n) {
    Ranked<T> ranked(scores, N, n, chunk, buffers);
    int64_t filled = 0;
    const uint32_t* best;
    while (const int64_t found = ranked.next_chunk(&best)) {
      for (int64_t i = 0; i < found; ++i) {
        values[filled + i] = scores[best[i]];
        indices[filled + i] = best[i];
      }
      filled += found;
    }
    counts[row] = filled;
    for (int64_t i = filled; i < n; ++i) {
      values[i] = T{};
      indices[i] = -1;
    }
  }
}

#define FF_TOP_N_ROWS(T)                                                                                            \
  template void top_n_rows(const T*, int64_t, int64_t, int64_t, int64_t, const RankedBuffers<RankKey<Compute<T>>>&, \
                           T*, int64_t*, int64_t*)
FF_TOP_N_ROWS(Half);
FF_TOP_N_ROWS(BFloat16);
FF_TOP_N_ROWS(float);
FF_TOP_N_ROWS(double);
#undef FF_TOP_N_ROWS

}  // namespace FF_ISA
}  // namespace frcnn_fast::top_n
