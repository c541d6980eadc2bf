// Launching kernels that run GreedyCluster: where they fit, and with how much shared memory.
#pragma once
#include <algorithm>

#include "../common/cluster_support.cuh"
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
  return longest <= 1 << 30 && set.n <= kCluster * kListRoom && set.most_kept <= int(RowReach::kMostKept) &&
         ClusterMemory<U, Id>(nullptr, set).bytes <= most_cluster_shared();
}

template <auto kKernel>
bool device_runs_greedy_clusters() {
  return device_runs_clusters<kKernel>(kCluster, dim3(kClusterChunk), most_cluster_shared());
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
