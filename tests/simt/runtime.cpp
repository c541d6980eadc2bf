#include "runtime.h"

#include <algorithm>
#include <atomic>
#include <cstdarg>
#include <cstdlib>
#include <map>
#include <mutex>

#include "scheduler.h"

namespace simt {
namespace {

// Of every device; the rest is the device's.
constexpr size_t kSharedBytes = 48 << 10;
constexpr unsigned kMaxThreads = 1024, kMaxCluster = 8;
constexpr size_t kInterleaved = 2;  // clusters that run together in the random schedule

thread_local cudaError_t last_error = cudaSuccess;
std::atomic<int64_t> launch_count{0};

int environment(const char* name, int otherwise) {
  const char* value = std::getenv(name);
  return value ? std::atoi(value) : otherwise;
}
int chosen_order = environment("SIMT_ORDER", 0);
unsigned chosen_seed = unsigned(environment("SIMT_SEED", 1));

struct Device {
  int capability, code;  // code: what its kernels were compiled for
  int multiprocessors;
  size_t max_shared;
};
// Small ones, with the least shared memory that a device of sm_80 or later offers: what passes here fits everywhere.
// Then an H200 and an A100, as launchers see them.
constexpr Device kDevices[] = {{90, 90, 4, 99 << 10},
                               {80, 80, 4, 99 << 10},
                               {90, 80, 4, 99 << 10},
                               {90, 90, 132, 227 << 10},
                               {80, 80, 108, 163 << 10}};
int chosen_device = 0;
const Device& device() { return kDevices[chosen_device]; }
unsigned most_grid_yz = 65535;

std::mutex allowed_mutex;
std::map<const void*, size_t> allowed_dynamic;  // cudaFuncSetAttribute, by kernel

Thread& me() { return static_cast<Thread&>(*self); }

SharedArray& find_or_make(Block& block, const void* tag, size_t bytes) {
  for (SharedArray& array : block.arrays)
    if (array.tag == tag) return array;
  char* data = static_cast<char*>(::operator new(bytes, std::align_val_t(SharedArray::kAlignment)));
  std::memset(data, 0xCD, bytes);
  block.arrays.push_back({tag, bytes, std::unique_ptr<char, SharedArray::Delete>(data)});
  return block.arrays.back();
}

}  // namespace

void fail(const char* format, ...) {
  char message[1024];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(message, sizeof message, format, arguments);
  va_end(arguments);
  throw Error(name_of(me()) + ": " + message);
}

// What `me` is about to wait in.
static Thread& calls(const char* name, unsigned mask, Where where) {
  Thread& t = me();
  t.name = name;
  t.mask = mask;
  t.where = where;
  return t;
}

Votes block_barrier(const char* name, bool vote, Where where) {
  Thread& t = calls(name, 0, where);
  gang->block_barrier(t, vote);
  return t.votes;
}

uint64_t collective(const char* name, unsigned mask, uint64_t value, uint64_t argument, void (*combine)(Exchange&),
                    Where where) {
  Thread& t = calls(name, mask, where);
  t.value = value;
  t.argument = argument;
  t.combine = combine;
  gang->collective(t);
  return t.result;
}

void yield(Where where) { gang->yield(calls("__nanosleep", 0, where)); }

void* shared_array(const void* tag, size_t bytes, Where where) {
  Block& block = *me().owner;
  const size_t arrays = block.arrays.size();
  SharedArray& array = find_or_make(block, tag, bytes);
  if (block.arrays.size() > arrays) {
    block.shared_bytes += bytes;
    if (block.shared_bytes > gang->launch.shared_limit)
      fail("%s:%u: %zu bytes of shared memory with this array, of which %zu are dynamic; allowed are %zu",
           where.file_name(), unsigned(where.line()), block.shared_bytes, gang->launch.dynamic_bytes,
           gang->launch.shared_limit);
  }
  return array.data.get();
}

void* dynamic_shared() { return find_or_make(*me().owner, nullptr, gang->launch.dynamic_bytes).data.get(); }

void mark_waited() { me().waited = true; }
void require_waited() {
  if (!me().waited) fail("ends without wait_for_launch_before()");
}

bool cluster_fits(unsigned cluster, size_t dynamic_bytes) {
  return cluster <= (device().capability >= 90 ? kMaxCluster : 1) && dynamic_bytes <= device().max_shared;
}
unsigned cluster_size() { return device().code >= 90 ? gang->launch.cluster : 1; }
unsigned cluster_rank() { return device().code >= 90 ? me().owner->rank : 0; }

void cluster_barrier(Where where) { gang->cluster_barrier(calls("cluster_sync", 0, where)); }

void* cluster_address(const void* mine, unsigned rank, Where where) {
  Block& block = *me().owner;
  Cluster& cluster = *block.cluster;
  const std::string place = text("cluster_map at %s:%u", where.file_name(), unsigned(where.line()));
  if (device().code < 90 && rank > 0) fail("%s: this code has no clusters", place.c_str());
  if (rank >= gang->launch.cluster) fail("%s: rank %u of %u", place.c_str(), rank, gang->launch.cluster);
  if (!cluster.in_step) fail("%s before the first cluster_sync: block %u may not have started", place.c_str(), rank);
  Block& target = cluster.blocks[rank];
  if (target.running == 0) fail("%s: block %u of the cluster has ended", place.c_str(), rank);
  const char* p = static_cast<const char*>(mine);
  for (const SharedArray& array : block.arrays)
    if (p >= array.data.get() && p < array.data.get() + array.bytes)
      return find_or_make(target, array.tag, array.bytes).data.get() + (p - array.data.get());
  fail("%s: not an address in this block's shared memory", place.c_str());
}

void run(const void* kernel, unsigned cluster, dim3 grid, dim3 block, size_t dynamic_bytes,
         const std::function<void()>& body, Where where) {
  const size_t blocks = size_t(grid.x) * grid.y * grid.z, threads = size_t(block.x) * block.y * block.z;
  size_t limit = kSharedBytes;
  {
    const std::lock_guard<std::mutex> lock(allowed_mutex);
    if (const auto found = allowed_dynamic.find(kernel); found != allowed_dynamic.end())
      limit = std::max(limit, found->second);
  }
  if (blocks == 0 || grid.x > 0x7fffffffu || grid.y > most_grid_yz || grid.z > most_grid_yz || threads == 0 ||
      threads > kMaxThreads || cluster == 0 || !cluster_fits(cluster, 0) || grid.x % cluster) {
    last_error = cudaErrorInvalidConfiguration;
    return;
  }
  if (dynamic_bytes > limit) {
    last_error = cudaErrorInvalidValue;
    return;
  }
  ++launch_count;
  std::vector<size_t> first_blocks(blocks / cluster);
  for (size_t i = 0; i < first_blocks.size(); ++i) first_blocks[i] = i * cluster;
  const Order order = Order(chosen_order);
  std::minstd_rand random(chosen_seed);
  if (order == Order::kDescending) std::reverse(first_blocks.begin(), first_blocks.end());
  if (order == Order::kRandom) std::shuffle(first_blocks.begin(), first_blocks.end(), random);

  // What a kernel was allowed is dynamic; the static arrays come on top of it.
  const size_t all = limit > kSharedBytes ? device().max_shared : kSharedBytes;
  const Launch launch{&body, grid, block, cluster, dynamic_bytes, all};
  if (watcher) watcher->launch_begins(kernel, launch);
  const size_t together = order == Order::kRandom ? kInterleaved : 1;
  for (size_t i = 0; i < first_blocks.size(); i += together) {
    const auto begin = first_blocks.begin() + ptrdiff_t(i);
    const auto end = first_blocks.begin() + ptrdiff_t(std::min(i + together, first_blocks.size()));
    try {
      Gang(launch, std::vector<size_t>(begin, end), order, random).run();
    } catch (const Error& error) {
      throw Error(text("simt: launch at %s:%u: ", where.file_name(), unsigned(where.line())) + error.what());
    }
  }
  if (watcher) watcher->launch_ends();
}

void set_order(int order, unsigned seed) {
  chosen_order = order;
  chosen_seed = seed;
}

void set_device(int device) { chosen_device = device; }
void set_most_grid_yz(unsigned blocks) { most_grid_yz = blocks; }

int64_t launches() { return launch_count; }

}  // namespace simt

cudaError_t cudaGetLastError() {
  const cudaError_t error = simt::last_error;
  simt::last_error = cudaSuccess;
  return error;
}

cudaError_t cudaMemsetAsync(void* target, int value, size_t bytes, cudaStream_t) {
  ++simt::launch_count;
  std::memset(target, value, bytes);
  return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int value) {
  if (value < 0 || size_t(value) > simt::device().max_shared) return simt::last_error = cudaErrorInvalidValue;
  const std::lock_guard<std::mutex> lock(simt::allowed_mutex);
  simt::allowed_dynamic[kernel] = size_t(value);
  return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  *attributes = {simt::device().code, simt::device().capability};
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
  *device = simt::chosen_device;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = simt::device().multiprocessors;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = int(simt::device().max_shared);
      return cudaSuccess;
  }
  return simt::last_error = cudaErrorInvalidValue;
}
