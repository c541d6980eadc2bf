// RoIAlign on CUDA: one launch writes each RoI's weights along both axes, cell by cell; a second one sums up
// (forward, see BinWork) or gathers (backward, one launch a level, see roi_gather.cuh). Both multiply and add in the
// order of roi_align.h. Precise RoI pooling has other weights and is the same otherwise.
#include "precise_weights.cuh"
#include "sample_weights.cuh"

namespace frcnn_fast::roi_pool {
namespace {

template <class T, bool kLast>
__global__ void __launch_bounds__(256)
    align_kernel(DeviceShape<Compute<T>> s, int32_t blocks_per_roi, const Compute<T>* __restrict__ rois,
                 Weights<Compute<T>> weights, T* __restrict__ output) {
  using U = Compute<T>;
  using Work = BinWork<kLast>;
  constexpr int n = Work::kChannels;
  const Work work(blocks_per_roi, int32_t(s.C), s.PH * s.PW);
  if (!work.any) return;
  const U* roi = rois + work.roi * kRoiFields;
  const DeviceLevel<U>& level = s.levels[s.level(roi)];
  const int32_t p = work.bin / s.PW, q = work.bin % s.PW;
  const int32_t *row_span = weights.rows.span(work.roi, p), *column_span = weights.columns.span(work.roi, q);
  const U *row_weights = weights.rows.of(work.roi, p), *column_weights = weights.columns.of(work.roi, q);
  U sum[n];
#pragma unroll
  for (int j = 0; j < n; ++j) sum[j] = U(0);
  const int32_t top = row_span[0], bottom = row_span[1], left = column_span[0], right = column_span[1];
  if (top <= bottom && left <= right) {  // so the RoI names an image
    const T* map = static_cast<const T*>(level.data) + int64_t(roi[0]) * s.C * level.H * level.W;
    for (int32_t y = top; y <= bottom; ++y) {
      const U row_weight = row_weights[y];
      if (row_weight < U(0)) continue;
      for (int32_t x = left; x <= right; ++x) {
        const U column_weight = column_weights[x];
        if (column_weight < U(0)) continue;
        const U weight = row_weight * column_weight;
        const T* cell = map + (int64_t(y) * level.W + x) * level.map.cell;
#pragma unroll
        for (int j = 0; j < n; ++j) sum[j] += weight * load(cell + work.channel_in(j, s.C) * level.map.channel);
      }
    }
  }
  T* target = output + work.roi * s.C * s.PH * s.PW + work.bin * s.out.cell;
#pragma unroll
  for (int j = 0; j < n; ++j)
    if (work.channel(j) < s.C) store(target + work.channel(j) * s.out.channel, sum[j]);
}

template <class T>
struct WeightSource {
  int64_t C;
  int32_t PH, PW;
  CellStrides out;
  RoiTables tables;
  Weights<Compute<T>> weights;
  const T* grads;

  template <int n>
  __device__ __forceinline__ void add(int64_t k, int32_t y, int32_t x, int32_t, int32_t channel0, int32_t step,
                                      Compute<T> (&acc)[n]) const {
    using U = Compute<T>;
    const uint32_t rows = tables.row_bins[k * tables.H + y], columns = tables.column_bins[k * tables.W + x];
    const T* start = grads + k * C * PH * PW;
    for (uint32_t p = rows & 0xffffu; p <= rows >> 16; ++p) {
      const U row_weight = weights.rows.of(k, int32_t(p))[y];
      for (uint32_t q = columns & 0xffffu; q <= columns >> 16; ++q) {
        const U column_weight = weights.columns.of(k, int32_t(q))[x];
        if (row_weight < U(0) || column_weight < U(0)) continue;
        const U weight = row_weight * column_weight;
        const T* values = start + (int32_t(p) * PW + int32_t(q)) * out.cell;
#pragma unroll
        for (int j = 0; j < n; ++j) {
          const int32_t c = minimum(channel0 + j * step, int32_t(C) - 1);  // beyond the last: not stored
          acc[j] += weight * load(values + c * out.channel);
        }
      }
    }
  }
};

template <class T>
Status align(const RoiAlignShape& shape, const void* const* features, const void* rois, void* workspace, void* output,
             Stream stream) {
  using U = Compute<T>;
  const DeviceShape<U> s = device_shape<U>(shape, features);
  WorkspaceArena arena(workspace);
  const Weights<U> weights = Weights<U>::take(arena, shape);
  const U* boxes = static_cast<const U*>(rois);
  if (shape.precise)
    FF_LAUNCH((precise_weights_kernel<U, Weighs::kForward>), dim3(table_blocks(shape)), dim3(128), 0, stream, s, boxes,
              weights, Slopes<U>{}, RoiTables{});
  else
    FF_LAUNCH((sample_weights_kernel<U, Weighs::kForward>), dim3(table_blocks(shape)), dim3(128), 0, stream, s, boxes,
              weights, Slopes<U>{}, RoiTables{});
  const auto launch = [&](auto kernel, int64_t blocks) {
    FF_LAUNCH(kernel, dim3(unsigned(shape.R * blocks)), dim3(256), 0, stream, s, int32_t(blocks), boxes, weights,
              static_cast<T*>(output));
  };
  // Lanes follow the maps: a number of the output is written once, and has been read for several times by then.
  if (shape.levels[0].channels_last)
    launch(&align_kernel<T, true>, BinWork<true>::blocks(shape.C, shape.PH * shape.PW));
  else
    launch(&align_kernel<T, false>, BinWork<false>::blocks(shape.C, shape.PH * shape.PW));
  return launched();
}

template <class T>
Status align_backward(const RoiAlignShape& shape, const void* grad_output, const void* rois, void* workspace,
                      void* const* grads, Stream stream) {
  using U = Compute<T>;
  const DeviceShape<U> s = device_shape<U>(shape, grads);
  WorkspaceArena arena(workspace);
  const Weights<U> weights = Weights<U>::take(arena, shape);
  const RoiTables tables = take_tables(arena, shape);
  const U* boxes = static_cast<const U*>(rois);
  const dim3 blocks(unsigned(shape.L * shape.B) + table_blocks(shape));
  if (shape.precise)
    FF_LAUNCH((precise_weights_kernel<U, Weighs::kGather>), blocks, dim3(128), 0, stream, s, boxes, weights,
              Slopes<U>{}, tables);
  else
    FF_LAUNCH((sample_weights_kernel<U, Weighs::kGather>), blocks, dim3(128), 0, stream, s, boxes, weights, Slopes<U>{},
              tables);
  const WeightSource<T> source{s.C, s.PH, s.PW, s.out, tables, weights, static_cast<const T*>(grad_output)};
  for (int64_t l = 0; l < shape.L; ++l) {
    GatherShape g{};
    g.C = s.C, g.H = s.levels[l].H, g.W = s.levels[l].W, g.PH = s.PH, g.PW = s.PW;
    g.group0 = l * s.B, g.map = s.levels[l].map;
    FF_TRY(gather(g, shape.levels[l].channels_last, shape.B, tables, source, static_cast<T*>(grads[l]), stream));
  }
  return launched();
}

}  // namespace

size_t roi_align_workspace_cuda(DType dtype, const RoiAlignShape& shape) {
  return visit_compute(dtype, [&](auto tag) {
    WorkspaceArena arena(nullptr);
    Weights<typename decltype(tag)::type>::take(arena, shape);
    return arena.used();
  });
}

Status roi_align_cuda(DType dtype, const RoiAlignShape& shape, const void* const* features, const void* rois,
                      void* workspace, void* output, Stream stream) {
  FF_TRY(check_shape(shape));
  if (shape.R * shape.C * shape.PH * shape.PW == 0) return kOk;
  return visit(dtype, [&](auto tag) {
    return align<typename decltype(tag)::type>(shape, features, rois, workspace, output, stream);
  });
}

size_t roi_align_backward_workspace_cuda(DType dtype, const RoiAlignShape& shape) {
  return visit_compute(dtype, [&](auto tag) {
    WorkspaceArena arena(nullptr);
    Weights<typename decltype(tag)::type>::take(arena, shape);
    take_tables(arena, shape);
    return arena.used();
  });
}

Status roi_align_backward_cuda(DType dtype, const RoiAlignShape& shape, const void* grad_output, const void* rois,
                               void* workspace, void* const* grads, Stream stream) {
  FF_TRY(check_shape(shape));
  if (shape.B * shape.C == 0) return kOk;
  return visit(dtype, [&](auto tag) {
    return align_backward<typename decltype(tag)::type>(shape, grad_output, rois, workspace, grads, stream);
  });
}

}  // namespace frcnn_fast::roi_pool
