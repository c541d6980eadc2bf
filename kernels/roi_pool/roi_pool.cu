// RoIPool on CUDA. Forward: one launch, a thread takes the maxima of one bin for four channels (see BinWork), reading
// the map through the caches. Backward: a gather (see roi_gather.cuh).
#include "roi_gather.cuh"
#include "roi_pool.h"

namespace frcnn_fast {
namespace {

struct PoolShape {
  int64_t B, C;
  int32_t H, W, P, Q;
  CellStrides map, out;
};

PoolShape device_shape(const RoiPoolShape& s) {
  return {s.B,
          s.C,
          int32_t(s.H),
          int32_t(s.W),
          int32_t(s.P),
          int32_t(s.Q),
          cell_strides(s.C, s.H * s.W, s.channels_last),
          cell_strides(s.C, s.P * s.Q, s.channels_last)};
}

template <class T, bool kLast, bool kArgmax>
__global__ void __launch_bounds__(256)
    pool_kernel(PoolShape s, int32_t blocks_per_roi, const T* __restrict__ input, const Compute<T>* __restrict__ rois,
                Compute<T> scale, T* __restrict__ output, int32_t* __restrict__ argmax) {
  using U = Compute<T>;
  using Work = BinWork<kLast>;
  constexpr int n = Work::kChannels;
  const Work work(blocks_per_roi, int32_t(s.C), s.P * s.Q);
  if (!work.any) return;
  const U* roi = rois + work.roi * kRoiFields;
  const int64_t image = roi_image(roi, s.B);
  BinAxis<U> rows, columns;
  bool present = image >= 0;
  present = make_bins(roi[2], roi[4], scale, int64_t(s.P), int64_t(s.H), &rows) && present;
  present = make_bins(roi[1], roi[3], scale, int64_t(s.Q), int64_t(s.W), &columns) && present;
  const int32_t p = work.bin / s.Q, q = work.bin % s.Q;
  const int32_t top = rows.begin(p), bottom = rows.end(p), left = columns.begin(q), right = columns.end(q);
  const bool empty = !present || top >= bottom || left >= right;

  // NaN: nothing yet, so that -inf counts and NaN does not.
  U best[n];
  int32_t place[n];
#pragma unroll
  for (int j = 0; j < n; ++j) {
    best[j] = empty ? U(0) : FF_MUTANT(roi_all_nan, U(NAN), U(-INFINITY));
    place[j] = -1;
  }
  if (!empty) {
    const T* map = input + image * s.C * s.H * s.W;
    for (int32_t y = top; y < bottom; ++y) {
      for (int32_t x = left; x < right; ++x) {
        const T* cell = map + (int64_t(y) * s.W + x) * s.map.cell;
#pragma unroll
        for (int j = 0; j < n; ++j) {
          const U value = load(cell + work.channel_in(j, s.C) * s.map.channel);
          const bool first = best[j] != best[j] && FF_MUTANT(roi_minus_inf, value == value, value > U(-INFINITY));
          if (first || FF_MUTANT(roi_first_max, value > best[j], value >= best[j])) {
            best[j] = value;
            place[j] = y * s.W + x;
          }
        }
      }
    }
  }
  const int64_t target = work.roi * s.C * s.P * s.Q + work.bin * s.out.cell;
#pragma unroll
  for (int j = 0; j < n; ++j) {
    if (work.channel(j) >= s.C) continue;
    store(output + target + work.channel(j) * s.out.channel, best[j]);
    if (kArgmax) argmax[target + work.channel(j) * s.out.channel] = place[j];
  }
}

template <class T>
Status pool(const RoiPoolShape& shape, const void* input, const void* rois, double scale, void* output, int32_t* argmax,
            Stream stream) {
  using U = Compute<T>;
  const int64_t blocks = shape.channels_last ? BinWork<true>::blocks(shape.C, shape.P * shape.Q)
                                             : BinWork<false>::blocks(shape.C, shape.P * shape.Q);
  const auto launch = [&](auto kernel) {
    FF_LAUNCH(kernel, dim3(unsigned(shape.K * blocks)), dim3(256), 0, stream, device_shape(shape), int32_t(blocks),
              static_cast<const T*>(input), static_cast<const U*>(rois), U(scale), static_cast<T*>(output), argmax);
  };
  if (shape.channels_last)
    argmax ? launch(&pool_kernel<T, true, true>) : launch(&pool_kernel<T, true, false>);
  else
    argmax ? launch(&pool_kernel<T, false, true>) : launch(&pool_kernel<T, false, false>);
  return launched();
}

// The first B blocks list the images' RoIs; then each warp has one axis of one RoI: its lanes take the cells, and the
// bins are computed anew for each.
template <class U>
__global__ void __launch_bounds__(128)
    pool_tables_kernel(PoolShape s, const U* __restrict__ rois, U scale, RoiTables tables) {
  if (blockIdx.x < s.B) {
    list_members(rois, int64_t(blockIdx.x), [&](const U* roi) { return roi_image(roi, s.B); }, tables);
    return;
  }
  const int64_t item = (int64_t(blockIdx.x) - s.B) * warps_per_block() + warp_id();
  const int64_t k = item / 2;
  if (k >= tables.K) return;
  const bool of_rows = item % 2 == 0;
  const U* roi = rois + k * kRoiFields;
  BinAxis<U> axis, other;
  bool present = roi_image(roi, s.B) >= 0;
  present = make_bins(roi[of_rows ? 2 : 1], roi[of_rows ? 4 : 3], scale, int64_t(of_rows ? s.P : s.Q),
                      int64_t(of_rows ? s.H : s.W), &axis) &&
            present;
  present = make_bins(roi[of_rows ? 1 : 2], roi[of_rows ? 3 : 4], scale, int64_t(of_rows ? s.Q : s.P),
                      int64_t(of_rows ? s.W : s.H), &other) &&
            present;
  const int32_t bins = of_rows ? s.P : s.Q;
  const int32_t begin = present ? axis.begin(0) : 0, end = present ? axis.end(bins - 1) : 0;
  if (lane_id() == 0) {
    int32_t* window = tables.windows + 4 * k + (of_rows ? 0 : 2);
    window[0] = begin;
    window[1] = end;
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
  PoolShape s;
  RoiTables tables;
  const T* grads;
  const int32_t* argmax;
  CellStrides from;  // of grads; argmax has s.out

  template <int n>
  __device__ __forceinline__ void add(int64_t k, int32_t y, int32_t x, int32_t cell, int32_t channel0, int32_t step,
                                      Compute<T> (&acc)[n]) const {
    using U = Compute<T>;
    const uint32_t rows = tables.row_bins[k * tables.H + y], columns = tables.column_bins[k * tables.W + x];
    const int64_t start = k * s.C * s.P * s.Q;
    for (uint32_t p = rows & 0xffffu; p <= rows >> 16; ++p) {
      for (uint32_t q = columns & 0xffffu; q <= columns >> 16; ++q) {
        const int32_t bin = int32_t(p) * s.Q + int32_t(q);
        const int32_t* places = argmax + start + bin * s.out.cell;
        const T* values = grads + start + bin * from.cell;
#pragma unroll
        for (int j = 0; j < n; ++j) {
          const int32_t c = minimum(channel0 + j * step, int32_t(s.C) - 1);
          // Adding 0 to a sum that began as 0 changes nothing, and needs no branch.
          const U value = load(values + c * from.channel);
          acc[j] += places[c * s.out.channel] == cell ? value : U(0);
        }
      }
    }
  }
};

template <class T>
Status pool_backward(const RoiPoolShape& shape, const void* grad_output, bool grad_output_channels_last,
                     const int32_t* argmax, const void* rois, double scale, void* workspace, void* grad_input,
                     Stream stream) {
  using U = Compute<T>;
  const PoolShape s = device_shape(shape);
  Carver carver(workspace);
  const RoiTables tables = RoiTables::take(carver, shape.B, shape.K, shape.H, shape.W);
  if (shape.B == 0) return kOk;
  FF_LAUNCH(pool_tables_kernel<U>, dim3(unsigned(shape.B) + blocks_for(2 * shape.K, 4)), dim3(128), 0, stream, s,
            static_cast<const U*>(rois), U(scale), tables);
  const ArgmaxSource<T> source{s, tables, static_cast<const T*>(grad_output), argmax,
                               cell_strides(shape.C, shape.P * shape.Q, grad_output_channels_last)};
  GatherShape g{};
  g.C = s.C, g.H = s.H, g.W = s.W, g.P = s.P, g.Q = s.Q, g.map = s.map;
  return gather(g, shape.channels_last, shape.B, tables, source, static_cast<T*>(grad_input), stream);
}

Status check_shape(const RoiPoolShape& s) {
  if (s.H * s.W > INT32_MAX || s.C > INT32_MAX / 64)
    return invalid("input: a map of %lld channels of %lld x %lld cells is too large", (long long)s.C, (long long)s.H,
                   (long long)s.W);
  if (s.P > kMaxBins || s.Q > kMaxBins || s.P * s.Q * s.C > INT32_MAX)
    return invalid("output_size: %lld x %lld bins are too many", (long long)s.P, (long long)s.Q);
  return kOk;
}

}  // namespace

Status roi_pool_cuda(DType dtype, const RoiPoolShape& shape, const void* input, const void* rois, double scale,
                     void* output, int32_t* argmax, Stream stream) {
  FF_TRY(check_shape(shape));
  if (shape.K * shape.C == 0) return kOk;
  return visit(dtype, [&](auto tag) {
    return pool<typename decltype(tag)::type>(shape, input, rois, scale, output, argmax, stream);
  });
}

size_t roi_pool_backward_workspace_cuda(DType, const RoiPoolShape& shape) {
  Carver carver(nullptr);
  RoiTables::take(carver, shape.B, shape.K, shape.H, shape.W);
  return carver.used();
}

Status roi_pool_backward_cuda(DType dtype, const RoiPoolShape& shape, const void* grad_output,
                              bool grad_output_channels_last, const int32_t* argmax, const void* rois, double scale,
                              void* workspace, void* grad_input, Stream stream) {
  FF_TRY(check_shape(shape));
  return visit(dtype, [&](auto tag) {
    return pool_backward<typename decltype(tag)::type>(shape, grad_output, grad_output_channels_last, argmax, rois,
                                                       scale, workspace, grad_input, stream);
  });
}

}  // namespace frcnn_fast
