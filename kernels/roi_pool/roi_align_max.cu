// RoIAlign's maxima on CUDA. Forward: one launch, a thread one bin for four channels (see BinWork), which works out
// each sample's place once for them. Backward: a gather (see roi_gather.cuh); the tables have a bin's cells from its
// first sample to its last, and what an argmax owes a cell is asked of the argmax.
#include "roi_align_max.h"
#include "roi_weights.cuh"

namespace frcnn_fast::roi_pool {
namespace {

// Both axes of one RoI; without samples where it pools nothing.
template <class U>
struct RoiSamples {
  SampleAxis<U> rows, columns;

  __device__ __forceinline__ RoiSamples(const DeviceShape<U>& s, const U* roi) {
    const DeviceLevel<U>& level = s.levels[0];
    rows = make_samples(roi[2], roi[4], level.scale, s.aligned, int64_t(s.PH), s.sampling_ratio, int64_t(level.H));
    columns = make_samples(roi[1], roi[3], level.scale, s.aligned, int64_t(s.PW), s.sampling_ratio, int64_t(level.W));
    if (roi_image(roi, s.B) < 0 || !roi_is_finite(roi)) rows.count = columns.count = 0;
  }
};

template <class T, bool kLast, bool kArgmax>
__global__ void __launch_bounds__(256)
    max_kernel(DeviceShape<Compute<T>> s, int32_t blocks_per_roi, const Compute<T>* __restrict__ rois,
               T* __restrict__ output, Compute<T>* __restrict__ argmax_y, Compute<T>* __restrict__ argmax_x) {
  using U = Compute<T>;
  using Work = BinWork<kLast>;
  constexpr int n = Work::kChannels;
  const Work work(blocks_per_roi, int32_t(s.C), s.PH * s.PW);
  if (!work.any) return;
  const U* roi = rois + work.roi * kRoiFields;
  const RoiSamples<U> samples(s, roi);
  const DeviceLevel<U>& level = s.levels[0];
  const int32_t p = work.bin / s.PW, q = work.bin % s.PW;
  const SampleGrid<U> grid(samples.rows, p, samples.columns, q);
  LargestSample<U> best[n];
#pragma unroll
  for (int j = 0; j < n; ++j) best[j] = {U(0), -1, -1};
  if (!grid.y.empty() && !grid.x.empty()) {  // so the RoI names an image
    const T* map = static_cast<const T*>(level.data) + int64_t(roi[0]) * s.C * level.H * level.W;
    for (int32_t y = grid.y.begin; y < grid.y.end; ++y) {
      Sample<U> row;
      sample_at(samples.rows.place(p, y), level.H, &row);
      const T* const top = map + int64_t(row.low) * level.W * level.map.cell;
      const T* const bottom = map + int64_t(row.high) * level.W * level.map.cell;
      for (int32_t x = grid.x.begin; x < grid.x.end; ++x) {
        Sample<U> column;
        sample_at(samples.columns.place(q, x), level.W, &column);
        const U above = U(1) - row.fraction, before = U(1) - column.fraction;
        const U upper_left = above * before, upper_right = above * column.fraction;
        const U lower_left = row.fraction * before, lower_right = row.fraction * column.fraction;
        const int64_t left = column.low * level.map.cell, right = column.high * level.map.cell;
#pragma unroll
        for (int j = 0; j < n; ++j) {
          const int64_t channel = work.channel_in(j, s.C) * level.map.channel;
          const U value = ((upper_left * load(top + left + channel) + upper_right * load(top + right + channel)) +
                           lower_left * load(bottom + left + channel)) +
                          lower_right * load(bottom + right + channel);
          const bool larger = FF_MUTANT(align_max_first, value > best[j].value, value >= best[j].value);
          if (larger || (best[j].y < 0 && FF_MUTANT(align_max_nan, value == value, false))) best[j] = {value, y, x};
        }
      }
    }
  }
  const int64_t first = work.roi * s.C * s.PH * s.PW + work.bin * s.out.cell;
#pragma unroll
  for (int j = 0; j < n; ++j) {
    if (work.channel(j) >= s.C) continue;
    const LargestSample<U> found = grid.with_outside(best[j]);
    const int64_t at = first + work.channel(j) * s.out.channel;
    store(output + at, found.value);
    if (kArgmax) {
      argmax_y[at] = sample_place(samples.rows, p, found.y);
      argmax_x[at] = sample_place(samples.columns, q, found.x);
    }
  }
}

// The cells that lie beside a bin's samples, from the first to the last; none: last < first.
struct CellSpan {
  int32_t first, last;
};
template <class U>
__device__ __forceinline__ CellSpan cells_of(const SampleAxis<U>& axis, int32_t bin) {
  if (axis.count <= 0) return {0, -1};
  const U low = axis.position(bin, 0), high = axis.position(bin, axis.count - 1), top = U(axis.limit - 1);
  if (!(low <= U(axis.limit)) || below_map(high)) return {0, -1};
  const U first = low > U(0) ? low : U(0), last = high > U(0) ? high : U(0);
  return {first < top ? int32_t(first) : axis.limit - 1,
          FF_MUTANT(align_max_span, last < top ? int32_t(last) + 1 : axis.limit - 1, int32_t(first))};
}

// The first B blocks list the images' RoIs; then each warp has one axis of one RoI: its lanes take the bins, and then
// the cells, for each of which the bins are worked out anew.
template <class U>
__global__ void __launch_bounds__(128)
    max_tables_kernel(DeviceShape<U> s, const U* __restrict__ rois, RoiTables tables) {
  if (blockIdx.x < s.B) {
    list_group(s, rois, int64_t(blockIdx.x), tables);
    return;
  }
  const int64_t item = (int64_t(blockIdx.x) - s.B) * warps_per_block() + warp_id();
  const int64_t k = item / 2;
  if (k >= s.R) return;  // the whole warp
  const bool of_rows = item % 2 == 0;
  const RoiSamples<U> samples(s, rois + k * kRoiFields);
  const SampleAxis<U> axis = of_rows ? samples.rows : samples.columns;
  const int32_t bins = of_rows ? s.PH : s.PW;
  int32_t least = axis.limit, most = -1;
  for (int32_t bin = lane_id(); bin < bins; bin += kWarp) {
    const CellSpan span = cells_of(axis, bin);
    if (span.last < span.first) continue;
    least = minimum(least, span.first);
    most = maximum(most, span.last);
  }
  least = warp_reduce(least, Smaller());
  most = warp_reduce(most, Larger());
  write_window(tables, k, of_rows, least, most, bins, [&](int32_t bin, int32_t cell) {
    const CellSpan span = cells_of(axis, bin);
    return span.first <= cell && cell <= span.last;
  });
}

template <class T>
struct SampleSource {
  using U = Compute<T>;

  int64_t C;
  int32_t H, W, PH, PW;
  CellStrides from, argmax;
  RoiTables tables;
  const T* grads;
  const U *argmax_y, *argmax_x;

  template <int n>
  __device__ __forceinline__ void add(int64_t k, int32_t y, int32_t x, int32_t, int32_t channel0, int32_t step,
                                      U (&acc)[n]) const {
    const uint32_t rows = tables.row_bins[k * tables.H + y], columns = tables.column_bins[k * tables.W + x];
    const int64_t start = k * C * PH * PW;
    for (uint32_t p = rows & 0xffffu; p <= rows >> 16; ++p)
      for (uint32_t q = columns & 0xffffu; q <= columns >> 16; ++q) {
        const int32_t bin = int32_t(p) * PW + int32_t(q);
        const T* values = grads + start + bin * from.cell;
        const int64_t places = start + bin * argmax.cell;
#pragma unroll
        for (int j = 0; j < n; ++j) {
          const int32_t c = minimum(channel0 + j * step, int32_t(C) - 1);  // beyond the last: not stored
          U down, across;
          if (!share_of_cell(argmax_y[places + c * argmax.channel], y, H, &down)) continue;
          if (!share_of_cell(argmax_x[places + c * argmax.channel], x, W, &across)) continue;
          acc[j] += (down * across) * load(values + c * from.channel);
        }
      }
  }
};

template <class T>
Status align_max(const RoiAlignShape& shape, const void* input, const void* rois, void* output, void* argmax_y,
                 void* argmax_x, Stream stream) {
  using U = Compute<T>;
  const DeviceShape<U> s = device_shape<U>(shape, &input);
  const auto launch = [&](auto kernel, int64_t blocks) {
    FF_LAUNCH(kernel, dim3(unsigned(shape.R * blocks)), dim3(256), 0, stream, s, int32_t(blocks),
              static_cast<const U*>(rois), static_cast<T*>(output), static_cast<U*>(argmax_y),
              static_cast<U*>(argmax_x));
  };
  const int64_t bins = shape.PH * shape.PW;
  if (shape.output_channels_last)
    launch(argmax_y ? &max_kernel<T, true, true> : &max_kernel<T, true, false>, BinWork<true>::blocks(shape.C, bins));
  else
    launch(argmax_y ? &max_kernel<T, false, true> : &max_kernel<T, false, false>,
           BinWork<false>::blocks(shape.C, bins));
  return launched();
}

template <class T>
Status align_max_backward(const RoiAlignShape& shape, const void* grad_output, const void* argmax_y,
                          const void* argmax_x, const void* rois, void* workspace, void* grad_input, Stream stream) {
  using U = Compute<T>;
  const DeviceShape<U> s = device_shape<U>(shape, &grad_input);
  const RoiAlignLevel& level = shape.levels[0];
  WorkspaceArena arena(workspace);
  const RoiTables tables = take_tables(arena, shape);
  FF_LAUNCH(max_tables_kernel<U>, dim3(unsigned(shape.B) + table_blocks(shape)), dim3(128), 0, stream, s,
            static_cast<const U*>(rois), tables);
  const SampleSource<T> source{s.C,
                               s.levels[0].H,
                               s.levels[0].W,
                               s.PH,
                               s.PW,
                               s.out,
                               cell_strides(shape.C, shape.PH * shape.PW, level.channels_last),
                               tables,
                               static_cast<const T*>(grad_output),
                               static_cast<const U*>(argmax_y),
                               static_cast<const U*>(argmax_x)};
  GatherShape g{};
  g.C = s.C, g.H = s.levels[0].H, g.W = s.levels[0].W, g.PH = s.PH, g.PW = s.PW, g.map = s.levels[0].map;
  return gather(g, level.channels_last, shape.B, tables, source, static_cast<T*>(grad_input), stream);
}

}  // namespace

Status roi_align_max_cuda(DType dtype, const RoiAlignShape& shape, const void* input, const void* rois, void* output,
                          void* argmax_y, void* argmax_x, Stream stream) {
  FF_TRY(check_shape(shape));
  if (shape.R * shape.C * shape.PH * shape.PW == 0) return kOk;
  return visit(dtype, [&](auto tag) {
    return align_max<typename decltype(tag)::type>(shape, input, rois, output, argmax_y, argmax_x, stream);
  });
}

size_t roi_align_max_backward_workspace_cuda(DType, const RoiAlignShape& shape) {
  WorkspaceArena arena(nullptr);
  take_tables(arena, shape);
  return arena.used();
}

Status roi_align_max_backward_cuda(DType dtype, const RoiAlignShape& shape, const void* grad_output,
                                   const void* argmax_y, const void* argmax_x, const void* rois, void* workspace,
                                   void* grad_input, Stream stream) {
  FF_TRY(check_shape(shape));
  if (shape.B * shape.C * shape.levels[0].H * shape.levels[0].W == 0) return kOk;
  return visit(dtype, [&](auto tag) {
    return align_max_backward<typename decltype(tag)::type>(shape, grad_output, argmax_y, argmax_x, rois, workspace,
                                                            grad_input, stream);
  });
}

}  // namespace frcnn_fast::roi_pool
