// Launching kernels that run GreedyCluster: where they fit, and with how much shared memory.
#pragma once
#include <algorithm>
#include <atomic>

#include "greedy_cluster.cuh"

namespace frcnn_fast::nms {

#if defined(FF_TEST_BUILD)
constexpr size_t kClusterSharedLimit = 51 << 10;  // so that small cases are too large as well
#else
constexpr size_t kClusterSharedLimit = 227 << 10;
#endif

// Dynamic, of a block; the rest: static.
inline size_t most_cluster_shared() { return std::min(max_dynamic_shared(), kClusterSharedLimit) - 2048; }

// Whether a segment's candidates and kept boxes, with classes of type Id, fit into a cluster.
template <class Id, class U>
bool fits_cluster(int64_t longest, const ClusterSettings<U>& set) {
  return longest <= 1 << 30 && set.n <= kCluster * kListRoom &&
         ClusterMemory<U, Id>(nullptr, set).bytes <= most_cluster_shared();
}

// Whether the current device runs clusters of the kernel at all; asked once for each device.
template <auto kKernel>
bool device_runs_clusters() {
  static std::atomic<int8_t> known[kMostDevices];  // 0: not asked yet, 1: no, 2: yes
  if (!code_has_clusters()) return false;
  int device = 0;
  if (cudaGetDevice(&device) || device >= kMostDevices) return false;
  int8_t answer = known[device];
  if (!answer) {
    const bool yes = !allow_dynamic_shared(kKernel, most_cluster_shared()) &&
                     cluster_fits(kKernel, kCluster, dim3(kClusterChunk), most_cluster_shared());
    known[device] = answer = yes ? 2 : 1;
  }
  return answer == 2;
}

// A cluster a segment, of a kernel with these parameters.
template <auto kKernel, class Id, class U, class... Parameters>
Status launch_greedy_clusters(int64_t segments, const ClusterSettings<U>& set, Stream stream,
                              const Parameters&... parameters) {
  FF_TRY(allow_dynamic_shared(kKernel, most_cluster_shared()));
  FF_LAUNCH_CLUSTER(kKernel, kCluster, dim3(unsigned(segments) * kCluster), dim3(kClusterChunk),
                    ClusterMemory<U, Id>(nullptr, set).bytes, stream, parameters..., set);
  return launched();
}

}  // namespace frcnn_fast::nms
