#include "../kernels/common/cpu.h"
#include "families.h"
#include "run.h"

#if defined(FRCNN_FAST_WITH_CUDA) && !defined(FF_SIMT)
#include <cuda_runtime_api.h>
#endif

namespace frcnn_fast {
namespace {

// What this binary is and what it finds on this machine; frcnn_fast.doctor prints it.
py::dict build_info() {
  py::dict info;
  info["isa"] = isa() == Isa::kAvx512 ? "avx512" : isa() == Isa::kAvx2 ? "avx2" : "baseline";
  info["threads"] = max_threads();
#if defined(_OPENMP)
  info["openmp"] = true;
#else
  info["openmp"] = false;
#endif
  info["cuda"] = kWithCuda;
  info["cuda_architectures"] = FRCNN_FAST_CUDA_ARCHITECTURES;
  info["cuda_devices"] = 0;
  info["cuda_error"] = "";
#if defined(FRCNN_FAST_WITH_CUDA) && !defined(FF_SIMT)
  int count = 0, runtime = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  cudaRuntimeGetVersion(&runtime);
  info["cuda_devices"] = error == cudaSuccess ? count : 0;
  info["cuda_error"] = error == cudaSuccess ? "" : cudaGetErrorString(error);
  info["cuda_runtime"] = runtime;
#endif
  return info;
}

}  // namespace
}  // namespace frcnn_fast

PYBIND11_MODULE(_C, m) {
  using namespace frcnn_fast;
  m.def("build_info", &build_info);
  m.def("uses_cuda", [](const TensorView& tensor) { return uses_cuda(tensor); });
  bind_anchor_decode(m);
  bind_top_n(m);
  bind_nms(m);
  bind_anchor_target(m);
  bind_roi_pool(m);
  bind_proposals(m);
  bind_detections(m);
#if defined(FF_TEST_BUILD)
  bind_test_build(m);
#endif
}
