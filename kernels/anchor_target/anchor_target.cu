// Labels of anchors and the RPN's sample. Two launches, neither of which waits for the host:
//   overlap_kernel   best object and label of each anchor, but for one rule; each block's peaks, an object's highest
//                    overlap with its anchors; and which of its warps reach them
//   then label_kernel (assign_anchors) or target_kernel (rpn_targets): the rule that an object's best anchors are
//   positive. Both reduce the blocks' peaks to the image's: nothing needs zeroing. Few blocks hold an image's peak of
//   an object, and only the warps that reach it there are looked at again, a lane an anchor, by the same operations.
// For labels from elsewhere, note_kernel leaves the bitmaps that sample_kernel draws from.
//
// A block takes every so many-th chunk of an image's anchors, a thread an anchor of it.
#include "../anchor_decode/anchor_decode.h"
#include "sample.cuh"

namespace frcnn_fast::anchor_target {
using namespace anchor_decode;
namespace {

// Blocks of an image at most, two a multiprocessor; where they are too few for a chunk each, they are larger. The next
// launch reads what each of them leaves for each object.
#if defined(FF_TEST_BUILD)
constexpr int kMostShares = 2;  // small cases have more chunks than blocks too
#else
constexpr int kMostShares = 264;
#endif
int threads_of(int64_t A) { return A <= kMostShares * kThreads ? kThreads : kMostThreads; }
int64_t shares_of(int64_t A) { return minimum(int64_t(kMostShares), chunks_of(A, threads_of(A))); }

template <class U>
struct AnchorScene {
  Anchors<U> anchors;
  int64_t A, chunks, shares;
  DeviceGroundTruth<U> gt;
  const U* image_sizes;
  AnchorRule<U> rule;
  // Between the kernels.
  int32_t* object;        // [B, A]: -1 where an anchor takes no part, or overlaps nothing
  OverlapBits<U>* peaks;  // [B, G, shares], of each block of overlap_kernel
  unsigned* reaching;     // [B, G, shares]: the block's warps that reach its peak, in any of its chunks

  __device__ __forceinline__ int64_t part(int64_t image, int32_t g, int64_t share) const {
    return (image * gt.G + g) * shares + share;
  }
  // Whether anchor i has that overlap, above 0, with object g: the object's peak. Nothing waits for `object`: the loads
  // come all at once.
  template <bool kLegacy>
  __device__ __forceinline__ bool reaches(int64_t image, int64_t i, int32_t g, U peak) const {
    if (i >= A) return false;
    const bool overlaps = object[image * A + i] >= 0;
    const Box<U> box = anchors.at(image, i), other = gt.box(image, g);
    const U iou = Overlap<U>::template of<kLegacy>(box, area<kLegacy>(box), other, area<kLegacy>(other)).iou();
    return is_peak(iou, peak) & overlaps;
  }
};

// A warp: 32 neighbours, which skip objects far from all of them. Shared memory: a tile of objects, and the warps'
// peaks, of which a column belongs to one lane of each until the block is through with the tile. kNote: labels go into
// the sampler's bitmaps; else into labels, and objects of positives are not yet told from others.
template <bool kLegacy, bool kNote, class U>
__global__ void __launch_bounds__(kMostThreads, sizeof(U) == 8 ? 1 : 2)
    overlap_kernel(const AnchorScene<U> scene, const DeviceSampler sampler, int8_t* labels) {
  FF_SHARED(Tile<U>, tile, );
  FF_SHARED(OverlapBits<U>, peaks, [kMostWarps][kTile]);
  let_next_launch_start();
  const int64_t image = blockIdx.y, share = blockIdx.x;
  const int32_t count = scene.gt.count(image);
  bool any_object = false;
  for (int64_t chunk = share; chunk < scene.chunks; chunk += scene.shares) {
    const int64_t i = chunk * blockDim.x + threadIdx.x;
    const bool real = i < scene.A, is_first = chunk == share, is_last = chunk + scene.shares >= scene.chunks;
    Box<U> box = real ? scene.anchors.at(image, i) : Box<U>{};
    bool takes_part =
        real && is_finite(box) && (!scene.image_sizes || is_inside<kLegacy>(box, scene.image_sizes + 2 * image));
    if (covered_by_crowd<kLegacy>(tile, scene.gt, image, count, box, scene.rule.crowd_overlap)) takes_part = false;
    if (!takes_part) box = no_box<U>();
    const Box<U> hull = warp_hull(box);
    Match<U> match = {U(0), -1};
    for (int32_t first = 0; first < count; first += kTile) {
      const int size = minimum(count - first, kTile), o = int(threadIdx.x);
      // One tile of objects stays for all chunks, unless crowd boxes have been there.
      const bool stays = count <= kTile && !scene.gt.crowd, is_new = !stays || is_first;
      if (is_new) any_object |= fill_tile<kLegacy>(tile, scene.gt, image, first, size, false);
      match_tile<kLegacy, true>(tile, first, size, box, hull, match, [&](int lanes, OverlapBits<U> peak) {
        OverlapBits<U>& highest = peaks[warp_id()][lanes];
        if (is_new || peak > highest) highest = peak;
      });
      if (stays && !is_last) continue;
      __syncthreads();  // the warps' peaks are complete
      if (o >= size) continue;
      OverlapBits<U> peak = 0;
      unsigned reaching = 0;
      for (int w = 0; w < warps_per_block(); ++w) {
        const OverlapBits<U> highest = peaks[w][o];
        reaching = (highest > peak ? 0 : reaching) | unsigned(highest >= peak) << w;
        peak = maximum(peak, highest);
      }
      const int64_t part = scene.part(image, first + o, share);
      const OverlapBits<U> before = stays || is_first ? 0 : scene.peaks[part];
      if (peak < before) continue;
      scene.peaks[part] = peak;
      scene.reaching[part] = peak == before && before ? scene.reaching[part] | reaching : reaching;
    }
    const int8_t label = takes_part ? anchor_label(match.best, false, any_object, scene.rule) : kIgnored;
    if (real) scene.object[image * scene.A + i] = match.object;
    if (kNote)
      note(sampler, image, i, label);
    else if (real)
      labels[image * scene.A + i] = label;
  }
}

// An object's peak in the image: a warp an object at a time.
template <class U>
struct Peak {
  U overlap;
  unsigned parts;  // those of the lane's, of shares lane, lane + 32..., that reach it; none if it is 0
};
// Whole warps call.
template <class U>
__device__ __forceinline__ Peak<U> find_peak(const AnchorScene<U>& scene, int64_t image, int32_t g) {
  constexpr int kParts = (kMostShares + kWarp - 1) / kWarp;
  OverlapBits<U> parts[kParts], highest = 0;
#pragma unroll
  for (int p = 0; p < kParts; ++p) {
    const int64_t share = p * kWarp + lane_id();
    parts[p] = share < FF_MUTANT(target_parts, scene.shares, int64_t(1)) ? scene.peaks[scene.part(image, g, share)] : 0;
    highest = maximum(highest, parts[p]);
  }
  highest = warp_maximum(highest);
  Peak<U> peak = {peak_of(bits_overlap(highest), scene.rule.min_quality), 0};
#pragma unroll
  for (int p = 0; p < kParts; ++p) peak.parts |= unsigned(parts[p] == highest) << p;
  if (!is_peak(peak.overlap, peak.overlap)) peak.parts = 0;
  return peak;
}

// Objects whose peak is in the block's share, in the order of their index.
template <class U>
struct OwnPeaks {
  U peak[kTile];
  unsigned reaching[kTile];  // 0: not an object of these
};

// Makes the best anchors of an object positive, and the last of these objects theirs with kOverwrite. Then takes their
// objects from all that are not positive. A thread owns its anchors, and a warp its objects of a tile; two barriers a
// tile, before its objects are read and before they are written again.
template <bool kLegacy, bool kOverwrite, class U>
__global__ void __launch_bounds__(kMostThreads, 1)
    label_kernel(const AnchorScene<U> scene, int8_t* labels, int32_t* matched) {
  FF_SHARED(OwnPeaks<U>, own, );
  wait_for_launch_before();
  const int64_t image = blockIdx.y, share = blockIdx.x;
  const int32_t count = scene.rule.low_quality ? scene.gt.count(image) : 0;
  for (int32_t first = 0; first < count; first += kTile) {
    const int objects = minimum(count - first, kTile);
    for (int o = warp_id(); o < objects; o += warps_per_block()) {
      const Peak<U> peak = find_peak(scene, image, first + o);
      if (lane_id() != share % kWarp) continue;
      own.peak[o] = peak.overlap;
      own.reaching[o] = peak.parts >> (share / kWarp) & 1u ? scene.reaching[scene.part(image, first + o, share)] : 0;
    }
    __syncthreads();
    for (int o = 0; o < objects; ++o) {
      if (!(own.reaching[o] >> warp_id() & 1u)) continue;
      for (int64_t chunk = share; chunk < scene.chunks; chunk += scene.shares) {
        const int64_t i = chunk * blockDim.x + threadIdx.x;
        if (!scene.template reaches<kLegacy>(image, i, first + o, own.peak[o])) continue;
        labels[image * scene.A + i] = kPositive;
        if (kOverwrite) matched[image * scene.A + i] = first + FF_MUTANT(target_last_peak, o, 0);
      }
    }
    __syncthreads();
  }
  for (int64_t chunk = share; chunk < scene.chunks; chunk += scene.shares) {
    const int64_t i = chunk * blockDim.x + threadIdx.x;
    if (i < scene.A && labels[image * scene.A + i] != kPositive) matched[image * scene.A + i] = -1;
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

// A warp of a block that reaches an object's peak.
template <class U>
struct Reaching {
  U peak;
  int32_t g;
  int16_t share, warp;
};
#if defined(FF_TEST_BUILD)
constexpr int kMostReaching = kMostWarps;
#else
constexpr int kMostReaching = 512;
#endif

// Block x: image x. Its warps find the peaks of an object each, and list the warps of overlap_kernel that reach them as
// far as the list has room; then they look at the listed ones, one each at a time. When the bitmap of positives has all
// of them, the sample is drawn. Barriers: before the list is written, before it is read, and before it, or the bitmap,
// is used again.
template <bool kLegacy, class U>
__global__ void __launch_bounds__(kDrawThreads, 1)
    target_kernel(const AnchorScene<U> scene, int threads, const __grid_constant__ DeviceSampler sampler,
                  const DecodeParams<U> params, const TargetOutputs<U> outputs) {
  FF_SHARED(DrawScratch, scratch, );
  FF_SHARED(Reaching<U>, list, [kMostReaching]);
  FF_SHARED(int, listed, );
  FF_SHARED(int, end, );  // of the list: the first place from which one did not fit
  wait_for_launch_before();
  const int64_t image = blockIdx.x;
  const int32_t count = scene.rule.low_quality ? scene.gt.count(image) : 0;
  unsigned* const positives = sampler.bitmap(0, image);
  for (int32_t first = 0; first < count; first += kDrawWarps) {
    const int32_t g = first + warp_id();
    Peak<U> peak = {};
    if (g < count) peak = find_peak(scene, image, g);
    do {
      if (threadIdx.x == 0) listed = 0, end = kMostReaching;
      __syncthreads();
      while (peak.parts) {
        const int64_t share = (__ffs(int(peak.parts)) - 1) * kWarp + lane_id();
        unsigned warps = scene.reaching[scene.part(image, g, share)];
        int place = atomicAdd(&listed, __popc(warps));
        if (place + __popc(warps) > kMostReaching) {
          atomicMin(&end, place);
          break;
        }
        for (; warps; warps &= warps - 1)
          list[place++] = {peak.overlap, g, int16_t(share), int16_t(__ffs(int(warps)) - 1)};
        peak.parts &= peak.parts - 1;
      }
      __syncthreads();
      const int there = minimum(listed, end);
      for (int64_t rounds = 0; rounds < scene.chunks; rounds += scene.shares) {
        for (int n = warp_id(); n < there; n += 2 * kDrawWarps) {
          int64_t i[2];
          bool is_best[2];
#pragma unroll
          for (int k = 0; k < 2; ++k) {
            const Reaching<U> it = list[minimum(n + k * kDrawWarps, there - 1)];
            i[k] = (rounds + it.share) * threads + it.warp * kWarp + lane_id();
            is_best[k] = scene.template reaches<kLegacy>(image, i[k], it.g, it.peak);
          }
#pragma unroll
          for (int k = 0; k < 2; ++k)
            if (is_best[k]) atomicOr(positives + i[k] / kWarp, 1u << i[k] % kWarp);
        }
      }
    } while (__syncthreads_or(peak.parts));
  }

  const Drawn drawn = draw(sampler, image, scratch);
  for (int32_t s = int32_t(threadIdx.x); s < sampler.S; s += kDrawThreads) {
    const int64_t out = image * sampler.S + s;
    const bool is_positive = s < drawn.positives, is_drawn = s < drawn.positives + drawn.negatives;
    const int64_t index = is_drawn ? int64_t(drawn.index(sampler, scratch, image, s)) : -1;
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

__global__ void __launch_bounds__(kThreads) note_kernel(const int8_t* labels, const DeviceSampler sampler) {
  let_next_launch_start();
  const int64_t image = blockIdx.y, A = sampler.M, i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  note(sampler, image, i, i < A ? labels[image * A + i] : kIgnored);
}

// Block x: image x.
__global__ void __launch_bounds__(kDrawThreads, 1)
    sample_kernel(const __grid_constant__ DeviceSampler sampler, int64_t* indices, int8_t* sampled, int64_t* counts) {
  FF_SHARED(DrawScratch, scratch, );
  wait_for_launch_before();
  const int64_t image = blockIdx.x;
  const Drawn drawn = draw(sampler, image, scratch);
  for (int32_t s = int32_t(threadIdx.x); s < sampler.S; s += kDrawThreads) {
    const int64_t out = image * sampler.S + s;
    const bool is_drawn = s < drawn.positives + drawn.negatives;
    indices[out] = is_drawn ? int64_t(drawn.index(sampler, scratch, image, s)) : -1;
    sampled[out] = s < drawn.positives ? kPositive : is_drawn ? kNegative : kIgnored;
  }
  if (threadIdx.x == 0) {
    counts[2 * image] = drawn.positives;
    counts[2 * image + 1] = drawn.negatives;
  }
}

template <class U>
struct AnchorWorkspace {
  OverlapBits<U>* peaks;
  unsigned* reaching;
  int32_t* object;

  // object_out: the results' array that serves between the kernels too, or null.
  void take_from(WorkspaceArena& arena, int64_t B, int64_t A, int64_t G, int32_t* object_out) {
    const int64_t parts = B * G * shares_of(A);
    peaks = arena.take<OverlapBits<U>>(parts);
    reaching = arena.take<unsigned>(parts);
    object = object_out ? object_out : arena.take<int32_t>(B * A);
  }
};

template <class U>
Status make_scene(int64_t B, const AnchorSource& anchors, const GroundTruth& gt, const AnchorOptions& options,
                  const AnchorWorkspace<U>& workspace, AnchorScene<U>* scene) {
  FF_TRY(check_images(B));
  FF_TRY(make_anchors(anchors, &scene->anchors));
  scene->A = anchors.A;
  scene->chunks = chunks_of(anchors.A, threads_of(anchors.A));
  scene->shares = shares_of(anchors.A);
  scene->gt = device_ground_truth<U>(gt);
  scene->image_sizes = static_cast<const U*>(options.image_sizes);
  scene->rule = {U(options.positive_iou),  U(options.negative_iou), U(options.min_quality),
                 U(options.crowd_overlap), options.low_quality,     options.overwrite};
  scene->object = workspace.object;
  scene->peaks = workspace.peaks;
  scene->reaching = workspace.reaching;
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
  const dim3 grid(unsigned(scene.shares), unsigned(B)), block(unsigned(threads_of(anchors.A)));
  FF_LAUNCH((overlap_kernel<kLegacy, false, U>), grid, block, 0, stream, scene, DeviceSampler{}, labels);
  const auto label = options.overwrite ? label_kernel<kLegacy, true, U> : label_kernel<kLegacy, false, U>;
  FF_LAUNCH_OVERLAPPED(label, grid, block, 0, stream, scene, labels, matched);
  return launched();
}

template <bool kLegacy, class U>
Status targets(int64_t B, const AnchorSource& anchors, const GroundTruth& gt, const AnchorOptions& options,
               const SampleOptions& sample, const double* weights, void* memory, const RpnOutputs& outputs,
               Stream stream) {
  WorkspaceArena arena(memory);
  AnchorWorkspace<U> workspace;
  workspace.take_from(arena, B, anchors.A, gt.G, nullptr);
  const int threads = threads_of(anchors.A);
  const DeviceSampler sampler = take_sampler(arena, B, anchors.A, threads, sample, true);
  AnchorScene<U> scene;
  FF_TRY(make_scene(B, anchors, gt, options, workspace, &scene));
  const TargetOutputs<U> out = {outputs.indices, outputs.labels, static_cast<U*>(outputs.targets), outputs.matched,
                                outputs.counts};
  if (anchors.A)
    FF_LAUNCH((overlap_kernel<kLegacy, true, U>), dim3(unsigned(scene.shares), unsigned(B)), dim3(unsigned(threads)), 0,
              stream, scene, sampler, static_cast<int8_t*>(nullptr));
  FF_LAUNCH_OVERLAPPED((target_kernel<kLegacy, U>), dim3(unsigned(B)), dim3(kDrawThreads), 0, stream, scene, threads,
                       sampler, make_decode_params<U>(weights, 0.0), out);
  return launched();
}

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
  take_sampler(arena, B, A, kThreads, options, true);
  return arena.used();
}

Status sample_anchors_cuda(const int8_t* labels, int64_t B, int64_t A, const SampleOptions& sample, void* memory,
                           int64_t* indices, int8_t* sampled, int64_t* counts, Stream stream) {
  if (B == 0) return kOk;
  FF_TRY(check_images(B));
  WorkspaceArena arena(memory);
  const DeviceSampler sampler = take_sampler(arena, B, A, kThreads, sample, true);
  if (A)
    FF_LAUNCH(note_kernel, dim3(unsigned(chunks_of(A, kThreads)), unsigned(B)), dim3(kThreads), 0, stream, labels,
              sampler);
  FF_LAUNCH_OVERLAPPED(sample_kernel, dim3(unsigned(B)), dim3(kDrawThreads), 0, stream, sampler, indices, sampled,
                       counts);
  return launched();
}

size_t rpn_targets_workspace_cuda(DType dtype, int64_t B, const AnchorSource& anchors, int64_t G, int64_t S) {
  return visit_compute(dtype, [&](auto tag) {
    WorkspaceArena arena(nullptr);
    AnchorWorkspace<typename decltype(tag)::type>().take_from(arena, B, anchors.A, G, nullptr);
    SampleOptions options = {};
    options.batch_size = S;
    take_sampler(arena, B, anchors.A, threads_of(anchors.A), options, true);
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
