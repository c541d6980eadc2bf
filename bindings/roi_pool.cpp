#include "families.h"
#include "run.h"

namespace frcnn_fast {

void bind_roi_pool(py::module_&) {}

}  // namespace frcnn_fast
