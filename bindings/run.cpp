#include "run.h"

#if defined(FRCNN_FAST_WITH_CUDA) && !defined(FF_SIMT)
#include <cuda_runtime_api.h>
#endif

namespace frcnn_fast::bindings {

#if defined(FRCNN_FAST_WITH_CUDA) && !defined(FF_SIMT)

DeviceGuard::DeviceGuard(int device) {
  int current = -1;
  if (device < 0 || cudaGetDevice(&current) != cudaSuccess || current == device) return;
  if (cudaSetDevice(device) == cudaSuccess) previous_ = current;
}
DeviceGuard::~DeviceGuard() {
  if (previous_ >= 0) cudaSetDevice(previous_);
}

std::string status_message(Status status) {
  if (status > 0) return std::string("CUDA: ") + cudaGetErrorString(static_cast<cudaError_t>(status));
  return status ? last_error() : "";
}

#else

DeviceGuard::DeviceGuard(int) {}
DeviceGuard::~DeviceGuard() = default;

std::string status_message(Status status) {
  return status > 0 ? "CUDA error " + std::to_string(status) : status ? last_error() : "";
}

#endif

}  // namespace frcnn_fast::bindings
