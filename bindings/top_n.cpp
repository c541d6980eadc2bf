#include "../kernels/top_n/top_n.h"

#include "families.h"
#include "run.h"

namespace frcnn_fast {

void bind_top_n(py::module_& m) {
  m.def("top_n_workspace", [](const TensorView& scores, int64_t n) {
    const DType dtype = scores.dtype("scores");
    const int64_t B = scores.size(0), N = scores.size(1);
    if constexpr (kWithCuda)
      if (uses_cuda(scores)) return top_n_workspace_cuda(dtype, B, N, n);
    return top_n_workspace_cpu(dtype, B, N, n);
  });
  m.def("top_n", [](const TensorView& scores_view, const OptionalTensor& workspace_view, const TensorView& values_view,
                    const TensorView& indices_view, const TensorView& counts_view) {
    const DType dtype = scores_view.dtype("scores");
    const void* scores = scores_view.floats("scores");
    uint8_t* workspace = workspace_view.data<uint8_t>("workspace");
    void* values = values_view.floats("values");
    int64_t *indices = indices_view.data<int64_t>("indices"), *counts = counts_view.data<int64_t>("counts");
    const int64_t B = scores_view.size(0), N = scores_view.size(1), n = values_view.size(1);
    run(
        "top_n", scores_view, [&] { return top_n_cpu(dtype, scores, B, N, n, workspace, values, indices, counts); },
        [&](auto stream) { return top_n_cuda(dtype, scores, B, N, n, workspace, values, indices, counts, stream); });
  });
}

}  // namespace frcnn_fast
