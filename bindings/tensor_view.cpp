#include "tensor_view.h"

#include <pybind11/stl.h>

#include "run.h"

namespace frcnn_fast::bindings {
namespace {

// A capsule does not tell its stream: the stream of this thread's GPU tensors that come as capsules.
thread_local void* stream_of_capsules = nullptr;

const Registrar registrar([](py::module_& m) {
  m.def("use_stream", [](uintptr_t stream) { stream_of_capsules = reinterpret_cast<void*>(stream); }, "stream"_a);
});

// The exchange API of a tensor type, or null. Types are few and live forever, so a short list does.
const dlpack::ExchangeApi* exchange_api(PyTypeObject* type) {
  struct Entry {
    PyTypeObject* type;
    const dlpack::ExchangeApi* api;
  };
  constexpr int kCapacity = 8;
  static Entry cache[kCapacity];
  static int count = 0;
  for (int i = 0; i < count; ++i)
    if (cache[i].type == type) return cache[i].api;

  const dlpack::ExchangeApi* api = nullptr;
  py::object capsule = py::reinterpret_steal<py::object>(
      PyObject_GetAttrString(reinterpret_cast<PyObject*>(type), "__dlpack_c_exchange_api__"));
  if (capsule) {
    auto* header = static_cast<dlpack::ExchangeApiHeader*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
    while (header && header->version.major != dlpack::kMajorVersion) header = header->previous;
    api = reinterpret_cast<const dlpack::ExchangeApi*>(header);
    if (api && !api->tensor_from_object) api = nullptr;
  }
  PyErr_Clear();
  if (count < kCapacity) {
    Py_INCREF(type);
    cache[count++] = {type, api};
  }
  return api;
}

std::string type_name(dlpack::DataType dtype) {
  const char* kind = dtype.code == dlpack::kFloat    ? "float"
                     : dtype.code == dlpack::kBfloat ? "bfloat"
                     : dtype.code == dlpack::kInt    ? "int"
                     : dtype.code == dlpack::kUInt   ? "uint"
                     : dtype.code == dlpack::kBool   ? "bool"
                                                     : "code";
  return dtype.code == dlpack::kBool ? kind : kind + std::to_string(dtype.bits);
}

}  // namespace

TensorView::~TensorView() {
  if (managed_ && managed_->deleter) managed_->deleter(managed_);
  if (managed_versioned_ && managed_versioned_->deleter) managed_versioned_->deleter(managed_versioned_);
}

void TensorView::load(PyObject* object) {
  api_ = exchange_api(Py_TYPE(object));
  if (api_) {
    if (api_->tensor_from_object(object, &tensor_)) throw py::error_already_set();
  } else {
    load_capsule(object);
  }
  if (!tensor_.data && numel())
    throw py::value_error("tensor without data (a fake or meta tensor?) reached a kernel: " + describe());
}

void TensorView::load_capsule(PyObject* object) {
  py::handle handle(object);
  if (!py::hasattr(handle, "__dlpack__"))
    throw py::type_error(std::string("expected a tensor, got ") + Py_TYPE(object)->tp_name);
  py::dict options;
  const int32_t device = handle.attr("__dlpack_device__")().cast<std::pair<int32_t, int32_t>>().first;
  // The kernel runs on the producer's stream (use_stream): nothing to wait for.
  if (device == dlpack::kCuda || device == dlpack::kCudaManaged) options["stream"] = -1;
  py::object capsule;
  try {
    capsule = handle.attr("__dlpack__")(**options, py::arg("max_version") = py::make_tuple(1, 3));
  } catch (py::error_already_set& error) {
    if (!error.matches(PyExc_TypeError)) throw;
    capsule = handle.attr("__dlpack__")(**options);
  }
  if (PyCapsule_IsValid(capsule.ptr(), "dltensor_versioned")) {
    managed_versioned_ =
        static_cast<dlpack::ManagedTensorVersioned*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor_versioned"));
    PyCapsule_SetName(capsule.ptr(), "used_dltensor_versioned");
    tensor_ = managed_versioned_->tensor;
  } else {
    managed_ = static_cast<dlpack::ManagedTensor*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"));
    if (!managed_) throw py::error_already_set();
    PyCapsule_SetName(capsule.ptr(), "used_dltensor");
    tensor_ = managed_->tensor;
  }
}

int64_t TensorView::stride(int64_t dimension) const {
  if (tensor_.strides) return tensor_.strides[dimension];
  int64_t stride = 1;
  for (int i = tensor_.ndim - 1; i > dimension; --i) stride *= tensor_.shape[i];
  return stride;
}

int64_t TensorView::numel() const {
  int64_t n = 1;
  for (int i = 0; i < tensor_.ndim; ++i) n *= tensor_.shape[i];
  return n;
}

bool TensorView::is_contiguous() const {
  if (!tensor_.strides || numel() == 0) return true;
  int64_t expected = 1;
  for (int i = tensor_.ndim - 1; i >= 0; --i) {
    if (tensor_.shape[i] != 1 && tensor_.strides[i] != expected) return false;
    expected *= tensor_.shape[i];
  }
  return true;
}

bool TensorView::is_channels_last() const {
  if (tensor_.ndim != 4 || !tensor_.strides) return false;
  int64_t expected = 1;
  for (int i : {1, 3, 2, 0}) {
    if (tensor_.shape[i] != 1 && tensor_.strides[i] != expected) return false;
    expected *= tensor_.shape[i];
  }
  return true;
}

std::string TensorView::describe() const {
  std::string text = type_name(tensor_.dtype) + "[";
  for (int i = 0; i < tensor_.ndim; ++i) text += (i ? ", " : "") + std::to_string(tensor_.shape[i]);
  return text + (is_cuda() ? "] on cuda:" + std::to_string(tensor_.device.id) : std::string("] on cpu"));
}

bool TensorView::is_floating() const {
  const uint8_t bits = tensor_.dtype.bits;
  return tensor_.dtype.lanes == 1 &&
         ((tensor_.dtype.code == dlpack::kFloat && (bits == 16 || bits == 32 || bits == 64)) ||
          (tensor_.dtype.code == dlpack::kBfloat && bits == 16));
}

DType TensorView::dtype(const char* name) const {
  if (is_floating()) {
    if (tensor_.dtype.code == dlpack::kBfloat) return DType::kBFloat16;
    return tensor_.dtype.bits == 16 ? DType::kFloat16 : tensor_.dtype.bits == 32 ? DType::kFloat32 : DType::kFloat64;
  }
  throw py::type_error(std::string(name) + ": expected float16, bfloat16, float32 or float64, got " + describe());
}

void TensorView::require_element(const char* name, uint8_t code, uint8_t bits) const {
  if (tensor_.dtype.code != code || tensor_.dtype.bits != bits || tensor_.dtype.lanes != 1)
    throw py::type_error(std::string(name) + ": expected elements of type " + type_name({code, bits, 1}) + ", got " +
                         describe());
}

void* TensorView::contiguous_data(const char* name) const {
  if (!is_contiguous()) throw py::value_error(std::string(name) + ": expected a contiguous tensor, got strides");
  return raw(name);
}

void* TensorView::floats(const char* name) const {
  dtype(name);
  return contiguous_data(name);
}

void* TensorView::raw(const char*) const { return static_cast<char*>(tensor_.data) + tensor_.byte_offset; }

void* TensorView::current_stream() const {
  void* stream = stream_of_capsules;
  if (api_ && api_->current_stream && api_->current_stream(tensor_.device.type, tensor_.device.id, &stream))
    throw py::error_already_set();
  return stream;
}

}  // namespace frcnn_fast::bindings
