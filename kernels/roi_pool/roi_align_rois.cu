// The gradient of the RoIs on CUDA, of RoIAlign and of precise RoI pooling, in the order of roi_align.h; the other two
// passes are roi_align.cu's.
//
// Three launches. One writes each RoI's weights and slopes along both axes, cell by cell. In the next a warp has one
// row of bins of one RoI and a slice of 32 channels, lane by lane, and folds what its lanes found: one part. In the
// last a thread has one corner of one RoI and adds up its parts.
#include "precise_weights.cuh"
#include "sample_weights.cuh"

namespace frcnn_fast::roi_pool {
namespace {

constexpr int kCorners = 4;

// Parts of the gradients, [R][slices][PH][corners].
template <class U>
struct Parts {
  U* values;
  int32_t slices;
  int64_t of_roi;

  static Parts take(WorkspaceArena& arena, const RoiAlignShape& s) {
    const int64_t slices = (s.C + kSliceLanes - 1) / kSliceLanes;
    return {arena.take<U>(s.R * slices * s.PH * kCorners), int32_t(slices), slices * s.PH};
  }
};

// Five blocks: left alone the compiler wants to have eight, and spills.
template <class T>
__global__ void __launch_bounds__(128, 5)
    parts_kernel(DeviceShape<Compute<T>> s, const T* __restrict__ grads, const Compute<T>* __restrict__ rois,
                 Weights<Compute<T>> weights, Slopes<Compute<T>> slopes, Parts<Compute<T>> parts) {
  using U = Compute<T>;
  const int64_t item = int64_t(blockIdx.x) * warps_per_block() + warp_id();
  const int64_t k = item / parts.of_roi;
  if (k >= s.R) return;  // the whole warp
  const int64_t image = roi_image(rois + k * kRoiFields, s.B);
  if (image < 0) return;  // its parts are not read
  const int32_t slice = int32_t(item % parts.of_roi) / s.PH, p = int32_t(item % s.PH);
  const int32_t channel = slice * kSliceLanes + lane_id();
  const bool present = channel < FF_MUTANT(precise_channels, s.C, s.C + 1);
  const int64_t c = present ? channel : 0;  // read in its place, and then left out

  const DeviceLevel<U>& level = s.levels[0];
  const T* map = static_cast<const T*>(level.data) + image * s.C * level.H * level.W + c * level.map.channel;
  const T* grad = grads + k * s.C * s.PH * s.PW + c * s.out.channel;
  const int32_t* rows = weights.rows.span(k, p);
  const U* row_weights = weights.rows.of(k, p);
  const Slope<U>* row_slopes = slopes.rows + (row_weights - weights.rows.weights);
  U sums[kCorners] = {U(0), U(0), U(0), U(0)};
  for (int32_t q = 0; q < s.PW; ++q) {
    const int32_t* columns = weights.columns.span(k, q);
    const int32_t left = columns[0], right = columns[1];
    const U* column_weights = weights.columns.of(k, q);
    const Slope<U>* column_slopes = slopes.columns + (column_weights - weights.columns.weights);
    U found[kCorners] = {U(0), U(0), U(0), U(0)};
    for (int32_t y = rows[0]; y <= rows[1]; ++y) {
      const U row_weight = row_weights[y];
      if (row_weight < U(0)) continue;
      U mean = U(0), low = U(0), high = U(0);
      const T* row = map + int64_t(y) * level.W * level.map.cell;
      for (int32_t x = left; x <= right; ++x) {
        // Where a bin does not touch the cell 0 is added, which changes no sum: branches would cost registers.
        const U weight = column_weights[x];
        const bool touched = weight >= U(0);
        const U value = touched ? load(row + x * level.map.cell) : U(0);
        const Slope<U> slope = touched ? column_slopes[x] : Slope<U>{U(0), U(0)};
        mean += weight * value;
        low += slope.low * value;
        high += slope.high * value;
      }
      found[0] += row_weight * low;
      found[1] += row_slopes[y].low * mean;
      found[2] += row_weight * high;
      found[3] += row_slopes[y].high * mean;
    }
    const U here = load(grad + (int64_t(p) * s.PW + q) * s.out.cell);
#pragma unroll
    for (int corner = 0; corner < kCorners; ++corner) sums[corner] += here * found[corner];
  }
  U* target = parts.values + item * kCorners;
#pragma unroll
  for (int corner = 0; corner < kCorners; ++corner) {
    const U total = warp_reduce(present ? sums[corner] : U(0), Plus());
    if (lane_id() == 0) target[corner] = total;
  }
}

template <class U, bool kPrecise>
__global__ void __launch_bounds__(128)
    totals_kernel(DeviceShape<U> s, const U* __restrict__ rois, Parts<U> parts, U* __restrict__ grad_rois) {
  const int64_t item = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t k = item / kCorners;
  if (k >= s.R) return;
  const int32_t corner = int32_t(item % kCorners);
  const U* roi = rois + k * kRoiFields;
  const DeviceLevel<U>& level = s.levels[0];
  bool pools = roi_image(roi, s.B) >= 0 && level.H > 0 && level.W > 0;
  if (kPrecise) {
    const auto axes = make_axes(roi, level.scale, int64_t(s.PH), int64_t(s.PW), int64_t(level.H), int64_t(level.W));
    pools = pools && FF_MUTANT(precise_totals, axes.rows.limit > 0, true);
  } else {
    pools = pools && FF_MUTANT(align_totals, roi_is_finite(roi), true);
  }
  U total = U(0);
  if (pools) {
    const U* found = parts.values + k * parts.of_roi * kCorners + corner;
    for (int64_t i = 0; i < parts.of_roi; ++i) total += found[i * kCorners];
  }
  U* target = grad_rois + k * kRoiFields;
  target[1 + corner] = pools ? total * level.scale : U(0);
  if (corner == 0) target[0] = U(0);
}

template <class T>
Status rois_backward(const RoiAlignShape& shape, const void* grad_output, const void* features, const void* rois,
                     void* workspace, void* grad_rois, Stream stream) {
  using U = Compute<T>;
  const DeviceShape<U> s = device_shape<U>(shape, &features);
  WorkspaceArena arena(workspace);
  const Weights<U> weights = Weights<U>::take(arena, shape);
  const Slopes<U> slopes = Slopes<U>::take(arena, shape);
  const Parts<U> parts = Parts<U>::take(arena, shape);
  const U* boxes = static_cast<const U*>(rois);
  if (parts.of_roi > 0 && shape.B > 0) {
    const auto weigh = [&](auto kernel) {
      FF_LAUNCH(kernel, dim3(table_blocks(shape)), dim3(128), 0, stream, s, boxes, weights, slopes, RoiTables{});
    };
    if (shape.precise)
      weigh(&precise_weights_kernel<U, Weighs::kSlopes>);
    else
      weigh(&sample_weights_kernel<U, Weighs::kSlopes>);
    FF_LAUNCH(parts_kernel<T>, dim3(blocks_for(shape.R * parts.of_roi, 4)), dim3(128), 0, stream, s,
              static_cast<const T*>(grad_output), boxes, weights, slopes, parts);
  }
  const auto add_up = [&](auto kernel) {
    FF_LAUNCH(kernel, dim3(blocks_for(shape.R * kCorners, 128)), dim3(128), 0, stream, s, boxes, parts,
              static_cast<U*>(grad_rois));
  };
  if (shape.precise)
    add_up(&totals_kernel<U, true>);
  else
    add_up(&totals_kernel<U, false>);
  return launched();
}

}  // namespace

size_t roi_align_rois_backward_workspace_cuda(DType dtype, const RoiAlignShape& shape) {
  return visit_compute(dtype, [&](auto tag) {
    using U = typename decltype(tag)::type;
    WorkspaceArena arena(nullptr);
    Weights<U>::take(arena, shape);
    Slopes<U>::take(arena, shape);
    Parts<U>::take(arena, shape);
    return arena.used();
  });
}

Status roi_align_rois_backward_cuda(DType dtype, const RoiAlignShape& shape, const void* grad_output,
                                    const void* features, const void* rois, void* workspace, void* grad_rois,
                                    Stream stream) {
  FF_TRY(check_shape(shape));
  if (shape.R == 0) return kOk;
  return visit(dtype, [&](auto tag) {
    return rois_backward<typename decltype(tag)::type>(shape, grad_output, features, rois, workspace, grad_rois,
                                                       stream);
  });
}

}  // namespace frcnn_fast::roi_pool
