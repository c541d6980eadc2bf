#include "families.h"
#include "run.h"

namespace frcnn_fast {

void bind_anchor_decode(py::module_&) {}

}  // namespace frcnn_fast
