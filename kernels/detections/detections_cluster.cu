// The last step by one cluster of blocks an image, in one launch, where rows and classes are few enough.
//
//   score     a warp a row: softmax; each class's score, if it passes, to the block that has the class  cluster barrier
//   then in each block, for as many of its classes at a time as its lists have room for:
//   list      the candidates, class by class, in row order
//   decode    a thread a candidate: its box, if it is valid
//   rank      within its class, by counting: four lanes a candidate
//   cross     which earlier ones of its class may suppress it: a warp a candidate and word, a lane a pair
//   settle    a warp a class: what greedy NMS keeps, word by word
//   best      of those kept, and of those of the classes before, the best D, in order
//   at last   the blocks exchange their best, and each finds the ranks of its own                     cluster barrier
//
// Class k is block k % blocks's, its class number k / blocks. What is only suppressed within a class can be settled
// class by class: the best D of all that is kept are what greedy NMS over all classes would keep first.
//
// The order in which threads come never shows: places come from counts, or are ranked afterwards. A barrier of the
// block after each step shows its results, and lets the next write over what it has read.
#include <algorithm>

#include "../common/cluster_support.cuh"
#include "../common/workspace.h"
#include "../nms/resolve_chunk.cuh"
#include "../top_n/top_n.h"
#include "detections_cuda.h"

namespace frcnn_fast::detections {
using namespace top_n;
namespace {

#if defined(FF_TEST_BUILD)  // small cases have several rounds of everything
constexpr int kThreads = 64, kBlocks = 2, kHeld = 2, kLeastRoom = 32, kMostRows = 70, kMostBest = 128;
#else
constexpr int kThreads = 512;
constexpr int kBlocks = 8;  // of a cluster
constexpr int kHeld = 4;    // logits of a row that a lane holds
constexpr int kLeastRoom = 512;
constexpr int kMostRows = 1024;  // of an image; a class that all rows are in has half as many pairs as its square
constexpr int kMostBest = 1024;
#endif
constexpr int kWarps = kThreads / kWarp;
constexpr int kRankLanes = 4;  // that share the comparisons of a candidate

// By value.
template <class T>
struct Scene {
  using U = Compute<T>;
  DetectorInputs<T> in;
  Suppression<U> suppression;
  int D;
  int blocks;   // of a cluster
  int classes;  // of a block at most
  int room;     // candidates of a block at a time; a class has no more
  int words;    // of 32 candidates of a class at most
  U* boxes;     // [B, D, 4]
  U* scores;    // [B, D]
  int64_t *labels, *indices, *counts;
};

// What is kept, with the image's candidates as indices.
template <class U>
struct Kept {
  Ranking<RankKey<U>>* rankings;
  Box<U>* boxes;
};

template <class U>
struct Memory {
  using Key = RankKey<U>;
  U* scores;               // [classes, N]: NaN where none passes; the other blocks write them
  int* starts;             // [classes + 1]: candidates of the classes before
  int* valid;              // [classes]: those with a valid box
  uint32_t* listed;        // [room]: class number << 16 | row, in that order
  Key* keys;               // [room], of those listed
  Box<U>* boxes;           // [room], likewise
  uint32_t* sorted;        // [room]: places in the list, class by class, by rank
  PretestBox<U>* pretest;  // [room], by rank
  unsigned* matrix;        // [room, words], by rank: the earlier ones of the class that may suppress it
  unsigned* kept;          // [room / 32 + classes]: a bit each, from word starts / 32 + class number on
  Kept<U> found;           // [D + room]: the best so far, then what this round keeps, in any order
  Kept<U> best;            // [D] of those, in order
  Ranking<Key>* all;       // [blocks, D]: all blocks' best
  int* num_all;            // [blocks]
  size_t bytes;

  FF_HD Memory(void* base, int64_t N, int classes, int room, int words, int blocks, int D) {
    WorkspaceArena arena(base);
    scores = arena.take<U>(classes * N);
    starts = arena.take<int>(classes + 1);
    valid = arena.take<int>(classes);
    listed = arena.take<uint32_t>(room);
    keys = arena.take<Key>(room);
    boxes = arena.take<Box<U>>(room);
    sorted = arena.take<uint32_t>(room);
    pretest = arena.take<PretestBox<U>>(room);
    matrix = arena.take<unsigned>(int64_t(room) * words);
    kept = arena.take<unsigned>(room / kWarp + classes + 1);
    found.rankings = arena.take<Ranking<Key>>(D + room);
    found.boxes = arena.take<Box<U>>(D + room);
    best.rankings = arena.take<Ranking<Key>>(D);
    best.boxes = arena.take<Box<U>>(D);
    all = arena.take<Ranking<Key>>(int64_t(blocks) * D);
    num_all = arena.take<int>(blocks);
    bytes = arena.used();
  }
};

// A thread's view of its cluster's work. Branches around barriers depend on shared values alone.
template <bool kLegacy, class T>
class ClusterDetector {
 public:
  using U = Compute<T>;
  using Key = RankKey<U>;

  __device__ __forceinline__ ClusterDetector(const Scene<T>& scene, const Memory<U>& memory, int* scratch)
      : s_(scene),
        m_(memory),
        scratch_(scratch),
        image_(blockIdx.x / unsigned(scene.blocks)),
        block_(int(cluster_rank())),
        classes_(scene.in.N ? int((scene.in.K - block_ + scene.blocks - 1) / scene.blocks) : 0) {}

  __device__ __forceinline__ void run() {
    cluster_sync();  // all blocks have started
    score();
    cluster_sync();  // all scores are where they belong
    const int before = count();
    int best = 0;
    for (int first = 0, end; first < classes_; first = end) {
      end = first + 1;
      while (end < classes_ && m_.starts[end + 1] - m_.starts[first] <= s_.room) ++end;
      list(before, first, end);
      decode(first, end);
      rank(first, end);
      cross(first, end);
      best = sort(settle(first, end, best), end == classes_);
    }
    finish(best);
  }

 private:
  __device__ __forceinline__ void score() {
    const DetectorInputs<T>& in = s_.in;
    const int64_t given = FF_MUTANT(detect_cluster_counts, in.counts[image_], in.N);
    const int64_t count = given < 0 || given > in.N ? 0 : given;
    const int step = kWarps * s_.blocks, columns = int(in.K) + 1;
    const T* const rows = in.logits + image_ * in.N * columns;
    U ahead[kHeld] = {};
    const auto fetch = [&](int n) {
#pragma unroll
      for (int h = 0; h < kHeld; ++h) {
        const int c = h * kWarp + lane_id();
        if (n < in.N && c < columns) ahead[h] = load(rows + int64_t(n) * columns + c);
      }
    };
    int n = block_ * kWarps + warp_id();
    fetch(n);
    for (; n < in.N; n += step) {
      U powers[kHeld], top = -U(bits_float(0x7f800000u));
#pragma unroll
      for (int h = 0; h < kHeld; ++h) {
        powers[h] = ahead[h];
        if (h * kWarp + lane_id() < columns) top = powers[h] > top ? powers[h] : top;
      }
      fetch(n + step);
      top = warp_reduce(top, Larger());
      U sum = U(0);
#pragma unroll
      for (int h = 0; h < kHeld; ++h) {
        if (h * kWarp >= columns) break;
        powers[h] = exp_(powers[h] - top);
        if (h * kWarp + lane_id() < columns) sum += powers[h];
      }
      sum = warp_reduce(sum, Plus());
#pragma unroll
      for (int h = 0; h < kHeld; ++h) {
        const int k = h * kWarp + lane_id() - int(in.first_class);
        if (k < 0 || k >= in.K) continue;
        const U score = powers[h] / sum;
        const bool candidate = n < count && passes(score, in.score_threshold);
        cluster_map(m_.scores, unsigned(k % s_.blocks))[(k / s_.blocks) * int(in.N) + n] =
            candidate ? score : U(bits_float(0x7fc00000u));
      }
    }
  }

  // A warp's part of the block's scores, which are in class order: 32 at a time.
  __device__ __forceinline__ int begin_of(int warp) const {
    const int words = (classes_ * int(s_.in.N) + kWarp - 1) / kWarp;
    return (words + kWarps - 1) / kWarps * warp * kWarp;
  }
  __device__ __forceinline__ unsigned candidates_at(int i) const {
    return __ballot_sync(kFullMask, i < classes_ * int(s_.in.N) && m_.scores[i] == m_.scores[i]);
  }

  // Finds where the classes' candidates begin; returns how many there are before the warp's.
  __device__ __forceinline__ int count() {
    int mine = 0;
    for (int i = begin_of(warp_id()); i < begin_of(warp_id() + 1); i += kWarp)
      mine += __popc(candidates_at(i + lane_id()));
    if (lane_id() == 0) scratch_[warp_id()] = mine;
    __syncthreads();
    int before = 0, total = 0;
    for (int w = 0; w < kWarps; ++w) {
      if (w == warp_id()) before = total;
      total += scratch_[w];
    }
    int place = before;
    for (int i = begin_of(warp_id()); i < begin_of(warp_id() + 1); i += kWarp) {
      const int at = i + lane_id();
      const unsigned votes = candidates_at(at);
      if (at < classes_ * int(s_.in.N) && at % int(s_.in.N) == 0)
        m_.starts[at / int(s_.in.N)] = place + __popc(votes & lanes_below());
      place += __popc(votes);
    }
    if (threadIdx.x == 0) m_.starts[classes_] = total;
    __syncthreads();
    return before;
  }

  __device__ __forceinline__ void list(int before, int first, int end) {
    const int base = m_.starts[first], N = int(s_.in.N);
    int place = before - base;
    for (int i = begin_of(warp_id()); i < begin_of(warp_id() + 1); i += kWarp) {
      const int at = i + lane_id();
      const unsigned votes = candidates_at(at);
      if (votes >> lane_id() & 1u && at >= first * N && at < end * N)
        m_.listed[place + __popc(votes & lanes_below())] = uint32_t(at / N) << 16 | uint32_t(at % N);
      place += __popc(votes);
    }
    for (int c = first + int(threadIdx.x); c < end; c += kThreads) m_.valid[c] = 0;
    __syncthreads();
  }

  __device__ __forceinline__ int class_at(int place) const { return int(m_.listed[place] >> 16); }
  __device__ __forceinline__ int row_at(int place) const { return int(m_.listed[place] & 0xffffu); }

  __device__ __forceinline__ void decode(int first, int end) {
    const int listed = m_.starts[end] - m_.starts[first];
    for (int i = int(threadIdx.x); i < listed; i += kThreads) {
      const int c = class_at(i), n = row_at(i);
      bool valid;
      m_.boxes[i] = decoded_box<kLegacy>(s_.in, image_, int64_t(n), int64_t(c) * s_.blocks + block_, &valid);
      m_.keys[i] = valid ? rank_key(m_.scores[c * int(s_.in.N) + n]) : kNoRank<Key>;
      if (valid) atomicAdd(&m_.valid[c], 1);
    }
    __syncthreads();
  }

  // A candidate's place among those of its class: the valid ones first.
  __device__ __forceinline__ void rank(int first, int end) {
    const int base = m_.starts[first], listed = m_.starts[end] - base, part = int(threadIdx.x) % kRankLanes;
    for (int round = 0; round < listed; round += kThreads / kRankLanes) {
      const int i = round + int(threadIdx.x) / kRankLanes;
      int place = 0;
      if (i < listed) {
        const int c = class_at(i), begin = m_.starts[c] - base, last = m_.starts[c + 1] - base;
        const Ranking<Key> own = {m_.keys[i], uint32_t(i)};
        place = part == 0 ? begin : 0;
#pragma unroll 4
        for (int j = begin + part; j < last; j += kRankLanes)
          place += comes_before(Ranking<Key>{m_.keys[j], uint32_t(j)}, own);
      }
#pragma unroll
      for (int d = kRankLanes / 2; d > 0; d /= 2) place += __shfl_xor_sync(kFullMask, place, d);
      if (i >= listed || part != 0) continue;
      m_.sorted[place] = uint32_t(i);
      m_.pretest[place] = make_pretest_box<kLegacy>(m_.boxes[i], s_.suppression);
    }
    __syncthreads();
  }

  __device__ __forceinline__ void cross(int first, int end) {
    const int base = m_.starts[first], listed = m_.starts[end] - base;
    for (int i = warp_id(); i < listed; i += kWarps) {
      const int c = class_at(int(m_.sorted[i])), begin = m_.starts[c] - base, own = i - begin;
      if (own >= m_.valid[c]) continue;
      const PretestBox<U> mine = m_.pretest[i];
      for (int v = 0; v <= own / kWarp; ++v) {
        const int other = v * kWarp + lane_id();
        bool hit = false;
        if (other < FF_MUTANT(detect_cluster_earlier, own, own - 1))
          hit = suppresses<kLegacy>(m_.pretest[begin + other], mine, s_.suppression);
        const unsigned bits = __ballot_sync(kFullMask, hit);
        if (lane_id() == 0) m_.matrix[i * s_.words + v] = bits;
      }
    }
    if (threadIdx.x == 0) scratch_[0] = 0;
    __syncthreads();
  }

  // Appends what is kept to the best found so far; returns how many there are then.
  __device__ __forceinline__ int settle(int first, int end, int best) {
    const int base = m_.starts[first];
    for (int c = first + warp_id(); c < end; c += kWarps) {
      const int begin = m_.starts[c] - base;
      unsigned* const kept = m_.kept + begin / kWarp + (c - first);
      for (int v = 0; v * kWarp < m_.valid[c]; ++v) {
        const int i = begin + v * kWarp + lane_id();
        bool alive[] = {v * kWarp + lane_id() < m_.valid[c]};
        unsigned own[] = {0};
        if (alive[0]) {
          unsigned hits = 0;
          for (int u = 0; u < v; ++u) hits |= m_.matrix[i * s_.words + u] & kept[u];
          own[0] = m_.matrix[i * s_.words + v];
          alive[0] = FF_MUTANT(detect_cluster_words, hits == 0, true);
        }
        const unsigned word = resolve_word(alive, own);
        if (lane_id() == 0) kept[v] = word;
        int place = 0;
        if (lane_id() == 0) place = atomicAdd(scratch_, __popc(word));
        place = __shfl_sync(kFullMask, place, 0) + __popc(word & lanes_below());
        if (word >> lane_id() & 1u) {
          const int at = int(m_.sorted[i]);
          const uint32_t k = uint32_t(c * s_.blocks + block_);
          m_.found.rankings[best + place] = {m_.keys[at], uint32_t(row_at(at)) * uint32_t(s_.in.K) + k};
          m_.found.boxes[best + place] = m_.boxes[at];
        }
        __syncwarp();  // the word is there for the next
      }
    }
    __syncthreads();
    return best + scratch_[0];
  }

  // The best D of all found, in order; returns how many. Unless it is the last time, they are what is found.
  __device__ __forceinline__ int sort(int all, bool is_last) {
    const int part = int(threadIdx.x) % kRankLanes;
    for (int round = 0; round < all; round += kThreads / kRankLanes) {
      const int i = round + int(threadIdx.x) / kRankLanes;
      int place = 0;
      Ranking<Key> own = {};
      if (i < all) {
        own = m_.found.rankings[i];
#pragma unroll 4
        for (int j = part; j < all; j += kRankLanes) place += comes_before(m_.found.rankings[j], own);
      }
#pragma unroll
      for (int d = kRankLanes / 2; d > 0; d /= 2) place += __shfl_xor_sync(kFullMask, place, d);
      if (i >= all || part != 0 || place >= FF_MUTANT(detect_cluster_best, s_.D, s_.D - 1)) continue;
      m_.best.rankings[place] = own;
      m_.best.boxes[place] = m_.found.boxes[i];
    }
    __syncthreads();
    const int best = minimum(all, s_.D);
    if (is_last) return best;
    for (int i = int(threadIdx.x); i < best; i += kThreads) {
      m_.found.rankings[i] = m_.best.rankings[i];
      m_.found.boxes[i] = m_.best.boxes[i];
    }
    __syncthreads();
    return best;
  }

  // A lane a block, for each of the block's best: how many of that block's come before it.
  __device__ __forceinline__ void finish(int best) {
    for (int i = int(threadIdx.x); i < best * s_.blocks; i += kThreads)
      cluster_map(m_.all, unsigned(i % s_.blocks))[block_ * s_.D + i / s_.blocks] = m_.best.rankings[i / s_.blocks];
    if (int(threadIdx.x) < s_.blocks) cluster_map(m_.num_all, threadIdx.x)[block_] = best;
    cluster_sync();  // every block has all
    int total = 0;
    for (int b = 0; b < s_.blocks; ++b) total += m_.num_all[b];
    total = minimum(total, s_.D);
    const int64_t K = s_.in.K, rows = image_ * s_.D;
    for (int round = 0; round < best; round += kThreads / s_.blocks) {
      const int i = round + int(threadIdx.x) / s_.blocks, other = int(threadIdx.x) % s_.blocks;
      Ranking<Key> own = {};
      int low = 0;
      if (i < best) {
        own = m_.best.rankings[i];
        for (int high = m_.num_all[other]; low < high;) {
          const int middle = (low + high) / 2;
          if (comes_before(m_.all[other * s_.D + middle], own))
            low = middle + 1;
          else
            high = middle;
        }
      }
      for (int d = s_.blocks / 2; d > 0; d /= 2) low += __shfl_xor_sync(kFullMask, low, d);
      if (i >= best || other != 0 || low >= s_.D) continue;
      const int64_t row = rows + low;
      store_box(s_.boxes + 4 * row, m_.best.boxes[i]);
      s_.scores[row] = rank_score(own.key);
      s_.labels[row] = own.index % K + FF_MUTANT(detect_cluster_label, s_.in.first_class, 0);
      s_.indices[row] = FF_MUTANT(detect_cluster_row, own.index / K, own.index);
    }
    for (int i = total + block_ * kThreads + int(threadIdx.x); i < s_.D; i += kThreads * s_.blocks) {
      store_box(s_.boxes + 4 * (rows + i), Box<U>{});
      s_.scores[rows + i] = U(0);
      s_.labels[rows + i] = -1;
      s_.indices[rows + i] = -1;
    }
    if (block_ == 0 && threadIdx.x == 0) s_.counts[image_] = total;
  }

  const Scene<T>& s_;
  const Memory<U>& m_;
  int* const scratch_;
  const int64_t image_;
  const int block_, classes_;
};

// Grid: a cluster an image.
template <bool kLegacy, class T>
__global__ void __launch_bounds__(kThreads, 1) detections_cluster_kernel(const __grid_constant__ Scene<T> scene) {
  FF_SHARED(int, scratch, [kWarps]);
  FF_DYN_SHARED(unsigned char, memory);
  const Memory<Compute<T>> arrays(memory, scene.in.N, scene.classes, scene.room, scene.words, scene.blocks, scene.D);
  ClusterDetector<kLegacy, T>(scene, arrays, scratch).run();
}

template <class T>
Scene<T> make_scene(const DetectionInputs& in, const DetectionSettings& set) {
  Scene<T> scene = {};
  scene.blocks = code_has_clusters() ? kBlocks : 1;
  scene.classes = int((in.K + scene.blocks - 1) / scene.blocks);
  scene.room = int(std::max<int64_t>(in.N, kLeastRoom));
  scene.words = int((in.N + kWarp - 1) / kWarp);
  scene.D = int(set.max_detections);
  return scene;
}

template <class T>
size_t shared_bytes(const DetectionInputs& in, const Scene<T>& s) {
  return Memory<Compute<T>>(nullptr, in.N, s.classes, s.room, s.words, s.blocks, s.D).bytes;
}

// Static shared memory is taken off.
size_t most_shared() { return max_dynamic_shared() - 1024; }

}  // namespace

bool detections_fit_cluster(const DetectionInputs& in, const DetectionSettings& set) {
  if (in.N > kMostRows || in.K + 1 > kHeld * kWarp || set.max_detections > kMostBest) return false;
  return visit(in.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const Scene<T> scene = make_scene<T>(in, set);
    if (shared_bytes(in, scene) > most_shared()) return false;
    if (scene.blocks == 1) return true;
    return set.legacy
               ? device_runs_clusters<&detections_cluster_kernel<true, T>>(kBlocks, dim3(kThreads), most_shared())
               : device_runs_clusters<&detections_cluster_kernel<false, T>>(kBlocks, dim3(kThreads), most_shared());
  });
}

Status detect_by_cluster(const DetectionInputs& in, const DetectionSettings& set, const DetectionOutputs& out,
                         Stream stream) {
  return visit(in.dtype, [&](auto tag) -> Status {
    using T = typename decltype(tag)::type;
    using U = Compute<T>;
    Scene<T> scene = make_scene<T>(in, set);
    scene.in = make_inputs<T>(in, set);
    scene.suppression = make_suppression<U>(set.iou_threshold);
    scene.boxes = static_cast<U*>(out.boxes);
    scene.scores = static_cast<U*>(out.scores);
    scene.labels = out.labels;
    scene.indices = out.indices;
    scene.counts = out.counts;
    const auto kernel = set.legacy ? detections_cluster_kernel<true, T> : detections_cluster_kernel<false, T>;
    FF_TRY(allow_dynamic_shared(kernel, most_shared()));
    FF_LAUNCH_CLUSTER(kernel, unsigned(scene.blocks), dim3(unsigned(in.B) * unsigned(scene.blocks)), dim3(kThreads),
                      shared_bytes(in, scene), stream, scene);
    return launched();
  });
}

}  // namespace frcnn_fast::detections
