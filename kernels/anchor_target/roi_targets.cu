// The head's sample: blocks label candidates (proposals and objects), then one block an image draws and encodes. Two
// launches.
#include "../anchor_decode/anchor_decode.h"
#include "sample.cuh"

namespace frcnn_fast::anchor_target {
using namespace anchor_decode;
namespace {

template <class U>
struct RoiScene {
  const U* proposals;     // [B, N, 4]
  const int64_t* counts;  // [B]
  int64_t N;
  DeviceGroundTruth<U> gt;
  const int64_t* gt_labels;  // [B, G]
  RoiRule<U> rule;
  bool append_gt;
  int32_t* object;  // [B, N + G]

  __device__ __forceinline__ Box<U> candidate(int64_t image, int64_t i) const {
    return i < N ? load_box(proposals + (image * N + i) * 4) : gt.box(image, int32_t(i - N));
  }
  // Whether candidate i is one at all.
  __device__ __forceinline__ bool exists(const Box<U>& box, int64_t image, int64_t i) const {
    if (!is_finite(box)) return false;
    if (i >= N) return append_gt && i - N < gt.count(image) && !gt.is_crowd(image, int32_t(i - N));
    const int64_t count = counts[image];
    return FF_MUTANT(roi_count, i < count && count <= N, true);
  }
};

template <class U>
struct RoiPointers {
  U* rois;
  int64_t* labels;
  U* targets;
  int32_t* matched;
  int64_t* counts;
};

// A thread a candidate. Shared memory: a tile of objects.
template <bool kLegacy, class U>
__global__ void __launch_bounds__(kThreads, 2) roi_label_kernel(const RoiScene<U> scene, const DeviceSampler sampler) {
  FF_SHARED(Tile<U>, tile, );
  let_next_launch_start();
  const int64_t image = blockIdx.y, i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  const int32_t count = scene.gt.count(image);
  Box<U> box = i < sampler.M ? scene.candidate(image, i) : Box<U>{};
  bool takes_part = i < sampler.M && scene.exists(box, image, i);
  const bool covered = covered_by_crowd<kLegacy>(tile, scene.gt, image, count, box, scene.rule.crowd_overlap);
  if (covered && i < scene.N) takes_part = false;
  if (!takes_part) box = no_box<U>();
  const Box<U> hull = warp_hull(box);
  Match<U> match = {U(0), -1};
  for (int32_t first = 0; first < count; first += kTile) {
    const int size = minimum(count - first, kTile);
    fill_tile<kLegacy>(tile, scene.gt, image, first, size, false);
    match_tile<kLegacy, false>(tile, first, size, box, hull, match, [](int, OverlapBits<U>) {});
  }
  const int8_t label = takes_part ? roi_label(match.best, scene.rule) : kIgnored;
  if (label == kPositive) scene.object[image * sampler.M + i] = match.object;
  note(sampler, image, i, label);
}

// Block x: image x.
template <bool kLegacy, class U>
__global__ void __launch_bounds__(kDrawThreads, 1)
    roi_target_kernel(const RoiScene<U> scene, const __grid_constant__ DeviceSampler sampler,
                      const DecodeParams<U> params, const RoiPointers<U> outputs) {
  FF_SHARED(DrawScratch, scratch, );
  wait_for_launch_before();
  const int64_t image = blockIdx.x;
  const Drawn drawn = draw(sampler, image, scratch);
  for (int32_t s = int32_t(threadIdx.x); s < sampler.S; s += kDrawThreads) {
    const int64_t out = image * sampler.S + s;
    const bool is_drawn = s < drawn.positives + drawn.negatives;
    const int64_t chosen = is_drawn ? int64_t(drawn.index(sampler, scratch, image, s)) : -1;
    const int32_t object = s < drawn.positives ? scene.object[image * sampler.M + chosen] : -1;
    const Box<U> roi = is_drawn ? scene.candidate(image, chosen) : Box<U>{};
    const bool has_object = object >= 0;
    store_box(outputs.rois + 4 * out, roi);
    outputs.labels[out] = has_object ? scene.gt_labels[image * scene.gt.G + object] : is_drawn ? 0 : -1;
    store_box(outputs.targets + 4 * out,
              has_object ? encode<kLegacy>(scene.gt.box(image, object), roi, params) : Box<U>{});
    outputs.matched[out] = object;
  }
  if (threadIdx.x == 0) {
    outputs.counts[2 * image] = drawn.positives;
    outputs.counts[2 * image + 1] = drawn.negatives;
  }
}

template <bool kLegacy, class U>
Status sample(int64_t B, const Proposals& proposals, const GroundTruth& gt, const int64_t* gt_labels,
              const RoiOptions& options, const SampleOptions& sample_options, const double* weights, void* memory,
              const RoiOutputs& outputs, Stream stream) {
  FF_TRY(check_images(B));
  const int64_t M = proposals.N + gt.G;
  WorkspaceArena arena(memory);
  const DeviceSampler sampler = take_sampler(arena, B, M, kThreads, sample_options, false);
  const RoiScene<U> scene = {
      static_cast<const U*>(proposals.boxes),
      proposals.counts,
      proposals.N,
      device_ground_truth<U>(gt),
      gt_labels,
      {U(options.positive_iou), U(options.negative_iou_high), U(options.negative_iou_low), U(options.crowd_overlap)},
      options.append_gt,
      arena.take<int32_t>(B * M)};
  const RoiPointers<U> out = {static_cast<U*>(outputs.rois), outputs.labels, static_cast<U*>(outputs.targets),
                              outputs.matched, outputs.counts};
  if (M)
    FF_LAUNCH((roi_label_kernel<kLegacy, U>), dim3(unsigned(chunks_of(M, kThreads)), unsigned(B)), dim3(kThreads), 0,
              stream, scene, sampler);
  FF_LAUNCH_OVERLAPPED((roi_target_kernel<kLegacy, U>), dim3(unsigned(B)), dim3(kDrawThreads), 0, stream, scene,
                       sampler, make_decode_params<U>(weights, 0.0), out);
  return launched();
}

}  // namespace

size_t sample_rois_workspace_cuda(DType, int64_t B, int64_t N, int64_t G, int64_t S) {
  WorkspaceArena arena(nullptr);
  SampleOptions options = {};
  options.batch_size = S;
  take_sampler(arena, B, N + G, kThreads, options, false);
  arena.take<int32_t>(B * (N + G));
  return arena.used();
}

Status sample_rois_cuda(DType dtype, int64_t B, const Proposals& proposals, const GroundTruth& gt,
                        const int64_t* gt_labels, const RoiOptions& options, const SampleOptions& sample_options,
                        const double* weights, void* workspace, const RoiOutputs& outputs, Stream stream) {
  if (B == 0) return kOk;
  return visit_compute(dtype, [&](auto tag) {
    using U = typename decltype(tag)::type;
    return options.legacy ? sample<true, U>(B, proposals, gt, gt_labels, options, sample_options, weights, workspace,
                                            outputs, stream)
                          : sample<false, U>(B, proposals, gt, gt_labels, options, sample_options, weights, workspace,
                                             outputs, stream);
  });
}

}  // namespace frcnn_fast::anchor_target
