// Warp and block primitives. Every kernel here uses one-dimensional blocks of whole warps, and every thread of the
// warp (or block) calls.
#pragma once

namespace frcnn_fast {

constexpr int kWarp = 32;
constexpr unsigned kFullMask = 0xffffffffu;

__device__ __forceinline__ int lane_id() { return int(threadIdx.x) & (kWarp - 1); }
__device__ __forceinline__ int warp_id() { return int(threadIdx.x) / kWarp; }
__device__ __forceinline__ int warps_per_block() { return int(blockDim.x) / kWarp; }
// The lanes below this one.
__device__ __forceinline__ unsigned lanes_below() { return (1u << lane_id()) - 1u; }

struct Plus {
  template <class T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a + b;
  }
};
struct Larger {
  template <class T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a > b ? a : b;
  }
};
struct Smaller {
  template <class T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a < b ? a : b;
  }
};

// The whole warp's value, in every lane. The tree is fixed (lane l with l ^ 16, 8, 4, 2, 1), so float sums repeat.
template <class T, class Op>
__device__ __forceinline__ T warp_reduce(T value, Op op) {
#pragma unroll
  for (int d = kWarp / 2; d > 0; d /= 2) value = op(value, __shfl_xor_sync(kFullMask, value, d));
  return value;
}

__device__ __forceinline__ unsigned warp_maximum(unsigned value) { return __reduce_max_sync(kFullMask, value); }
__device__ __forceinline__ unsigned long long warp_maximum(unsigned long long value) {
  return warp_reduce(value, Larger());
}

// op over lanes 0..l, for an associative op.
template <class T, class Op>
__device__ __forceinline__ T warp_inclusive_scan(T value, Op op) {
#pragma unroll
  for (int d = 1; d < kWarp; d *= 2) {
    const T below = __shfl_up_sync(kFullMask, value, d);
    if (lane_id() >= d) value = op(below, value);
  }
  return value;
}

// The whole block's value, in every thread. scratch: shared, one T a warp; free to reuse on return.
template <class T, class Op>
__device__ __forceinline__ T block_reduce(T value, Op op, T* scratch) {
  value = warp_reduce(value, op);
  if (lane_id() == 0) scratch[warp_id()] = value;
  __syncthreads();
  T total = scratch[0];
  for (int w = 1; w < warps_per_block(); ++w) total = op(total, scratch[w]);
  __syncthreads();  // all have read: the caller may write to scratch again
  return total;
}

// Of numbers that the block's warps have in scratch, one each: the sum of those of the warps below this one; *total:
// of all. A lane reads a warp's, so that no load waits for another. For integers of 32 bits.
template <class T>
__device__ __forceinline__ T sum_over_warps(const T* scratch, T* total) {
  const T own = lane_id() < warps_per_block() ? scratch[lane_id()] : T(0);
  *total = __reduce_add_sync(kFullMask, own);
  return __reduce_add_sync(kFullMask, lane_id() < warp_id() ? own : T(0));
}

// The sum over the threads below this one; *total, in every thread, the whole block's. For integers of 32 bits.
// scratch: shared, one T a warp; free to reuse on return.
template <class T>
__device__ __forceinline__ T block_exclusive_sum(T value, T* scratch, T* total) {
  const T inclusive = warp_inclusive_scan(value, Plus());
  if (lane_id() == kWarp - 1) scratch[warp_id()] = inclusive;
  __syncthreads();
  const T before = sum_over_warps(scratch, total);
  __syncthreads();  // all have read
  return before + inclusive - value;
}

// The same for one bit a thread, by ballots.
__device__ __forceinline__ int block_exclusive_count(bool flag, int* scratch, int* total) {
  const unsigned votes = __ballot_sync(kFullMask, flag);
  if (lane_id() == 0) scratch[warp_id()] = __popc(votes);
  __syncthreads();
  const int before = sum_over_warps(scratch, total);
  __syncthreads();  // all have read
  return before + __popc(votes & lanes_below());
}

// Sorts items[0..n) in shared memory by less, a strict order; n is a power of two. Not stable: make equal items
// impossible (put the index into the key). O(n log^2 n) by a bitonic network. The block is in step on return.
template <class T, class Less>
__device__ __forceinline__ void block_sort(T* items, int n, Less less) {
  for (int size = 2; size <= n; size *= 2) {
    for (int stride = size / 2; stride > 0; stride /= 2) {
      __syncthreads();
      for (int i = int(threadIdx.x); i < n / 2; i += int(blockDim.x)) {
        const int low = 2 * i - (i & (stride - 1)), high = low + stride;
        const bool ascending = (low & size) == 0;
        const T a = items[low], b = items[high];
        if (less(b, a) == ascending) {
          items[low] = b;
          items[high] = a;
        }
      }
    }
  }
  __syncthreads();
}

}  // namespace frcnn_fast
