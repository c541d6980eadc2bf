#include "../kernels/top_n/top_n.h"

#include "run.h"

namespace frcnn_fast::bindings {
using namespace top_n;
namespace {

size_t top_n_workspace(const TensorView& scores, int64_t n) {
  const DType dtype = scores.dtype("scores");
  const int64_t B = scores.size(0), N = scores.size(1);
  return workspace_bytes(
      scores, [&] { return top_n_workspace_cpu(dtype, B, N, n); },
      [&](auto) { return top_n_workspace_cuda(dtype, B, N, n); });
}

void top_n(const TensorView& scores, int64_t n, const OptionalTensor& workspace, const TensorView& values,
           const TensorView& indices, const TensorView& counts) {
  const DType dtype = scores.dtype("scores");
  const int64_t B = scores.size(0), N = scores.size(1);
  if (B == 0) return;
  const void* in = scores.floats("scores");
  const Workspace scratch(workspace);
  void* best = values.floats("values");
  int64_t *columns = indices.data<int64_t>("indices"), *selected = counts.data<int64_t>("counts");
  run(
      "top_n", scores, [&] { return top_n_cpu(dtype, in, B, N, n, scratch.data(), best, columns, selected); },
      [&](auto stream) { return top_n_cuda(dtype, in, B, N, n, scratch.data(), best, columns, selected, stream); });
}

const Registrar registrar([](py::module_& m) {
  m.def("top_n_workspace", &top_n_workspace, "scores"_a, "n"_a);
  m.def("top_n", &top_n, "scores"_a, "n"_a, "workspace"_a, "values"_a, "indices"_a, "counts"_a);
});

}  // namespace
}  // namespace frcnn_fast::bindings
