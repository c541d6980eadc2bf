#include "proposals_cpu.h"

namespace frcnn_fast::proposals {
namespace {

// Cuts one image's memory; returns its size.
template <class U>
size_t take_from(const ProposalInputs& in, const ProposalSettings& set, void* memory, ImageTask<U>* task) {
  WorkspaceArena arena(memory);
  for (int64_t l = 0; l < in.L; ++l) {
    const int64_t size = in.level_sizes[l], n = std::min(size, set.pre_nms_top_n);
    LevelMemory<U>& level = task->levels[l];
    level.chunk = std::min(ranked_chunk(size), n);
    level.ranked = take_ranked_buffers<RankKey<U>>(&arena, size, level.chunk);
    level.kept = take_kept_blocks<U>(&arena, std::min(n, set.post_nms_top_n));
  }
  task->masked_scores = arena.take<U>(set.filter_before_top_n ? in.A : 0);
  return arena.used();
}

// Images run on different threads, each in its own piece of the workspace.
template <class U>
Status propose(const ProposalInputs& in, const ProposalSettings& set, char* workspace, const ProposalOutputs& out) {
  Anchors<U> anchors;
  FF_TRY(make_anchors(in.anchors, in.A, &anchors));
  ImageTask<U> sizing;
  const size_t piece = take_from<U>(in, set, nullptr, &sizing);
  parallel_for(in.B, 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      ImageTask<U> task;
      task.anchors = anchors;
      take_from<U>(in, set, workspace + piece * size_t(b), &task);
      FF_ISA_CALL(propose_image, in, set, b, &task, out);
    }
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
  return kAlignSlack + size_t(in.B) * visit_compute(in.dtype, [&](auto tag) {
                         ImageTask<typename decltype(tag)::type> task;
                         return take_from(in, set, nullptr, &task);
                       });
}

Status rpn_proposals_cpu(const ProposalInputs& in, const ProposalSettings& set, void* workspace,
                         const ProposalOutputs& out) {
  FF_TRY(check_levels(in));
  return visit_compute(
      in.dtype, [&](auto tag) { return propose<typename decltype(tag)::type>(in, set, aligned_base(workspace), out); });
}

}  // namespace frcnn_fast::proposals
