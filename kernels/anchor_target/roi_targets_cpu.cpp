// RoIs for the head: labels of all candidates in the workspace, the sample, and its targets.
#include "../anchor_decode/anchor_decode.h"
#include "anchor_target_cpu.h"

namespace frcnn_fast::anchor_target {
using namespace anchor_decode;
namespace {

template <class U>
struct RoiWorkspace {
  SceneStore<U> scenes;
  SampleWorkspace sample;
  int8_t* labels;    // [B, N + G]
  int32_t* objects;  // [B, N + G], place in the scene's list
  int64_t* chosen;   // [B, S]

  void take_from(WorkspaceArena& arena, int64_t B, int64_t N, int64_t G, int64_t S) {
    scenes.take_from(arena, B, G);
    sample.take_from(arena, B, N + G, S);
    labels = arena.take<int8_t>(B * (N + G));
    objects = arena.take<int32_t>(B * (N + G));
    chosen = arena.take<int64_t>(B * S);
  }
};

int64_t blocks_of(int64_t n) { return (n + kBlock - 1) / kBlock; }

// Labels up to kBlock candidates; those from `count` on do not exist.
template <bool kLegacy, class U>
void label_candidates(const U* boxes, int n, int64_t count, const Scene<U>& scene, const RoiRule<U>& rule,
                      int8_t* labels, int32_t* objects) {
  BlockMatch<U> found;
  FF_ISA_CALL(match_block<kLegacy>, boxes, n, scene, static_cast<const U*>(nullptr), rule.crowd_overlap,
              static_cast<U*>(nullptr), false, &found);
  for (int i = 0; i < n; ++i) {
    const bool takes_part = FF_MUTANT(roi_count, i < count, true) && (found.takes_part >> i & 1);
    labels[i] = takes_part ? roi_label(found.best[i], rule) : kIgnored;
    objects[i] = scene.objects.index_of(found.object[i]);
  }
}

template <bool kLegacy, class U>
Status sample_rois(int64_t B, const Proposals& proposals, const GroundTruth& gt, const int64_t* gt_labels,
                   const RoiOptions& options, const SampleOptions& sample, const double* weights,
                   RoiWorkspace<U>& workspace, const RoiOutputs& outputs) {
  const int64_t N = proposals.N, G = gt.G, M = N + G, S = sample.batch_size;
  FF_TRY(check_counts("counts", proposals.counts, B, N));
  FF_TRY(check_counts("gt_counts", gt.counts, B, G));
  const U *boxes = static_cast<const U*>(proposals.boxes), *gt_boxes = static_cast<const U*>(gt.boxes);
  const RoiRule<U> rule = {U(options.positive_iou), U(options.negative_iou_high), U(options.negative_iou_low),
                           U(options.crowd_overlap)};
  parallel_for(B, 16, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) workspace.scenes.template fill<kLegacy>(gt, b);
  });
  const int64_t gt_blocks = options.append_gt ? blocks_of(G) : 0, blocks = blocks_of(N) + gt_blocks;
  parallel_for(B * blocks, 128, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / blocks, block = i % blocks,
                    first = (block < gt_blocks ? block : block - gt_blocks) * kBlock;
      Scene<U> scene = workspace.scenes.at(b);
      if (block >= gt_blocks) {
        label_candidates<kLegacy>(boxes + (b * N + first) * 4, int(std::min<int64_t>(kBlock, N - first)),
                                  proposals.counts[b] - first, scene, rule, workspace.labels + b * M + first,
                                  workspace.objects + b * M + first);
        continue;
      }
      scene.crowds.count = 0;  // an object on a crowd box is one all the same; a crowd box is none
      const int n = int(std::min<int64_t>(kBlock, G - first));
      int8_t* labels = workspace.labels + b * M + N + first;
      label_candidates<kLegacy>(gt_boxes + (b * G + first) * 4, n, gt.counts[b] - first, scene, rule, labels,
                                workspace.objects + b * M + N + first);
      for (int g = 0; g < n; ++g)
        if (gt.crowd && gt.crowd[b * G + first + g]) labels[g] = kIgnored;
    }
  });
  if (!options.append_gt)
    for (int64_t b = 0; b < B; ++b) std::fill_n(workspace.labels + b * M + N, G, kIgnored);
  sample_labels(workspace.labels, B, M, sample, workspace.sample, workspace.chosen, outputs.counts);

  const DecodeParams<U> params = make_decode_params<U>(weights, 0.0);
  U *rois = static_cast<U*>(outputs.rois), *targets = static_cast<U*>(outputs.targets);
  for (int64_t i = 0; i < B * S; ++i) {
    const int64_t b = i / S, candidate = workspace.chosen[i];
    Box<U> roi = {}, target = {};
    int64_t label = -1;
    int32_t object = -1;
    if (candidate >= 0) {
      roi = load_box(candidate < N ? boxes + (b * N + candidate) * 4 : gt_boxes + (b * G + candidate - N) * 4);
      label = 0;
      if (i % S < outputs.counts[2 * b]) object = workspace.objects[b * M + candidate];
    }
    if (object >= 0) {
      label = gt_labels[b * G + object];
      target = encode<kLegacy>(load_box(gt_boxes + (b * G + object) * 4), roi, params);
    }
    store_box(rois + 4 * i, roi);
    store_box(targets + 4 * i, target);
    outputs.labels[i] = label;
    outputs.matched[i] = object;
  }
  return kOk;
}

}  // namespace

size_t sample_rois_workspace_cpu(DType dtype, int64_t B, int64_t N, int64_t G, int64_t S) {
  return visit_compute(dtype, [&](auto tag) {
    using U = typename decltype(tag)::type;
    WorkspaceArena arena(nullptr);
    RoiWorkspace<U>().take_from(arena, B, N, G, S);
    return arena.used();
  });
}

Status sample_rois_cpu(DType dtype, int64_t B, const Proposals& proposals, const GroundTruth& gt,
                       const int64_t* gt_labels, const RoiOptions& options, const SampleOptions& sample,
                       const double* weights, void* workspace, const RoiOutputs& outputs) {
  return visit_compute(dtype, [&](auto tag) {
    using U = typename decltype(tag)::type;
    WorkspaceArena arena(workspace);
    RoiWorkspace<U> pieces;
    pieces.take_from(arena, B, proposals.N, gt.G, sample.batch_size);
    return options.legacy ? sample_rois<true>(B, proposals, gt, gt_labels, options, sample, weights, pieces, outputs)
                          : sample_rois<false>(B, proposals, gt, gt_labels, options, sample, weights, pieces, outputs);
  });
}

}  // namespace frcnn_fast::anchor_target
