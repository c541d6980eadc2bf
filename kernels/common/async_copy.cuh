// Copies from global to shared memory that a thread does not wait for, and that need no registers.
#pragma once
#include "launch.cuh"

#if defined(FF_SIMT)
#include "async_copy.h"
#else
#include <cuda_pipeline_primitives.h>

namespace frcnn_fast {

// kBytes: 4, 8 or 16, to which both addresses are aligned.
template <int kBytes>
__device__ __forceinline__ void copy_async(void* shared, const void* global) {
  __pipeline_memcpy_async(shared, global, kBytes);
}

// Returns when all copies that this thread has begun are there, for it alone: others read them after a barrier.
__device__ __forceinline__ void wait_for_copies() {
  __pipeline_commit();
  __pipeline_wait_prior(0);
}

}  // namespace frcnn_fast
#endif
