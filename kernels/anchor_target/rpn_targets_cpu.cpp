// Labels in the workspace, the sample, and the targets of what was sampled.
#include "../anchor_decode/anchor_decode.h"
#include "anchor_target_cpu.h"

namespace frcnn_fast::anchor_target {
using namespace anchor_decode;
namespace {

template <class U>
struct RpnWorkspace {
  AssignWorkspace<U> assign;
  SampleWorkspace sample;
  int8_t* labels;  // [B, A]

  void take_from(WorkspaceArena& arena, int64_t B, const AnchorSource& anchors, int64_t G, int64_t S) {
    assign.take_from(arena, B, anchors, G);
    sample.take_from(arena, B, anchors.A, S);
    labels = arena.take<int8_t>(B * anchors.A);
  }
};

template <bool kLegacy, class U>
Status rpn_targets(int64_t B, const AnchorSource& source, const GroundTruth& gt, const AnchorOptions& options,
                   const SampleOptions& sample, const double* weights, RpnWorkspace<U>& workspace,
                   const RpnOutputs& outputs) {
  Anchors<U> anchors;
  FF_TRY(make_anchors(source, &anchors));
  FF_TRY((assign_labels<kLegacy>(B, source, gt, options, workspace.assign, workspace.labels, nullptr)));
  sample_labels(workspace.labels, B, source.A, sample, workspace.sample, outputs.indices, outputs.counts);

  const int64_t S = sample.batch_size;
  const DecodeParams<U> params = make_decode_params<U>(weights, 0.0);
  const U* gt_boxes = static_cast<const U*>(gt.boxes);
  U* targets = static_cast<U*>(outputs.targets);
  parallel_for(B * S, 1024, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / S, s = i % S, positives = outputs.counts[2 * b],
                    all = positives + outputs.counts[2 * b + 1];
      outputs.labels[i] = s < positives ? kPositive : s < all ? kNegative : kIgnored;
      outputs.matched[i] = -1;
      Box<U> target = {};
      if (s < positives) {
        const Box<U> anchor = anchors.at(b, outputs.indices[i]);
        const int32_t object = FF_ISA_CALL(best_object<kLegacy>, anchor, workspace.assign.scenes.at(b).objects);
        outputs.matched[i] = object;
        if (object >= 0) target = encode<kLegacy>(load_box(gt_boxes + (b * gt.G + object) * 4), anchor, params);
      }
      store_box(targets + 4 * i, target);
    }
  });
  return kOk;
}

}  // namespace

size_t rpn_targets_workspace_cpu(DType dtype, int64_t B, const AnchorSource& anchors, int64_t G, int64_t S) {
  return visit_compute(dtype, [&](auto tag) {
    using U = typename decltype(tag)::type;
    WorkspaceArena arena(nullptr);
    RpnWorkspace<U>().take_from(arena, B, anchors, G, S);
    return arena.used();
  });
}

Status rpn_targets_cpu(DType dtype, int64_t B, const AnchorSource& anchors, const GroundTruth& gt,
                       const AnchorOptions& options, const SampleOptions& sample, const double* weights,
                       void* workspace, const RpnOutputs& outputs) {
  return visit_compute(dtype, [&](auto tag) {
    using U = typename decltype(tag)::type;
    WorkspaceArena arena(workspace);
    RpnWorkspace<U> pieces;
    pieces.take_from(arena, B, anchors, gt.G, sample.batch_size);
    return options.legacy ? rpn_targets<true>(B, anchors, gt, options, sample, weights, pieces, outputs)
                          : rpn_targets<false>(B, anchors, gt, options, sample, weights, pieces, outputs);
  });
}

}  // namespace frcnn_fast::anchor_target
