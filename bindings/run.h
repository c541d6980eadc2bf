// From a bound function to a launcher: device guard, current stream, GIL, workspace, status.
//
// A binding file holds one free function an op, which takes the arguments of the op's schema
// (frcnn_fast/ops/_schema.py) in its order and by its names, then the workspace, then the outputs; `<op>_workspace`
// beside it says how many bytes. A Registrar in the file gives them to the module.
#pragma once
#include <array>
#include <stdexcept>
#include <vector>

#include "../kernels/common/status.h"
#include "tensor_view.h"

namespace frcnn_fast::bindings {

using namespace pybind11::literals;

#if defined(FRCNN_FAST_WITH_CUDA)
constexpr bool kWithCuda = true;
#else
constexpr bool kWithCuda = false;
#endif

using Integers = std::vector<int64_t>;  // int[] of a schema
using Numbers = std::vector<double>;    // float[]
using Weights = std::array<double, 4>;  // float[] weights: of the deltas (wx, wy, ww, wh)

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

inline int device_index(const TensorView& tensor) { return tensor.is_cuda() ? tensor.device().id : -1; }

// Runs cpu() or cuda(stream) for the device of `tensor`, without the GIL. Both return a Status and are generic
// lambdas (the CUDA one takes `auto stream`), so that a build without CUDA never names a CUDA launcher.
template <class Cpu, class Cuda>
void run(const char* op, const TensorView& tensor, Cpu&& cpu, Cuda&& cuda) {
  Status status = kOk;
  if (uses_cuda(tensor)) {
    if constexpr (kWithCuda) {
      const Stream stream = tensor.is_cuda() ? tensor.current_stream() : nullptr;
      py::gil_scoped_release release;
      DeviceGuard guard(device_index(tensor));
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

// A workspace on the CPU of up to so many bytes lives on the stack of the call (see Workspace).
#if defined(FF_TEST_BUILD)
constexpr size_t kStackBytes = 1;  // none: the test build marks the gaps in a workspace, and the marks would stay
#else
constexpr size_t kStackBytes = 8192;
#endif

// The bytes of workspace that the caller allocates: cpu() or cuda(0) for the device of `tensor`, 0 where the call's
// stack will do. As for run(), the CUDA lambda is generic.
template <class Cpu, class Cuda>
size_t workspace_bytes(const TensorView& tensor, Cpu&& cpu, Cuda&& cuda) {
  if (!uses_cuda(tensor)) {
    const size_t bytes = cpu();
    return bytes <= kStackBytes ? 0 : bytes;
  }
  if constexpr (kWithCuda) {
    DeviceGuard guard(device_index(tensor));
    return cuda(0);
  }
  return 0;
}

// The workspace of one call: the tensor of bytes that came, or, for None, a few of the stack. An allocation costs a
// microsecond, as much as a small op. Only the CPU launchers may write to the stack, and workspace_bytes sees to that.
class Workspace {
 public:
  explicit Workspace(const OptionalTensor& tensor)
      : data_(tensor.present ? tensor.data<uint8_t>("workspace") : stack_) {}
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  void* data() const { return data_; }

 private:
  uint8_t* data_;
  alignas(64) uint8_t stack_[kStackBytes];
};

// Each binding file has one, which adds its functions to the module when that is imported.
class Registrar {
 public:
  using Register = void (*)(py::module_&);
  explicit Registrar(Register add) { all().push_back(add); }
  static std::vector<Register>& all();
};

}  // namespace frcnn_fast::bindings
