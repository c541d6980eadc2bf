#include "families.h"
#include "run.h"

namespace frcnn_fast {

void bind_top_n(py::module_&) {}

}  // namespace frcnn_fast
