// Kernels whose counts are known by hand, for tests/test_cost.py. Each is launched as two blocks of two warps.
#include "../../kernels/common/launch.cuh"

namespace frcnn_fast::counting {

// A warp: one load and one store of 128 bytes.
__global__ void copy_kernel(const float* in, float* out) {
  const int i = int(blockIdx.x * blockDim.x + threadIdx.x);
  out[i] = in[i];  // copy
}

// A warp goes round as often as its last lane: 32 times.
__global__ void loop_kernel(const float* in, float* out) {
  float sum = 0;
#pragma unroll 1
  for (int i = 0; i <= lane_id(); ++i) sum += in[i];  // loop
  out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}

// Unrolled: eight loads of a warp, and no branch.
__global__ void unrolled_kernel(const float* in, float* out) {
  float sum = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) sum += in[64 * i + int(threadIdx.x)];  // unrolled
  out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}

// The compiler unrolls as it likes: 1,000 rounds of a warp.
__global__ void long_loop_kernel(const float* in, float* out, int n) {
  float sum = 0;
  for (int i = 0; i < n; ++i) sum += in[i] * sum;  // long loop
  out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}

// Eight loops in a row, each 100 rounds of a warp: arithmetic, and no access of memory.
__global__ void arithmetic_kernel(const float* in, float* out, int n) {
  float x = in[threadIdx.x];
#pragma unroll
  for (int i = 1; i <= 8; ++i) {
#pragma unroll 1
    for (int k = 0; k < n; ++k) x *= x + float(i);  // arithmetic
  }
  out[blockIdx.x * blockDim.x + threadIdx.x] = x;
}

// Odd lanes take one way, even lanes the other: a warp takes both. Beyond that only a block's first warp works.
__global__ void diverging_kernel(const float* in, float* out) {
  const int i = int(threadIdx.x);
  if (i % 2) {
#pragma unroll 1
    for (int k = 0; k < 10; ++k) out[i + 64 * k] = in[i];  // odd
  } else {
#pragma unroll 1
    for (int k = 0; k < 20; ++k) out[i + 64 * k] = in[i];  // even
  }
  __syncthreads();
  if (i < 32) {
#pragma unroll 1
    for (int k = 0; k < 5; ++k) out[i + 64 * k] = in[i];  // first warp
  }
}

// Lanes read shared memory 32 words apart: one bank, 32 rounds. Before, they write one word each: one round.
__global__ void conflict_kernel(float* out) {
  FF_SHARED(float, tile, [32 * 64]);
  tile[threadIdx.x] = float(threadIdx.x);  // one round
  __syncthreads();
  out[threadIdx.x] = tile[lane_id() * 32 + warp_id()];  // 32 rounds
}

#if defined(FF_SIMT)
extern "C" __attribute__((visibility("default"))) void count_kernel(const char* name, const float* in, float* out) {
  const dim3 grid(2), block(64);
  if (!std::strcmp(name, "copy")) FF_LAUNCH(copy_kernel, grid, block, 0, nullptr, in, out);
  if (!std::strcmp(name, "loop")) FF_LAUNCH(loop_kernel, grid, block, 0, nullptr, in, out);
  if (!std::strcmp(name, "unrolled")) FF_LAUNCH(unrolled_kernel, grid, block, 0, nullptr, in, out);
  if (!std::strcmp(name, "long_loop")) FF_LAUNCH(long_loop_kernel, grid, block, 0, nullptr, in, out, 1000);
  if (!std::strcmp(name, "arithmetic")) FF_LAUNCH(arithmetic_kernel, grid, block, 0, nullptr, in, out, 100);
  if (!std::strcmp(name, "diverging")) FF_LAUNCH(diverging_kernel, grid, block, 0, nullptr, in, out);
  if (!std::strcmp(name, "conflict")) FF_LAUNCH(conflict_kernel, grid, block, 0, nullptr, out);
}
#endif

}  // namespace frcnn_fast::counting
