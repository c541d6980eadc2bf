// The latencies and rates that no kernel of this library can beat: what a launch, a graph node, a barrier, a load cost.
// Prints one JSON object a line: {"name", "unit", "p10", "p50", "p90"}, over kSamples repetitions of each measurement.
// Memory comes from cudaMalloc only. Cluster, DSMEM and dependent-launch rows appear from compute capability 9.0 on.

#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

namespace cg = cooperative_groups;

#define CHECK(expression)                                                                  \
  do {                                                                                     \
    const cudaError_t error_ = (expression);                                               \
    if (error_ != cudaSuccess) {                                                           \
      std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, cudaGetErrorString(error_)); \
      std::exit(1);                                                                        \
    }                                                                                      \
  } while (0)

namespace {

constexpr int kSamples = 40;
constexpr int kChain = 200;    // kernels in a captured chain
constexpr int kRepeats = 512;  // barriers or dependent loads between two clock readings
constexpr int kLine = 128;     // bytes

// Kernels. Those that time themselves write cycles per repetition to out[0]; out[1] keeps results from being dropped.

__global__ void empty() {}

// One thread keeps a dependence between the kernels of a chain; with early launch, each waits for the one before.
__global__ void link(unsigned* counter, bool dependent) {
#if __CUDA_ARCH__ >= 900
  if (dependent) {
    cudaTriggerProgrammaticLaunchCompletion();
    cudaGridDependencySynchronize();
  }
#endif
  if (blockIdx.x == 0 && threadIdx.x == 0) *counter += 1;
}

__global__ void block_barrier(double* out) {
  __syncthreads();
  const long long start = clock64();
  for (int i = 0; i < kRepeats; ++i) __syncthreads();
  if (threadIdx.x == 0) out[0] = double(clock64() - start) / kRepeats;
}

__global__ void cluster_barrier(double* out) {
#if __CUDA_ARCH__ >= 900
  cg::cluster_group cluster = cg::this_cluster();
  cluster.sync();
  const long long start = clock64();
  for (int i = 0; i < kRepeats; ++i) cluster.sync();
  if (blockIdx.x == 0 && threadIdx.x == 0) out[0] = double(clock64() - start) / kRepeats;
#endif
}

__global__ void grid_barrier(double* out) {
  cg::grid_group grid = cg::this_grid();
  grid.sync();
  const long long start = clock64();
  for (int i = 0; i < kRepeats; ++i) grid.sync();
  if (blockIdx.x == 0 && threadIdx.x == 0) out[0] = double(clock64() - start) / kRepeats;
}

// Each load's address is the value loaded before. The table holds zeros, which the compiler cannot know.
__device__ double chase_shared(const volatile int* table, double* out) {
  int at = 0;
  const long long start = clock64();
  for (int i = 0; i < kRepeats; ++i) at = table[at];
  const long long spent = clock64() - start;
  out[1] = at;
  return double(spent) / kRepeats;
}

__global__ void shared_latency(double* out) {
  __shared__ int table[32];
  table[threadIdx.x & 31] = 0;
  __syncthreads();
  if (threadIdx.x == 0) out[0] = chase_shared(table, out);
}

__global__ void distributed_shared_latency(double* out) {
#if __CUDA_ARCH__ >= 900
  __shared__ int table[32];
  cg::cluster_group cluster = cg::this_cluster();
  if (threadIdx.x < 32) table[threadIdx.x] = 0;
  cluster.sync();
  const int* other = cluster.map_shared_rank(table, (cluster.block_rank() + 1) % cluster.num_blocks());
  if (blockIdx.x == 0 && threadIdx.x == 0) out[0] = chase_shared(other, out);
  cluster.sync();  // nobody leaves while a neighbour reads its memory
#endif
}

// next[i * step] holds the next index of a walk over all lines.
__global__ void lay_walk(uint32_t* next, uint32_t lines, uint32_t stride) {
  constexpr uint32_t kStep = kLine / sizeof(uint32_t);
  for (uint32_t i = blockIdx.x * blockDim.x + threadIdx.x; i < lines; i += gridDim.x * blockDim.x) {
    next[size_t(i) * kStep] = uint32_t((uint64_t(i) + stride) % lines) * kStep;
  }
}

__global__ void walk(const uint32_t* next, uint32_t from, int steps, double* out) {
  uint32_t at = from;
  const long long start = clock64();
  for (int i = 0; i < steps; ++i) at = __ldcg(next + at);
  const long long spent = clock64() - start;
  out[0] = double(spent) / steps;
  out[1] = at;
}

__global__ void atomic_latency(unsigned* cell, double* out) {
  unsigned at = 0;
  const long long start = clock64();
  // The count stays far below 2^31, so the address stays the same; but it hangs on the value that came back.
  for (int i = 0; i < kRepeats; ++i) at = atomicAdd(cell + (at >> 31), 1u);
  out[0] = double(clock64() - start) / kRepeats;
  out[1] = at;
}

// So many times, so that a launch does not count where the whole lies in the L2 cache; past the first-level cache.
__global__ void copy(const float4* from, float4* to, size_t count, int times) {
  const size_t step = size_t(gridDim.x) * blockDim.x;
  for (int k = 0; k < times; ++k) {
    for (size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step)
      __stcg(to + i, __ldcg(from + i));
  }
}

// Cycles and nanoseconds over the same stretch: the clock at which the rest ran.
__global__ void clock_rate(double* out) {
  unsigned long long before, after;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(before));
  const long long start = clock64();
  do {
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(after));
  } while (after - before < 2000000ull);
  out[0] = double(clock64() - start) / double(after - before);
}

// Reporting.

void print(const std::string& name, const char* unit, std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const auto at = [&](double q) { return values[size_t(q * double(values.size() - 1) + 0.5)]; };
  std::printf("{\"name\": \"%s\", \"unit\": \"%s\", \"p10\": %.6g, \"p50\": %.6g, \"p90\": %.6g}\n", name.c_str(), unit,
              at(0.1), at(0.5), at(0.9));
  std::fflush(stdout);
}

struct Bench {
  cudaStream_t stream;
  double* out;     // device
  double ghz = 0;  // SM clock, measured
  cudaDeviceProp device;

  Bench() {
    CHECK(cudaGetDeviceProperties(&device, 0));
    CHECK(cudaStreamCreate(&stream));
    CHECK(cudaMalloc(&out, 2 * sizeof(double)));
  }

  double result() {
    double value = 0;
    CHECK(cudaGetLastError());
    CHECK(cudaMemcpyAsync(&value, out, sizeof(value), cudaMemcpyDeviceToHost, stream));
    CHECK(cudaStreamSynchronize(stream));
    return value;
  }

  // A kernel that times itself: cycles, and nanoseconds at the measured clock.
  void cycles(const std::string& name, const std::function<void()>& launch) {
    std::vector<double> spent, ns;
    for (int i = 0; i < kSamples + 2; ++i) {
      launch();
      const double value = result();
      if (i >= 2) spent.push_back(value), ns.push_back(value / ghz);
    }
    print(name + "_cycles", "cycles", spent);
    print(name + "_ns", "ns", ns);
  }

  // GPU time between two events around `calls` calls, in microseconds a call.
  std::vector<double> events(int calls, const std::function<void()>& call) {
    cudaEvent_t before, after;
    CHECK(cudaEventCreate(&before));
    CHECK(cudaEventCreate(&after));
    std::vector<double> spent;
    for (int i = 0; i < kSamples + 2; ++i) {
      CHECK(cudaEventRecord(before, stream));
      for (int k = 0; k < calls; ++k) call();
      CHECK(cudaEventRecord(after, stream));
      CHECK(cudaEventSynchronize(after));
      float ms = 0;
      CHECK(cudaEventElapsedTime(&ms, before, after));
      if (i >= 2) spent.push_back(double(ms) * 1e3 / calls);
    }
    CHECK(cudaGetLastError());
    CHECK(cudaEventDestroy(before));
    CHECK(cudaEventDestroy(after));
    return spent;
  }

  // Host time of a call with a synchronisation, in microseconds.
  std::vector<double> round_trips(const std::function<void()>& call) {
    std::vector<double> spent;
    for (int i = 0; i < 5 * kSamples + 20; ++i) {
      const auto start = std::chrono::steady_clock::now();
      call();
      CHECK(cudaStreamSynchronize(stream));
      const std::chrono::duration<double, std::micro> taken = std::chrono::steady_clock::now() - start;
      if (i >= 20) spent.push_back(taken.count());
    }
    return spent;
  }

  cudaGraphExec_t capture(const std::function<void()>& work) {
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    work();
    CHECK(cudaStreamEndCapture(stream, &graph));
    CHECK(cudaGraphInstantiate(&exec, graph, 0));
    CHECK(cudaGraphDestroy(graph));
    return exec;
  }
};

void launches(Bench& b) {
  const auto launch = [&] { empty<<<1, 32, 0, b.stream>>>(); };
  print("launch_us", "us", b.events(500, launch));
  print("launch_and_wait_us", "us", b.round_trips(launch));
  cudaGraphExec_t one = b.capture(launch);
  print("graph_of_one_us", "us", b.events(200, [&] { CHECK(cudaGraphLaunch(one, b.stream)); }));
  print("graph_of_one_and_wait_us", "us", b.round_trips([&] { CHECK(cudaGraphLaunch(one, b.stream)); }));
  CHECK(cudaGraphExecDestroy(one));
}

void chains(Bench& b) {
  unsigned* counter;
  CHECK(cudaMalloc(&counter, sizeof(unsigned)));
  CHECK(cudaMemset(counter, 0, sizeof(unsigned)));
  for (const bool dependent : {false, true}) {
    if (dependent && b.device.major < 9) continue;
    for (const int blocks : {1, b.device.multiProcessorCount}) {
      cudaLaunchAttribute early;
      early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
      early.val.programmaticStreamSerializationAllowed = 1;
      cudaLaunchConfig_t config = {};
      config.gridDim = dim3(blocks);
      config.blockDim = dim3(256);
      config.stream = b.stream;
      config.attrs = &early;
      config.numAttrs = dependent ? 1 : 0;
      cudaGraphExec_t chain = b.capture([&] {
        for (int i = 0; i < kChain; ++i) CHECK(cudaLaunchKernelEx(&config, link, counter, dependent));
      });
      std::vector<double> spent = b.events(5, [&] { CHECK(cudaGraphLaunch(chain, b.stream)); });
      for (double& value : spent) value /= kChain;
      std::string name = dependent ? "graph_node_early_launch" : "graph_node";
      if (blocks > 1) name += "_full_grid";
      print(name + "_us", "us", spent);
      CHECK(cudaGraphExecDestroy(chain));
    }
  }
  CHECK(cudaFree(counter));
}

void barriers(Bench& b) {
  for (const int threads : {32, 256, 512, 1024}) {
    b.cycles("block_barrier_" + std::to_string(threads), [&] { block_barrier<<<1, threads, 0, b.stream>>>(b.out); });
  }
  int cooperative = 0;
  CHECK(cudaDeviceGetAttribute(&cooperative, cudaDevAttrCooperativeLaunch, 0));
  for (const int blocks : {16, b.device.multiProcessorCount}) {
    if (!cooperative) break;
    void* arguments[] = {&b.out};
    b.cycles("grid_barrier_" + std::to_string(blocks), [&] {
      CHECK(cudaLaunchCooperativeKernel(reinterpret_cast<void*>(grid_barrier), dim3(blocks), dim3(256), arguments, 0,
                                        b.stream));
    });
  }
}

void clusters(Bench& b) {
  if (b.device.major < 9) return;
  for (const auto kernel : {cluster_barrier, distributed_shared_latency}) {
    CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
  }
  for (const int size : {2, 4, 8, 16}) {
    cudaLaunchAttribute shape;
    shape.id = cudaLaunchAttributeClusterDimension;
    shape.val.clusterDim.x = size;
    shape.val.clusterDim.y = 1;
    shape.val.clusterDim.z = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(size);
    config.blockDim = dim3(512);
    config.stream = b.stream;
    config.attrs = &shape;
    config.numAttrs = 1;
    int fitting = 0;
    if (cudaOccupancyMaxActiveClusters(&fitting, cluster_barrier, &config) != cudaSuccess || fitting == 0) {
      cudaGetLastError();  // this size is not for this device
      continue;
    }
    const std::string suffix = std::to_string(size);
    print("clusters_at_once_" + suffix, "clusters", {double(fitting)});
    b.cycles("cluster_barrier_" + suffix, [&] { CHECK(cudaLaunchKernelEx(&config, cluster_barrier, b.out)); });
    b.cycles("distributed_shared_" + suffix,
             [&] { CHECK(cudaLaunchKernelEx(&config, distributed_shared_latency, b.out)); });
  }
}

void memory(Bench& b) {
  b.cycles("shared", [&] { shared_latency<<<1, 32, 0, b.stream>>>(b.out); });
  unsigned* cell;
  CHECK(cudaMalloc(&cell, sizeof(unsigned)));
  CHECK(cudaMemset(cell, 0, sizeof(unsigned)));
  b.cycles("atomic_with_result", [&] { atomic_latency<<<1, 1, 0, b.stream>>>(cell, b.out); });
  CHECK(cudaFree(cell));

  // A walk over 4 MiB stays in the L2 cache; steps of a walk over 2 GiB, each from another place, meet lines that left
  // it.
  struct Range {
    const char* name;
    size_t bytes;
  };
  for (const Range range : {Range{"l2", size_t(4) << 20}, Range{"device_memory", size_t(2) << 30}}) {
    const uint32_t lines = uint32_t(range.bytes / kLine);
    const uint32_t stride = uint32_t(lines * 0.6180339887) | 1u;
    uint32_t* next;
    CHECK(cudaMalloc(&next, range.bytes));
    lay_walk<<<1024, 256, 0, b.stream>>>(next, lines, stride);
    CHECK(cudaGetLastError());
    const bool far = range.bytes > (size_t(64) << 20);
    if (!far) walk<<<1, 1, 0, b.stream>>>(next, 0, int(lines), b.out);  // brings every line into the cache
    uint32_t from = 0;
    b.cycles(range.name, [&] {
      walk<<<1, 1, 0, b.stream>>>(next, from * (kLine / uint32_t(sizeof(uint32_t))), 2048, b.out);
      from = uint32_t((uint64_t(from) + uint64_t(2048) * stride) % lines);
    });
    CHECK(cudaFree(next));
  }

  for (const Range range :
       {Range{"copy_l2_gb_s", size_t(8) << 20}, Range{"copy_device_memory_gb_s", size_t(2) << 30}}) {
    float4 *from, *to;
    CHECK(cudaMalloc(&from, range.bytes));
    CHECK(cudaMalloc(&to, range.bytes));
    CHECK(cudaMemset(from, 1, range.bytes));
    const size_t count = range.bytes / sizeof(float4);
    const int blocks = b.device.multiProcessorCount * 4;
    const int times = range.bytes > (size_t(64) << 20) ? 1 : 100;
    std::vector<double> rates;
    for (const double us : b.events(1, [&] { copy<<<blocks, 512, 0, b.stream>>>(from, to, count, times); })) {
      rates.push_back(2.0 * double(range.bytes) * times / us * 1e-3);
    }
    print(range.name, "GB/s", rates);
    CHECK(cudaFree(from));
    CHECK(cudaFree(to));
  }
}

}  // namespace

int main() {
  Bench b;
  for (int i = 0; i < 50; ++i) clock_rate<<<1, 1, 0, b.stream>>>(b.out);  // a tenth of a second, for the clock to rise
  std::vector<double> rates;
  for (int i = 0; i < 10; ++i) {
    clock_rate<<<1, 1, 0, b.stream>>>(b.out);
    rates.push_back(b.result());
  }
  std::nth_element(rates.begin(), rates.begin() + 5, rates.end());
  b.ghz = rates[5];
  print("sm_clock_ghz", "GHz", rates);
  launches(b);
  chains(b);
  barriers(b);
  clusters(b);
  memory(b);
  return 0;
}
