// The gradient of the RoIs on the CPU, of RoIAlign and of precise RoI pooling. A unit is a RoI: it goes through its
// channels block by block, and through the rows of the map that a row of bins touches, one at a time.
#include "roi_align_rois_cpu.h"

#include "roi_align_cpu.h"

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
        geometry_(shape, rois),
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
    const char* name = s_.precise ? "rois" : "boxes";
    for (int64_t k = 0; k < s_.R; ++k)
      if (roi_image(geometry_.roi(k), s_.B) == kBadRoi) return no_such_image(name, k, geometry_.roi(k)[0], s_.B);
    const double work = double(s_.R) * double(s_.C) * double(bins_) * 48;
    for_each_unit(s_.R, std::min(threads_, threads_for(work)), [&](int64_t thread, int64_t k) { roi(thread, k); });
    return kOk;
  }

 private:
  struct Scratch {
    RoiWeights<U> weights;
    TouchedCells columns;
    U* row;          // [touched columns][lanes]
    U* grads;        // [PW][lanes]
    U* derivatives;  // [PW][4][lanes]
    U* sums;         // [4][lanes]
    U* parts;        // [PH][4][slices]
  };

  Scratch take(WorkspaceArena& arena) const {
    Scratch scratch{};
    scratch.weights = geometry_.take(arena, true);
    scratch.columns = TouchedCells::take(arena, level_.W);
    scratch.row = arena.take<U>(level_.W * lanes_);
    scratch.grads = arena.take<U>(s_.PW * lanes_);
    scratch.derivatives = arena.take<U>(s_.PW * 4 * lanes_);
    scratch.sums = arena.take<U>(4 * lanes_);
    scratch.parts = arena.take<U>(s_.PH * 4 * slices_);
    return scratch;
  }

  void roi(int64_t thread, int64_t k) const {
    U* target = grad_rois_ + k * kRoiFields;
    std::fill(target, target + kRoiFields, U(0));
    const int64_t image = roi_image(geometry_.roi(k), s_.B);
    if (image < 0 || s_.C * level_.H * level_.W == 0) return;
    WorkspaceArena arena(first_ + thread * per_thread_);
    Scratch scratch = take(arena);
    if (!geometry_.find(k, 0, scratch.weights)) return;
    // Only the columns that a bin touches are brought in; the weights then name their places.
    scratch.columns.gather(scratch.weights.columns, s_.PW, int32_t(level_.W), kBlockLanes, kSparse);
    const T* map = features_ + image * s_.C * level_.H * level_.W;
    for (int64_t c = 0; c < s_.C; c += lanes_)
      for (int32_t p = 0; p < s_.PH; ++p) row_of_bins(k, p, c, map, scratch);
    for (int corner = 0; corner < 4; ++corner) {
      U total = U(0);
      for (int64_t slice = 0; slice < slices_; ++slice)
        for (int64_t p = 0; p < s_.PH; ++p) total += scratch.parts[(p * 4 + corner) * slices_ + slice];
      target[1 + corner] = total * U(level_.scale);
    }
  }

  // A block of channels of one row of bins.
  void row_of_bins(int64_t k, int32_t p, int64_t c, const T* map, const Scratch& scratch) const {
    const int channels = int(std::min(lanes_, s_.C - c));
    const AxisWeights<U>& rows = scratch.weights.rows;
    std::fill(scratch.derivatives, scratch.derivatives + s_.PW * 4 * lanes_, U(0));
    for (int32_t i = rows.begin[p]; i < rows.begin[p + 1]; ++i) {
      const T* row = map + c * map_.channel + rows.cells[i] * level_.W * map_.cell;
      scratch.columns.load(dtype_, row, map_, channels, lanes_, scratch.row);
      FF_ISA_CALL(add_row, scratch.row, scratch.weights.columns, int32_t(s_.PW), rows.weights[i], rows.slopes[i],
                  lanes_, scratch.derivatives);
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
  RoiGeometry<U> geometry_;
  U* grad_rois_;
  CellStrides map_, out_;
  int64_t threads_ = 1, lanes_ = 0, slices_ = 0;
  size_t per_thread_ = 0;
  char* first_ = nullptr;
};

}  // namespace

size_t roi_align_rois_backward_workspace_cpu(DType dtype, const RoiAlignShape& shape) {
  return visit(dtype, [&](auto tag) {
    WorkspaceArena arena(nullptr);
    using Work = RoisBackward<typename decltype(tag)::type>;
    return Work(dtype, shape, nullptr, nullptr, nullptr, nullptr, nullptr).cut(arena);
  });
}

Status roi_align_rois_backward_cpu(DType dtype, const RoiAlignShape& shape, const void* grad_output,
                                   const void* features, const void* rois, void* workspace, void* grad_rois) {
  FF_TRY(check_align_shape(shape));
  return visit(dtype, [&](auto tag) {
    using Work = RoisBackward<typename decltype(tag)::type>;
    return Work(dtype, shape, grad_output, features, rois, workspace, grad_rois).run();
  });
}

}  // namespace frcnn_fast::roi_pool
