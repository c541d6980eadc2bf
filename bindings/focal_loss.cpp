#include "../kernels/focal_loss/focal_loss.h"

#include "run.h"

namespace frcnn_fast::bindings {
using namespace focal_loss;
namespace {

// One number is the gradient of every element.
int64_t grad_stride(const TensorView& grad) { return grad.numel() == 1 ? 0 : 1; }

void sigmoid_focal_loss(const TensorView& inputs, const TensorView& targets, double alpha, double gamma,
                        const TensorView& loss) {
  const DType dtype = inputs.dtype("inputs");
  const void *x = inputs.floats("inputs"), *t = targets.floats("targets");
  void* const out = loss.floats("loss");
  const int64_t N = inputs.numel();
  run(
      "sigmoid_focal_loss", inputs, [&] { return sigmoid_focal_loss_cpu(dtype, x, t, N, alpha, gamma, out); },
      [&](auto stream) { return sigmoid_focal_loss_cuda(dtype, x, t, N, alpha, gamma, out, stream); });
}

void sigmoid_focal_loss_backward(const TensorView& grad, const TensorView& inputs, const TensorView& targets,
                                 double alpha, double gamma, const TensorView& grad_inputs) {
  const DType dtype = inputs.dtype("inputs");
  const void *g = grad.floats("grad"), *x = inputs.floats("inputs"), *t = targets.floats("targets");
  void* const out = grad_inputs.floats("grad_inputs");
  const int64_t N = inputs.numel(), stride = grad_stride(grad);
  run(
      "sigmoid_focal_loss_backward", inputs,
      [&] { return sigmoid_focal_loss_backward_cpu(dtype, g, stride, x, t, N, alpha, gamma, out); },
      [&](auto stream) {
        return sigmoid_focal_loss_backward_cuda(dtype, g, stride, x, t, N, alpha, gamma, out, stream);
      });
}

void class_focal_loss(const TensorView& inputs, const TensorView& targets, const OptionalTensor& weight, double alpha,
                      double gamma, const TensorView& loss) {
  const DType dtype = inputs.dtype("inputs");
  const void *x = inputs.floats("inputs"), *w = weight.floats("weight");
  const int64_t* t = targets.data<int64_t>("targets");
  void* const out = loss.floats("loss");
  const int64_t N = inputs.size(0), C = inputs.size(1);
  run(
      "class_focal_loss", inputs, [&] { return class_focal_loss_cpu(dtype, x, t, w, N, C, alpha, gamma, out); },
      [&](auto stream) { return class_focal_loss_cuda(dtype, x, t, w, N, C, alpha, gamma, out, stream); });
}

void class_focal_loss_backward(const TensorView& grad, const TensorView& inputs, const TensorView& targets,
                               const OptionalTensor& weight, double alpha, double gamma,
                               const TensorView& grad_inputs) {
  const DType dtype = inputs.dtype("inputs");
  const void *g = grad.floats("grad"), *x = inputs.floats("inputs"), *w = weight.floats("weight");
  const int64_t* t = targets.data<int64_t>("targets");
  void* const out = grad_inputs.floats("grad_inputs");
  const int64_t N = inputs.size(0), C = inputs.size(1), stride = grad_stride(grad);
  run(
      "class_focal_loss_backward", inputs,
      [&] { return class_focal_loss_backward_cpu(dtype, g, stride, x, t, w, N, C, alpha, gamma, out); },
      [&](auto stream) {
        return class_focal_loss_backward_cuda(dtype, g, stride, x, t, w, N, C, alpha, gamma, out, stream);
      });
}

const Registrar registrar([](py::module_& m) {
  m.def("sigmoid_focal_loss", &sigmoid_focal_loss, "inputs"_a, "targets"_a, "alpha"_a, "gamma"_a, "loss"_a);
  m.def("sigmoid_focal_loss_backward", &sigmoid_focal_loss_backward, "grad"_a, "inputs"_a, "targets"_a, "alpha"_a,
        "gamma"_a, "grad_inputs"_a);
  m.def("class_focal_loss", &class_focal_loss, "inputs"_a, "targets"_a, "weight"_a, "alpha"_a, "gamma"_a, "loss"_a);
  m.def("class_focal_loss_backward", &class_focal_loss_backward, "grad"_a, "inputs"_a, "targets"_a, "weight"_a,
        "alpha"_a, "gamma"_a, "grad_inputs"_a);
});

}  // namespace
}  // namespace frcnn_fast::bindings
