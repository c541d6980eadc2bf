// Kernels that the harness is checked with: right ones, with a known result, and wrong ones, each with one planted
// bug. Valid CUDA: nvcc compiles this file too.
#include <vector>

#include "../../kernels/common/launch.cuh"
#include "../../kernels/common/workspace.h"
#include "harness_kernels.h"

namespace frcnn_fast {
namespace {

constexpr int kThreads = 256;

// The indices of the k largest keys, by a radix select of one block: histogram in shared memory, scan, compaction.
__global__ void __launch_bounds__(kThreads) select_kernel(const unsigned* keys, int n, int k, int* chosen) {
  FF_SHARED(int, histogram, [256]);
  FF_SHARED(int, scratch, [kThreads / kWarp]);
  FF_SHARED(unsigned, shared_prefix);
  FF_SHARED(int, shared_need);
  unsigned prefix = 0;
  int need = k;
  for (int shift = 24; shift >= 0; shift -= 8) {
    histogram[threadIdx.x] = 0;
    __syncthreads();
    for (int i = int(threadIdx.x); i < n; i += kThreads)
      if (shift == 24 || keys[i] >> (shift + 8) == prefix >> (shift + 8))
        atomicAdd(&histogram[keys[i] >> shift & 255u], 1);
    __syncthreads();
    const int bin = 255 - int(threadIdx.x), count = histogram[bin];
    int total;
    const int above = block_exclusive_sum(count, scratch, &total);
    if (above < need && above + count >= need) {
      shared_prefix = prefix | unsigned(bin) << shift;
      shared_need = need - above;
    }
    __syncthreads();
    prefix = shared_prefix;
    need = shared_need;
    __syncthreads();
  }
  int written = 0, equal_seen = 0;
  for (int begin = 0; begin < n; begin += kThreads) {
    const int i = begin + int(threadIdx.x);
    const bool equal = i < n && keys[i] == prefix;
    int equals, takes;
    const int rank = equal_seen + block_exclusive_count(equal, scratch, &equals);
    const bool take = i < n && (keys[i] > prefix || (equal && rank < need));
    const int place = written + block_exclusive_count(take, scratch, &takes);
    if (take) chosen[place] = i;
    equal_seen += equals;
    written += takes;
  }
}

// Word w of row i: bit b tells whether interval 32 * w + b overlaps interval i. One warp a word, by ballot.
__global__ void __launch_bounds__(kThreads) overlap_kernel(const float2* intervals, int n, unsigned* words) {
  FF_SHARED(float2, row);
  const int i = int(blockIdx.y);
  if (threadIdx.x == 0) row = intervals[i];
  __syncthreads();
  const int row_words = (n + 31) / 32;
  for (int w = int(blockIdx.x) * warps_per_block() + warp_id(); w < row_words;
       w += int(gridDim.x) * warps_per_block()) {
    const int j = 32 * w + lane_id();
    const bool overlaps = j < n && intervals[j].x < row.y && row.x < intervals[j].y;
    const unsigned word = __ballot_sync(kFullMask, overlaps);
    if (lane_id() == 0) words[i * row_words + w] = word;
  }
}

// Every block sorts its piece in dynamic shared memory.
__global__ void sort_kernel(unsigned* items, int each) {
  FF_DYN_SHARED(unsigned, piece);
  for (int i = int(threadIdx.x); i < each; i += int(blockDim.x)) piece[i] = items[int(blockIdx.x) * each + i];
  block_sort(piece, each, [](unsigned a, unsigned b) { return a < b; });
  for (int i = int(threadIdx.x); i < each; i += int(blockDim.x)) items[int(blockIdx.x) * each + i] = piece[i];
}

// sums[block] = the sum of all values of the block's cluster, read from the other blocks' shared memory.
__global__ void cluster_sum_kernel(const int* values, int* sums) {
  FF_SHARED(int, mine);
  FF_SHARED(int, scratch, [32]);
  const int total = block_reduce(values[blockIdx.x * blockDim.x + threadIdx.x], Plus(), scratch);
  if (threadIdx.x == 0) mine = total;
  cluster_sync();
  if (threadIdx.x == 0) {
    int sum = 0;
    for (unsigned rank = 0; rank < cluster_size(); ++rank) sum += *cluster_map(&mine, rank);
    sums[blockIdx.x] = sum;
  }
  cluster_sync();  // no block leaves while another may read from it
}

// Adds up what the launch before left in out[0], while that may still be running.
__global__ void overlapped_kernel(int* out) {
  wait_for_launch_before();
  let_next_launch_start();
  if (threadIdx.x == 0) out[0] += 1;
}

// The last block to arrive adds up what the others left.
__global__ void last_block_kernel(const int* values, int* partial, int* tickets, int* sum) {
  FF_SHARED(int, scratch, [32]);
  FF_SHARED(bool, last);
  const int total = block_reduce(values[blockIdx.x * blockDim.x + threadIdx.x], Plus(), scratch);
  if (threadIdx.x == 0) {
    partial[blockIdx.x] = total;
    __threadfence();
    last = atomicAdd(tickets, 1) == int(gridDim.x) - 1;
  }
  __syncthreads();
  if (last && threadIdx.x == 0) {
    int all = 0;
    for (unsigned b = 0; b < gridDim.x; ++b) all += partial[b];
    *sum = all;
  }
}

// One row a lane: each warp primitive beside a value that is easy to foretell.
__global__ void collectives_kernel(int* out) {
  const int lane = lane_id();
  int* row = out + 16 * threadIdx.x;
  row[0] = warp_reduce(lane, Plus());
  row[1] = warp_inclusive_scan(lane, Plus());
  row[2] = __shfl_sync(kFullMask, lane, 40);  // lane 8: the source is taken modulo the width
  row[3] = __shfl_down_sync(kFullMask, lane, 4, 8);
  row[4] = int(__ballot_sync(kFullMask, lane % 3 == 0));
  row[5] = int(__match_any_sync(kFullMask, lane / 8));
  row[6] = __reduce_max_sync(kFullMask, lane ^ 5);
  row[7] = __any_sync(kFullMask, lane == 7) + 2 * __all_sync(kFullMask, lane < 32) + 4 * __all_sync(kFullMask, lane);
  row[8] = __syncthreads_count(lane < 3);
  row[9] = __syncthreads_or(lane == 40) + 2 * __syncthreads_and(lane >= 0);
  if (lane < 16) {
    row[10] = __shfl_xor_sync(0x0000ffffu, lane, 1);
  } else {
    row[10] = int(__ballot_sync(0xffff0000u, lane & 1));
  }
  __syncwarp();
  row[11] = int(__double_as_longlong(__shfl_sync(kFullMask, double(lane), 2)) >> 52);
}

// The bugs.

__global__ void global_bounds_kernel(int* out) { out[threadIdx.x] = 1; }

__global__ void dynamic_bounds_kernel(int* out) {
  FF_DYN_SHARED(int, s);
  s[threadIdx.x + 1] = 1;
  __syncthreads();
  out[threadIdx.x] = s[threadIdx.x];
}

__global__ void static_bounds_kernel(int* out, int shift) {
  FF_SHARED(int, s, [64]);
  s[int(threadIdx.x) + shift] = 1;
  __syncthreads();
  out[threadIdx.x] = s[threadIdx.x];
}

__global__ void misaligned_kernel(const int* in, int* out) {
  out[threadIdx.x] = reinterpret_cast<const int4*>(in + 1)[0].x;
}

__global__ void divergent_barrier_kernel(int* out) {
  if (threadIdx.x < 16) {
    __syncthreads();
  } else {
    out[threadIdx.x] = 0;
  }
  __syncthreads();
}

__global__ void mask_kernel(int* out) {
  const unsigned mask = threadIdx.x & 1u ? 0xffffffffu : 0x55555555u;
  out[threadIdx.x] = int(__ballot_sync(mask, 1));
}

__global__ void not_in_mask_kernel(int* out) { out[threadIdx.x] = __shfl_sync(0x0000ffffu, 1, 0); }

__global__ void missing_lane_kernel(int* out) {
  if (threadIdx.x >= 32) return;
  if (threadIdx.x < 31) out[threadIdx.x] = __shfl_down_sync(0x7fffffffu, int(threadIdx.x), 1);
}

__global__ void warp_in_barrier_kernel(int* out) {
  if (threadIdx.x < 8) __syncthreads();
  out[threadIdx.x] = int(__ballot_sync(kFullMask, 1));
}

// Reads what a lower thread wrote, without a barrier between: right by luck in ascending order.
__global__ void missing_barrier_kernel(int* out) {
  FF_SHARED(int, s, [64]);
  s[threadIdx.x] = int(threadIdx.x);
  out[threadIdx.x] = s[threadIdx.x / 2];
}

__global__ void uninitialised_kernel(int* out) {
  FF_SHARED(int, s, [64]);
  if (threadIdx.x > 0) s[threadIdx.x] = 7;
  __syncthreads();
  out[threadIdx.x] = s[threadIdx.x];
}

__global__ void spin_kernel(volatile int* flag) {
  while (*flag == -1) __nanosleep(100);
}

__global__ void early_map_kernel(int* out) {
  FF_SHARED(int, mine);
  mine = 1;
  out[blockIdx.x] = *cluster_map(&mine, 1 - cluster_rank());
}

__global__ void early_exit_kernel(int* out) {
  FF_SHARED(int, mine);
  mine = 1;
  cluster_sync();
  int* other = cluster_map(&mine, 1 - cluster_rank());
  if (cluster_rank() == 1) return;
  __syncthreads();
  out[0] = *other;
}

__global__ void never_waits_kernel(int* out) {
  if (threadIdx.x != 5) wait_for_launch_before();
  out[threadIdx.x] = 1;
}

__global__ void too_much_shared_kernel(int* out) {
  FF_SHARED(int, s, [12000]);
  FF_DYN_SHARED(int, d);
  d[threadIdx.x] = s[threadIdx.x] = int(threadIdx.x);
  out[threadIdx.x] = d[threadIdx.x] + s[threadIdx.x];
}

// Two pieces of one workspace; the kernel runs over from the first into the second.
void workspace_bounds(int* out) {
  WorkspaceArena sizes(nullptr);
  sizes.take<int>(95);
  sizes.take<int>(64);
  std::vector<char> memory(sizes.used());
  WorkspaceArena arena(memory.data());
  int* first = arena.take<int>(95);
  arena.take<int>(64);
  fill_bytes(first, 0, 95 * sizeof(int), nullptr);
  out[0] = first[94];
  FF_LAUNCH(global_bounds_kernel, 1, 96, 0, nullptr, first);
}

}  // namespace

Status select_largest(const unsigned* keys, int n, int k, int* chosen) {
  FF_LAUNCH(select_kernel, 1, kThreads, 0, nullptr, keys, n, k, chosen);
  return launched();
}

Status overlaps(const float* intervals, int n, unsigned* words) {
  FF_LAUNCH(overlap_kernel, dim3(2, unsigned(n)), kThreads, 0, nullptr, reinterpret_cast<const float2*>(intervals), n,
            words);
  return launched();
}

Status sort_pieces(unsigned* items, int pieces, int each) {
  const size_t bytes = size_t(each) * sizeof(unsigned);
  FF_TRY(allow_dynamic_shared(sort_kernel, bytes));
  FF_LAUNCH(sort_kernel, unsigned(pieces), 128, bytes, nullptr, items, each);
  return launched();
}

Status cluster_sums(const int* values, int blocks, unsigned cluster, int* sums) {
  FF_LAUNCH_CLUSTER(cluster_sum_kernel, cluster, unsigned(blocks), 64, 0, nullptr, values, sums);
  return launched();
}

Status last_block_sum(const int* values, int blocks, int* partial, int* tickets, int* sum) {
  FF_TRY(fill_bytes(tickets, 0, sizeof(int), nullptr));
  FF_LAUNCH(last_block_kernel, unsigned(blocks), 64, 0, nullptr, values, partial, tickets, sum);
  return launched();
}

Status overlapped_count(int launches, int* out) {
  FF_TRY(fill_bytes(out, 0, sizeof(int), nullptr));
  for (int i = 0; i < launches; ++i) FF_LAUNCH_OVERLAPPED(overlapped_kernel, 1, 64, 0, nullptr, out);
  return launched();
}

Status warp_collectives(int* out) {
  FF_LAUNCH(collectives_kernel, 1, 64, 0, nullptr, out);
  return launched();
}

Status empty_grid(int* out) {
  FF_LAUNCH(global_bounds_kernel, 0, 64, 0, nullptr, out);
  return launched();
}

Status too_much_dynamic(int* out) {
  FF_LAUNCH(dynamic_bounds_kernel, 1, 64, 64 << 10, nullptr, out);
  return launched();
}

const Bug kBugs[] = {
    {"global_bounds", [](int* out) { FF_LAUNCH(global_bounds_kernel, 1, 96, 0, nullptr, out); }},
    {"memset_bounds", [](int* out) { fill_bytes(out, 0, 65 * sizeof(int), nullptr); }},
    {"workspace_bounds", workspace_bounds},
    {"dynamic_bounds", [](int* out) { FF_LAUNCH(dynamic_bounds_kernel, 1, 64, 256, nullptr, out); }},
    {"static_bounds", [](int* out) { FF_LAUNCH(static_bounds_kernel, 1, 64, 0, nullptr, out, 1); }},
    {"misaligned", [](int* out) { FF_LAUNCH(misaligned_kernel, 1, 1, 0, nullptr, out, out); }},
    {"divergent_barrier", [](int* out) { FF_LAUNCH(divergent_barrier_kernel, 1, 64, 0, nullptr, out); }},
    {"mask", [](int* out) { FF_LAUNCH(mask_kernel, 1, 64, 0, nullptr, out); }},
    {"not_in_mask", [](int* out) { FF_LAUNCH(not_in_mask_kernel, 1, 64, 0, nullptr, out); }},
    {"missing_lane", [](int* out) { FF_LAUNCH(missing_lane_kernel, 1, 64, 0, nullptr, out); }},
    {"warp_in_barrier", [](int* out) { FF_LAUNCH(warp_in_barrier_kernel, 1, 64, 0, nullptr, out); }},
    {"missing_barrier", [](int* out) { FF_LAUNCH(missing_barrier_kernel, 1, 64, 0, nullptr, out); }},
    {"uninitialised", [](int* out) { FF_LAUNCH(uninitialised_kernel, 1, 64, 0, nullptr, out); }},
    {"spin", [](int* out) { FF_LAUNCH(spin_kernel, 1, 64, 0, nullptr, out); }},
    {"early_map", [](int* out) { FF_LAUNCH_CLUSTER(early_map_kernel, 2, 2, 64, 0, nullptr, out); }},
    {"early_exit", [](int* out) { FF_LAUNCH_CLUSTER(early_exit_kernel, 2, 2, 64, 0, nullptr, out); }},
    {"never_waits", [](int* out) { FF_LAUNCH_OVERLAPPED(never_waits_kernel, 1, 64, 0, nullptr, out); }},
    {"too_much_shared", [](int* out) { FF_LAUNCH(too_much_shared_kernel, 1, 64, 4096, nullptr, out); }},
};
const int kNumBugs = int(sizeof kBugs / sizeof *kBugs);

}  // namespace frcnn_fast
