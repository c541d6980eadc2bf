// The twin of kernels/common/async_copy.cuh's CUDA half.
#pragma once
#include <cstdint>

namespace frcnn_fast {

// Done at once, so that the reads and writes are those of the kernel's own line; a missing wait does not show.
template <int kBytes>
inline void copy_async(void* shared, const void* global) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
  struct alignas(kBytes) Piece {
    uint32_t words[kBytes / 4];
  };
  *static_cast<Piece*>(shared) = *static_cast<const Piece*>(global);
}
inline void wait_for_copies() {}

}  // namespace frcnn_fast
