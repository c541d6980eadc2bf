// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
#pragma once
#include "dtype.h"

namespace frcnn_fast {

FF_HD uint32_t multiply_high(uint32_t a, uint32_t b) { return uint32_t(uint64_t(a) * b >> 32); }

// The first output word for counter (c0, c1, c2, c3) and key (k0, k1).
FF_HD uint32_t philox(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t k0, uint32_t k1) {
  for (int round = 0; round < 10; ++round) {
    const uint32_t high0 = multiply_high(0xD2511F53u, c0), low0 = 0xD2511F53u * c0;
    const uint32_t high1 = multiply_high(0xCD9E8D57u, c2), low1 = 0xCD9E8D57u * c2;
    c0 = high1 ^ c1 ^ k0;
    c1 = low1;
    c2 = high0 ^ c3 ^ k1;
    c3 = low0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return c0;
}

// The draw for one candidate: the smallest keys of an image win, ties by index. rng = (seed, step).
FF_HD uint32_t sampling_key(const int64_t* rng, int64_t index, int64_t image, int64_t stream) {
  return philox(uint32_t(index), uint32_t(image), uint32_t(rng[1]), uint32_t(stream), uint32_t(rng[0]),
                uint32_t(uint64_t(rng[0]) >> 32));
}

}  // namespace frcnn_fast
