// RoIAlign's maxima on the CPU. Forward: a unit is a block of channels of one image, brought into [cells][lanes] order
// once for a share of its RoIs. Backward: a unit is a channel of one image, which goes through the image's RoIs in
// order, so every cell is added to in that order.
#include "roi_align_max_cpu.h"

#include "roi_align_cpu.h"

namespace frcnn_fast::roi_pool {
namespace {

template <class T>
class AlignMax {
  using U = Compute<T>;

 public:
  AlignMax(DType dtype, const RoiAlignShape& shape, const void* input, const void* rois, void* memory, void* output,
           void* argmax_y, void* argmax_x)
      : dtype_(dtype),
        s_(shape),
        level_(shape.levels[0]),
        bins_(shape.PH * shape.PW),
        input_(static_cast<const T*>(input)),
        geometry_(shape, rois),
        output_(static_cast<T*>(output)),
        argmax_y_(static_cast<U*>(argmax_y)),
        argmax_x_(static_cast<U*>(argmax_x)),
        map_(cell_strides(shape.C, level_.H * level_.W, level_.channels_last)),
        out_(cell_strides(shape.C, bins_, shape.output_channels_last)),
        streamed_(are_streamed(output_, shape.R * shape.C * bins_)) {
    WorkspaceArena arena(memory);
    cut(arena);
  }

  // Also tells how much the workspace must hold.
  size_t cut(WorkspaceArena& arena) {
    threads_ = max_threads();
    lanes_ = block_lanes(s_.C, level_.H * level_.W, sizeof(U), s_.B);
    groups_ = RoiGroups::take(arena, 1, s_.B, s_.R);
    const size_t before = arena.used();
    first_ = arena.take<char>(0);
    take(arena);
    per_thread_ = arena.used() - before;
    return before + per_thread_ * threads_;
  }

  Status run() {
    FF_TRY(geometry_.group(&groups_));
    expect_writes(output_, s_.R * s_.C * bins_);
    if (argmax_y_) {
      expect_writes(argmax_y_, s_.R * s_.C * bins_);
      expect_writes(argmax_x_, s_.R * s_.C * bins_);
    }
    for (int64_t k = 0; k < s_.R; ++k)
      if (groups_.group[k] < 0) clear(k);
    if (groups_.grouped == 0 || s_.C == 0) return kOk;
    const int64_t threads = std::min(threads_, threads_for(double(groups_.grouped) * s_.C * bins_ * 16));
    const int64_t blocks = ceil_div(s_.C, lanes_);
    const int64_t parts = std::max<int64_t>(1, std::min(threads / (s_.B * blocks), groups_.grouped / s_.B / 8));
    for_each_unit(s_.B * blocks * parts, threads, [&](int64_t thread, int64_t unit) {
      pool(thread, unit / parts / blocks, unit / parts % blocks * lanes_, unit % parts, parts);
    });
    return kOk;
  }

 private:
  struct Scratch {
    U *tile, *best, *y, *x;  // [cells][lanes], and three of [bins][lanes]
    int32_t *at_y, *at_x;    // [lanes]
  };

  Scratch take(WorkspaceArena& arena) const {
    Scratch scratch{};
    scratch.tile = arena.take<U>(level_.H * level_.W * lanes_);
    scratch.best = arena.take<U>(bins_ * lanes_);
    scratch.y = arena.take<U>(bins_ * lanes_);
    scratch.x = arena.take<U>(bins_ * lanes_);
    scratch.at_y = arena.take<int32_t>(lanes_);
    scratch.at_x = arena.take<int32_t>(lanes_);
    return scratch;
  }

  // A RoI of no image.
  void clear(int64_t k) const {
    const int64_t n = s_.C * bins_;
    std::fill(output_ + k * n, output_ + (k + 1) * n, T{});
    if (!argmax_y_) return;
    std::fill(argmax_y_ + k * n, argmax_y_ + (k + 1) * n, U(NAN));
    std::fill(argmax_x_ + k * n, argmax_x_ + (k + 1) * n, U(NAN));
  }

  void pool(int64_t thread, int64_t b, int64_t c, int64_t part, int64_t parts) const {
    const int64_t members = groups_.size(b);
    const int32_t* first = groups_.begin(b) + members * part / parts;
    const int32_t* last = groups_.begin(b) + members * (part + 1) / parts;
    if (first == last) return;
    WorkspaceArena arena(first_ + thread * per_thread_);
    const Scratch scratch = take(arena);
    const int channels = int(std::min(lanes_, s_.C - c));
    FF_ISA_CALL(load_lanes, dtype_, input_ + b * s_.C * level_.H * level_.W + c * map_.channel, map_, channels,
                int(lanes_), level_.H * level_.W, scratch.tile);
    for (const int32_t* k = first; k < last; ++k) {
      pool_roi(geometry_.roi(*k), scratch);
      const int64_t at = *k * s_.C * bins_ + c * out_.channel;
      FF_ISA_CALL(store_lanes, dtype_, scratch.best, channels, int(lanes_), bins_, out_, streamed_, output_ + at);
      if (!argmax_y_) continue;
      const DType own = sizeof(U) == 8 ? DType::kFloat64 : DType::kFloat32;
      FF_ISA_CALL(store_lanes, own, scratch.y, channels, int(lanes_), bins_, out_, streamed_, argmax_y_ + at);
      FF_ISA_CALL(store_lanes, own, scratch.x, channels, int(lanes_), bins_, out_, streamed_, argmax_x_ + at);
    }
  }

  void pool_roi(const U* roi, const Scratch& scratch) const {
    const U scale = U(level_.scale);
    auto rows = make_samples(roi[2], roi[4], scale, s_.aligned, s_.PH, s_.sampling_ratio, level_.H);
    auto columns = make_samples(roi[1], roi[3], scale, s_.aligned, s_.PW, s_.sampling_ratio, level_.W);
    if (!roi_is_finite(roi)) rows.count = columns.count = 0;
    for (int32_t p = 0; p < s_.PH; ++p)
      for (int32_t q = 0; q < s_.PW; ++q) {
        const BinSamples<U> bin = {rows, columns, p, q, SampleGrid<U>(rows, p, columns, q)};
        const int64_t at = (p * s_.PW + q) * lanes_;
        FF_ISA_CALL(largest_samples, scratch.tile, level_.W, lanes_, bin, scratch.best + at, scratch.at_y,
                    scratch.at_x);
        for (int64_t i = 0; i < lanes_; ++i) {
          const LargestSample<U> found =
              bin.grid.with_outside({scratch.best[at + i], scratch.at_y[i], scratch.at_x[i]});
          scratch.best[at + i] = found.value;
          scratch.y[at + i] = sample_place(rows, p, found.y);
          scratch.x[at + i] = sample_place(columns, q, found.x);
        }
      }
  }

  DType dtype_;
  const RoiAlignShape& s_;
  RoiAlignLevel level_;
  int64_t bins_;
  const T* input_;
  RoiGeometry<U> geometry_;
  T* output_;
  U *argmax_y_, *argmax_x_;
  CellStrides map_, out_;
  bool streamed_;
  int64_t threads_ = 1, lanes_ = 0;
  size_t per_thread_ = 0;
  char* first_ = nullptr;
  RoiGroups groups_{};
};

// Planes of sums, one a thread; where a plane of the gradient is one already, that is used.
template <class T>
constexpr bool sums_in_place(bool channels_last) {
  return !channels_last && std::is_same<T, Compute<T>>::value;
}

template <class T>
Status align_max_backward(const RoiAlignShape& s, const T* grad_output, const void* argmax_y, const void* argmax_x,
                          const void* rois, void* memory, T* grad_input) {
  using U = Compute<T>;
  const RoiAlignLevel& level = s.levels[0];
  const int64_t cells = level.H * level.W, bins = s.PH * s.PW;
  const bool in_place = sums_in_place<T>(level.channels_last);
  WorkspaceArena arena(memory);
  RoiGroups groups = RoiGroups::take(arena, 1, s.B, s.R);
  U* planes = arena.take<U>(in_place ? 0 : cells * max_threads());
  FF_TRY(RoiGeometry<U>(s, rois).group(&groups));
  const CellStrides map = cell_strides(s.C, cells, level.channels_last);
  const CellStrides place = cell_strides(s.C, bins, level.channels_last);
  const CellStrides from = cell_strides(s.C, bins, s.output_channels_last);
  expect_writes(grad_input, s.B * s.C * cells);
  const double work = double(groups.grouped) * s.C * bins * 16 + double(s.B) * s.C * cells / 4;
  for_each_unit(s.B * s.C, threads_for(work), [&](int64_t thread, int64_t unit) {
    const int64_t b = unit / s.C, c = unit % s.C;
    T* target = grad_input + b * s.C * cells + c * map.channel;
    U* sums = in_place ? reinterpret_cast<U*>(target) : planes + thread * cells;
    std::fill(sums, sums + cells, U(0));
    for (const int32_t* k = groups.begin(b); k < groups.end(b); ++k) {
      const int64_t first = *k * s.C * bins;
      const U* at_y = static_cast<const U*>(argmax_y) + first + c * place.channel;
      const U* at_x = static_cast<const U*>(argmax_x) + first + c * place.channel;
      const T* gradients = grad_output + first + c * from.channel;
      for (int64_t bin = 0; bin < bins; ++bin) {
        const U y = at_y[bin * place.cell], x = at_x[bin * place.cell];
        Sample<U> row, column;
        if (below_map(y) || below_map(x)) continue;
        if (!sample_at(y, int32_t(level.H), &row) || !sample_at(x, int32_t(level.W), &column)) continue;
        const U gradient = load(gradients + bin * from.cell);
        const auto add = [&](int32_t i, U down) {
          sums[i * level.W + column.low] += (down * (U(1) - column.fraction)) * gradient;
          if (column.high != column.low) sums[i * level.W + column.high] += (down * column.fraction) * gradient;
        };
        add(row.low, U(1) - row.fraction);
        if (row.high != row.low) add(row.high, row.fraction);
      }
    }
    if (in_place) return;
    for (int64_t i = 0; i < cells; ++i) store(target + i * map.cell, sums[i]);
  });
  return kOk;
}

}  // namespace

size_t roi_align_max_workspace_cpu(DType dtype, const RoiAlignShape& shape) {
  return visit(dtype, [&](auto tag) {
    WorkspaceArena arena(nullptr);
    using Work = AlignMax<typename decltype(tag)::type>;
    return Work(dtype, shape, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr).cut(arena);
  });
}

Status roi_align_max_cpu(DType dtype, const RoiAlignShape& shape, const void* input, const void* rois, void* workspace,
                         void* output, void* argmax_y, void* argmax_x) {
  FF_TRY(check_align_shape(shape));
  return visit(dtype, [&](auto tag) {
    using Work = AlignMax<typename decltype(tag)::type>;
    return Work(dtype, shape, input, rois, workspace, output, argmax_y, argmax_x).run();
  });
}

size_t roi_align_max_backward_workspace_cpu(DType dtype, const RoiAlignShape& shape) {
  WorkspaceArena arena(nullptr);
  RoiGroups::take(arena, 1, shape.B, shape.R);
  const RoiAlignLevel& level = shape.levels[0];
  visit(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    arena.take<Compute<T>>(sums_in_place<T>(level.channels_last) ? 0 : level.H * level.W * max_threads());
  });
  return arena.used();
}

Status roi_align_max_backward_cpu(DType dtype, const RoiAlignShape& shape, const void* grad_output,
                                  const void* argmax_y, const void* argmax_x, const void* rois, void* workspace,
                                  void* grad_input) {
  FF_TRY(check_align_shape(shape));
  return visit(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    return align_max_backward(shape, static_cast<const T*>(grad_output), argmax_y, argmax_x, rois, workspace,
                              static_cast<T*>(grad_input));
  });
}

}  // namespace frcnn_fast::roi_pool
