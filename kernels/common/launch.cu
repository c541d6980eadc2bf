// Which code the current device runs.
#include <algorithm>
#include <atomic>

#include "launch.cuh"

namespace frcnn_fast {
namespace {

// Any kernel of the build would do: all are compiled for the same architectures.
__global__ void code_probe_kernel() {}

// 10 * major + minor of the architecture that the probe was compiled for; 0 where the driver does not say. ptxVersion
// is what __CUDA_ARCH__ was; binaryVersion is the device's where the driver compiled the PTX of an older one.
int code_architecture() {
  cudaFuncAttributes attributes = {};
  if (!cudaFuncGetAttributes(&attributes, code_probe_kernel))
    return std::min(attributes.ptxVersion, attributes.binaryVersion);
  cudaGetLastError();  // clears the error, which the next launched() would report
  return 0;
}

}  // namespace

bool code_has_clusters() {
  static std::atomic<int8_t> known[kMostDevices];  // 0: not asked yet, 1: no, 2: yes
  int device = 0;
  if (cudaGetDevice(&device) || device >= kMostDevices) return false;
  int8_t answer = known[device];
  if (!answer) known[device] = answer = code_architecture() >= 90 ? 2 : 1;
  return answer == 2;
}

}  // namespace frcnn_fast
