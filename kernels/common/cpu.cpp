#include "cpu.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace frcnn_fast {
namespace {

std::atomic<bool> was_forked{false};

#if defined(__unix__) || defined(__APPLE__)
const int fork_handler = pthread_atfork(nullptr, nullptr, [] { was_forked = true; });
#endif

Isa detect() {
  Isa best = Isa::kBaseline;
#if defined(FF_X86_ISA)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2")) best = Isa::kAvx2;
  if (best == Isa::kAvx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    best = Isa::kAvx512;
#endif
  const char* wanted = std::getenv("FRCNN_FAST_ISA");
  if (!wanted) return best;
  if (!std::strcmp(wanted, "baseline")) return Isa::kBaseline;
  if (!std::strcmp(wanted, "avx2")) return std::min(best, Isa::kAvx2);
  return best;
}

}  // namespace

Isa isa() {
  static const Isa chosen = detect();
  return chosen;
}

void use_huge_pages(void* data, size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = 2 << 20;  // of x86; where pages are larger, the kernel leaves out what is too small
  constexpr size_t kLeast = 4 << 20;    // below it the call costs more than it saves
  if (bytes < kLeast) return;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(data);
  const uintptr_t first = (begin + kPage - 1) & ~(kPage - 1), last = (begin + bytes) & ~(kPage - 1);
  // It is advice: where there is no such page, the memory is what it was.
  if (first < last) (void)madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

bool forked() { return was_forked; }

void mark_forked() { was_forked = true; }

}  // namespace frcnn_fast
