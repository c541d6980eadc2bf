// A thread of execution with a stack of its own, switched by hand.
#pragma once
#include <cstddef>
#if !defined(__x86_64__) && !defined(SIMT_UCONTEXT)
#define SIMT_UCONTEXT  // portable and slower: every switch is a system call
#endif
#if defined(SIMT_UCONTEXT)
#include <ucontext.h>
#endif

namespace simt {

struct Fiber {
#if defined(SIMT_UCONTEXT)
  ucontext_t context;
#else
  void* stack_pointer = nullptr;
#endif
  const void* stack = nullptr;  // its lowest byte; of the host (the fiber that is an OS thread) known once it was left
  size_t stack_bytes = 0;
  void* fake_stack = nullptr;  // AddressSanitizer's
};

// Makes fiber start in entry, which must call fiber_entered first and must never return. Stacks are reused: fibers
// prepared with the same slot (0, 1, ...) on one OS thread share one.
void fiber_prepare(Fiber& fiber, size_t slot, void (*entry)());

// Leaves `from` for `to`; returns when somebody switches back. A fiber that is finished is never switched to again.
void fiber_switch(Fiber& from, Fiber& to, bool from_is_finished = false);

// First call in a fresh fiber; host is the fiber that switched to it.
void fiber_entered(Fiber& host);

// Forgets a fiber that will not run on: its stack may be reused although its functions never returned.
void fiber_abandon(Fiber& fiber);

}  // namespace simt
