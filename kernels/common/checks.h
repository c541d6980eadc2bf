// What the CPU launchers check of the data: on a GPU it would cost a synchronisation.
#pragma once
#include "status.h"

namespace frcnn_fast {

// invalid() for a count outside [0, size]. counts: [B], or null: none to check; name: as the error calls it.
inline Status check_counts(const char* name, const int64_t* counts, int64_t B, int64_t size) {
  for (int64_t b = 0; counts && b < B; ++b)
    if (counts[b] < 0 || counts[b] > size)
      return invalid("%s[%lld] is %lld, expected 0 to the padded size %lld", name, (long long)b, (long long)counts[b],
                     (long long)size);
  return kOk;
}

}  // namespace frcnn_fast
