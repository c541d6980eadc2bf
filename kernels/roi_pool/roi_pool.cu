// RoIPool on CUDA. Forward: one launch of one of two kernels (choose_tile says which): the map's channels in shared
// memory, a slice a block (roi_pool_tile.cuh), or read through the caches, a thread one bin for four channels (see
// BinWork). Backward: one launch, the gradient of a part of the map in shared memory (roi_pool_scatter.cuh).
#include "roi_gather.cuh"
#include "roi_pool_scatter.cuh"
#include "roi_pool_tile.cuh"

namespace frcnn_fast::roi_pool {
namespace {

template <class T, bool kLast, bool kArgmax>
__global__ void __launch_bounds__(256, 3)  // 80 registers: left to itself ptxas takes fewer, and spills
    pool_kernel(PoolShape s, int32_t blocks_per_roi, const T* __restrict__ input, const Compute<T>* __restrict__ rois,
                Compute<T> scale, T* __restrict__ output, int32_t* __restrict__ argmax) {
  using U = Compute<T>;
  using Work = BinWork<kLast>;
  constexpr int n = Work::kChannels;
  const Work work(blocks_per_roi, int32_t(s.C), s.PH * s.PW);
  const U* roi = rois + work.roi * kRoiFields;
  const RoiBins<U> bins(s, roi, scale);
  // By the whole warp: all of it has one RoI.
  const bool packed = kArgmax && packs(s, bins.present, longest_bin(bins.rows, s.PH), longest_bin(bins.columns, s.PW));
  if (!work.any) return;
  const BinCells cells(bins, work.bin / s.PW, work.bin % s.PW);
  const T* map = input + (bins.present ? int64_t(roi[0]) * s.C * s.H * s.W : 0);
  U best[n];
  int32_t order[n];
  find_maxima(
      cells, CellNumbers(cells, packed, s.W),
      [&](int32_t y, int32_t x, U(&found)[n]) {
        const T* const cell = map + (int64_t(y) * s.W + x) * s.map.cell;
#pragma unroll
        for (int j = 0; j < n; ++j) found[j] = load(cell + work.channel_in(j, s.C) * s.map.channel);
      },
      best, order);
  const int64_t first = work.bin * s.out.cell;
  T* const to = output + work.roi * s.C * s.PH * s.PW + first;
  int32_t* const part = kArgmax ? part_of(argmax, s, work.roi) : nullptr;
#pragma unroll
  for (int j = 0; j < n; ++j) {
    if (work.channel(j) >= s.C) continue;
    store(to + work.channel(j) * s.out.channel, best[j]);
    if (!kArgmax) continue;
    if (!packed)
      part[first + work.channel(j) * s.out.channel] = order[j];
    else if (kLast)
      *packed_order(reinterpret_cast<uint8_t*>(part), s, work.channel(j), work.bin) = uint8_t(order[j]);
  }
  if (kArgmax && packed && !kLast)
    part[work.channel(0) / kQuad * s.packed.channel + work.bin * s.packed.cell] = int32_t(packed_word(order));
  if (packed && work.bin == 0 && work.channel(0) == 0) *mark_of(part, s) = kPackedPart;
}

template <class T>
Status pool(const RoiPoolShape& shape, const void* input, const void* rois, double scale, void* output, int32_t* argmax,
            Stream stream) {
  using U = Compute<T>;
  const PoolShape s = device_shape(shape);
  const T* const from = static_cast<const T*>(input);
  const U* const boxes = static_cast<const U*>(rois);
  T* const to = static_cast<T*>(output);
  if (const TilePlan tile = choose_tile<T>(shape, input, output); tile.quads > 0) {
    const auto kernel = argmax ? &pool_tile_kernel<T, true> : &pool_tile_kernel<T, false>;
    FF_TRY(allow_dynamic_shared(kernel, max_dynamic_shared() - size_t(kTileStatic)));
    FF_LAUNCH(kernel, dim3(unsigned(shape.B * tile.slices * tile.shares)), dim3(kTileThreads), tile.bytes, stream, s,
              tile, shape.R, from, boxes, U(scale), to, argmax);
    return launched();
  }
  const int64_t blocks = shape.channels_last ? BinWork<true>::blocks(shape.C, shape.PH * shape.PW)
                                             : BinWork<false>::blocks(shape.C, shape.PH * shape.PW);
  const auto launch = [&](auto kernel) {
    FF_LAUNCH(kernel, dim3(unsigned(shape.R * blocks)), dim3(256), 0, stream, s, int32_t(blocks), from, boxes, U(scale),
              to, argmax);
  };
  if (shape.channels_last)
    argmax ? launch(&pool_kernel<T, true, true>) : launch(&pool_kernel<T, true, false>);
  else
    argmax ? launch(&pool_kernel<T, false, true>) : launch(&pool_kernel<T, false, false>);
  return launched();
}

template <class T>
Status pool_backward(const RoiPoolShape& shape, const void* grad_output, bool grad_output_channels_last,
                     const int32_t* argmax, const void* rois, double scale, void* grad_input, Stream stream) {
  using U = Compute<T>;
  const ScatterPlan plan = plan_scatter<T>(shape, grad_output, grad_output_channels_last, argmax);
  const int64_t blocks = shape.B * plan.groups * plan.tiles_down * plan.tiles_across;
  if (blocks > INT32_MAX) return invalid("input: %lld blocks of cells are too many", (long long)blocks);
  const auto kernel = &pool_scatter_kernel<T>;
  FF_TRY(allow_dynamic_shared(kernel, max_dynamic_shared() - size_t(kScatterStatic)));
  FF_LAUNCH(kernel, dim3(unsigned(blocks)), dim3(kScatterThreads), plan.bytes, stream, device_shape(shape), plan,
            shape.R, static_cast<const U*>(rois), U(scale), static_cast<const T*>(grad_output), argmax,
            static_cast<T*>(grad_input));
  return launched();
}

Status check_shape(const RoiPoolShape& s) {
  if (s.H * s.W > INT32_MAX || s.C > INT32_MAX / 64)
    return invalid("input: a map of %lld channels of %lld x %lld cells is too large", (long long)s.C, (long long)s.H,
                   (long long)s.W);
  if (s.PH > kMaxBins || s.PW > kMaxBins || s.PH * s.PW * s.C > INT32_MAX)
    return invalid("output_size: %lld x %lld bins are too many", (long long)s.PH, (long long)s.PW);
  return kOk;
}

}  // namespace

Status roi_pool_cuda(DType dtype, const RoiPoolShape& shape, const void* input, const void* rois, double scale,
                     void* output, int32_t* argmax, Stream stream) {
  FF_TRY(check_shape(shape));
  if (shape.R * shape.C * shape.PH * shape.PW == 0) return kOk;
  return visit(dtype, [&](auto tag) {
    return pool<typename decltype(tag)::type>(shape, input, rois, scale, output, argmax, stream);
  });
}

Status roi_pool_backward_cuda(DType dtype, const RoiPoolShape& shape, const void* grad_output,
                              bool grad_output_channels_last, const int32_t* argmax, const void* rois, double scale,
                              void* grad_input, Stream stream) {
  FF_TRY(check_shape(shape));
  const int64_t cells = shape.B * shape.C * shape.H * shape.W;
  if (cells == 0) return kOk;
  if (shape.R * shape.PH * shape.PW == 0)
    return visit(dtype, [&](auto tag) {
      return fill_bytes(grad_input, 0, size_t(cells) * sizeof(typename decltype(tag)::type), stream);
    });
  return visit(dtype, [&](auto tag) {
    return pool_backward<typename decltype(tag)::type>(shape, grad_output, grad_output_channels_last, argmax, rois,
                                                       scale, grad_input, stream);
  });
}

}  // namespace frcnn_fast::roi_pool
