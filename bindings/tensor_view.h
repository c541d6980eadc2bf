// A Python tensor, seen through DLPack for the duration of one call.
//
// torch tensors come through torch's C exchange API (about 0.1 us each, accepts requires_grad); anything else through
// its __dlpack__ capsule. pybind11 converts arguments of type TensorView and OptionalTensor by itself.
#pragma once
#include <pybind11/pybind11.h>

#include <string>

#include "../kernels/common/dtype.h"
#include "dlpack.h"

namespace frcnn_fast::bindings {

namespace py = pybind11;

class TensorView {
 public:
  TensorView() = default;
  TensorView(const TensorView&) = delete;
  TensorView& operator=(const TensorView&) = delete;
  ~TensorView();

  // Throws TypeError where the object is no tensor, ValueError for a fake or meta tensor.
  void load(PyObject* object);

  int64_t ndim() const { return tensor_.ndim; }
  int64_t size(int64_t dimension) const { return tensor_.shape[dimension]; }
  int64_t stride(int64_t dimension) const;  // elements
  int64_t numel() const;
  bool is_contiguous() const;
  bool is_channels_last() const;  // [N, C, H, W] stored as [N, H, W, C]
  dlpack::Device device() const { return tensor_.device; }
  bool is_cuda() const { return tensor_.device.type == dlpack::kCuda || tensor_.device.type == dlpack::kCudaManaged; }
  std::string describe() const;  // "float32[3, 4] on cpu"

  bool is_floating() const;
  bool has_type_of(const TensorView& other) const {
    return tensor_.dtype.code == other.tensor_.dtype.code && tensor_.dtype.bits == other.tensor_.dtype.bits &&
           tensor_.dtype.lanes == other.tensor_.dtype.lanes;
  }
  // One of the four floating types. `name` is for the error.
  DType dtype(const char* name) const;
  // The data of a contiguous floating tensor.
  void* floats(const char* name) const;
  // The data of a contiguous tensor of that element type (bool, uint8_t, int8_t, int32_t, int64_t, float, double).
  template <class T>
  T* data(const char* name) const {
    require_element(name, code_of<T>(), uint8_t(8 * sizeof(T)));
    return static_cast<T*>(contiguous_data(name));
  }
  size_t element_bytes() const { return tensor_.dtype.bits / 8; }
  // The data whatever the strides: the caller has checked them.
  void* raw(const char* name) const;
  // The exchange API's current stream on that tensor's device (null: the default stream).
  void* current_stream() const;

 private:
  void load_capsule(PyObject* object);
  void require_element(const char* name, uint8_t code, uint8_t bits) const;
  void* contiguous_data(const char* name) const;
  template <class T>
  static constexpr uint8_t code_of() {
    return std::is_same_v<T, bool>       ? dlpack::kBool
           : std::is_floating_point_v<T> ? dlpack::kFloat
           : std::is_unsigned_v<T>       ? dlpack::kUInt
                                         : dlpack::kInt;
  }

  dlpack::Tensor tensor_{};
  const dlpack::ExchangeApi* api_ = nullptr;
  dlpack::ManagedTensor* managed_ = nullptr;
  dlpack::ManagedTensorVersioned* managed_versioned_ = nullptr;
};

// None, or a tensor.
struct OptionalTensor {
  TensorView view;
  bool present = false;

  template <class T>
  T* data(const char* name) const {
    return present ? view.data<T>(name) : nullptr;
  }
  void* floats(const char* name) const { return present ? view.floats(name) : nullptr; }
};

}  // namespace frcnn_fast::bindings

namespace pybind11::detail {

template <>
struct type_caster<frcnn_fast::bindings::TensorView> {
  static constexpr auto name = const_name("Tensor");
  template <class T>
  using cast_op_type = const frcnn_fast::bindings::TensorView&;
  operator const frcnn_fast::bindings::TensorView&() { return value; }
  bool load(handle source, bool) {
    value.load(source.ptr());
    return true;
  }
  frcnn_fast::bindings::TensorView value;
};

template <>
struct type_caster<frcnn_fast::bindings::OptionalTensor> {
  static constexpr auto name = const_name("Tensor | None");
  template <class T>
  using cast_op_type = const frcnn_fast::bindings::OptionalTensor&;
  operator const frcnn_fast::bindings::OptionalTensor&() { return value; }
  bool load(handle source, bool) {
    value.present = !source.is_none();
    if (value.present) value.view.load(source.ptr());
    return true;
  }
  frcnn_fast::bindings::OptionalTensor value;
};

}  // namespace pybind11::detail
