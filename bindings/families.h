// One function per kernel family; each adds its functions to the extension module.
#pragma once
#include <pybind11/pybind11.h>

namespace frcnn_fast {

void bind_anchor_decode(pybind11::module_& m);
void bind_top_n(pybind11::module_& m);
void bind_nms(pybind11::module_& m);
void bind_anchor_target(pybind11::module_& m);
void bind_roi_pool(pybind11::module_& m);
void bind_proposals(pybind11::module_& m);
void bind_detections(pybind11::module_& m);
void bind_test_build(pybind11::module_& m);  // in the test build only (tests/simt)

}  // namespace frcnn_fast
