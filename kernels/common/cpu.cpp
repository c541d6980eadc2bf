#include "cpu.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
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

bool forked() { return was_forked; }

void mark_forked() { was_forked = true; }

}  // namespace frcnn_fast
