// Soft-NMS of a batch of images, one block an image, one launch.
//
// A thread owns every kThreads-th row: it lowers their scores after each kept box, in global memory that no other
// thread touches, and finds the best of them. The warps' bests meet in shared memory (a score and an index per warp).
// Two barriers a kept box: one before the bests are read, one before they are written again.
#include "../common/launch.cuh"
#include "../common/workspace.h"
#include "../top_n/top_n.h"
#include "soft_nms.h"

namespace frcnn_fast::nms {
using namespace top_n;
namespace {

#if defined(FF_TEST_BUILD)
constexpr int kSoftThreads = 64;  // small cases give a thread several rows
#else
constexpr int kSoftThreads = 512;
#endif
constexpr int kSoftWarps = kSoftThreads / kWarp;

// A row by its score as it is now.
template <class U>
struct Standing {
  U score;
  int32_t row;
};

template <class U>
__device__ __forceinline__ Standing<U> better(const Standing<U>& a, const Standing<U>& b) {
  return comes_before(b.score, b.row, a.score, a.row) ? b : a;
}

// The block's best, in every thread. shared: one per warp; may be written again after the next barrier.
template <class U>
__device__ __forceinline__ Standing<U> block_best(Standing<U> mine, Standing<U>* shared) {
#pragma unroll
  for (int d = kWarp / 2; d > 0; d /= 2)
    mine =
        better(mine, Standing<U>{__shfl_xor_sync(kFullMask, mine.score, d), __shfl_xor_sync(kFullMask, mine.row, d)});
  if (lane_id() == 0) shared[warp_id()] = mine;
  __syncthreads();  // every warp's best is there
  Standing<U> best = shared[0];
  for (int w = 1; w < kSoftWarps; ++w) best = better(best, shared[w]);
  __syncthreads();  // all have read them
  return best;
}

template <class T, bool kLegacy, SoftMethod kMethod, class U = Compute<T>>
__global__ void __launch_bounds__(kSoftThreads)
    soft_nms_kernel(const T* boxes, const T* scores, const int64_t* counts, int N, SoftRule<U> rule, int64_t max_output,
                    U* current, int64_t* keep, U* kept_scores, int64_t* num_keep) {
  FF_SHARED(Standing<U>, bests, [kSoftWarps]);
  const int64_t b = blockIdx.x;
  boxes += b * N * 4, scores += b * N, current += b * N, keep += b * max_output, kept_scores += b * max_output;
  int64_t count = counts ? FF_MUTANT(soft_counts, counts[b], N) : N;
  if (count < 0 || count > N) count = 0;

  Standing<U> best = {kOutOfPlay<U>, N};
  for (int i = int(threadIdx.x); i < count; i += kSoftThreads) {
    const U score = load(scores + i);
    const bool plays = takes_part(load_box(boxes + 4 * int64_t(i))) && in_play(score, rule);
    current[i] = plays ? score : kOutOfPlay<U>;
    best = better(best, Standing<U>{current[i], i});
  }
  int64_t kept = 0;
  for (; kept < max_output; ++kept) {
    best = block_best(best, bests);
    if (best.score == kOutOfPlay<U>) break;
    if (threadIdx.x == 0) {
      keep[kept] = best.row;
      kept_scores[kept] = best.score;
    }
    const Box<U> box = load_box(boxes + 4 * int64_t(best.row));
    const int row = best.row;
    best = {kOutOfPlay<U>, N};
    for (int i = int(threadIdx.x); i < count; i += kSoftThreads) {
      U score = current[i];
      if (score == kOutOfPlay<U>) continue;
      score = i == row ? kOutOfPlay<U> : softened<kLegacy, kMethod>(score, box, load_box(boxes + 4 * int64_t(i)), rule);
      current[i] = score;
      best = better(best, Standing<U>{score, i});
    }
  }
  if (threadIdx.x == 0) num_keep[b] = kept;
  for (int64_t i = kept + int(threadIdx.x); i < max_output; i += kSoftThreads) {
    keep[i] = -1;
    kept_scores[i] = 0;
  }
}

}  // namespace

size_t soft_nms_workspace_cuda(DType dtype, int64_t B, int64_t N) {
  return visit_compute(dtype, [&](auto tag) {
    WorkspaceArena arena(nullptr);
    arena.take<typename decltype(tag)::type>(B * N);
    return arena.used();
  });
}

Status soft_nms_cuda(DType dtype, const void* boxes, const void* scores, const int64_t* counts, int64_t B, int64_t N,
                     double iou_threshold, double sigma, double score_threshold, int64_t max_output, SoftMethod method,
                     bool legacy, void* workspace, int64_t* keep, void* kept_scores, int64_t* num_keep, Stream stream) {
  if (B == 0) return kOk;
  if (N >= INT32_MAX) return invalid("boxes: expected fewer than 2^31 - 1 an image, got %lld", (long long)N);
  return visit(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using U = Compute<T>;
    const SoftRule<U> rule = {method, U(iou_threshold), U(sigma), U(score_threshold)};
    WorkspaceArena arena(workspace);
    U* const current = arena.take<U>(B * N);
    const auto run = [&](auto kernel) {
      FF_LAUNCH(kernel, dim3(unsigned(B)), dim3(kSoftThreads), 0, stream, static_cast<const T*>(boxes),
                static_cast<const T*>(scores), counts, int(N), rule, max_output, current, keep,
                static_cast<U*>(kept_scores), num_keep);
    };
    const auto run_method = [&](auto linear, auto gaussian, auto hard) {
      if (method == SoftMethod::kLinear)
        run(linear);
      else if (method == SoftMethod::kGaussian)
        run(gaussian);
      else
        run(hard);
    };
    if (legacy)
      run_method(soft_nms_kernel<T, true, SoftMethod::kLinear>, soft_nms_kernel<T, true, SoftMethod::kGaussian>,
                 soft_nms_kernel<T, true, SoftMethod::kHard>);
    else
      run_method(soft_nms_kernel<T, false, SoftMethod::kLinear>, soft_nms_kernel<T, false, SoftMethod::kGaussian>,
                 soft_nms_kernel<T, false, SoftMethod::kHard>);
    return launched();
  });
}

}  // namespace frcnn_fast::nms
