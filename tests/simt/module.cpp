// What the test module has beyond frcnn_fast._C: its switches.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "../../bindings/run.h"
#include "../../kernels/common/mutant.h"
#include "runtime.h"

namespace frcnn_fast {

const char* active_mutant = nullptr;

namespace bindings {

bool emulated = false;

namespace {

// None: every kernel as written.
void set_mutant(const std::optional<std::string>& name) {
  static std::string kept;
  kept = name.value_or("");
  active_mutant = name ? kept.c_str() : nullptr;
}

const Registrar registrar([](py::module_& m) {
  m.def("set_emulated", [](bool on) { emulated = on; });
  m.def("set_mutant", &set_mutant);
  m.def("set_order", &simt::set_order, py::arg("order"), py::arg("seed") = 1);
  m.def("set_device", &simt::set_device);
  m.def("set_most_grid_yz", &simt::set_most_grid_yz);
  m.def("launches", &simt::launches);
});

}  // namespace
}  // namespace bindings
}  // namespace frcnn_fast
