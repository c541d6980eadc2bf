#include "families.h"
#include "run.h"

namespace frcnn_fast {

void bind_proposals(py::module_&) {}

}  // namespace frcnn_fast
