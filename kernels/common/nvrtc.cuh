// What NVRTC reads in the places of launch.cuh and status.h: frcnn_fast/cupy_kernels.py compiles the .cu files by it,
// where there is no nvcc, and launches the kernels itself.
//
// NVRTC knows device code only. So every function that says nothing is a device function there (-default-device), the
// launchers are functions that nobody calls, and what they call of the host and its standard library is here, without
// doing anything.
#pragma once

using int8_t = signed char;
using int16_t = short;
using int32_t = int;
using int64_t = long;
using uint8_t = unsigned char;
using uint16_t = unsigned short;
using uint32_t = unsigned;
using uint64_t = unsigned long;
using uintptr_t = unsigned long;
constexpr int32_t INT32_MAX = 0x7fffffff, INT32_MIN = -INT32_MAX - 1;

namespace std {
template <bool kValue>
struct bool_constant {
  static constexpr bool value = kValue;
  constexpr operator bool() const { return kValue; }
};
using true_type = bool_constant<true>;
using false_type = bool_constant<false>;
template <class A, class B>
constexpr bool is_same_v = false;
template <class A>
constexpr bool is_same_v<A, A> = true;
template <class A>
struct remove_cv {
  using type = A;
};
template <class A>
struct remove_cv<const A> {
  using type = A;
};
template <class A>
using remove_cv_t = typename remove_cv<A>::type;
template <class A>
constexpr A min(A a, A b) {
  return b < a ? b : a;
}
template <class A>
constexpr A max(A a, A b) {
  return a < b ? b : a;
}
template <class A>
struct atomic {
  A value;
  operator A() const { return value; }
  A operator=(A other) { return value = other; }
};
using ::floor;
}  // namespace std

#if __CUDA_ARCH__ < 800
// Older GPUs have no instruction for it.
__device__ __forceinline__ unsigned __reduce_max_sync(unsigned mask, unsigned value) {
  for (int d = 16; d > 0; d /= 2) {
    const unsigned other = __shfl_xor_sync(mask, value, d);
    value = other > value ? other : value;
  }
  return value;
}
__device__ __forceinline__ unsigned __reduce_add_sync(unsigned mask, unsigned value) {
  for (int d = 16; d > 0; d /= 2) value += __shfl_xor_sync(mask, value, d);
  return value;
}
__device__ __forceinline__ int __reduce_add_sync(unsigned mask, int value) {
  return int(__reduce_add_sync(mask, unsigned(value)));
}
#endif

#define FF_SHARED(T, name, ...) __shared__ T name __VA_ARGS__
#define FF_DYN_SHARED(T, name)                                        \
  extern __shared__ __align__(128) unsigned char ff_dynamic_shared[]; \
  T* const name = reinterpret_cast<T*>(ff_dynamic_shared)
#define FF_LAUNCH(...) ((void)0)
#define FF_LAUNCH_CLUSTER(...) ((void)0)
#define FF_LAUNCH_OVERLAPPED(...) ((void)0)
// Clusters and overlapped launches are launched in other ways: every kernel is compiled as for older code.
#define FF_CODE_HAS_CLUSTERS 0
#define FF_TRY(expression) (void)(expression)

namespace frcnn_fast {

using Status = int;
using Stream = void*;
constexpr Status kOk = 0, kInvalidArgument = -1;

template <class... Values>
Status invalid(const char*, Values...) {
  return kInvalidArgument;
}

constexpr size_t kDefaultSharedBytes = 48 << 10;
inline Status launched() { return kOk; }
inline Status fill_bytes(void*, int, size_t, Stream) { return kOk; }
template <class Kernel>
Status allow_dynamic_shared(Kernel, size_t) {
  return kOk;
}
inline size_t max_dynamic_shared() { return 0; }
inline int multiprocessors() { return 0; }
constexpr int kMostDevices = 64;
inline bool code_has_clusters() { return false; }
inline unsigned blocks_for(int64_t n, int64_t each) { return static_cast<unsigned>((n + each - 1) / each); }

__device__ __forceinline__ void wait_for_launch_before() {}
__device__ __forceinline__ void let_next_launch_start() {}
__device__ __forceinline__ unsigned cluster_size() { return 1; }
__device__ __forceinline__ unsigned cluster_rank() { return 0; }
__device__ __forceinline__ void cluster_sync() { __syncthreads(); }
template <class T>
__device__ __forceinline__ T* cluster_map(T* mine, unsigned) {
  return mine;
}

}  // namespace frcnn_fast

#include "collectives.cuh"
#include "dtype.h"

// Nor are the launchers' lambdas compiled, each of which would be all forms of its kernels.
#define visit(...) 0
#define visit_compute(...) 0
