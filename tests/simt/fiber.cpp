#include "fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

#include "asan.h"

namespace simt {
namespace {

// Kernels keep little on the stack; AddressSanitizer's frames are larger. Untouched pages cost nothing.
constexpr size_t kStackBytes = 256 << 10;

// The stacks of one OS thread, each above a page that may not be touched.
class StackPool {
 public:
  ~StackPool() {
    for (char* base : bases_) munmap(base, guard_ + kStackBytes);
  }
  char* get(size_t slot) {
    while (bases_.size() <= slot) {
      void* base = mmap(nullptr, guard_ + kStackBytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (base == MAP_FAILED) throw std::bad_alloc();
      mprotect(base, guard_, PROT_NONE);
      bases_.push_back(static_cast<char*>(base));
    }
    return bases_[slot] + guard_;
  }

 private:
  const size_t guard_ = size_t(sysconf(_SC_PAGESIZE));
  std::vector<char*> bases_;
};

thread_local StackPool stacks;

}  // namespace

#if !defined(SIMT_UCONTEXT)

// simt_switch(void** save, void* load): pushes the registers that a callee must preserve, leaves the stack pointer in
// *save, takes the other one and pops that fiber's registers.
asm(R"(
.text
.globl simt_switch
.hidden simt_switch
.type simt_switch, @function
simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size simt_switch, .-simt_switch
)");
extern "C" void simt_switch(void** save, void* load);

static void set_entry(Fiber& fiber, char* stack, void (*entry)()) {
  // What simt_switch pops: six zero registers, then entry as its return address; above it one empty word, so that the
  // stack is aligned as after a call.
  void** top = reinterpret_cast<void**>(stack + kStackBytes) - 2;
  std::memset(top - 6, 0, 8 * sizeof(void*));
  *top = reinterpret_cast<void*>(entry);
  fiber.stack_pointer = top - 6;
}

static void switch_context(Fiber& from, Fiber& to) { simt_switch(&from.stack_pointer, to.stack_pointer); }

#else

static void set_entry(Fiber& fiber, char* stack, void (*entry)()) {
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = stack;
  fiber.context.uc_stack.ss_size = kStackBytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, entry, 0);
}

static void switch_context(Fiber& from, Fiber& to) { swapcontext(&from.context, &to.context); }

#endif

void fiber_prepare(Fiber& fiber, size_t slot, void (*entry)()) {
  char* stack = stacks.get(slot);
  fiber.stack = stack;
  fiber.stack_bytes = kStackBytes;
  fiber.fake_stack = nullptr;
  set_entry(fiber, stack, entry);
}

void fiber_switch(Fiber& from, Fiber& to, bool from_is_finished) {
#if defined(SIMT_ASAN)
  __sanitizer_start_switch_fiber(from_is_finished ? nullptr : &from.fake_stack, to.stack, to.stack_bytes);
#else
  (void)from_is_finished;
#endif
  switch_context(from, to);
#if defined(SIMT_ASAN)
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

void fiber_entered(Fiber& host) {
#if defined(SIMT_ASAN)
  __sanitizer_finish_switch_fiber(nullptr, &host.stack, &host.stack_bytes);
#else
  (void)host;
#endif
}

void fiber_abandon(Fiber& fiber) {
#if defined(SIMT_ASAN)
  __asan_unpoison_memory_region(fiber.stack, fiber.stack_bytes);
#else
  (void)fiber;
#endif
}

}  // namespace simt
