// Labels of anchors and the RPN's sample. Two launches, none of which waits for the host:
//   overlap_kernel   best overlap and object of each anchor; each block's peaks and its anchors that may be negative
//   then label_kernel (assign_anchors): labels; or target_kernel (rpn_targets): labels into bitmaps, and the last block
//   of an image draws and encodes. Both first reduce what the blocks of overlap_kernel left: nothing needs zeroing.
// For labels from elsewhere, count_kernel counts the negatives and sample_kernel draws.
//
// A block takes every so many-th chunk of 256 anchors of an image (shares_of, sample.cuh), a thread an anchor of it.
#include "../anchor_decode/anchor_decode.h"
#include "sample.cuh"

namespace frcnn_fast::anchor_target {
using namespace anchor_decode;
namespace {

// In place of a best overlap.
constexpr int kAbsent = -1;    // takes no part
constexpr int kNoObject = -2;  // takes part, but nothing is there to overlap

template <class U>
struct AnchorScene {
  Anchors<U> anchors;
  int64_t A, chunks;
  DeviceGroundTruth<U> gt;
  const U* image_sizes;
  AnchorRule<U> rule;
  // Between the kernels.
  U* best;                // [B, A]
  int32_t* object;        // [B, A]
  OverlapBits<U>* peaks;  // [B, G, shares], of each block of overlap_kernel
  int64_t* negatives;     // [B, shares]: anchors that no object makes positive or ignored; a few are some object's best
  unsigned* tickets;      // [B], for the kernel after
  OverlapBits<U>* reduced;  // [B, shares, G]: the image's peaks, to each block its own copy

  __device__ __forceinline__ int64_t share(int64_t image) const { return image * gridDim.x + blockIdx.x; }
};

// Two blocks a multiprocessor at least, here and below: where the compiler aims at more, double precision has too few
// registers.
//
// A warp: 32 neighbours, which skip objects far from all of them. Shared memory: a tile of objects and their peaks
// within the chunk.
template <bool kLegacy, class U>
__global__ void __launch_bounds__(kThreads, 2) overlap_kernel(const AnchorScene<U> scene) {
  FF_SHARED(Tile<U>, tile, );
  const int64_t image = blockIdx.y;
  OverlapBits<U>* peaks = scene.peaks + image * scene.gt.G * gridDim.x + blockIdx.x;
  for (int32_t g = int32_t(threadIdx.x); g < scene.gt.G; g += kThreads) peaks[int64_t(g) * gridDim.x] = 0;
  int64_t negatives = 0;
  for (int64_t chunk = blockIdx.x; chunk < scene.chunks; chunk += gridDim.x) {
    const int64_t i = chunk * kThreads + threadIdx.x;
    const bool real = i < scene.A;
    const Box<U> box = real ? scene.anchors.at(image, i) : Box<U>{};
    const bool candidate =
        real && is_finite(box) && (!scene.image_sizes || is_inside<kLegacy>(box, scene.image_sizes + 2 * image));
    const Match<U> match = match_objects<kLegacy, true>(tile, scene.gt, image, box, candidate, true,
                                                        scene.rule.crowd_overlap, peaks, gridDim.x);
    if (real) {
      scene.best[image * scene.A + i] = !match.takes_part ? U(kAbsent) : match.any_object ? match.best : U(kNoObject);
      scene.object[image * scene.A + i] = match.object;
    }
    const bool low = match.takes_part && anchor_label(match.best, false, match.any_object, scene.rule) == kNegative;
    negatives += __syncthreads_count(low);
  }
  if (threadIdx.x) return;
  scene.negatives[scene.share(image)] = negatives;
  if (blockIdx.x == 0) scene.tickets[image] = 0;
}

// Reduces the image's peaks into the block's copy, a warp an object. In step on return; the smallest above 0 in every
// thread, all ones if there is none.
template <class U>
__device__ __forceinline__ OverlapBits<U> reduce_peaks(const AnchorScene<U>& scene, int64_t image,
                                                       OverlapBits<U>* reduced, OverlapBits<U>* scratch) {
  const int64_t shares = gridDim.x;
  OverlapBits<U> least = ~OverlapBits<U>(0);
  for (int32_t g = warp_id(); g < scene.gt.G; g += kWarps) {
    const OverlapBits<U>* parts = scene.peaks + (image * scene.gt.G + g) * shares;
    OverlapBits<U> peak = 0;
#pragma unroll 4
    for (int64_t s = lane_id(); s < FF_MUTANT(target_parts, shares, int64_t(1)); s += kWarp)
      peak = maximum(peak, parts[s]);
    peak = overlap_bits(peak_of(bits_overlap(warp_maximum(peak)), scene.rule.min_quality));
    if (lane_id() == 0) reduced[g] = peak;
    if (is_peak(bits_overlap(peak), bits_overlap(peak)) && peak < least) least = peak;
  }
  return block_reduce(least, Smaller(), scratch);
}

// The label of the thread's anchor of a chunk. Whole warps call. reduced, least: of reduce_peaks. Only an anchor that
// reaches the smallest peak can be some object's best: the warp takes such anchors one by one and compares them with
// all objects, a lane an object, by the overlap_kernel's own operations. With kOverwrite, own becomes one more than the
// last object whose best the anchor is, if it is any.
template <bool kLegacy, bool kOverwrite, class U>
__device__ __forceinline__ int8_t find_label(const AnchorScene<U>& scene, int64_t image, int64_t i,
                                             const OverlapBits<U>* reduced, OverlapBits<U> least, unsigned* own) {
  const U found = i < scene.A ? scene.best[image * scene.A + i] : U(kAbsent);
  const U best = found > U(0) ? found : U(0);
  const bool may_peak = scene.rule.low_quality && found >= U(0) && overlap_bits(best) >= least &&
                        (kOverwrite || !is_positive(best, scene.rule.positive_iou));
  bool has_peak = false;
  for (unsigned bits = __ballot_sync(kFullMask, may_peak); bits; bits &= bits - 1) {
    const int lane = __ffs(int(bits)) - 1;
    const Box<U> box = scene.anchors.at(image, i - lane_id() + lane);
    const U box_area = area<kLegacy>(box);
    bool hit = false;
    unsigned last = 0;
#pragma unroll 1  // few objects a lane; a division in double is a call with much to save
    for (int32_t g = lane_id(); g < scene.gt.G; g += kWarp) {
      const U peak = bits_overlap(reduced[g]);
      if (!is_peak(peak, peak)) continue;
      const Box<U> object = scene.gt.box(image, g);
      const bool is_best = is_peak(overlap_of<kLegacy>(box, box_area, object, area<kLegacy>(object)), peak);
      hit |= is_best;
      if (kOverwrite && is_best) last = unsigned(g) + 1;
    }
    const bool any = __any_sync(kFullMask, hit);
    if (lane == lane_id()) has_peak = any;
    if (!kOverwrite) continue;
    last = FF_MUTANT(target_last_peak, warp_maximum(last), warp_reduce(last, Smaller()));
    if (lane == lane_id()) *own = last;
  }
  return found == U(kAbsent) ? kIgnored : anchor_label(best, has_peak, found != U(kNoObject), scene.rule);
}

template <bool kLegacy, bool kOverwrite, class U>
__global__ void __launch_bounds__(kThreads, 2)
    label_kernel(const AnchorScene<U> scene, int8_t* labels, int32_t* matched) {
  FF_SHARED(OverlapBits<U>, scratch, [kWarps]);
  wait_for_launch_before();
  const int64_t image = blockIdx.y;
  OverlapBits<U>* reduced = scene.reduced + scene.share(image) * scene.gt.G;
  const OverlapBits<U> least = scene.rule.low_quality ? reduce_peaks(scene, image, reduced, scratch) : 0;
  for (int64_t chunk = blockIdx.x; chunk < scene.chunks; chunk += gridDim.x) {
    const int64_t i = chunk * kThreads + threadIdx.x;
    unsigned own = 0;
    const int8_t label = find_label<kLegacy, kOverwrite>(scene, image, i, reduced, least, &own);
    if (i >= scene.A) continue;
    labels[image * scene.A + i] = label;
    const int32_t object = own ? int32_t(own) - 1 : scene.object[image * scene.A + i];
    matched[image * scene.A + i] = label == kPositive ? object : -1;
  }
}

template <class U>
struct TargetOutputs {
  int64_t* indices;
  int8_t* labels;
  U* targets;
  int32_t* matched;
  int64_t* counts;
};

template <bool kLegacy, class U>
__global__ void __launch_bounds__(kThreads, 2)
    target_kernel(const AnchorScene<U> scene, const DeviceSampler sampler, const DecodeParams<U> params,
                  const TargetOutputs<U> outputs) {
  FF_SHARED(OverlapBits<U>, scratch, [kWarps]);
  FF_SHARED(SelectScratch, select, );
  wait_for_launch_before();
  const int64_t image = blockIdx.y;
  OverlapBits<U>* reduced = scene.reduced + scene.share(image) * scene.gt.G;
  const OverlapBits<U> least = scene.rule.low_quality ? reduce_peaks(scene, image, reduced, scratch) : 0;
  const uint32_t likely = likely_of(sampler, scene.negatives + image * gridDim.x, gridDim.x, select);
  for (int64_t chunk = blockIdx.x; chunk < scene.chunks; chunk += gridDim.x)
    note(sampler, image, chunk,
         find_label<kLegacy, false>(scene, image, chunk * kThreads + threadIdx.x, reduced, least, nullptr), likely);
  if (!is_last_block(sampler, image, select)) return;
  const Drawn drawn = draw(sampler, image, likely, select);
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

// Both kernels for labels from elsewhere run the same blocks. negatives [B, shares].
__global__ void __launch_bounds__(kThreads)
    count_kernel(const int8_t* labels, int64_t A, int64_t chunks, int64_t* negatives, unsigned* tickets) {
  const int64_t image = blockIdx.y;
  int64_t count = 0;
  for (int64_t chunk = blockIdx.x; chunk < chunks; chunk += gridDim.x) {
    const int64_t i = chunk * kThreads + threadIdx.x;
    count += i < A && labels[image * A + i] == kNegative;
  }
  FF_SHARED(int64_t, scratch, [kWarps]);
  const int64_t total = block_reduce(count, Plus(), scratch);
  if (threadIdx.x) return;
  negatives[image * gridDim.x + blockIdx.x] = total;
  if (blockIdx.x == 0) tickets[image] = 0;
}

__global__ void __launch_bounds__(kThreads, 2)
    sample_kernel(const int8_t* labels, const DeviceSampler sampler, int64_t chunks, const int64_t* negatives,
                  int64_t* indices, int8_t* sampled, int64_t* counts) {
  FF_SHARED(SelectScratch, select, );
  wait_for_launch_before();
  const int64_t image = blockIdx.y, A = sampler.M;
  const uint32_t likely = likely_of(sampler, negatives + image * gridDim.x, gridDim.x, select);
  for (int64_t chunk = blockIdx.x; chunk < chunks; chunk += gridDim.x) {
    const int64_t i = chunk * kThreads + threadIdx.x;
    note(sampler, image, chunk, i < A ? labels[image * A + i] : kIgnored, likely);
  }
  if (!is_last_block(sampler, image, select)) return;
  const Drawn drawn = draw(sampler, image, likely, select);
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
  OverlapBits<U>*peaks, *reduced;
  int64_t* negatives;
  unsigned* tickets;
  U* best;
  int32_t* object;

  void take_from(WorkspaceArena& arena, int64_t B, int64_t A, int64_t G, int32_t* object_out) {
    const int64_t shares = shares_of(A);
    peaks = arena.take<OverlapBits<U>>(B * G * shares);
    reduced = arena.take<OverlapBits<U>>(B * G * shares);
    negatives = arena.take<int64_t>(B * shares);
    tickets = arena.take<unsigned>(B);
    best = arena.take<U>(B * A);
    object = object_out ? object_out : arena.take<int32_t>(B * A);
  }
};

template <class U>
Status make_scene(int64_t B, const AnchorSource& anchors, const GroundTruth& gt, const AnchorOptions& options,
                  const AnchorWorkspace<U>& workspace, AnchorScene<U>* scene) {
  FF_TRY(check_images(B));
  FF_TRY(make_anchors(anchors, &scene->anchors));
  scene->A = anchors.A;
  scene->chunks = chunks_of(anchors.A);
  scene->gt = device_ground_truth<U>(gt);
  scene->image_sizes = static_cast<const U*>(options.image_sizes);
  scene->rule = {U(options.positive_iou),  U(options.negative_iou), U(options.min_quality),
                 U(options.crowd_overlap), options.low_quality,     options.overwrite};
  scene->best = workspace.best;
  scene->object = workspace.object;
  scene->peaks = workspace.peaks;
  scene->reduced = workspace.reduced;
  scene->negatives = workspace.negatives;
  scene->tickets = workspace.tickets;
  return kOk;
}

template <bool kLegacy, class U>
Status assign(int64_t B, const AnchorSource& anchors, const GroundTruth& gt, const AnchorOptions& options, void* memory,
              int8_t* labels, int32_t* matched, Stream stream) {
  WorkspaceArena arena(memory);
  AnchorWorkspace<U> workspace;
  workspace.take_from(arena, B, anchors.A, gt.G, matched);
  AnchorScene<U> scene;
  FF_TRY(make_scene(B, anchors, gt, options, workspace, &scene));
  const dim3 grid(unsigned(shares_of(anchors.A)), unsigned(B));
  FF_LAUNCH((overlap_kernel<kLegacy, U>), grid, dim3(kThreads), 0, stream, scene);
  const auto label = options.overwrite ? label_kernel<kLegacy, true, U> : label_kernel<kLegacy, false, U>;
  FF_LAUNCH_OVERLAPPED(label, grid, dim3(kThreads), 0, stream, scene, labels, matched);
  return launched();
}

template <bool kLegacy, class U>
Status targets(int64_t B, const AnchorSource& anchors, const GroundTruth& gt, const AnchorOptions& options,
               const SampleOptions& sample, const double* weights, void* memory, const RpnOutputs& outputs,
               Stream stream) {
  WorkspaceArena arena(memory);
  AnchorWorkspace<U> workspace;
  workspace.take_from(arena, B, anchors.A, gt.G, nullptr);
  DeviceSampler sampler = take_sampler(arena, B, anchors.A, sample);
  sampler.tickets = workspace.tickets;
  AnchorScene<U> scene;
  FF_TRY(make_scene(B, anchors, gt, options, workspace, &scene));
  const TargetOutputs<U> out = {outputs.indices, outputs.labels, static_cast<U*>(outputs.targets), outputs.matched,
                                outputs.counts};
  const dim3 grid(unsigned(shares_of(anchors.A)), unsigned(B));
  FF_LAUNCH((overlap_kernel<kLegacy, U>), grid, dim3(kThreads), 0, stream, scene);
  FF_LAUNCH_OVERLAPPED((target_kernel<kLegacy, U>), grid, dim3(kThreads), 0, stream, scene, sampler,
                       make_decode_params<U>(weights, 0.0), out);
  return launched();
}

// Of sample_anchors.
struct SampleWorkspace {
  int64_t* negatives;  // [B, shares]
  DeviceSampler sampler;

  void take_from(WorkspaceArena& arena, int64_t B, int64_t A, const SampleOptions& options) {
    negatives = arena.take<int64_t>(B * shares_of(A));
    unsigned* tickets = arena.take<unsigned>(B);
    sampler = take_sampler(arena, B, A, options);
    sampler.tickets = tickets;
  }
};

}  // namespace

size_t assign_anchors_workspace_cuda(DType dtype, int64_t B, const AnchorSource& anchors, int64_t G) {
  return visit_compute(dtype, [&](auto tag) {
    WorkspaceArena arena(nullptr);
    AnchorWorkspace<typename decltype(tag)::type>().take_from(arena, B, anchors.A, G, nullptr);
    return arena.used();
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
  WorkspaceArena arena(nullptr);
  SampleOptions options = {};
  options.batch_size = S;
  SampleWorkspace().take_from(arena, B, A, options);
  return arena.used();
}

Status sample_anchors_cuda(const int8_t* labels, int64_t B, int64_t A, const SampleOptions& sample, void* memory,
                           int64_t* indices, int8_t* sampled, int64_t* counts, Stream stream) {
  if (B == 0) return kOk;
  FF_TRY(check_images(B));
  WorkspaceArena arena(memory);
  SampleWorkspace workspace;
  workspace.take_from(arena, B, A, sample);
  const int64_t chunks = chunks_of(A);
  const dim3 grid(unsigned(shares_of(A)), unsigned(B));
  FF_LAUNCH(count_kernel, grid, dim3(kThreads), 0, stream, labels, A, chunks, workspace.negatives,
            workspace.sampler.tickets);
  FF_LAUNCH_OVERLAPPED(sample_kernel, grid, dim3(kThreads), 0, stream, labels, workspace.sampler, chunks,
                       workspace.negatives, indices, sampled, counts);
  return launched();
}

size_t rpn_targets_workspace_cuda(DType dtype, int64_t B, const AnchorSource& anchors, int64_t G, int64_t S) {
  return visit_compute(dtype, [&](auto tag) {
    WorkspaceArena arena(nullptr);
    AnchorWorkspace<typename decltype(tag)::type>().take_from(arena, B, anchors.A, G, nullptr);
    SampleOptions options = {};
    options.batch_size = S;
    take_sampler(arena, B, anchors.A, options);
    return arena.used();
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

}  // namespace frcnn_fast::anchor_target
