// The gradient of precisely pooled RoIs on the CPU. A unit is a RoI: it goes through its channels block by block, and
// through the rows of the map that a row of bins touches, one at a time.
#include "prroi_pool_cpu.h"

namespace frcnn_fast::roi_pool {
namespace {

template <class T>
class RoisBackward {
  using U = Compute<T>;

 public:
  RoisBackward(DType dtype, const RoiAlignShape& shape, const void* grad_output, const void* features, const void* rois,
               void* memory, void* grad_rois)
      : dtype_(dtype),
        s_(shape),
        level_(shape.levels[0]),
        bins_(shape.PH * shape.PW),
        grad_output_(static_cast<const T*>(grad_output)),
        features_(static_cast<const T*>(features)),
        rois_(static_cast<const U*>(rois)),
        grad_rois_(static_cast<U*>(grad_rois)),
        map_(cell_strides(shape.C, level_.H * level_.W, level_.channels_last)),
        out_(cell_strides(shape.C, bins_, shape.output_channels_last)) {
    WorkspaceArena arena(memory);
    cut(arena);
  }

  // Also tells how much the workspace must hold.
  size_t cut(WorkspaceArena& arena) {
    threads_ = max_threads();
    lanes_ = std::min<int64_t>(4 * kBlockLanes, round_up(s_.C, kBlockLanes));
    slices_ = ceil_div(s_.C, kSliceLanes);
    const size_t before = arena.used();
    first_ = arena.take<char>(0);
    take(arena);
    per_thread_ = arena.used() - before;
    return before + per_thread_ * threads_;
  }

  Status run() {
    for (int64_t k = 0; k < s_.R; ++k)
      if (roi_image(roi(k), s_.B) == kBadRoi) return no_such_image("rois", k, roi(k)[0], s_.B);
    const double work = double(s_.R) * double(s_.C) * double(bins_) * 48;
    for_each_unit(s_.R, std::min(threads_, threads_for(work)), [&](int64_t thread, int64_t k) { roi(thread, k); });
    return kOk;
  }

 private:
  struct Scratch {
    ColumnSlopes<U> columns;
    U* row;          // [touched columns][lanes]
    U* grads;        // [PW][lanes]
    U* derivatives;  // [PW][4][lanes]
    U* sums;         // [4][lanes]
    U* parts;        // [PH][4][slices]
  };

  Scratch take(WorkspaceArena& arena) const {
    Scratch scratch{};
    scratch.columns = {arena.take<int32_t>(s_.PW), arena.take<int32_t>(s_.PW + 1), arena.take<U>(s_.PW * level_.W),
                       arena.take<Slope<U>>(s_.PW * level_.W)};
    scratch.row = arena.take<U>(level_.W * lanes_);
    scratch.grads = arena.take<U>(s_.PW * lanes_);
    scratch.derivatives = arena.take<U>(s_.PW * 4 * lanes_);
    scratch.sums = arena.take<U>(4 * lanes_);
    scratch.parts = arena.take<U>(s_.PH * 4 * slices_);
    return scratch;
  }

  const U* roi(int64_t k) const { return rois_ + k * kRoiFields; }

  void roi(int64_t thread, int64_t k) const {
    U* target = grad_rois_ + k * kRoiFields;
    std::fill(target, target + kRoiFields, U(0));
    const int64_t image = roi_image(roi(k), s_.B);
    if (image < 0 || s_.C == 0) return;
    const U scale = U(level_.scale);
    const auto axes = make_axes(roi(k), scale, s_.PH, s_.PW, level_.H, level_.W);
    if (axes.rows.limit == 0) return;
    WorkspaceArena arena(first_ + thread * per_thread_);
    const Scratch scratch = take(arena);
    fill(axes.columns, scratch.columns);
    const T* map = features_ + image * s_.C * level_.H * level_.W;
    for (int64_t c = 0; c < s_.C; c += lanes_)
      for (int32_t p = 0; p < s_.PH; ++p) row_of_bins(axes, k, p, c, map, scratch);
    for (int corner = 0; corner < 4; ++corner) {
      U total = U(0);
      for (int64_t slice = 0; slice < slices_; ++slice)
        for (int64_t p = 0; p < s_.PH; ++p) total += scratch.parts[(p * 4 + corner) * slices_ + slice];
      target[1 + corner] = total * scale;
    }
  }

  void fill(const PreciseAxis<U>& axis, const ColumnSlopes<U>& out) const {
    int32_t n = 0;
    for (int32_t q = 0; q < axis.bins; ++q) {
      const auto bin = axis.bin(q);
      out.first[q] = bin.first;
      out.begin[q] = n;
      for (int32_t cell = bin.first; cell <= bin.last; ++cell, ++n) {
        out.weights[n] = bin.weight(cell);
        out.slopes[n] = bin.slope(cell, out.weights[n]);
      }
    }
    out.begin[axis.bins] = n;
  }

  // A block of channels of one row of bins.
  void row_of_bins(const PreciseAxes<U>& axes, int64_t k, int32_t p, int64_t c, const T* map,
                   const Scratch& scratch) const {
    const int channels = int(std::min(lanes_, s_.C - c));
    const auto bin = axes.rows.bin(p);
    const int32_t left = axes.columns.bin(0).first, right = axes.columns.bin(int32_t(s_.PW) - 1).last;
    std::fill(scratch.derivatives, scratch.derivatives + s_.PW * 4 * lanes_, U(0));
    for (int32_t y = bin.first; y <= bin.last; ++y) {
      FF_ISA_CALL(load_lanes, dtype_, map + c * map_.channel + (y * level_.W + left) * map_.cell, map_, channels,
                  int(lanes_), right - left + 1, scratch.row);
      const U weight = bin.weight(y);
      FF_ISA_CALL(add_row, scratch.row, left, scratch.columns, int32_t(s_.PW), weight, bin.slope(y, weight), lanes_,
                  scratch.derivatives);
    }
    FF_ISA_CALL(load_lanes, dtype_, grad_output_ + k * s_.C * bins_ + c * out_.channel + p * s_.PW * out_.cell, out_,
                channels, int(lanes_), s_.PW, scratch.grads);
    std::fill(scratch.sums, scratch.sums + 4 * lanes_, U(0));
    FF_ISA_CALL(add_bins, scratch.derivatives, scratch.grads, int32_t(s_.PW), lanes_, scratch.sums);
    for (int corner = 0; corner < 4; ++corner)
      for (int64_t lane = 0; lane < channels; lane += kSliceLanes)
        scratch.parts[(p * 4 + corner) * slices_ + (c + lane) / kSliceLanes] =
            folded(scratch.sums + corner * lanes_ + lane, channels - lane);
  }

  // The sum over a slice, of which so many channels are there.
  static U folded(const U* lanes, int64_t channels) {
    U sums[kSliceLanes];
    for (int64_t i = 0; i < kSliceLanes; ++i) sums[i] = i < channels ? lanes[i] : U(0);
    for (int half = kSliceLanes / 2; half > 0; half /= 2)
      for (int i = 0; i < half; ++i) sums[i] += sums[i + half];
    return sums[0];
  }

  DType dtype_;
  const RoiAlignShape& s_;
  RoiAlignLevel level_;
  int64_t bins_;
  const T *grad_output_, *features_;
  const U* rois_;
  U* grad_rois_;
  CellStrides map_, out_;
  int64_t threads_ = 1, lanes_ = 0, slices_ = 0;
  size_t per_thread_ = 0;
  char* first_ = nullptr;
};

}  // namespace

size_t prroi_pool_rois_backward_workspace_cpu(DType dtype, const RoiAlignShape& shape) {
  return visit(dtype, [&](auto tag) {
    WorkspaceArena arena(nullptr);
    using Work = RoisBackward<typename decltype(tag)::type>;
    return Work(dtype, shape, nullptr, nullptr, nullptr, nullptr, nullptr).cut(arena);
  });
}

Status prroi_pool_rois_backward_cpu(DType dtype, const RoiAlignShape& shape, const void* grad_output,
                                    const void* features, const void* rois, void* workspace, void* grad_rois) {
  return visit(dtype, [&](auto tag) {
    using Work = RoisBackward<typename decltype(tag)::type>;
    return Work(dtype, shape, grad_output, features, rois, workspace, grad_rois).run();
  });
}

}  // namespace frcnn_fast::roi_pool
