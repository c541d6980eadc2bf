// Greedy NMS of many segments, exact, with O(segments) workspace.
//
// The ranks of a segment are taken in chunks of kChunk. Two launches a chunk:
//   test_kernel     every pair that matters, over the whole grid: which earlier boxes of the chunk suppress a box
//                   (a bit matrix), and whether a box kept from earlier chunks does.
//   resolve_kernel  one block a segment walks the matrix word by word and appends what is kept.
// A segment that is done (max_output kept, or no ranks left) returns at once from the launches that remain. Each launch
// starts while the one before is still running, but does nothing until that is complete.
#include <algorithm>

#include "../common/launch.cuh"
#include "../common/workspace.h"
#include "nms.h"
#include "resolve_chunk.cuh"

namespace frcnn_fast::nms {
namespace {

constexpr int kWord = 64;  // boxes whose bits share a word of the matrix; a warp's lane has two of them
#if defined(FF_TEST_BUILD)
constexpr int kWords = 2;  // small cases cross chunks too
#else
constexpr int kWords = 32;  // resolve_kernel has a warp for each
#endif
constexpr int kChunk = kWords * kWord;
constexpr int kRows = 128;      // test_kernel: a thread a row
constexpr int kKeptTiles = 32;  // blocks that share the kept boxes

using Word = unsigned long long;

template <class U>
struct Segments {
  const Box<U>* boxes;       // [S, N]
  const int64_t* class_ids;  // [S, N] or null
  const int32_t* counts;     // [S]
  int64_t N;
  int32_t max_output;
  Suppression<U> suppression;
  int32_t words;   // of a chunk: kWords, or fewer where N needs fewer
  Word* matrix;    // [S, words, words * kWord]: bit i of word v of box j: box v * kWord + i suppresses j, if kept
  unsigned* dead;  // [S, kChunk / 32]: bit j: box j is suppressed by one of an earlier chunk
  int32_t* keep;   // [S, max_output]
  int32_t* num_keep;
};

// A block tests kRows boxes of the chunk (blockIdx.z) against tiles of kWord suppressors. blockIdx.y below kept_tiles:
// boxes kept earlier, every kept_tiles-th tile of them. From there on: one word of the chunk itself. Shared memory
// holds the tile; each of its boxes is read by all threads at once.
template <bool kLegacy, bool kClasses, class U>
__global__ void __launch_bounds__(kRows) test_kernel(Segments<U> segments, int start, int kept_tiles) {
  FF_SHARED(PretestBox<U>, tile, [kWord]);
  FF_SHARED(int64_t, tile_ids, [kClasses ? kWord : 1]);
  wait_for_launch_before();
  let_next_launch_start();
  const int64_t s = blockIdx.x;
  const int n = min(kChunk, segments.counts[s] - start), kept = start ? segments.num_keep[s] : 0;
  const int first_row = int(blockIdx.z) * kRows, row = first_row + int(threadIdx.x);
  if (kept >= segments.max_output || first_row >= n) return;
  const Suppression<U> suppression = segments.suppression;
  const Box<U>* const boxes = segments.boxes + s * segments.N;
  const int64_t* const ids = kClasses ? segments.class_ids + s * segments.N : nullptr;
  const int32_t* const keep = segments.keep + s * segments.max_output;
  const int64_t rank = start + min(row, n - 1);
  const PretestBox<U> mine = make_pretest_box<kLegacy>(boxes[rank], suppression);
  const int64_t my_id = kClasses ? ids[rank] : 0;

  // The suppressors start + first ... or, of the kept list, keep[first] ...: which of the `count` suppress this row?
  const auto test_tile = [&](const int32_t* list, int first, int count) {
    __syncthreads();  // all are done with the tile before
    if (int(threadIdx.x) < count) {
      const int64_t other = list ? list[first + int(threadIdx.x)] : start + first + int(threadIdx.x);
      tile[threadIdx.x] = make_pretest_box<kLegacy>(boxes[other], suppression);
      if (kClasses) tile_ids[threadIdx.x] = ids[other];
    } else if (threadIdx.x < kWord) {
      tile[threadIdx.x] = {{}, U(bits_float(0x7f800000u))};  // an infinite share, which no overlap reaches
    }
    __syncthreads();  // the tile is there
    unsigned half[2] = {0, 0};
#pragma unroll
    for (int h = 0; h < 2; ++h) {
#pragma unroll 8
      for (int i = 0; i < kWord / 2; ++i) {
        const int at = h * (kWord / 2) + i;
        const bool same = !kClasses || FF_MUTANT(nms_class, tile_ids[at] == my_id, true);
        if (same && suppresses<kLegacy>(tile[at], mine, suppression)) half[h] |= 1u << i;
      }
    }
    return Word(half[0]) | Word(half[1]) << 32;
  };

  if (int(blockIdx.y) < kept_tiles) {
    bool suppressed = false;
    for (int first = int(blockIdx.y) * kWord; first < kept; first += kept_tiles * kWord)
      suppressed |= test_tile(keep, first, min(kWord, kept - first)) != 0;
    const unsigned votes = __ballot_sync(kFullMask, suppressed && row < n);
    if (lane_id() == 0 && votes) atomicOr(&segments.dead[s * (kChunk / 32) + row / 32], votes);
  } else {
    const int v = int(blockIdx.y) - kept_tiles, first = v * kWord;
    if (first >= n || first >= first_row + kRows) return;  // later boxes suppress no earlier ones
    const Word bits = test_tile(nullptr, first, min(kWord, n - first));
    if (row < n) segments.matrix[(s * segments.words + v) * segments.words * kWord + row] = bits;
  }
}

// One block a segment, one warp a word; a lane has boxes `lane` and `lane + 32` of it. Warp v settles its word when the
// kept boxes of all words before have been applied to it, and publishes it; one barrier a word. The matrix rows that a
// warp will need are loaded kAhead words before.
template <class U>
__global__ void __launch_bounds__(kWords* kWarp) resolve_kernel(Segments<U> segments, int start, bool last) {
  FF_SHARED(Word, kept_words, [kWords]);
  wait_for_launch_before();
  let_next_launch_start();
  constexpr int kAhead = kWords < 4 ? kWords : 4;
  const int64_t s = blockIdx.x;
  const int n = min(kChunk, segments.counts[s] - start), before = start ? segments.num_keep[s] : 0;
  const int max_output = segments.max_output, lane = lane_id(), warp = warp_id();
  int32_t* const keep = segments.keep + s * max_output;
  int total = before;
  __syncthreads();  // all have read num_keep, which is written below

  if (before < max_output && n > 0) {
    const int words = (n + kWord - 1) / kWord, row = warp * kWord + lane;
    unsigned* const dead = segments.dead + s * (kChunk / 32) + 2 * warp;
    const int64_t stride = segments.words * kWord;
    const Word* const matrix = segments.matrix + s * segments.words * stride;
    const auto alive_at = [&](int j, unsigned suppressed) {
      return j < n && takes_part(segments.boxes[s * segments.N + start + j]) && !(suppressed >> lane & 1u);
    };
    const unsigned dead0 = start ? dead[0] : 0, dead1 = start ? dead[1] : 0;
    bool alive0 = alive_at(row, FF_MUTANT(nms_chunk, dead0, 0u)), alive1 = alive_at(row + 32, dead1);
    __syncwarp();  // all lanes have read
    if (lane == 0) {
      dead[0] = dead[1] = 0;  // for the next chunk
      kept_words[warp] = 0;
    }
    const auto load_word = [&](int v, int j) { return v <= warp && j < n ? matrix[v * stride + j] : 0; };
    Word next0[kAhead], next1[kAhead];
#pragma unroll
    for (int u = 0; u < kAhead; ++u) next0[u] = load_word(u, row), next1[u] = load_word(u, row + 32);

    for (int base = 0; base < words && total < max_output; base += kAhead) {
      Word word0[kAhead], word1[kAhead];
#pragma unroll
      for (int u = 0; u < kAhead; ++u) {
        word0[u] = next0[u], word1[u] = next1[u];
        next0[u] = load_word(base + kAhead + u, row), next1[u] = load_word(base + kAhead + u, row + 32);
      }
#pragma unroll
      for (int u = 0; u < kAhead; ++u) {
        if (base + u == warp) {
          const bool alive[] = {alive0, alive1};
          const Word earlier[] = {word0[u] & ((Word(1) << lane) - 1), word1[u] & ((Word(1) << (lane + 32)) - 1)};
          const Word kept = resolve_word(alive, earlier);
          if (lane == 0) kept_words[warp] = kept;
        }
        __syncthreads();  // the word is settled
        const Word kept = base + u < words ? kept_words[base + u] : 0;
        if (base + u < warp) {
          alive0 = alive0 && !(word0[u] & kept);
          alive1 = alive1 && !(word1[u] & kept);
        }
        total += __popcll((long long)kept);
      }
    }
    __syncthreads();  // all words are settled, or enough of them

    const int mine = lane < warps_per_block() ? __popcll((long long)kept_words[lane]) : 0;
    const int position = before + __shfl_sync(kFullMask, warp_inclusive_scan(mine, Plus()) - mine, warp);
    const Word kept = kept_words[warp];
    const int position0 = position + __popcll((long long)(kept & ((Word(1) << lane) - 1)));
    const int position1 = position + __popcll((long long)(kept & ((Word(1) << (lane + 32)) - 1)));
    if (kept >> lane & 1u && position0 < max_output) keep[position0] = start + row;
    if (kept >> (lane + 32) & 1u && position1 < max_output) keep[position1] = start + row + 32;
  }
  total = min(total, max_output);
  if (threadIdx.x == 0) segments.num_keep[s] = total;
  if (last)
    for (int i = total + int(threadIdx.x); i < max_output; i += int(blockDim.x)) keep[i] = -1;
}

template <bool kLegacy, class U>
void launch_chunk(const Segments<U>& segments, int64_t S, int start, Stream stream) {
  const int64_t n = std::min<int64_t>(kChunk, segments.N - start);
  const int64_t most_kept = std::min<int64_t>(start, segments.max_output);
  const unsigned kept_tiles = unsigned(std::min<int64_t>(kKeptTiles, (most_kept + kWord - 1) / kWord));
  const unsigned words = blocks_for(n, kWord);
  const dim3 grid(unsigned(S), kept_tiles + words, blocks_for(n, kRows));
  if (segments.class_ids) {
    FF_LAUNCH_OVERLAPPED((test_kernel<kLegacy, true, U>), grid, kRows, 0, stream, segments, start, int(kept_tiles));
  } else {
    FF_LAUNCH_OVERLAPPED((test_kernel<kLegacy, false, U>), grid, kRows, 0, stream, segments, start, int(kept_tiles));
  }
  FF_LAUNCH_OVERLAPPED(resolve_kernel<U>, unsigned(S), words * kWarp, 0, stream, segments, start,
                       int64_t(start) + kChunk >= segments.N);
}

template <class U>
size_t take_segments(void* workspace, int64_t S, int64_t N, Segments<U>* segments) {
  WorkspaceArena arena(workspace);
  segments->words = int32_t(std::min<int64_t>(kWords, (N + kWord - 1) / kWord));
  segments->matrix = arena.take<Word>(S * segments->words * segments->words * kWord);
  segments->dead = arena.take<unsigned>(S * (kChunk / 32));
  return arena.used();
}

}  // namespace

size_t nms_sorted_segments_workspace_cuda(DType, int64_t S, int64_t N, int64_t) {
  Segments<float> segments;
  return take_segments(nullptr, S, N, &segments);
}

Status nms_sorted_segments_cuda(DType dtype, const void* boxes, const int64_t* class_ids, const int32_t* counts,
                                int64_t S, int64_t N, double iou_threshold, int64_t max_output, bool legacy,
                                void* workspace, int32_t* keep, int32_t* num_keep, Stream stream) {
  if (S == 0) return kOk;
  if (N == 0 || max_output == 0) {
    if (max_output > 0) FF_TRY(fill_bytes(keep, 0xff, size_t(S * max_output) * sizeof(int32_t), stream));
    return fill_bytes(num_keep, 0, size_t(S) * sizeof(int32_t), stream);
  }
  return visit_compute(dtype, [&](auto tag) {
    using U = typename decltype(tag)::type;
    Segments<U> segments = {static_cast<const Box<U>*>(boxes),
                            class_ids,
                            counts,
                            N,
                            int32_t(max_output),
                            make_suppression<U>(iou_threshold),
                            0,
                            nullptr,
                            nullptr,
                            keep,
                            num_keep};
    take_segments(workspace, S, N, &segments);
    for (int64_t start = 0; start < N; start += kChunk)
      legacy ? launch_chunk<true>(segments, S, int(start), stream)
             : launch_chunk<false>(segments, S, int(start), stream);
    return launched();
  });
}

}  // namespace frcnn_fast::nms
