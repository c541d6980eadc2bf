// CUDA's device functions, as far as kernels here use them. Overloads are CUDA's own: what nvcc would refuse (a shuffle
// of a struct, an atomicAdd on int64_t) does not compile here either.
#pragma once
#include <math.h>

#include <algorithm>
#include <cassert>
#include <cstdio>

#include "runtime.h"

#define SIMT_WHERE ::simt::Where where = ::simt::Where::current()

// Barriers.

inline void __syncthreads(SIMT_WHERE) { simt::block_barrier("__syncthreads", false, where); }
inline int __syncthreads_count(int predicate, SIMT_WHERE) {
  return simt::block_barrier("__syncthreads_count", predicate != 0, where).in_favour;
}
inline int __syncthreads_or(int predicate, SIMT_WHERE) {
  return simt::block_barrier("__syncthreads_or", predicate != 0, where).in_favour > 0;
}
inline int __syncthreads_and(int predicate, SIMT_WHERE) {
  const simt::Votes votes = simt::block_barrier("__syncthreads_and", predicate != 0, where);
  return votes.in_favour == votes.arrived;
}
inline void __threadfence() {}  // one OS thread runs everything: every write is seen at once
inline void __threadfence_block() {}
inline void __nanosleep(unsigned, SIMT_WHERE) { simt::yield(where); }
[[noreturn]] inline void __trap() { simt::fail("__trap()"); }

// Warp collectives. A lane's value travels as 64 bits.

namespace simt {

template <class T>
uint64_t pack(T value) {
  static_assert(sizeof(T) <= 8);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  return bits;
}
template <class T>
T unpack(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

template <class Visit>
void each_lane(const Exchange& exchange, Visit visit) {
  for (int lane = 0; lane < 32; ++lane)
    if (exchange.lanes >> lane & 1u) visit(lane);
}

inline void combine_nothing(Exchange&) {}

inline void combine_ballot(Exchange& x) {
  uint64_t votes = 0;
  each_lane(x, [&](int lane) { votes |= x.values[lane] << lane; });
  each_lane(x, [&](int lane) { x.results[lane] = votes; });
}

inline void combine_match(Exchange& x) {
  each_lane(x, [&](int lane) {
    uint64_t equal = 0;
    each_lane(x, [&](int other) { equal |= uint64_t(x.values[other] == x.values[lane]) << other; });
    x.results[lane] = equal;
  });
}

// Each lane's argument is the lane it reads.
inline void combine_shuffle(Exchange& x) {
  each_lane(x, [&](int lane) {
    const int source = int(x.arguments[lane]);
    if (!(x.lanes >> source & 1u))
      fail("%s at %s:%u: lane %d reads lane %d, which takes no part (lanes %08x do)", x.name, x.where.file_name(),
           x.where.line(), lane, source, x.lanes);
    x.results[lane] = x.values[source];
  });
}

template <class T, class Op>
void combine_reduce(Exchange& x) {
  bool first = true;
  T total{};
  each_lane(x, [&](int lane) {
    const T value = unpack<T>(x.values[lane]);
    total = first ? value : Op()(total, value);
    first = false;
  });
  each_lane(x, [&](int lane) { x.results[lane] = pack(total); });
}

template <class T>
T shuffle(const char* name, unsigned mask, T value, int source, Where where) {
  return unpack<T>(collective(name, mask, pack(value), uint64_t(source), combine_shuffle, where));
}

}  // namespace simt

inline void __syncwarp(unsigned mask = 0xffffffffu, SIMT_WHERE) {
  simt::collective("__syncwarp", mask, 0, 0, simt::combine_nothing, where);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, SIMT_WHERE) {
  return unsigned(simt::collective("__ballot_sync", mask, predicate != 0, 0, simt::combine_ballot, where));
}
inline int __any_sync(unsigned mask, int predicate, SIMT_WHERE) {
  return simt::collective("__any_sync", mask, predicate != 0, 0, simt::combine_ballot, where) != 0;
}
inline int __all_sync(unsigned mask, int predicate, SIMT_WHERE) {
  return simt::collective("__all_sync", mask, predicate == 0, 0, simt::combine_ballot, where) == 0;
}

#define SIMT_EXCHANGES(T)                                                                                          \
  inline T __shfl_sync(unsigned mask, T value, int source, int width = 32, SIMT_WHERE) {                           \
    const int lane = simt::self->lane, base = lane & ~(width - 1);                                                 \
    return simt::shuffle("__shfl_sync", mask, value, base | (source & (width - 1)), where);                        \
  }                                                                                                                \
  inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, SIMT_WHERE) {                    \
    const int lane = simt::self->lane, offset = lane & (width - 1);                                                \
    return simt::shuffle("__shfl_up_sync", mask, value, offset < int(delta) ? lane : lane - int(delta), where);    \
  }                                                                                                                \
  inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, SIMT_WHERE) {                  \
    const int lane = simt::self->lane, offset = lane & (width - 1);                                                \
    return simt::shuffle("__shfl_down_sync", mask, value, offset + int(delta) >= width ? lane : lane + int(delta), \
                         where);                                                                                   \
  }                                                                                                                \
  inline T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, SIMT_WHERE) {                         \
    const int lane = simt::self->lane, source = lane ^ bits;                                                       \
    return simt::shuffle("__shfl_xor_sync", mask, value, source / width > lane / width ? lane : source, where);    \
  }                                                                                                                \
  inline unsigned __match_any_sync(unsigned mask, T value, SIMT_WHERE) {                                           \
    return unsigned(simt::collective("__match_any_sync", mask, simt::pack(value), 0, simt::combine_match, where)); \
  }
SIMT_EXCHANGES(int)
SIMT_EXCHANGES(unsigned)
SIMT_EXCHANGES(long)
SIMT_EXCHANGES(unsigned long)
SIMT_EXCHANGES(long long)
SIMT_EXCHANGES(unsigned long long)
SIMT_EXCHANGES(float)
SIMT_EXCHANGES(double)
#undef SIMT_EXCHANGES

#define SIMT_REDUCE(T, suffix, expression)                                                           \
  inline T __reduce_##suffix##_sync(unsigned mask, T value, SIMT_WHERE) {                            \
    struct Op {                                                                                      \
      T operator()(T a, T b) const { return expression; }                                            \
    };                                                                                               \
    return simt::unpack<T>(simt::collective("__reduce_" #suffix "_sync", mask, simt::pack(value), 0, \
                                            simt::combine_reduce<T, Op>, where));                    \
  }
SIMT_REDUCE(int, add, int(unsigned(a) + unsigned(b)))
SIMT_REDUCE(int, min, a < b ? a : b)
SIMT_REDUCE(int, max, a > b ? a : b)
SIMT_REDUCE(unsigned, add, a + b)
SIMT_REDUCE(unsigned, min, a < b ? a : b)
SIMT_REDUCE(unsigned, max, a > b ? a : b)
SIMT_REDUCE(unsigned, and, (a & b))
SIMT_REDUCE(unsigned, or, (a | b))
SIMT_REDUCE(unsigned, xor, (a ^ b))
#undef SIMT_REDUCE

// Atomics: threads are switched in barriers only, so a plain update is atomic. Each returns the value before.

#define SIMT_ATOMIC(T, name, expression) \
  inline T name(T* address, T value) {   \
    const T old = *address;              \
    *address = expression;               \
    return old;                          \
  }                                      \
  inline T name##_block(T* address, T value) { return name(address, value); }
#define SIMT_ATOMIC_MIN_MAX_EXCH(T)                    \
  SIMT_ATOMIC(T, atomicMin, old < value ? old : value) \
  SIMT_ATOMIC(T, atomicMax, old > value ? old : value) \
  SIMT_ATOMIC(T, atomicExch, value)
#define SIMT_ATOMIC_BITS(T)                             \
  SIMT_ATOMIC(T, atomicAnd, old& value)                 \
  SIMT_ATOMIC(T, atomicOr, old | value)                 \
  SIMT_ATOMIC(T, atomicXor, old ^ value)                \
  inline T atomicCAS(T* address, T expected, T value) { \
    const T old = *address;                             \
    if (old == expected) *address = value;              \
    return old;                                         \
  }
SIMT_ATOMIC(int, atomicAdd, int(unsigned(old) + unsigned(value)))
SIMT_ATOMIC(int, atomicSub, int(unsigned(old) - unsigned(value)))
SIMT_ATOMIC(unsigned, atomicAdd, old + value)
SIMT_ATOMIC(unsigned, atomicSub, old - value)
SIMT_ATOMIC(unsigned long long, atomicAdd, old + value)
SIMT_ATOMIC(float, atomicAdd, old + value)
SIMT_ATOMIC(double, atomicAdd, old + value)
SIMT_ATOMIC(float, atomicExch, value)
SIMT_ATOMIC_MIN_MAX_EXCH(int)
SIMT_ATOMIC_MIN_MAX_EXCH(unsigned)
SIMT_ATOMIC_MIN_MAX_EXCH(unsigned long long)
SIMT_ATOMIC(long long, atomicMin, old < value ? old : value)
SIMT_ATOMIC(long long, atomicMax, old > value ? old : value)
SIMT_ATOMIC_BITS(int)
SIMT_ATOMIC_BITS(unsigned)
SIMT_ATOMIC_BITS(unsigned long long)
#undef SIMT_ATOMIC_BITS
#undef SIMT_ATOMIC_MIN_MAX_EXCH
#undef SIMT_ATOMIC

// Bits.

inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __popcll(unsigned long long v) { return __builtin_popcountll(v); }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline int __ffsll(long long v) { return __builtin_ffsll(v); }
inline int __clz(int v) { return v ? __builtin_clz(unsigned(v)) : 32; }
inline int __clzll(long long v) { return v ? __builtin_clzll((unsigned long long)v) : 64; }
inline unsigned long long __brevll(unsigned long long v) {
  unsigned long long reversed = 0;
  for (int i = 0; i < 64; ++i) reversed |= (v >> i & 1u) << (63 - i);
  return reversed;
}
inline unsigned __brev(unsigned v) { return unsigned(__brevll(v) >> 32); }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned((unsigned long long)a * b >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return (unsigned long long)((unsigned __int128)a * b >> 64);
}
inline unsigned __float_as_uint(float v) { return simt::unpack<unsigned>(simt::pack(v)); }
inline int __float_as_int(float v) { return simt::unpack<int>(simt::pack(v)); }
inline float __uint_as_float(unsigned v) { return simt::unpack<float>(v); }
inline float __int_as_float(int v) { return simt::unpack<float>(simt::pack(v)); }
inline long long __double_as_longlong(double v) { return simt::unpack<long long>(simt::pack(v)); }
inline double __longlong_as_double(long long v) { return simt::unpack<double>(simt::pack(v)); }

// Loads with a cache hint; min and max as CUDA names them.

template <class T>
T __ldg(const T* p) {
  return *p;
}
template <class T>
T __ldcg(const T* p) {
  return *p;
}
template <class T>
T __ldcs(const T* p) {
  return *p;
}
template <class T>
void __stcs(T* p, T value) {
  *p = value;
}
using std::max;
using std::min;

#undef SIMT_WHERE
