// The machine that kernels run on in tests: a grid of blocks whose threads are fibers of one OS thread.
//
// A thread runs until it waits in a barrier or a warp collective; then the schedule chooses the next one. Blocks (or
// clusters) run one after the other, in the random schedule two at a time. The schedules (SIMT_ORDER, or set_order):
//   0  threads and blocks in ascending order
//   1  in descending order
//   2  at random (SIMT_SEED), two blocks interleaved
// A result that depends on the schedule is a missing barrier.
//
// What a kernel gets wrong in synchronising is reported with file and line as an Error, thrown by the launch; wild
// reads and writes are AddressSanitizer's to find: each shared array is a heap block of its own, fresh and filled with
// 0xCD for every block.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <source_location>
#include <stdexcept>

#include "cuda_types.h"

namespace simt {

using Where = std::source_location;

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// What kernels may know of the thread that runs.
struct ThreadIndex {
  uint3 thread, block;
  dim3 block_dim, grid_dim;
  int lane;
};
// Read at every use of threadIdx: a fixed offset from the thread pointer instead of a call.
#define SIMT_TLS constinit thread_local __attribute__((tls_model("initial-exec")))
extern SIMT_TLS ThreadIndex* self;

// Throws an Error, which ends the launch; "block (1,0,0) thread 5: " goes before the message.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

struct Votes {
  int arrived;  // threads that took part
  int in_favour;
};
// Waits for every thread of the block that has not returned.
Votes block_barrier(const char* name, bool vote, Where where);

// What the lanes of one warp collective brought and what they get. lanes: those that took part.
struct Exchange {
  const char* name;
  Where where;
  unsigned lanes;
  uint64_t values[32], arguments[32];
  uint64_t results[32] = {};
};
// Waits for every lane named in mask that has not returned, with the same name, mask and place in the source; one of
// them runs combine for all. Returns this lane's result.
uint64_t collective(const char* name, unsigned mask, uint64_t value, uint64_t argument, void (*combine)(Exchange&),
                    Where where);

// Lets the others run: for loops that wait for another thread's write.
void yield(Where where);

// The block's array for one declaration (tag): made by the first thread that asks, gone when the block ends.
void* shared_array(const void* tag, size_t bytes, Where where);
void* dynamic_shared();

// A thread of a kernel that may overlap the launch before must have waited; the second reports one that has not.
void mark_waited();
void require_waited();

bool cluster_fits(unsigned cluster, size_t dynamic_bytes);
unsigned cluster_size();
unsigned cluster_rank();
void cluster_barrier(Where where);
void* cluster_address(const void* mine, unsigned rank, Where where);

// Runs body once per thread. A launch that CUDA would refuse sets cudaGetLastError's status instead.
void run(const void* kernel, unsigned cluster, dim3 grid, dim3 block, size_t dynamic_bytes,
         const std::function<void()>& body, Where where);

void set_order(int order, unsigned seed = 1);
// Which device launchers see. Below 90, code has no clusters, and reads as launch.cuh's does: every cluster one block.
//   0  of compute capability 9.0
//   1  of 8.0
//   2  of 9.0, in a build that carries no code for it but that for 8.0, which the driver compiled
//   3  an H200, 4 an A100: their multiprocessors and shared memory, not those of a small device
void set_device(int device);
// The most blocks that a grid may have in its second and third dimension.
void set_most_grid_yz(unsigned blocks);
// Launches and fills run so far by this process, each of which would be a node of a captured graph.
int64_t launches();

}  // namespace simt
