// RoIAlign on the CPU, backward. A unit is a block of channels of a band of rows of one image of one level; it goes
// through the image's RoIs in order, so every cell is added to in that order, whoever does it.
#include "roi_align_cpu.h"

namespace frcnn_fast::roi_pool {
namespace {

template <class T>
class AlignBackward {
  using U = Compute<T>;
  static constexpr bool kConverted = !std::is_same<T, U>::value;

 public:
  AlignBackward(DType dtype, const RoiAlignShape& shape, const void* grad_output, const void* rois, void* memory,
                void* const* grads)
      : dtype_(dtype),
        s_(shape),
        bins_(shape.PH * shape.PW),
        grad_output_(static_cast<const T*>(grad_output)),
        grads_(grads),
        geometry_(shape, rois) {
    WorkspaceArena arena(memory);
    cut(arena);
    out_ = cell_strides(s_.C, bins_, s_.output_channels_last);
  }

  size_t cut(WorkspaceArena& arena) {
    threads_ = max_threads();
    tile_size_ = 0;
    for (int64_t l = 0; l < s_.L; ++l) {
      plans_[l] = plan(s_.levels[l]);
      if (!plans_[l].direct) tile_size_ = std::max(tile_size_, plans_[l].lanes * plans_[l].rows * s_.levels[l].W);
    }
    groups_ = RoiGroups::take(arena, s_.L, s_.B, s_.R);
    row_spans_ = arena.take<int32_t>(2 * s_.R);
    const size_t before = arena.used();
    first_ = arena.take<char>(0);
    take(arena);
    per_thread_ = arena.used() - before;
    return before + per_thread_ * threads_;
  }

  Status run() {
    FF_TRY(geometry_.group(&groups_));
    if (s_.C == 0) return kOk;
    find_row_spans();
    for (int64_t l = 0; l < s_.L; ++l) {
      const RoiAlignLevel& level = s_.levels[l];
      const Plan& plan = plans_[l];
      const int64_t members = groups_.starts[(l + 1) * s_.B] - groups_.starts[l * s_.B];
      expect_writes(static_cast<T*>(grads_[l]), s_.B * s_.C * level.H * level.W);
      const int64_t blocks = ceil_div(s_.C, plan.lanes), bands = ceil_div(level.H, plan.rows);
      const double work = double(s_.C) * (double(members) * bins_ * 16 + double(s_.B) * level.H * level.W);
      for_each_unit(s_.B * blocks * bands, std::min(threads_, threads_for(work)), [&](int64_t thread, int64_t unit) {
        scatter(thread, l, unit / bands / blocks, unit / bands % blocks * plan.lanes, unit % bands * plan.rows);
      });
    }
    return kOk;
  }

 private:
  struct Plan {
    bool direct;  // the gradient itself is the tile
    int64_t lanes, rows;
  };
  struct Scratch {
    U* tile;
    U* grads;
    RoiWeights<U> weights;
  };

  Plan plan(const RoiAlignLevel& level) const {
    const int64_t row = std::max<int64_t>(1, level.W * int64_t(sizeof(U)));
    // A RoI that several bands share is prepared once for each.
    const int64_t worthwhile = std::min<int64_t>(level.H, 32);
    int64_t lanes = 4 * kBlockLanes;
    while (lanes > kBlockLanes && (lanes / 2 >= s_.C || kTileBytes / (row * lanes) < worthwhile ||
                                   s_.B * ceil_div(s_.C, lanes) < 2 * max_threads()))
      lanes /= 2;
    const int64_t rows = std::max<int64_t>(1, std::min<int64_t>(level.H, kTileBytes / (row * lanes)));
    return {false, lanes, rows};
  }

  Scratch take(WorkspaceArena& arena) const {
    Scratch scratch{};
    scratch.tile = arena.take<U>(tile_size_);
    scratch.grads = arena.take<U>(bins_ * 4 * kBlockLanes);
    scratch.weights = geometry_.take(arena);
    return scratch;
  }
  Scratch scratch_of(int64_t thread) const {
    WorkspaceArena arena(first_ + thread * per_thread_);
    return take(arena);
  }

  void find_row_spans() {
    const int64_t first = groups_.starts[0];
    for_each_unit(groups_.grouped, std::min(threads_, threads_for(double(groups_.grouped) * 1000)),
                  [&](int64_t thread, int64_t i) {
                    Scratch scratch = scratch_of(thread);
                    const int32_t k = groups_.order[first + i];
                    geometry_.find_rows(k, groups_.group[k] / s_.B, scratch.weights);
                    row_spans_[2 * k] = scratch.weights.first_row;
                    row_spans_[2 * k + 1] = scratch.weights.last_row;
                  });
  }

  void scatter(int64_t thread, int64_t l, int64_t b, int64_t c, int64_t row0) {
    const RoiAlignLevel& level = s_.levels[l];
    const Plan& plan = plans_[l];
    Scratch scratch = scratch_of(thread);
    const int channels = int(std::min(plan.lanes, s_.C - c));
    const int32_t row1 = int32_t(std::min(level.H, row0 + plan.rows));
    const CellStrides map = cell_strides(s_.C, level.H * level.W, level.channels_last);
    T* target = static_cast<T*>(grads_[l]) + b * s_.C * level.H * level.W + c * map.channel + row0 * level.W * map.cell;
    const int64_t cells = (row1 - row0) * level.W;
    Tile<U> tile{scratch.tile, level.W * plan.lanes, plan.lanes, int32_t(row0), row1, 0};
    if (plan.direct) {
      tile.data = reinterpret_cast<U*>(target);
      tile.row_stride = level.W * s_.C;
      tile.cell_stride = s_.C;
      for (int64_t i = 0; i < cells; ++i) std::fill(tile.data + i * s_.C, tile.data + i * s_.C + plan.lanes, U(0));
    } else {
      std::fill(tile.data, tile.data + cells * plan.lanes, U(0));
    }
    const int64_t group = l * s_.B + b;
    for (const int32_t* k = groups_.begin(group); k < groups_.end(group); ++k) {
      if (row_spans_[2 * *k] >= row1 || row_spans_[2 * *k + 1] < row0) continue;
      if (!geometry_.find(*k, l, scratch.weights)) continue;
      FF_ISA_CALL(load_lanes, dtype_, gradients_of(*k, c), out_, channels, int(plan.lanes), bins_, scratch.grads);
      Ahead ahead;
      if (k + 1 < groups_.end(group)) ahead = Ahead::of(gradients_of(k[1], c), out_, channels, bins_, bins_);
      FF_ISA_CALL(scatter_bins, tile, scratch.weights.rows, scratch.weights.columns, int32_t(s_.PH), int32_t(s_.PW),
                  plan.lanes, scratch.grads, plan.lanes, ahead);
    }
    if (!plan.direct)
      FF_ISA_CALL(store_lanes, dtype_, scratch.tile, channels, int(plan.lanes), cells, map, false, target);
  }

  // A RoI's gradients from channel c on.
  const T* gradients_of(int64_t k, int64_t c) const { return grad_output_ + k * s_.C * bins_ + c * out_.channel; }

  DType dtype_;
  const RoiAlignShape& s_;
  int64_t bins_;
  const T* grad_output_;
  void* const* grads_;
  RoiGeometry<U> geometry_;
  CellStrides out_{};
  Plan plans_[kMaxRoiLevels];
  int64_t threads_ = 1, tile_size_ = 0;
  size_t per_thread_ = 0;
  char* first_ = nullptr;
  int32_t* row_spans_ = nullptr;
  RoiGroups groups_{};
};

}  // namespace

size_t roi_align_backward_workspace_cpu(DType dtype, const RoiAlignShape& shape) {
  return visit(dtype, [&](auto tag) {
    WorkspaceArena arena(nullptr);
    return AlignBackward<typename decltype(tag)::type>(dtype, shape, nullptr, nullptr, nullptr, nullptr).cut(arena);
  });
}

Status roi_align_backward_cpu(DType dtype, const RoiAlignShape& shape, const void* grad_output, const void* rois,
                              void* workspace, void* const* grads) {
  FF_TRY(check_align_shape(shape));
  return visit(dtype, [&](auto tag) {
    return AlignBackward<typename decltype(tag)::type>(dtype, shape, grad_output, rois, workspace, grads).run();
  });
}

}  // namespace frcnn_fast::roi_pool
