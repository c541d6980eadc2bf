// Copies from global to shared memory that a thread does not wait for, and that need no registers.
#pragma once
#include "launch.cuh"

#if defined(FF_SIMT)
#include <async_copy.h>  // the harness'
#else

namespace frcnn_fast {

// kBytes: 4, 8 or 16, to which both addresses are aligned. Sixteen pass the first-level cache by.
template <int kBytes>
__device__ __forceinline__ void copy_async(void* shared, const void* global) {
  const unsigned to = unsigned(__cvta_generic_to_shared(shared));
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(global) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(to), "l"(global), "n"(kBytes) : "memory");
  }
}

// Returns when all copies that this thread has begun are there, for it alone: others read them after a barrier.
__device__ __forceinline__ void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

}  // namespace frcnn_fast
#endif
