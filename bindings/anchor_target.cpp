#include "families.h"
#include "run.h"

namespace frcnn_fast {

void bind_anchor_target(py::module_&) {}

}  // namespace frcnn_fast
