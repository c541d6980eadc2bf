#include "proposals_cpu.h"

#include "../common/workspace.h"

namespace frcnn_fast::proposals {
namespace {

// Images run on different threads, each in its own piece of the workspace.
template <class U>
Status propose(const ProposalInputs& in, const ProposalSettings& set, char* workspace, const ProposalOutputs& out) {
  Anchors<U> anchors;
  FF_TRY(make_anchors(in.anchors, in.A, &anchors));
  const size_t piece = FF_ISA_CALL(propose_image_workspace, in, set);
  parallel_for(in.B, 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b)
      FF_ISA_CALL(propose_image, in, set, b, &anchors, workspace + piece * size_t(b), out);
  });
  return kOk;
}

Status check_levels(const ProposalInputs& in) {
  if (in.L > kMaxLevels)
    return invalid("level_sizes: expected at most %d levels, got %lld", kMaxLevels, (long long)in.L);
  if (in.A > 0xffffffffll)
    return invalid("scores: expected fewer than 2^32 anchors an image, got %lld", (long long)in.A);
  return kOk;
}

}  // namespace

size_t rpn_proposals_workspace_cpu(const ProposalInputs& in, const ProposalSettings& set) {
  if (check_levels(in)) return 0;
  return size_t(in.B) * FF_ISA_CALL(propose_image_workspace, in, set);
}

Status rpn_proposals_cpu(const ProposalInputs& in, const ProposalSettings& set, void* workspace,
                         const ProposalOutputs& out) {
  FF_TRY(check_levels(in));
  return visit_compute(in.dtype, [&](auto tag) {
    return propose<typename decltype(tag)::type>(in, set, static_cast<char*>(workspace), out);
  });
}

}  // namespace frcnn_fast::proposals
