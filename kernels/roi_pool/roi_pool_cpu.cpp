// RoIPool on the CPU: what to turn into tiles, and who does what.
//
// Channels-last maps of the compute type are read where they are. Otherwise a block of channels is first brought into
// [cells][lanes] order: of the whole map, once for all RoIs of an image, where the RoIs' windows together are larger
// than the map; else of each RoI's window. The result does not depend on which.
#include "roi_pool.h"

#include "roi_cpu.h"

namespace frcnn_fast {
namespace {

// Decided by shapes alone, so that the workspace's size is known beforehand.
struct Plan {
  int64_t threads, bins;
  int64_t map_lanes;     // of a tile of the whole map; 0: it would be too large
  int64_t window_lanes;  // of a tile of a window, or of part of its rows
  int64_t tile_size;     // numbers
  bool direct;
};

template <class U>
Plan make_plan(const RoiPoolShape& s, bool converted) {
  Plan plan{};
  plan.threads = max_threads();
  plan.bins = s.P * s.Q;
  plan.direct = s.channels_last && !converted && s.C % kBlockLanes == 0;
  if (plan.direct) return plan;
  const int64_t bytes = sizeof(U);
  plan.map_lanes = block_lanes(s.C, s.H * s.W, bytes, s.B);
  if (s.H * s.W * plan.map_lanes * bytes > kMaxWholeBytes) plan.map_lanes = 0;
  plan.window_lanes = std::min<int64_t>(4 * kBlockLanes, round_up(s.C, kBlockLanes));
  const int64_t row = s.W * plan.window_lanes;
  const int64_t rows = std::max<int64_t>(1, std::min<int64_t>(s.H, kTileBytes / bytes / std::max<int64_t>(row, 1)));
  plan.tile_size = std::max(s.H * s.W * plan.map_lanes, rows * row);
  return plan;
}

template <class U>
struct Scratch {
  U* tile;
  U* best;
  int32_t* argmax;
  BinEdges edges;
};

template <class U>
struct Workspace {
  RoiGroups groups;
  Scratch<U> scratch;  // the first thread's
  size_t used, per_thread;

  Workspace(void* memory, const RoiPoolShape& s, const Plan& plan) {
    Carver carver(memory);
    groups = RoiGroups::take(carver, 1, s.B, s.K);
    const size_t before = carver.used();
    scratch = take(carver, s, plan);
    per_thread = carver.used() - before;
    used = before + per_thread * plan.threads;
  }
  static Scratch<U> take(Carver& carver, const RoiPoolShape& s, const Plan& plan) {
    Scratch<U> scratch{};
    const int64_t lanes = std::max(plan.map_lanes, plan.window_lanes);
    scratch.tile = carver.take<U>(plan.tile_size);
    scratch.best = carver.take<U>(plan.bins * lanes);
    scratch.argmax = carver.take<int32_t>(plan.bins * lanes);
    int32_t* edges = carver.take<int32_t>(2 * (s.P + s.Q));
    scratch.edges = {int32_t(s.P), int32_t(s.Q), edges, edges + s.P, edges + 2 * s.P, edges + 2 * s.P + s.Q};
    return scratch;
  }
  Scratch<U> of(int64_t thread, const RoiPoolShape& s, const Plan& plan) const {
    Carver carver(reinterpret_cast<char*>(scratch.tile) + thread * per_thread);
    return take(carver, s, plan);
  }
};

template <class T>
class Pool {
  using U = Compute<T>;
  static constexpr bool kConverted = !std::is_same<T, U>::value;

 public:
  Pool(DType dtype, const RoiPoolShape& shape, const void* input, const void* rois, double scale, void* memory,
       void* output, int32_t* argmax)
      : dtype_(dtype), s_(shape), plan_(make_plan<U>(shape, kConverted)), workspace_(memory, shape, plan_),
        input_(static_cast<const T*>(input)), rois_(static_cast<const U*>(rois)), scale_(U(scale)),
        output_(static_cast<T*>(output)), argmax_(argmax) {
    map_ = cell_strides(s_.C, s_.H * s_.W, s_.channels_last);
    out_ = cell_strides(s_.C, plan_.bins, s_.channels_last);
  }

  static size_t workspace_size(const RoiPoolShape& shape) {
    return Workspace<U>(nullptr, shape, make_plan<U>(shape, kConverted)).used;
  }

  Status run() {
    RoiGroups& groups = workspace_.groups;
    FF_TRY(group_rois(rois_, s_.K, s_.B, 1, [](const U*) { return 0; }, &groups));
    for (int64_t k = 0; k < s_.K; ++k)
      if (groups.group[k] < 0) clear(k);
    if (groups.grouped == 0 || s_.C == 0) return kOk;
    // Each number of the output is stored once and its bin read a few times.
    const double work = double(groups.grouped) * s_.C * plan_.bins * 4;
    const int64_t threads = std::min<int64_t>(plan_.threads, threads_for(work));
    if (plan_.map_lanes && prefers_whole_maps()) {
      const int64_t blocks = ceil_div(s_.C, plan_.map_lanes);
      const int64_t parts = std::max<int64_t>(1, std::min(threads / (s_.B * blocks), groups.grouped / s_.B / 8));
      for_each_unit(s_.B * blocks * parts, threads, [&](int64_t thread, int64_t unit) {
        pool_image(thread, unit / parts / blocks, unit / parts % blocks * plan_.map_lanes, unit % parts, parts);
      });
    } else {
      for_each_unit(groups.grouped, threads, [&](int64_t thread, int64_t i) { pool_roi(thread, groups.order[i]); });
    }
    return kOk;
  }

 private:
  bool find_edges(int64_t k, BinEdges& edges) const {
    const U* roi = rois_ + k * kRoiFields;
    BinAxis<U> rows, columns;
    if (!make_bins(roi[2], roi[4], scale_, s_.P, s_.H, &rows)) return false;
    if (!make_bins(roi[1], roi[3], scale_, s_.Q, s_.W, &columns)) return false;
    for (int32_t p = 0; p < edges.P; ++p) edges.row_begin[p] = rows.begin(p), edges.row_end[p] = rows.end(p);
    for (int32_t q = 0; q < edges.Q; ++q) edges.column_begin[q] = columns.begin(q), edges.column_end[q] = columns.end(q);
    return true;
  }

  bool prefers_whole_maps() const {
    BinEdges edges = workspace_.scratch.edges;
    const int64_t enough = s_.B * s_.H * s_.W;
    int64_t cells = 0;
    for (int64_t i = 0; i < workspace_.groups.grouped && cells < enough; ++i) {
      if (!find_edges(workspace_.groups.order[i], edges)) continue;
      cells += int64_t(edges.row_end[edges.P - 1] - edges.row_begin[0]) *
               (edges.column_end[edges.Q - 1] - edges.column_begin[0]);
    }
    return cells >= enough;
  }

  void clear(int64_t k) const {
    const int64_t n = s_.C * plan_.bins;
    std::fill(output_ + k * n, output_ + (k + 1) * n, T{});
    if (argmax_) std::fill(argmax_ + k * n, argmax_ + (k + 1) * n, -1);
  }

  const T* image(int64_t b) const { return input_ + b * s_.C * s_.H * s_.W; }

  // One block of channels of one image, for a share of its RoIs.
  void pool_image(int64_t thread, int64_t b, int64_t c, int64_t part, int64_t parts) {
    const int64_t members = workspace_.groups.size(b);
    const int32_t* first = workspace_.groups.begin(b) + members * part / parts;
    const int32_t* last = workspace_.groups.begin(b) + members * (part + 1) / parts;
    if (first == last) return;
    Scratch<U> scratch = workspace_.of(thread, s_, plan_);
    const int64_t lanes = plan_.map_lanes;
    const int channels = int(std::min(lanes, s_.C - c));
    FF_ISA_CALL(load_lanes, dtype_, image(b) + c * map_.channel, map_, channels, int(lanes), s_.H * s_.W,
                scratch.tile);
    const Tile<const U> tile{scratch.tile, s_.W * lanes, lanes, 0, int32_t(s_.H), 0};
    for (const int32_t* k = first; k < last; ++k) {
      if (!find_edges(*k, scratch.edges)) {
        clear_block(*k, c, channels);
        continue;
      }
      const bool unset = pool(tile, scratch, lanes, true);
      finish(*k, c, channels, lanes, unset, scratch);
    }
  }

  // All channels of one RoI.
  void pool_roi(int64_t thread, int64_t k) {
    Scratch<U> scratch = workspace_.of(thread, s_, plan_);
    BinEdges& edges = scratch.edges;
    if (!find_edges(k, edges)) return clear(k);
    const T* map = image(int64_t(rois_[k * kRoiFields]));
    if (plan_.direct) {
      const int64_t first = k * s_.C * plan_.bins;
      const Tile<const U> tile{reinterpret_cast<const U*>(map), s_.W * s_.C, s_.C, 0, int32_t(s_.H), 0};
      U* best = reinterpret_cast<U*>(output_) + first;
      int32_t* argmax = argmax_ ? argmax_ + first : nullptr;
      if (FF_ISA_CALL(pool_bins, tile, edges, s_.W, s_.C, true, best, argmax, s_.C))
        repair(map, int(s_.C), s_.C, edges, best, argmax);
      return;
    }
    const int64_t lanes = plan_.window_lanes;
    const int32_t top = edges.row_begin[0], bottom = edges.row_end[edges.P - 1];
    const int32_t left = edges.column_begin[0], width = edges.column_end[edges.Q - 1] - left;
    const int64_t rows = width > 0 ? std::max<int64_t>(1, plan_.tile_size / (width * lanes)) : 1;
    for (int64_t c = 0; c < s_.C; c += lanes) {
      const int channels = int(std::min(lanes, s_.C - c));
      bool unset = false;
      int32_t y = top;
      do {
        Tile<const U> tile{scratch.tile, width * lanes, lanes, y, int32_t(std::min<int64_t>(bottom, y + rows)), left};
        for (int32_t i = y; i < tile.row1 && width > 0; ++i)
          FF_ISA_CALL(load_lanes, dtype_, map + c * map_.channel + (i * s_.W + left) * map_.cell, map_, channels,
                      int(lanes), width, scratch.tile + (i - y) * width * lanes);
        unset = pool(tile, scratch, lanes, y == top);
        y = tile.row1;
      } while (y < bottom);
      finish(k, c, channels, lanes, unset, scratch);
    }
  }

  bool pool(const Tile<const U>& tile, Scratch<U>& scratch, int64_t lanes, bool fresh) const {
    return FF_ISA_CALL(pool_bins, tile, scratch.edges, s_.W, lanes, fresh, scratch.best,
                       argmax_ ? scratch.argmax : nullptr, lanes);
  }

  void finish(int64_t k, int64_t c, int channels, int64_t lanes, bool unset, Scratch<U>& scratch) const {
    const int64_t first = k * s_.C * plan_.bins + c * out_.channel;
    if (unset)
      repair(image(int64_t(rois_[k * kRoiFields])) + c * map_.channel, channels, lanes, scratch.edges, scratch.best,
             argmax_ ? scratch.argmax : nullptr);
    FF_ISA_CALL(store_lanes, dtype_, scratch.best, channels, int(lanes), plan_.bins, out_, output_ + first);
    if (argmax_)
      FF_ISA_CALL(store_lanes, scratch.argmax, channels, int(lanes), plan_.bins, out_, argmax_ + first);
  }

  void clear_block(int64_t k, int64_t c, int channels) const {
    for (int i = 0; i < channels; ++i) {
      for (int64_t bin = 0; bin < plan_.bins; ++bin) {
        const int64_t at = k * s_.C * plan_.bins + (c + i) * out_.channel + bin * out_.cell;
        store(output_ + at, U(0));
        if (argmax_) argmax_[at] = -1;
      }
    }
  }

  // Bins in which nothing is above -inf: -inf is a value like any other, NaN is none. `map` is the block's first
  // channel; bin b's lanes are at b * stride.
  void repair(const T* map, int channels, int64_t stride, const BinEdges& edges, U* best, int32_t* argmax) const {
    for (int64_t bin = 0; bin < plan_.bins; ++bin) {
      const int64_t p = bin / edges.Q, q = bin % edges.Q;
      if (edges.row_begin[p] >= edges.row_end[p] || edges.column_begin[q] >= edges.column_end[q]) continue;
      for (int c = 0; c < channels; ++c) {
        const int64_t at = bin * stride + c;
        if (best[at] != U(-__builtin_inf())) continue;
        int32_t found = -1;
        for (int32_t y = edges.row_begin[p]; y < edges.row_end[p] && found < 0; ++y)
          for (int32_t x = edges.column_begin[q]; x < edges.column_end[q] && found < 0; ++x) {
            const U value = load(map + c * map_.channel + (y * s_.W + x) * map_.cell);
            if (FF_MUTANT(roi_minus_inf, value == value, false)) found = int32_t(y * s_.W + x);
          }
        if (found < 0) best[at] = FF_MUTANT(roi_all_nan, U(__builtin_nan("")), best[at]);
        if (argmax) argmax[at] = found;
      }
    }
  }

  DType dtype_;
  const RoiPoolShape& s_;
  Plan plan_;
  Workspace<U> workspace_;
  const T* input_;
  const U* rois_;
  U scale_;
  T* output_;
  int32_t* argmax_;
  CellStrides map_, out_;
};

// Each thread owns blocks of channels of an image, so that every cell is added to in the RoIs' order. Numbers of the
// compute type are added up in place, halves in a plane of floats.
struct BackwardPlan {
  int64_t threads, block, plane;
  template <class T>
  static BackwardPlan of(const RoiPoolShape& s) {
    using U = Compute<T>;
    const int64_t cells = s.H * s.W, threads = max_threads();
    int64_t block = std::max<int64_t>(1, kTileBytes / 2 / std::max<int64_t>(1, cells * int64_t(sizeof(U))));
    block = std::min(block, std::max<int64_t>(1, s.B * s.C / (4 * threads)));
    if (s.channels_last) block = std::min(s.C, round_up(block, kBlockLanes));  // whole cache lines
    block = std::min(block, std::max<int64_t>(s.C, 1));
    return {threads, block, std::is_same<T, U>::value ? 0 : block * cells};
  }
};

template <class T>
Status pool_backward(const RoiPoolShape& s, const T* grad_output, bool grad_output_channels_last,
                     const int32_t* argmax, const void* rois, void* memory, T* grad_input) {
  using U = Compute<T>;
  constexpr bool kConverted = !std::is_same<T, U>::value;
  const BackwardPlan plan = BackwardPlan::of<T>(s);
  Carver carver(memory);
  RoiGroups groups = RoiGroups::take(carver, 1, s.B, s.K);
  FF_TRY(group_rois(static_cast<const U*>(rois), s.K, s.B, 1, [](const U*) { return 0; }, &groups));
  U* planes = carver.take<U>(plan.plane * plan.threads);

  const int64_t cells = s.H * s.W, bins = s.P * s.Q;
  const CellStrides map = cell_strides(s.C, cells, s.channels_last), from = cell_strides(s.C, bins, s.channels_last);
  const CellStrides grads = cell_strides(s.C, bins, grad_output_channels_last);
  const int64_t blocks = ceil_div(s.C, plan.block);
  const double work = double(groups.grouped) * s.C * bins * 2 + double(s.B) * s.C * cells / 4;
  const int64_t threads = std::min(plan.threads, threads_for(work));
  for_each_unit(s.B * blocks, threads, [&](int64_t thread, int64_t unit) {
    const int64_t b = unit / blocks, c0 = unit % blocks * plan.block;
    const int64_t channels = std::min(plan.block, s.C - c0);
    T* target = grad_input + b * s.C * cells + c0 * map.channel;
    // Where the sums grow, and how.
    U* sums = kConverted ? planes + thread * plan.plane : reinterpret_cast<U*>(target);
    const CellStrides to = kConverted ? CellStrides{cells, 1} : map;
    if (to.cell == 1)
      std::fill(sums, sums + channels * cells, U(0));
    else
      for (int64_t i = 0; i < cells; ++i) std::fill(sums + i * to.cell, sums + i * to.cell + channels, U(0));
    for (const int32_t* k = groups.begin(b); k < groups.end(b); ++k) {
      const int32_t* places = argmax + *k * s.C * bins + c0 * from.channel;
      const T* values = grad_output + *k * s.C * bins + c0 * grads.channel;
      for (int64_t c = 0; c < channels; ++c)
        for (int64_t bin = 0; bin < bins; ++bin) {
          const int32_t place = places[c * from.channel + bin * from.cell];
          if (uint64_t(place) < uint64_t(cells))
            sums[c * to.channel + place * to.cell] += load(values + c * grads.channel + bin * grads.cell);
        }
    }
    if (kConverted)
      for (int64_t c = 0; c < channels; ++c)
        for (int64_t i = 0; i < cells; ++i) store(target + c * map.channel + i * map.cell, sums[c * cells + i]);
  });
  return kOk;
}

// Kernels index cells and RoIs with 32 bits within one image.
Status check_shape(const RoiPoolShape& s) {
  if (s.H * s.W > INT32_MAX)
    return invalid("input: a map of %lld x %lld cells has more than 2^31 - 1", (long long)s.H, (long long)s.W);
  if (s.K > INT32_MAX) return invalid("boxes: %lld rows, at most 2^31 - 1 are supported", (long long)s.K);
  return kOk;
}

}  // namespace

size_t roi_pool_workspace_cpu(DType dtype, const RoiPoolShape& shape) {
  return visit(dtype, [&](auto tag) { return Pool<typename decltype(tag)::type>::workspace_size(shape); });
}

Status roi_pool_cpu(DType dtype, const RoiPoolShape& shape, const void* input, const void* rois, double scale,
                    void* workspace, void* output, int32_t* argmax) {
  FF_TRY(check_shape(shape));
  return visit(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    return Pool<T>(dtype, shape, input, rois, scale, workspace, output, argmax).run();
  });
}

size_t roi_pool_backward_workspace_cpu(DType dtype, const RoiPoolShape& shape) {
  Carver carver(nullptr);
  RoiGroups::take(carver, 1, shape.B, shape.K);
  visit(dtype, [&](auto tag) {
    const BackwardPlan plan = BackwardPlan::of<typename decltype(tag)::type>(shape);
    carver.take<float>(plan.plane * plan.threads);
  });
  return carver.used();
}

Status roi_pool_backward_cpu(DType dtype, const RoiPoolShape& shape, const void* grad_output,
                             bool grad_output_channels_last, const int32_t* argmax, const void* rois, void* workspace,
                             void* grad_input) {
  FF_TRY(check_shape(shape));
  return visit(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    return pool_backward(shape, static_cast<const T*>(grad_output), grad_output_channels_last, argmax, rois,
                         workspace, static_cast<T*>(grad_input));
  });
}

}  // namespace frcnn_fast
