// Whether clusters of a kernel run at all: a part of a GPU may have too few multiprocessors side by side.
#pragma once
#include <atomic>

#include "launch.cuh"

namespace frcnn_fast {

// Of that many blocks, with that much dynamic shared memory, which must not depend on the call: asked once a device.
template <auto kKernel>
bool device_runs_clusters(unsigned cluster, dim3 block, size_t shared_bytes) {
  static std::atomic<int8_t> known[kMostDevices];  // 0: not asked yet, 1: no, 2: yes
  if (!code_has_clusters()) return false;
  int device = 0;
  if (cudaGetDevice(&device) || device >= kMostDevices) return false;
  int8_t answer = known[device];
  if (!answer) {
    const bool yes =
        !allow_dynamic_shared(kKernel, shared_bytes) && cluster_fits(kKernel, cluster, block, shared_bytes);
    known[device] = answer = yes ? 2 : 1;
  }
  return answer == 2;
}

}  // namespace frcnn_fast
