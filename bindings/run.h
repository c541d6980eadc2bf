// From a bound function to a launcher: device guard, current stream, GIL, status.
#pragma once
#include <stdexcept>

#include "../kernels/common/status.h"
#include "tensor_view.h"

namespace frcnn_fast {

#if defined(FRCNN_FAST_WITH_CUDA)
constexpr bool kWithCuda = true;
#else
constexpr bool kWithCuda = false;
#endif

// Makes a device current for a scope. Does nothing in a build without CUDA.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device);
  ~DeviceGuard();

 private:
  int previous_ = -1;
};

// "" for 0, else what went wrong.
std::string status_message(Status status);

#if defined(FF_TEST_BUILD)
extern bool emulated;  // CPU tensors go to the CUDA launchers, which the test harness runs on the CPU
#else
constexpr bool emulated = false;
#endif

// Whether the CUDA launchers serve this tensor.
inline bool uses_cuda(const TensorView& tensor) { return tensor.is_cuda() || emulated; }

// Runs cpu() or cuda(stream) for the device of `tensor`, without the GIL. Both return a Status and are generic
// lambdas (the CUDA one takes `auto stream`), so that a build without CUDA never names a CUDA launcher.
template <class Cpu, class Cuda>
void run(const char* op, const TensorView& tensor, Cpu&& cpu, Cuda&& cuda) {
  Status status = kOk;
  if (uses_cuda(tensor)) {
    if constexpr (kWithCuda) {
      const Stream stream = tensor.is_cuda() ? tensor.current_stream() : nullptr;
      py::gil_scoped_release release;
      DeviceGuard guard(tensor.is_cuda() ? tensor.device().id : -1);
      status = cuda(stream);
    } else {
      throw std::runtime_error(std::string(op) + ": this build of frcnn_fast has no CUDA half");
    }
  } else {
    py::gil_scoped_release release;
    status = cpu();
  }
  if (status == kInvalidArgument) throw py::value_error(std::string(op) + ": " + last_error());
  if (status != kOk) throw std::runtime_error(std::string(op) + ": " + status_message(status));
}

}  // namespace frcnn_fast
