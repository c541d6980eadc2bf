// What a launcher returns, and how it says what was wrong.
#pragma once
#include <cstdarg>
#include <cstddef>
#include <cstdint>
#include <cstdio>

namespace frcnn_fast {

// 0: done. Positive: a CUDA error code. Negative: one of ours.
using Status = int;
// A cudaStream_t, kept opaque so that no header here needs cuda_runtime.h.
using Stream = void*;

constexpr Status kOk = 0;
constexpr Status kInvalidArgument = -1;  // last_error() tells which and why

inline char* error_buffer() {
  static thread_local char buffer[512] = "";
  return buffer;
}
inline const char* last_error() { return error_buffer(); }

// Stores the message for the calling thread and returns kInvalidArgument.
#if defined(__GNUC__)
__attribute__((format(printf, 1, 2)))
#endif
inline Status invalid(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(error_buffer(), 512, format, arguments);
  va_end(arguments);
  return kInvalidArgument;
}

#define FF_TRY(expression)                                                 \
  do {                                                                     \
    if (::frcnn_fast::Status ff_status_ = (expression)) return ff_status_; \
  } while (0)

}  // namespace frcnn_fast
