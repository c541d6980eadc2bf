// gather: one thread a row. Its gradient: one launch that writes every number of the maps once. A block owns kThreads
// anchors, a thread one of them; all of the block look for rows that chose theirs, in shared memory, before they write.
#include "../common/launch.cuh"
#include "anchor_gather.h"

namespace frcnn_fast::anchor_gather {
namespace {

constexpr int kThreads = 256;

template <class T>
__global__ void __launch_bounds__(kThreads)
    gather_anchors_kernel(const __grid_constant__ AnchorMaps<T> maps, int64_t values,
                          const int64_t* __restrict__ indices /* [B, S] */, int64_t B, int64_t S,
                          T* __restrict__ rows /* [B, S, values] */) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= B * S) return;
  const int64_t index = indices[i];
  if (!is_anchor(index, maps.starts[kMaxLevels])) {
    for (int64_t v = 0; v < values; ++v) rows[i * values + v] = T{};
    return;
  }
  const int level = maps.level_of(index);
  const T* const own = maps.at(i / S, level, index);
  const int64_t step = maps.maps[level].value_stride;
  for (int64_t v = 0; v < values; ++v) rows[i * values + v] = own[v * step];
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    gather_anchors_backward_kernel(const T* __restrict__ grad /* [B, S, values] */,
                                   const int64_t* __restrict__ indices /* [B, S] */, int S,
                                   const __grid_constant__ AnchorMaps<T> maps, int64_t values,
                                   unsigned blocks /* of an image */) {
  FF_SHARED(int, first, [kThreads]);  // the first row that chose the anchor; S: none did
  FF_SHARED(int, times, [kThreads]);  // and how many did
  const int thread = int(threadIdx.x);
  const int64_t b = blockIdx.x / blocks, begin = int64_t(blockIdx.x % blocks) * kThreads, A = maps.starts[kMaxLevels];
  const int64_t end = min(begin + kThreads, A), anchor = begin + thread;
  first[thread] = S;
  times[thread] = 0;
  __syncthreads();  // cleared
  for (int s = thread; s < S; s += kThreads) {
    const int64_t index = indices[b * S + s];
    if (!is_anchor(index, A) || index < begin || index >= end) continue;
    atomicMin(&first[index - begin], s);
    atomicAdd(&times[index - begin], 1);
  }
  __syncthreads();  // all rows have been looked at
  if (anchor >= end) return;
  const int level = maps.level_of(anchor);
  T* const own = const_cast<T*>(maps.at(b, level, anchor));
  const int64_t step = maps.maps[level].value_stride;
  for (int64_t v = 0; v < values; ++v) {
    Compute<T> sum = 0;
    int left = FF_MUTANT(gather_cuda_all, times[thread], min(times[thread], 1));
    for (int s = first[thread]; left > 0; ++s) {
      if (indices[b * S + s] != anchor) continue;
      sum += load(grad + (b * S + s) * values + v);
      --left;
    }
    store(own + v * step, sum);
  }
}

}  // namespace

Status gather_anchors_cuda(const GatherMaps& in, const int64_t* indices, int64_t S, void* rows, Stream stream) {
  if (in.B * S == 0) return kOk;
  return visit(in.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    FF_LAUNCH(gather_anchors_kernel<T>, dim3(blocks_for(in.B * S, kThreads)), dim3(kThreads), 0, stream,
              make_anchor_maps<T>(in.levels, in.L), in.values, indices, in.B, S, static_cast<T*>(rows));
    return launched();
  });
}

Status gather_anchors_backward_cuda(const void* grad, const int64_t* indices, int64_t S, const GatherMaps& out,
                                    Stream stream) {
  if (S > 0x7fffffff) return invalid("indices: expected fewer than 2^31 an image, got %lld", (long long)S);
  return visit(out.dtype, [&](auto tag) -> Status {
    using T = typename decltype(tag)::type;
    const AnchorMaps<T> maps = make_anchor_maps<T>(out.levels, out.L);
    const unsigned blocks = blocks_for(maps.starts[kMaxLevels], kThreads);
    if (blocks * out.B == 0) return kOk;
    FF_LAUNCH(gather_anchors_backward_kernel<T>, dim3(blocks * unsigned(out.B)), dim3(kThreads), 0, stream,
              static_cast<const T*>(grad), indices, int(S), maps, out.values, blocks);
    return launched();
  });
}

}  // namespace frcnn_fast::anchor_gather
