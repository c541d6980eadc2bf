// RoIPool on CUDA. Forward: one launch of one of two kernels (choose_tile says which): the map's channels in shared
// memory, a slice a block (roi_pool_tile.cuh), or read through the caches, a thread one bin for four channels (see
// BinWork). Backward: a gather (see roi_gather.cuh).
#include "roi_gather.cuh"
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
  const bool packed = kArgmax && packs(bins, s);  // by the whole warp: all of it has one RoI
  if (!work.any) return;
  const BinCells cells(bins, work.bin / s.PW, work.bin % s.PW);
  const T* map = input + (bins.present ? int64_t(roi[0]) * s.C * s.H * s.W : 0);
  U best[n];
  int32_t order[n];
  find_maxima(
      cells,
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
    if (kArgmax) keep_argmax(part, first + work.channel(j) * s.out.channel, packed, order[j], cells, s.W);
  }
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
  if (const TilePlan tile = choose_tile(shape, sizeof(T)); tile.quads > 0) {
    const auto kernel = argmax ? &pool_tile_kernel<T, true> : &pool_tile_kernel<T, false>;
    FF_TRY(allow_dynamic_shared(kernel, size_t(most_tile_bytes())));
    FF_LAUNCH(kernel, dim3(unsigned(shape.B * tile.slices * tile.shares)), dim3(kTileThreads), tile.bytes, stream, s,
              tile, int32_t(shape.R), from, boxes, U(scale), to, argmax);
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

// What the backward pass must know of a RoI besides its tables.
template <class U>
struct PackedRoi {
  BinAxis<U> rows, columns;
  bool packed;
};

// The first B blocks list the images' RoIs; then each warp has one axis of one RoI: its lanes take the cells, and the
// bins are computed anew for each.
template <class U>
__global__ void __launch_bounds__(128)
    pool_tables_kernel(PoolShape s, const U* __restrict__ rois, U scale, const int32_t* argmax, RoiTables tables,
                       PackedRoi<U>* packed) {
  if (blockIdx.x < s.B) {
    list_members(rois, int64_t(blockIdx.x), [&](const U* roi) { return roi_image(roi, s.B); }, tables);
    return;
  }
  const int64_t item = (int64_t(blockIdx.x) - s.B) * warps_per_block() + warp_id();
  const int64_t k = item / 2;
  if (k >= tables.R) return;
  const bool of_rows = item % 2 == 0;
  const RoiBins<U> roi(s, rois + k * kRoiFields, scale);
  const BinAxis<U> axis = of_rows ? roi.rows : roi.columns;
  const int32_t bins = of_rows ? s.PH : s.PW;
  const int32_t begin = roi.present ? axis.begin(0) : 0, end = roi.present ? axis.end(bins - 1) : 0;
  if (lane_id() == 0) {
    int32_t* window = tables.windows + 4 * k + (of_rows ? 0 : 2);
    window[0] = begin;
    window[1] = end;
    if (of_rows) packed[k] = {roi.rows, roi.columns, *mark_of(part_of(argmax, s, k), s) == kPackedPart};
  }
  uint32_t* cells = of_rows ? tables.row_bins + k * tables.H : tables.column_bins + k * tables.W;
  for (int32_t cell = begin + lane_id(); cell < end; cell += kWarp) {
    uint32_t first = kNoBins, last = 0;
    for (int32_t bin = 0; bin < bins; ++bin) {
      if (cell < axis.begin(bin) || cell >= axis.end(bin)) continue;
      if (first == kNoBins) first = uint32_t(bin);
      last = uint32_t(bin);
    }
    cells[cell] = first | last << 16;
  }
}

template <class T>
struct ArgmaxSource {
  using U = Compute<T>;

  PoolShape s;
  RoiTables tables;
  const PackedRoi<U>* packed;
  const T* grads;
  const int32_t* argmax;
  CellStrides from;  // of grads; argmax has s.out

  template <int n>
  __device__ __forceinline__ void add(int64_t k, int32_t y, int32_t x, int32_t cell, int32_t channel0, int32_t step,
                                      U (&acc)[n]) const {
    const uint32_t rows = tables.row_bins[k * tables.H + y], columns = tables.column_bins[k * tables.W + x];
    const int64_t start = k * s.C * s.PH * s.PW;
    const PackedRoi<U>& roi = packed[k];  // one for the whole warp
    const uint8_t* const orders = reinterpret_cast<const uint8_t*>(argmax + start);
    for (uint32_t p = rows & 0xffffu; p <= rows >> 16; ++p) {
      const int32_t above = y - roi.rows.begin(int32_t(p));
      for (uint32_t q = columns & 0xffffu; q <= columns >> 16; ++q) {
        const int32_t bin = int32_t(p) * s.PW + int32_t(q);
        const int32_t left = roi.columns.begin(int32_t(q)), width = roi.columns.end(int32_t(q)) - left;
        const int32_t order = FF_MUTANT(roi_packed_row, above * width + (x - left), above + (x - left) * width);
        const T* values = grads + start + bin * from.cell;
        if (roi.packed)
          take(orders + bin * s.out.cell, order, values, channel0, step, acc);
        else
          take(argmax + start + bin * s.out.cell, cell, values, channel0, step, acc);
      }
    }
  }

  // Adds one bin's gradients where its maximum is `here`.
  template <class Place, int n>
  __device__ __forceinline__ void take(const Place* places, int32_t here, const T* values, int32_t channel0,
                                       int32_t step, U (&acc)[n]) const {
#pragma unroll
    for (int j = 0; j < n; ++j) {
      const int32_t c = minimum(channel0 + j * step, int32_t(s.C) - 1);
      // Adding 0 to a sum that began as 0 changes nothing, and needs no branch.
      const U value = load(values + c * from.channel);
      acc[j] += int32_t(places[c * s.out.channel]) == here ? value : U(0);
    }
  }
};

template <class U>
struct BackwardWorkspace {
  RoiTables tables;
  PackedRoi<U>* packed;  // [R]

  BackwardWorkspace(WorkspaceArena& arena, const RoiPoolShape& s)
      : tables(RoiTables::take(arena, s.B, s.R, s.H, s.W)), packed(arena.take<PackedRoi<U>>(s.R)) {}
};

template <class T>
Status pool_backward(const RoiPoolShape& shape, const void* grad_output, bool grad_output_channels_last,
                     const int32_t* argmax, const void* rois, double scale, void* workspace, void* grad_input,
                     Stream stream) {
  using U = Compute<T>;
  const PoolShape s = device_shape(shape);
  WorkspaceArena arena(workspace);
  const BackwardWorkspace<U> memory(arena, shape);
  FF_LAUNCH(pool_tables_kernel<U>, dim3(unsigned(shape.B) + blocks_for(2 * shape.R, 4)), dim3(128), 0, stream, s,
            static_cast<const U*>(rois), U(scale), argmax, memory.tables, memory.packed);
  const ArgmaxSource<T> source{s,
                               memory.tables,
                               memory.packed,
                               static_cast<const T*>(grad_output),
                               argmax,
                               cell_strides(shape.C, shape.PH * shape.PW, grad_output_channels_last)};
  GatherShape g{};
  g.C = s.C, g.H = s.H, g.W = s.W, g.PH = s.PH, g.PW = s.PW, g.map = s.map;
  return gather(g, shape.channels_last, shape.B, memory.tables, source, static_cast<T*>(grad_input), stream);
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

size_t roi_pool_backward_workspace_cuda(DType dtype, const RoiPoolShape& shape) {
  return visit_compute(dtype, [&](auto tag) {
    WorkspaceArena arena(nullptr);
    BackwardWorkspace<typename decltype(tag)::type>(arena, shape);
    return arena.used();
  });
}

Status roi_pool_backward_cuda(DType dtype, const RoiPoolShape& shape, const void* grad_output,
                              bool grad_output_channels_last, const int32_t* argmax, const void* rois, double scale,
                              void* workspace, void* grad_input, Stream stream) {
  FF_TRY(check_shape(shape));
  if (shape.B * shape.C * shape.H * shape.W == 0) return kOk;
  return visit(dtype, [&](auto tag) {
    return pool_backward<typename decltype(tag)::type>(shape, grad_output, grad_output_channels_last, argmax, rois,
                                                       scale, workspace, grad_input, stream);
  });
}

}  // namespace frcnn_fast::roi_pool
