#include "../kernels/common/cpu.h"
#include "run.h"

#if defined(FRCNN_FAST_WITH_CUDA) && !defined(FF_SIMT)
#include <cuda_runtime_api.h>
#endif

namespace frcnn_fast::bindings {
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

std::vector<Registrar::Register>& Registrar::all() {
  static std::vector<Register> functions;  // here, so that it is there for the first registrar, in whatever file
  return functions;
}

}  // namespace frcnn_fast::bindings

PYBIND11_MODULE(_C, m) {
  using namespace frcnn_fast::bindings;
  m.attr("__version__") = FRCNN_FAST_VERSION;
  m.def("build_info", &build_info);
  m.def("uses_cuda", &uses_cuda, "tensor"_a);
  m.def("mark_forked", &frcnn_fast::mark_forked);
  for (const Registrar::Register add : Registrar::all()) add(m);
}
