// Cutting the caller's workspace into arrays.
#pragma once
#include <cstddef>
#include <cstdint>

#include "dtype.h"
#if defined(FF_TEST_BUILD) && defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace frcnn_fast {

// take() hands out aligned pieces one after the other; with a null base it only adds up, so that the function that
// cuts also says how much is needed.
class WorkspaceArena {
 public:
  FF_HD explicit WorkspaceArena(void* base) : base_(static_cast<char*>(base)) {}

  template <class T>
  FF_HD T* take(int64_t count) {
    char* piece = base_ ? base_ + used_ : nullptr;
    const size_t bytes = size_t(count) * sizeof(T);
    size_t reserved = (bytes + kAlignment - 1) / kAlignment * kAlignment;
#if defined(FF_TEST_BUILD)
    reserved += kAlignment;  // a gap that nobody may touch: running over from one piece into the next is an error too
#if defined(__SANITIZE_ADDRESS__)
    // Not on the stack, where the mark would outlive the array.
    const char* const frame = static_cast<const char*>(__builtin_frame_address(0));
    if (piece && !(piece > frame && piece < frame + (1 << 20))) {
      __asan_unpoison_memory_region(piece, bytes);
      __asan_poison_memory_region(piece + bytes, reserved - bytes);
    }
#endif
#endif
    used_ += reserved;
    return reinterpret_cast<T*>(piece);
  }
  FF_HD size_t used() const { return used_; }

 private:
  static constexpr size_t kAlignment = 256;
  char* base_;
  size_t used_ = 0;
};

// Where a workspace has to start: vectors are loaded from it aligned. Allocators of devices, torch's and HostWorkspace
// do.
constexpr size_t kWorkspaceAlignment = 64;

}  // namespace frcnn_fast
