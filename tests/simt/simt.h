// The twin of kernels/common/launch.cuh's CUDA half: what a kernel source needs from its compiler and its launcher.
#pragma once
#include <tuple>
#include <type_traits>
#include <utility>

#include "intrinsics.h"

#define __global__
#define __device__
#define __host__
#define __constant__ static
#if defined(FF_TEST_BUILD)  // checked, not counted: the compiler chooses, and takes half the time
#define __forceinline__ inline
#else
#define __forceinline__ inline __attribute__((always_inline))
#endif
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) alignas(n)

#define threadIdx (::simt::self->thread)
#define blockIdx (::simt::self->block)
#define blockDim (::simt::self->block_dim)
#define gridDim (::simt::self->grid_dim)
constexpr int warpSize = 32;

#define FF_SHARED(T, name, ...)      \
  static char name##_tag;            \
  using name##_type = T __VA_ARGS__; \
  name##_type& name =                \
      *static_cast<name##_type*>(::simt::shared_array(&name##_tag, sizeof(name##_type), ::simt::Where::current()))
#define FF_DYN_SHARED(T, name) T* const name = static_cast<T*>(::simt::dynamic_shared())
#define FF_LAUNCH(...) ::frcnn_fast::launch(::simt::Where::current(), __VA_ARGS__)
#define FF_LAUNCH_CLUSTER(...) ::frcnn_fast::launch_cluster(::simt::Where::current(), __VA_ARGS__)
#define FF_LAUNCH_OVERLAPPED(...) ::frcnn_fast::launch_overlapped(::simt::Where::current(), __VA_ARGS__)

namespace frcnn_fast {

template <class... Parameters, class... Arguments>
void launch_cluster(simt::Where where, void (*kernel)(Parameters...), unsigned cluster, dim3 grid, dim3 block,
                    size_t shared_bytes, Stream, Arguments&&... arguments) {
  // Converted once and copied for every thread, as a kernel's parameters are.
  const std::tuple<std::remove_cv_t<Parameters>...> parameters(std::forward<Arguments>(arguments)...);
  simt::run(
      reinterpret_cast<const void*>(kernel), cluster, grid, block, shared_bytes,
      [&] { std::apply(kernel, parameters); }, where);
}

template <class... Parameters, class... Arguments>
void launch(simt::Where where, void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, Stream stream,
            Arguments&&... arguments) {
  launch_cluster(where, kernel, 1, grid, block, shared_bytes, stream, std::forward<Arguments>(arguments)...);
}

// Launches run one after the other here, but a thread that ends without having waited is reported.
template <class... Parameters, class... Arguments>
void launch_overlapped(simt::Where where, void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
                       Stream, Arguments&&... arguments) {
  const std::tuple<std::remove_cv_t<Parameters>...> parameters(std::forward<Arguments>(arguments)...);
  simt::run(
      reinterpret_cast<const void*>(kernel), 1, grid, block, shared_bytes,
      [&] {
        std::apply(kernel, parameters);
        simt::require_waited();
      },
      where);
}
inline void wait_for_launch_before() { simt::mark_waited(); }
inline void let_next_launch_start() {}

template <class... Parameters>
bool cluster_fits(void (*)(Parameters...), unsigned cluster, dim3, size_t shared_bytes) {
  return simt::cluster_fits(cluster, shared_bytes);
}
inline unsigned cluster_size() { return simt::cluster_size(); }
inline unsigned cluster_rank() { return simt::cluster_rank(); }
inline void cluster_sync(simt::Where where = simt::Where::current()) { simt::cluster_barrier(where); }
template <class T>
T* cluster_map(T* mine, unsigned rank, simt::Where where = simt::Where::current()) {
  return static_cast<T*>(simt::cluster_address(mine, rank, where));
}

}  // namespace frcnn_fast
