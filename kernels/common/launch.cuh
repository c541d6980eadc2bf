// What every .cu file includes in place of cuda_runtime.h.
//
// One kernel source has two compilers: nvcc, and (with FF_SIMT) the C++ compiler with the test harness of tests/simt,
// which runs every CUDA thread as a fiber on the CPU. So kernels keep to plain CUDA C++, the intrinsics that
// tests/simt/intrinsics.h lists, and these:
//
//   FF_LAUNCH(kernel, grid, block, shared_bytes, stream, arguments...)     kernel may be kernel<T, 4>
//   FF_LAUNCH_CLUSTER(kernel, cluster, grid, block, shared_bytes, stream, arguments...)
//   FF_LAUNCH_OVERLAPPED(kernel, grid, block, shared_bytes, stream, arguments...)     see launch_overlapped
//   FF_SHARED(float, tile, [8][32]);    FF_SHARED(int, count);              static shared memory
//   FF_DYN_SHARED(float, rows);                                            float* to the dynamic shared memory
//   launched()                          status of the launches since it was last asked
//
// A launch of zero blocks is an error in CUDA: launchers return early where there is nothing to do.
#pragma once
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "status.h"

// Around the body of a kernel that needs clusters; where they are not, the body is __trap(), and the launcher asks
// code_has_clusters().
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define FF_CODE_HAS_CLUSTERS 1
#else
#define FF_CODE_HAS_CLUSTERS 0
#endif

#if defined(FF_SIMT)
#include "simt.h"
#else
#include <cuda_runtime.h>

#define FF_SHARED(T, name, ...) __shared__ T name __VA_ARGS__
#define FF_DYN_SHARED(T, name)                                        \
  extern __shared__ __align__(128) unsigned char ff_dynamic_shared[]; \
  T* const name = reinterpret_cast<T*>(ff_dynamic_shared)
#define FF_LAUNCH(...) ::frcnn_fast::launch(__VA_ARGS__)
#define FF_LAUNCH_CLUSTER(...) ::frcnn_fast::launch_cluster(__VA_ARGS__)
#define FF_LAUNCH_OVERLAPPED(...) ::frcnn_fast::launch_overlapped(__VA_ARGS__)
#endif

namespace frcnn_fast {

constexpr size_t kDefaultSharedBytes = 48 << 10;  // beyond this a kernel must ask: allow_dynamic_shared

// The status of the launches (and copies) since it was last asked: 0 or a CUDA error code. Asking clears it.
inline Status launched() { return static_cast<Status>(cudaGetLastError()); }

inline Status fill_bytes(void* target, int value, size_t bytes, Stream stream) {
  return static_cast<Status>(cudaMemsetAsync(target, value, bytes, static_cast<cudaStream_t>(stream)));
}

// Host side, once per launch and cheap: lets kernel use up to `bytes` of dynamic shared memory. Fails beyond
// max_dynamic_shared(). It is the kernel's for all threads of the process: callers ask for the most that the device
// gives, never for what a launch uses, else two of them would race.
template <class... Parameters>
Status allow_dynamic_shared(void (*kernel)(Parameters...), size_t bytes) {
  if (bytes <= kDefaultSharedBytes) return kOk;
  const cudaError_t error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                                 cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes));
  if (error) cudaGetLastError();  // it is returned, and must not be the status of the next launch as well
  return static_cast<Status>(error);
}

inline int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  if (cudaGetDevice(&device) || cudaDeviceGetAttribute(&value, attribute, device)) return 0;
  return value;
}

// The current device's limits: shared memory that a block may have at most (99 KB to 227 KB), and multiprocessors.
inline size_t max_dynamic_shared() { return size_t(device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin)); }
inline int multiprocessors() { return device_attribute(cudaDevAttrMultiProcessorCount); }

constexpr int kMostDevices = 64;  // of a process; what is known of a device is kept for so many

// Whether the kernels may form clusters and overlap the launch before. That asks for code compiled for sm_90 or later,
// not only for such a device: one that has no code of its own in the binary runs that of an older architecture, in
// which both are left out (FF_CODE_HAS_CLUSTERS), and a launch that counts on them would go wrong without a word. Asked
// of the driver once for each device (launch.cu).
bool code_has_clusters();

// Blocks of `each` that hold n items.
inline unsigned blocks_for(int64_t n, int64_t each) { return static_cast<unsigned>((n + each - 1) / each); }

}  // namespace frcnn_fast

#if !defined(FF_SIMT)
namespace frcnn_fast {

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, Stream stream,
            Arguments&&... arguments) {
  const cudaStream_t queue = static_cast<cudaStream_t>(stream);
  kernel<<<grid, block, shared_bytes, queue>>>(std::forward<Arguments>(arguments)...);
}

// A launch with one attribute, or, where the code lacks what it stands for, with none.
template <class... Parameters, class... Arguments>
void launch_with(void (*kernel)(Parameters...), cudaLaunchAttribute attribute, bool applies, dim3 grid, dim3 block,
                 size_t shared_bytes, Stream stream, Arguments&&... arguments) {
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = &attribute;
  config.numAttrs = applies ? 1 : 0;
  cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...);
}

inline cudaLaunchAttribute cluster_of(unsigned blocks) {
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = blocks;
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  return attribute;
}

template <class... Parameters, class... Arguments>
void launch_cluster(void (*kernel)(Parameters...), unsigned cluster, dim3 grid, dim3 block, size_t shared_bytes,
                    Stream stream, Arguments&&... arguments) {
  launch_with(kernel, cluster_of(cluster), cluster > 1, grid, block, shared_bytes, stream,
              std::forward<Arguments>(arguments)...);
}

// Whether the device can run `cluster` such blocks together. A slow query of the driver: callers keep the answer.
template <class... Parameters>
bool cluster_fits(void (*kernel)(Parameters...), unsigned cluster, dim3 block, size_t shared_bytes) {
  cudaLaunchAttribute attribute = cluster_of(cluster);
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(cluster);
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.attrs = &attribute;
  config.numAttrs = 1;
  int clusters = 0;
  if (cudaOccupancyMaxActiveClusters(&clusters, kernel, &config) == cudaSuccess) return clusters > 0;
  cudaGetLastError();  // clears the sticky error, which the next launched() would report
  return false;
}

// Programmatic dependent launch (sm_90 and later): the blocks may start while the launch before is still running, once
// all of its blocks have called let_next_launch_start() or ended. Every thread of such a kernel must call
// wait_for_launch_before() first of all: before that it may neither read what an earlier launch writes nor write what
// an earlier launch reads, and a thread that never waits would let the launch after next start too early. In older
// code both calls do nothing, and this is an ordinary launch.
template <class... Parameters, class... Arguments>
void launch_overlapped(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, Stream stream,
                       Arguments&&... arguments) {
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  launch_with(kernel, attribute, code_has_clusters(), grid, block, shared_bytes, stream,
              std::forward<Arguments>(arguments)...);
}

// Returns when all launches before are complete and their writes visible.
__device__ __forceinline__ void wait_for_launch_before() {
#if FF_CODE_HAS_CLUSTERS
  cudaGridDependencySynchronize();
#endif
}

// A hint, from any thread of the block at any time: the next launch takes no room from blocks that have yet to start.
__device__ __forceinline__ void let_next_launch_start() {
#if FF_CODE_HAS_CLUSTERS
  cudaTriggerProgrammaticLaunchCompletion();
#endif
}

// Thread block clusters (sm_90 and later): blocks that run together and reach each other's shared memory. In older code
// every cluster is one block, so a kernel written for any cluster size runs there with size 1.
__device__ __forceinline__ unsigned cluster_size() {
#if FF_CODE_HAS_CLUSTERS
  return __clusterSizeInBlocks();
#else
  return 1;
#endif
}

__device__ __forceinline__ unsigned cluster_rank() {
#if FF_CODE_HAS_CLUSTERS
  return __clusterRelativeBlockRank();
#else
  return 0;
#endif
}

// Every thread of every block of the cluster. Needed before the first cluster_map() access, so that the other
// blocks have started, and after the last, so that none has left.
__device__ __forceinline__ void cluster_sync() {
#if FF_CODE_HAS_CLUSTERS
  __cluster_barrier_arrive();
  __cluster_barrier_wait();
#else
  __syncthreads();
#endif
}

// The address, in block `rank` of the cluster, of what `mine` is in this block's shared memory.
template <class T>
__device__ __forceinline__ T* cluster_map(T* mine, unsigned rank) {
#if FF_CODE_HAS_CLUSTERS
  return static_cast<T*>(__cluster_map_shared_rank(const_cast<std::remove_cv_t<T>*>(mine), rank));
#else
  (void)rank;
  return mine;
#endif
}

}  // namespace frcnn_fast
#endif

#include "collectives.cuh"
