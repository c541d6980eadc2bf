// Threads and instruction sets of the CPU half.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <exception>

#include "status.h"
#if defined(_OPENMP)
#include <omp.h>
#endif

namespace frcnn_fast {

// Files named *_cpu_simd.cpp are compiled once per instruction set, each time inside namespace FF_ISA. They use plain
// loops and the always-inlined headers of this folder, no std:: templates: an out-of-line std:: function compiled for
// AVX-512 could otherwise be the copy the linker keeps for everyone.
enum class Isa { kBaseline, kAvx2, kAvx512 };

// The widest set that the CPU has and the build carries; FRCNN_FAST_ISA=baseline|avx2|avx512 lowers it (read once).
Isa isa();

// True in a process forked after this library was loaded, or marked as forked before: OpenMP's threads did not survive
// the fork, and the first parallel region would wait for them for ever.
bool forked();
void mark_forked();

// Asks for huge pages under memory that is about to be written, where the system leaves that to programs: the
// first touch of fresh memory in pages of 4 KiB takes longer than writing it. Does nothing to less than some megabytes.
void use_huge_pages(void* data, size_t bytes);

// What this thread has stored past the caches (stream_line() in vectors.h) is seen before anything that it stores
// later.
inline void end_streams() {
#if defined(FF_X86_ISA)
  __builtin_ia32_sfence();
#endif
}

inline int max_threads() {
#if defined(_OPENMP)
  return forked() || omp_in_parallel() ? 1 : omp_get_max_threads();
#else
  return 1;
#endif
}

// body(begin, end) over [0, n) in contiguous pieces of at least grain items, on torch's own OpenMP threads. A piece
// is a function of n and the number of threads alone.
template <class Body>
void parallel_for(int64_t n, int64_t grain, const Body& body) {
  if (n <= 0) return;
  const int64_t threads = std::min<int64_t>(max_threads(), (n + grain - 1) / grain);
  if (threads <= 1) {  // an idle parallel region costs about 0.2 us
    body(int64_t(0), n);
    return;
  }
#if defined(_OPENMP)
#pragma omp parallel num_threads(int(threads))
  {
    const int64_t count = omp_get_num_threads(), me = omp_get_thread_num();
    const int64_t begin = n * me / count, end = n * (me + 1) / count;
    if (begin < end) body(begin, end);
  }
#endif
}

}  // namespace frcnn_fast

#if defined(FF_X86_ISA)
#define FF_ISA_CALL(function, ...)                                                   \
  (::frcnn_fast::isa() == ::frcnn_fast::Isa::kAvx512 ? avx512::function(__VA_ARGS__) \
   : ::frcnn_fast::isa() == ::frcnn_fast::Isa::kAvx2 ? avx2::function(__VA_ARGS__)   \
                                                     : baseline::function(__VA_ARGS__))
// Declares one function in each instruction set's namespace.
#define FF_ISA_DECLARE(...) \
  namespace baseline {      \
  __VA_ARGS__;              \
  }                         \
  namespace avx2 {          \
  __VA_ARGS__;              \
  }                         \
  namespace avx512 {        \
  __VA_ARGS__;              \
  }
#else
#define FF_ISA_CALL(function, ...) baseline::function(__VA_ARGS__)
#define FF_ISA_DECLARE(...) \
  namespace baseline {      \
  __VA_ARGS__;              \
  }
#endif
