// What harness_main.cpp calls. All pointers are "device" memory.
#pragma once
#include "../../kernels/common/status.h"

namespace frcnn_fast {

Status select_largest(const unsigned* keys, int n, int k, int* chosen);           // chosen [k], ascending
Status overlaps(const float* intervals, int n, unsigned* words);                  // [n, 2] -> [n, ceil(n / 32)]
Status sort_pieces(unsigned* items, int pieces, int each);                        // each: a power of two
Status cluster_sums(const int* values, int blocks, unsigned cluster, int* sums);  // [blocks * 64] -> [blocks]
Status last_block_sum(const int* values, int blocks, int* partial, int* tickets, int* sum);
Status overlapped_count(int launches, int* out);  // out [1]: launches
Status warp_collectives(int* out);                // [64, 16]
Status empty_grid(int* out);
Status too_much_dynamic(int* out);

struct Bug {
  const char* name;
  void (*launch)(int* out);  // out [64]
};
extern const Bug kBugs[];
extern const int kNumBugs;

}  // namespace frcnn_fast
