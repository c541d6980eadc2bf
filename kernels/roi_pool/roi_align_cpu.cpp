// RoIAlign on the CPU, forward: what to turn into tiles, and who does what. As in roi_pool_cpu.cpp, level by level.
#include "roi_align_cpu.h"

namespace frcnn_fast::roi_pool {
namespace {

template <class T>
class Align {
  using U = Compute<T>;
  static constexpr bool kConverted = !std::is_same<T, U>::value;
  static constexpr int kMostSamples = 4;
#if defined(FF_TEST_BUILD)  // small cases have weights to remember
  static constexpr int64_t kFewChannels = 2;
#else
  static constexpr int64_t kFewChannels = 4 * kBlockLanes;
#endif

 public:
  Align(DType dtype, const RoiAlignShape& shape, const void* const* features, const void* rois, void* memory,
        void* output)
      : dtype_(dtype),
        s_(shape),
        bins_(shape.PH * shape.PW),
        features_(features),
        geometry_(shape, rois),
        output_(static_cast<T*>(output)) {
    WorkspaceArena arena(memory);
    cut(arena);
    const bool last = FF_MUTANT(align_output_layout, s_.output_channels_last, s_.levels[0].channels_last);
    out_ = cell_strides(s_.C, bins_, last);
    streamed_ = are_streamed(output_, s_.R * s_.C * bins_);
  }

  // Also tells how much the workspace must hold.
  size_t cut(WorkspaceArena& arena) {
    threads_ = max_threads();
    int64_t tile_size = 0;
    for (int64_t l = 0; l < s_.L; ++l) {
      plans_[l] = plan(s_.levels[l]);
      tile_size = std::max(tile_size, plans_[l].tile_size);
    }
    groups_ = RoiGroups::take(arena, s_.L, s_.B, s_.R);
    if (remembers()) {
      weights_ = geometry_.take(arena, false, s_.R);
      found_ = arena.take<bool>(s_.R);
    }
    const size_t before = arena.used();
    first_ = arena.take<char>(0);
    take(arena, tile_size);
    per_thread_ = arena.used() - before;
    tile_size_ = tile_size;
    return before + per_thread_ * threads_;
  }

  Status run() {
    FF_TRY(geometry_.group(&groups_));
    expect_writes(output_, s_.R * s_.C * bins_);
    for (int64_t k = 0; k < s_.R; ++k)
      if (groups_.group[k] < 0) clear(k, 0, s_.C);
    if (s_.C == 0) return kOk;
    for (int64_t l = 0; l < s_.L; ++l) {
      const int64_t first = groups_.starts[l * s_.B], members = groups_.starts[(l + 1) * s_.B] - first;
      if (members == 0) continue;
      const int64_t threads = std::min(threads_, threads_for(double(members) * s_.C * bins_ * 8));
      const int64_t lanes = plans_[l].map_lanes;
      if (lanes && prefers_whole_maps(l)) {
        const int64_t blocks = ceil_div(s_.C, lanes);
        const int64_t parts = std::max<int64_t>(1, std::min(threads / (s_.B * blocks), members / s_.B / 8));
        if (remembers())
          for_each_unit(members, threads, [&](int64_t, int64_t i) {
            const int32_t k = groups_.order[first + i];
            RoiWeights<U> weights = geometry_.part(weights_, k);
            found_[k] = geometry_.find(k, l, weights);
          });
        for_each_unit(s_.B * blocks * parts, threads, [&](int64_t thread, int64_t unit) {
          align_image(thread, l, unit / parts / blocks, unit / parts % blocks * lanes, unit % parts, parts);
        });
      } else {
        for_each_unit(members, threads,
                      [&](int64_t thread, int64_t i) { align_roi(thread, l, groups_.order[first + i]); });
      }
    }
    return kOk;
  }

 private:
  struct Plan {
    bool direct;
    int64_t map_lanes;  // of a tile of the whole map; 0: it would be too large
    int64_t tile_size;  // numbers
  };
  struct Scratch {
    U* tile;
    U* sums;
    RoiWeights<U> weights;
    TouchedCells rows, columns;
  };

  // Whether a RoI's weights are worked out once for all blocks of channels of a whole map: a few cells a bin, and a
  // fraction of what the RoI writes.
  bool remembers() const {
    return !s_.precise && s_.sampling_ratio > 0 && s_.sampling_ratio <= kMostSamples && s_.C > kFewChannels;
  }

  int64_t window_lanes() const { return std::min<int64_t>(4 * kBlockLanes, round_up(s_.C, kBlockLanes)); }

  Plan plan(const RoiAlignLevel& level) const {
    Plan plan{};
    plan.direct = level.channels_last && !kConverted && s_.C % kBlockLanes == 0;
    if (plan.direct) return plan;
    const int64_t bytes = sizeof(U), cells = level.H * level.W;
    plan.map_lanes = block_lanes(s_.C, cells, bytes, s_.B);
    if (cells * plan.map_lanes * bytes > kMaxWholeBytes) plan.map_lanes = 0;
    const int64_t row = level.W * window_lanes();
    const int64_t rows = std::min<int64_t>(level.H, kTileBytes / bytes / std::max<int64_t>(row, 1));
    plan.tile_size = std::max(cells * plan.map_lanes, std::max<int64_t>(rows, 1) * row);
    return plan;
  }

  Scratch take(WorkspaceArena& arena, int64_t tile_size) const {
    Scratch scratch{};
    scratch.tile = arena.take<U>(tile_size);
    scratch.sums = arena.take<U>(bins_ * 4 * kBlockLanes);
    scratch.weights = geometry_.take(arena);
    scratch.rows = TouchedCells::take(arena, s_.max_height());
    scratch.columns = TouchedCells::take(arena, s_.max_width());
    return scratch;
  }
  Scratch scratch_of(int64_t thread) const {
    WorkspaceArena arena(first_ + thread * per_thread_);
    return take(arena, tile_size_);
  }

  // Whether loading the RoIs' windows would take longer than loading the maps. A RoI touches at most 2 * sampling_ratio
  // rows in a bin.
  bool prefers_whole_maps(int64_t l) const {
    const RoiAlignLevel& level = s_.levels[l];
    const double enough = double(s_.B) * level.H * level.W / kWindowCost;
    const double most_rows = s_.sampling_ratio > 0 ? 2.0 * s_.sampling_ratio * s_.PH : INFINITY;
    const double most_columns = s_.sampling_ratio > 0 ? 2.0 * s_.sampling_ratio * s_.PW * kSparse : INFINITY;
    double cells = 0;
    for (int64_t i = groups_.starts[l * s_.B]; i < groups_.starts[(l + 1) * s_.B] && cells < enough; ++i) {
      const U* roi = geometry_.roi(groups_.order[i]);
      const double height = std::min(std::min(double(roi[4] - roi[2]) * level.scale + 2, double(level.H)), most_rows);
      const double width = std::min(std::min(double(roi[3] - roi[1]) * level.scale + 2, double(level.W)), most_columns);
      if (height > 0 && width > 0) cells += height * std::max(width, double(kBlockLanes));
    }
    return cells >= enough;
  }

  const T* image(int64_t l, int64_t b) const {
    return static_cast<const T*>(features_[l]) + b * s_.C * s_.levels[l].H * s_.levels[l].W;
  }
  T* output(int64_t k, int64_t c) const { return output_ + k * s_.C * bins_ + c * out_.channel; }

  void clear(int64_t k, int64_t c, int64_t channels) const {
    T* first = output(k, c);
    for (int64_t i = 0; i < channels; ++i)
      for (int64_t bin = 0; bin < bins_; ++bin) first[i * out_.channel + bin * out_.cell] = T{};
  }

  // One block of channels of one image, for a share of its RoIs.
  void align_image(int64_t thread, int64_t l, int64_t b, int64_t c, int64_t part, int64_t parts) {
    const RoiAlignLevel& level = s_.levels[l];
    const int64_t group = l * s_.B + b, members = groups_.size(group), lanes = plans_[l].map_lanes;
    const int32_t* first = groups_.begin(group) + members * part / parts;
    const int32_t* last = groups_.begin(group) + members * (part + 1) / parts;
    if (first == last) return;
    Scratch scratch = scratch_of(thread);
    const int channels = int(std::min(lanes, s_.C - c));
    const CellStrides map = cell_strides(s_.C, level.H * level.W, level.channels_last);
    FF_ISA_CALL(load_lanes, dtype_, image(l, b) + c * map.channel, map, channels, int(lanes), level.H * level.W,
                scratch.tile);
    const Tile<const U> tile{scratch.tile, level.W * lanes, lanes, 0, int32_t(level.H), 0};
    for (const int32_t* k = first; k < last; ++k) {
      if (remembers()) scratch.weights = geometry_.part(weights_, FF_MUTANT(align_remembered, *k, *first));
      if (!(remembers() ? found_[*k] : geometry_.find(*k, l, scratch.weights))) {
        clear(*k, c, channels);
        continue;
      }
      sum(tile, scratch, lanes, true);
      store(*k, c, channels, lanes, scratch);
    }
  }

  // All channels of one RoI.
  void align_roi(int64_t thread, int64_t l, int64_t k) {
    Scratch scratch = scratch_of(thread);
    const RoiAlignLevel& level = s_.levels[l];
    if (!geometry_.find(k, l, scratch.weights)) return clear(k, 0, s_.C);
    const T* map = image(l, int64_t(geometry_.roi(k)[0]));
    if (plans_[l].direct) {
      const Tile<const U> tile{reinterpret_cast<const U*>(map), level.W * s_.C, s_.C, 0, int32_t(level.H), 0};
      if (s_.output_channels_last) {
        FF_ISA_CALL(align_bins, tile, scratch.weights.rows, scratch.weights.columns, int32_t(s_.PH), int32_t(s_.PW),
                    s_.C, true, reinterpret_cast<U*>(output(k, 0)), s_.C);
        return;
      }
      for (int64_t c = 0; c < s_.C; c += window_lanes()) {
        const int64_t lanes = std::min(window_lanes(), s_.C - c);
        Tile<const U> block = tile;
        block.data += c;
        sum(block, scratch, lanes, true);
        store(k, c, int(lanes), lanes, scratch);
      }
      return;
    }
    // Only the rows and columns that a sample touches are brought in; the weights then name their places.
    const CellStrides strides = cell_strides(s_.C, level.H * level.W, level.channels_last);
    const int64_t lanes = window_lanes();
    scratch.rows.gather(scratch.weights.rows, s_.PH, int32_t(level.H), 1, 1);
    scratch.columns.gather(scratch.weights.columns, s_.PW, int32_t(level.W), kBlockLanes, kSparse);
    const int64_t width = scratch.columns.count;
    if (width == 0) scratch.rows.count = 0;
    const int32_t rows = int32_t(width ? std::min<int64_t>(scratch.rows.count, tile_size_ / (width * lanes)) : 0);
    for (int64_t c = 0; c < s_.C; c += lanes) {
      const int channels = int(std::min(lanes, s_.C - c));
      int32_t y = 0;
      do {
        Tile<const U> tile{scratch.tile, width * lanes, lanes, y, std::min(scratch.rows.count, y + rows), 0};
        for (int32_t i = y; i < tile.row1; ++i) {
          const T* row = map + c * strides.channel + scratch.rows.cells[i] * level.W * strides.cell;
          scratch.columns.load(dtype_, row, strides, channels, lanes, scratch.tile + (i - y) * width * lanes);
        }
        sum(tile, scratch, lanes, y == 0);
        y = tile.row1;
      } while (y < scratch.rows.count);
      store(k, c, channels, lanes, scratch);
    }
  }

  void sum(const Tile<const U>& tile, Scratch& scratch, int64_t lanes, bool fresh) const {
    FF_ISA_CALL(align_bins, tile, scratch.weights.rows, scratch.weights.columns, int32_t(s_.PH), int32_t(s_.PW), lanes,
                fresh, scratch.sums, lanes);
  }

  void store(int64_t k, int64_t c, int channels, int64_t lanes, const Scratch& scratch) const {
    FF_ISA_CALL(store_lanes, dtype_, scratch.sums, channels, int(lanes), bins_, out_, streamed_, output(k, c));
  }

  DType dtype_;
  const RoiAlignShape& s_;
  int64_t bins_;
  const void* const* features_;
  RoiGeometry<U> geometry_;
  T* output_;
  CellStrides out_{};
  bool streamed_ = false;
  Plan plans_[kMaxRoiLevels];
  int64_t threads_ = 1, tile_size_ = 0;
  size_t per_thread_ = 0;
  char* first_ = nullptr;
  RoiGroups groups_{};
  RoiWeights<U> weights_{};  // of all RoIs, if it remembers
  bool* found_ = nullptr;
};

}  // namespace

size_t roi_align_workspace_cpu(DType dtype, const RoiAlignShape& shape) {
  return visit(dtype, [&](auto tag) {
    WorkspaceArena arena(nullptr);
    return Align<typename decltype(tag)::type>(dtype, shape, nullptr, nullptr, nullptr, nullptr).cut(arena);
  });
}

Status roi_align_cpu(DType dtype, const RoiAlignShape& shape, const void* const* features, const void* rois,
                     void* workspace, void* output) {
  FF_TRY(check_align_shape(shape));
  return visit(dtype, [&](auto tag) {
    return Align<typename decltype(tag)::type>(dtype, shape, features, rois, workspace, output).run();
  });
}

}  // namespace frcnn_fast::roi_pool
