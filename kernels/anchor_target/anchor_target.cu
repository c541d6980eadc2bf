// Labels of anchors and the RPN's sample. Three kernels a thread an anchor, none of which waits for the host:
//   overlap_kernel   best overlap and object of each anchor, peaks, and how many anchors may be negative
//   label_kernel     (assign_anchors) labels
//   target_kernel    (rpn_targets) labels into bitmaps; the last block of an image draws and encodes
// For labels from elsewhere, count_kernel counts the negatives and sample_kernel draws.
#include "../anchor_decode/anchor_decode.h"
#include "sample.cuh"

namespace frcnn_fast {
namespace {

// In place of a best overlap.
constexpr int kAbsent = -1;    // takes no part
constexpr int kNoObject = -2;  // takes part, but nothing is there to overlap

template <class U>
struct AnchorScene {
  Anchors<U> anchors;
  int64_t A;
  DeviceGroundTruth<U> gt;
  const U* image_sizes;
  AnchorRule<U> rule;
  // Between the kernels.
  U* best;                // [B, A]
  int32_t* object;        // [B, A]
  OverlapBits<U>* peaks;  // [B, G], 0 before
  unsigned* negatives;  // [B], 0 before: anchors that no object makes positive or ignored; a few are some object's best
};

// A thread: an anchor. A warp: 32 neighbours, which skip objects far from all of them. Shared memory: a tile of objects
// and their peaks within the block.
template <bool kLegacy, class U>
__global__ void __launch_bounds__(kThreads) overlap_kernel(const AnchorScene<U> scene) {
  FF_SHARED(Tile<U>, tile, );
  const int64_t image = blockIdx.y, i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  const bool real = i < scene.A;
  const Box<U> box = real ? scene.anchors.at(image, i) : Box<U>{};
  const bool candidate =
      real && is_finite(box) && (!scene.image_sizes || is_inside<kLegacy>(box, scene.image_sizes + 2 * image));
  const Match<U> match =
      match_objects<kLegacy, true>(tile, scene.gt, image, box, candidate, true, scene.rule.crowd_overlap, scene.peaks);
  if (real) {
    scene.best[image * scene.A + i] = !match.takes_part ? U(kAbsent) : match.any_object ? match.best : U(kNoObject);
    scene.object[image * scene.A + i] = match.object;
  }
  const bool low = match.takes_part && anchor_label(match.best, false, match.any_object, scene.rule) == kNegative;
  const int block_low = __syncthreads_count(low);
  if (threadIdx.x == 0 && block_low) atomicAdd(scene.negatives + image, unsigned(block_low));
}

// The smallest peak above 0 of the image's objects, in every thread; all ones if there is none.
template <class U>
__device__ __forceinline__ OverlapBits<U> least_peak(const AnchorScene<U>& scene, int64_t image,
                                                     OverlapBits<U>* scratch) {
  OverlapBits<U> least = ~OverlapBits<U>(0);
  for (int32_t g = int32_t(threadIdx.x); g < scene.gt.G; g += kThreads) {
    const OverlapBits<U> peak = scene.peaks[image * scene.gt.G + g];
    if (is_peak(bits_overlap(peak), bits_overlap(peak)) && peak < least) least = peak;
  }
  return block_reduce(least, Smaller(), scratch);
}

// The label of anchor i. Every thread of the block calls. Only an anchor that reaches the smallest peak can be some
// object's best: the warp takes such anchors one by one and compares them with all objects, a lane an object, by the
// overlap_kernel's own operations.
template <bool kLegacy, class U>
__device__ __forceinline__ int8_t find_label(const AnchorScene<U>& scene, int64_t image, int64_t i,
                                             OverlapBits<U>* scratch) {
  const bool low_quality = scene.rule.low_quality;
  const OverlapBits<U> least = low_quality ? least_peak(scene, image, scratch) : 0;
  const U found = i < scene.A ? scene.best[image * scene.A + i] : U(kAbsent);
  const U best = found > U(0) ? found : U(0);
  const bool may_peak =
      low_quality && found >= U(0) && overlap_bits(best) >= least && !is_positive(best, scene.rule.positive_iou);
  bool has_peak = false;
  for (unsigned bits = __ballot_sync(kFullMask, may_peak); bits; bits &= bits - 1) {
    const int lane = __ffs(int(bits)) - 1;
    const Box<U> box = scene.anchors.at(image, i - lane_id() + lane);
    const U box_area = area<kLegacy>(box);
    bool hit = false;
#pragma unroll 1  // few objects a lane; a division in double is a call with much to save
    for (int32_t g = lane_id(); g < scene.gt.G; g += kWarp) {
      const U peak = bits_overlap(scene.peaks[image * scene.gt.G + g]);
      if (!is_peak(peak, peak)) continue;
      const Box<U> object = scene.gt.box(image, g);
      hit |= is_peak(overlap_of<kLegacy>(box, box_area, object, area<kLegacy>(object)), peak);
    }
    const bool any = __any_sync(kFullMask, hit);
    if (lane == lane_id()) has_peak = any;
  }
  return found == U(kAbsent) ? kIgnored : anchor_label(best, has_peak, found != U(kNoObject), scene.rule);
}

template <bool kLegacy, class U>
__global__ void __launch_bounds__(kThreads) label_kernel(const AnchorScene<U> scene, int8_t* labels, int32_t* matched) {
  FF_SHARED(OverlapBits<U>, scratch, [kWarps]);
  const int64_t image = blockIdx.y, i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  const int8_t label = find_label<kLegacy>(scene, image, i, scratch);
  if (i >= scene.A) return;
  labels[image * scene.A + i] = label;
  matched[image * scene.A + i] = label == kPositive ? scene.object[image * scene.A + i] : -1;
}

template <class U>
struct TargetOutputs {
  int64_t* indices;
  int8_t* labels;
  U* targets;
  int32_t* matched;
  int64_t* counts;
};

// Two blocks a multiprocessor at least: what is asked for more leaves double precision too few registers.
template <bool kLegacy, class U>
__global__ void __launch_bounds__(kThreads, 2)
    target_kernel(const AnchorScene<U> scene, const DeviceSampler sampler, const DecodeParams<U> params,
                  const TargetOutputs<U> outputs) {
  FF_SHARED(OverlapBits<U>, scratch, [kWarps]);
  FF_SHARED(SelectScratch, select, );
  const int64_t image = blockIdx.y, i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  const int8_t label = find_label<kLegacy>(scene, image, i, scratch);
  if (!publish(sampler, image, i, label, select)) return;
  const Drawn drawn = draw(sampler, image, select);
  for (int32_t s = int32_t(threadIdx.x); s < sampler.S; s += kThreads) {
    const int64_t out = image * sampler.S + s;
    const bool is_positive = s < drawn.positives, is_drawn = s < drawn.positives + drawn.negatives;
    const int64_t index = is_drawn ? int64_t(sampler.chosen[out]) : -1;
    const int32_t object = is_positive ? scene.object[image * scene.A + index] : -1;
    outputs.indices[out] = index;
    outputs.labels[out] = is_positive ? kPositive : is_drawn ? kNegative : kIgnored;
    outputs.matched[out] = object;
    const Box<U> target =
        object < 0 ? Box<U>{} : encode<kLegacy>(scene.gt.box(image, object), scene.anchors.at(image, index), params);
    store_box(outputs.targets + 4 * out, target);
  }
  if (threadIdx.x == 0) {
    outputs.counts[2 * image] = drawn.positives;
    outputs.counts[2 * image + 1] = drawn.negatives;
  }
}

constexpr int kLabelsAThread = 16;

__global__ void __launch_bounds__(kThreads) count_kernel(const int8_t* labels, int64_t A, unsigned* negatives) {
  FF_SHARED(int, scratch, [kWarps]);
  const int64_t image = blockIdx.y, first = int64_t(blockIdx.x) * (kThreads * kLabelsAThread) + threadIdx.x;
  int count = 0;
  for (int j = 0; j < kLabelsAThread; ++j) {
    const int64_t i = first + int64_t(j) * kThreads;
    if (i < A) count += labels[image * A + i] == kNegative;
  }
  const int total = block_reduce(count, Plus(), scratch);
  if (threadIdx.x == 0 && total) atomicAdd(negatives + image, unsigned(total));
}

__global__ void __launch_bounds__(kThreads) sample_kernel(const int8_t* labels, const DeviceSampler sampler,
                                                          int64_t* indices, int8_t* sampled, int64_t* counts) {
  FF_SHARED(SelectScratch, select, );
  const int64_t image = blockIdx.y, i = int64_t(blockIdx.x) * kThreads + threadIdx.x, A = sampler.M;
  const int8_t label = i < A ? labels[image * A + i] : kIgnored;
  if (!publish(sampler, image, i, label, select)) return;
  const Drawn drawn = draw(sampler, image, select);
  for (int32_t s = int32_t(threadIdx.x); s < sampler.S; s += kThreads) {
    const int64_t out = image * sampler.S + s;
    const bool is_drawn = s < drawn.positives + drawn.negatives;
    indices[out] = is_drawn ? int64_t(sampler.chosen[out]) : -1;
    sampled[out] = s < drawn.positives ? kPositive : is_drawn ? kNegative : kIgnored;
  }
  if (threadIdx.x == 0) {
    counts[2 * image] = drawn.positives;
    counts[2 * image + 1] = drawn.negatives;
  }
}

template <class U>
struct AnchorWorkspace {
  OverlapBits<U>* peaks;  // one piece with the two below, to be zeroed at once
  unsigned *negatives, *tickets;
  size_t zero_bytes;
  U* best;
  int32_t* object;

  void carve(Carver& carver, int64_t B, int64_t A, int64_t G, int32_t* object_out) {
    const int64_t zeros = B * G + 2 * B;
    zero_bytes = size_t(zeros) * sizeof(OverlapBits<U>);
    peaks = carver.take<OverlapBits<U>>(zeros);
    negatives = reinterpret_cast<unsigned*>(peaks + B * G);
    tickets = negatives + B;
    best = carver.take<U>(B * A);
    object = object_out ? object_out : carver.take<int32_t>(B * A);
  }
};

template <class U>
Status make_scene(int64_t B, const AnchorSource& anchors, const GroundTruth& gt, const AnchorOptions& options,
                  const AnchorWorkspace<U>& workspace, AnchorScene<U>* scene) {
  FF_TRY(check_images(B));
  FF_TRY(make_anchors(anchors, &scene->anchors));
  scene->A = anchors.A;
  scene->gt = device_ground_truth<U>(gt);
  scene->image_sizes = static_cast<const U*>(options.image_sizes);
  scene->rule = {U(options.positive_iou), U(options.negative_iou), U(options.crowd_overlap), options.low_quality};
  scene->best = workspace.best;
  scene->object = workspace.object;
  scene->peaks = workspace.peaks;
  scene->negatives = workspace.negatives;
  return kOk;
}

template <bool kLegacy, class U>
Status assign(int64_t B, const AnchorSource& anchors, const GroundTruth& gt, const AnchorOptions& options, void* memory,
              int8_t* labels, int32_t* matched, Stream stream) {
  Carver carver(memory);
  AnchorWorkspace<U> workspace;
  workspace.carve(carver, B, anchors.A, gt.G, matched);
  AnchorScene<U> scene;
  FF_TRY(make_scene(B, anchors, gt, options, workspace, &scene));
  FF_TRY(fill_bytes(workspace.peaks, 0, workspace.zero_bytes, stream));
  const dim3 grid = image_grid(anchors.A, B);
  FF_LAUNCH((overlap_kernel<kLegacy, U>), grid, dim3(kThreads), 0, stream, scene);
  FF_LAUNCH((label_kernel<kLegacy, U>), grid, dim3(kThreads), 0, stream, scene, labels, matched);
  return launched();
}

template <bool kLegacy, class U>
Status targets(int64_t B, const AnchorSource& anchors, const GroundTruth& gt, const AnchorOptions& options,
               const SampleOptions& sample, const double* weights, void* memory, const RpnOutputs& outputs,
               Stream stream) {
  Carver carver(memory);
  AnchorWorkspace<U> workspace;
  workspace.carve(carver, B, anchors.A, gt.G, nullptr);
  DeviceSampler sampler = carve_sampler(carver, B, anchors.A, sample);
  sampler.negatives_at_most = workspace.negatives;
  sampler.tickets = workspace.tickets;
  AnchorScene<U> scene;
  FF_TRY(make_scene(B, anchors, gt, options, workspace, &scene));
  FF_TRY(fill_bytes(workspace.peaks, 0, workspace.zero_bytes, stream));
  const TargetOutputs<U> out = {outputs.indices, outputs.labels, static_cast<U*>(outputs.targets), outputs.matched,
                                outputs.counts};
  const dim3 grid = image_grid(anchors.A, B);
  FF_LAUNCH((overlap_kernel<kLegacy, U>), grid, dim3(kThreads), 0, stream, scene);
  FF_LAUNCH((target_kernel<kLegacy, U>), grid, dim3(kThreads), 0, stream, scene, sampler,
            make_decode_params<U>(weights, 0.0), out);
  return launched();
}

}  // namespace

size_t assign_anchors_workspace_cuda(DType dtype, int64_t B, const AnchorSource& anchors, int64_t G) {
  return visit_compute(dtype, [&](auto tag) {
    Carver carver(nullptr);
    AnchorWorkspace<typename decltype(tag)::type>().carve(carver, B, anchors.A, G, nullptr);
    return carver.used();
  });
}

Status assign_anchors_cuda(DType dtype, int64_t B, const AnchorSource& anchors, const GroundTruth& gt,
                           const AnchorOptions& options, void* workspace, int8_t* labels, int32_t* matched,
                           Stream stream) {
  if (B == 0 || anchors.A == 0) return kOk;
  return visit_compute(dtype, [&](auto tag) {
    using U = typename decltype(tag)::type;
    return options.legacy ? assign<true, U>(B, anchors, gt, options, workspace, labels, matched, stream)
                          : assign<false, U>(B, anchors, gt, options, workspace, labels, matched, stream);
  });
}

size_t sample_anchors_workspace_cuda(int64_t B, int64_t A, int64_t S) {
  Carver carver(nullptr);
  carver.take<unsigned>(2 * B);
  SampleOptions options = {};
  options.batch_size = S;
  carve_sampler(carver, B, A, options);
  return carver.used();
}

Status sample_anchors_cuda(const int8_t* labels, int64_t B, int64_t A, const SampleOptions& sample, void* workspace,
                           int64_t* indices, int8_t* sampled, int64_t* counts, Stream stream) {
  if (B == 0) return kOk;
  FF_TRY(check_images(B));
  Carver carver(workspace);
  unsigned* negatives = carver.take<unsigned>(2 * B);  // and the tickets
  FF_TRY(fill_bytes(negatives, 0, size_t(2 * B) * sizeof(unsigned), stream));
  DeviceSampler sampler = carve_sampler(carver, B, A, sample);
  sampler.negatives_at_most = negatives;
  sampler.tickets = negatives + B;
  if (A > 0)
    FF_LAUNCH(count_kernel, dim3(blocks_for(A, kThreads * kLabelsAThread), unsigned(B)), dim3(kThreads), 0, stream,
              labels, A, negatives);
  FF_LAUNCH(sample_kernel, image_grid(A, B), dim3(kThreads), 0, stream, labels, sampler, indices, sampled, counts);
  return launched();
}

size_t rpn_targets_workspace_cuda(DType dtype, int64_t B, const AnchorSource& anchors, int64_t G, int64_t S) {
  return visit_compute(dtype, [&](auto tag) {
    Carver carver(nullptr);
    AnchorWorkspace<typename decltype(tag)::type>().carve(carver, B, anchors.A, G, nullptr);
    SampleOptions options = {};
    options.batch_size = S;
    carve_sampler(carver, B, anchors.A, options);
    return carver.used();
  });
}

Status rpn_targets_cuda(DType dtype, int64_t B, const AnchorSource& anchors, const GroundTruth& gt,
                        const AnchorOptions& options, const SampleOptions& sample, const double* weights,
                        void* workspace, const RpnOutputs& outputs, Stream stream) {
  if (B == 0) return kOk;
  return visit_compute(dtype, [&](auto tag) {
    using U = typename decltype(tag)::type;
    return options.legacy ? targets<true, U>(B, anchors, gt, options, sample, weights, workspace, outputs, stream)
                          : targets<false, U>(B, anchors, gt, options, sample, weights, workspace, outputs, stream);
  });
}

}  // namespace frcnn_fast
