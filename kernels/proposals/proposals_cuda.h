// The two ways that CUDA has through the proposal step: a cluster of blocks for every level, or a chain of launches.
#pragma once
#include "proposals.h"

namespace frcnn_fast::proposals {

struct LevelLimits {
  int64_t longest;  // anchors of a level, at most
  int64_t n;        // candidates of a level, at most
  int64_t k;        // kept boxes of a level, at most: no level gives more than it has, none contributes more than P
};
inline LevelLimits level_limits(const ProposalInputs& in, const ProposalSettings& set) {
  LevelLimits limits = {};
  for (int64_t l = 0; l < in.L; ++l)
    limits.longest = in.level_sizes[l] > limits.longest ? in.level_sizes[l] : limits.longest;
  limits.n = limits.longest < set.pre_nms_top_n ? limits.longest : set.pre_nms_top_n;
  limits.k = limits.n < set.post_nms_top_n ? limits.n : set.post_nms_top_n;
  return limits;
}

// Whether the current device runs proposals_cluster_kernel on these inputs. There must be an anchor and an image.
bool proposals_fit_cluster(const ProposalInputs& inputs, const ProposalSettings& settings);

// The kept boxes of every segment (image b, level l: b * L + l), best first, in one launch. rows: [S, stride] each, of
// the outputs' types; counts [S]. padded: rows beyond the count are written too.
Status propose_by_cluster(const ProposalInputs& inputs, const ProposalSettings& settings, const ProposalOutputs& rows,
                          int64_t stride, bool padded, Stream stream);

}  // namespace frcnn_fast::proposals
