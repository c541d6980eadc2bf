// RoIPool on the CPU: what to turn into tiles, and who does what.
//
// Channels-last maps of the compute type are read where they are. Otherwise a block of channels is first brought into
// [cells][lanes] order: of the whole map, once for all RoIs of an image, where the RoIs' windows together are larger
// than the map; else of each RoI's window. The result does not depend on which.
#include "roi_cpu.h"
#include "roi_pool.h"

namespace frcnn_fast::roi_pool {
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
  plan.bins = s.PH * s.PW;
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
  int32_t* edges;      // of all RoIs, where whole maps are turned into tiles
  bool* found;         // whether a RoI has any
  Scratch<U> scratch;  // the first thread's
  size_t used, per_thread;

  Workspace(void* memory, const RoiPoolShape& s, const Plan& plan) {
    WorkspaceArena arena(memory);
    groups = RoiGroups::take(arena, 1, s.B, s.R);
    const int64_t remembered = plan.map_lanes ? s.R : 0;
    edges = arena.take<int32_t>(remembered * 2 * (s.PH + s.PW));
    found = arena.take<bool>(remembered);
    const size_t before = arena.used();
    scratch = take(arena, s, plan);
    per_thread = arena.used() - before;
    used = before + per_thread * plan.threads;
  }
  static Scratch<U> take(WorkspaceArena& arena, const RoiPoolShape& s, const Plan& plan) {
    Scratch<U> scratch{};
    const int64_t lanes = std::max(plan.map_lanes, plan.window_lanes);
    scratch.tile = arena.take<U>(plan.tile_size);
    scratch.best = arena.take<U>(plan.bins * lanes);
    scratch.argmax = arena.take<int32_t>(plan.bins * lanes);
    scratch.edges = edges_in(arena.take<int32_t>(2 * (s.PH + s.PW)), s);
    return scratch;
  }
  static BinEdges edges_in(int32_t* memory, const RoiPoolShape& s) {
    return {int32_t(s.PH), int32_t(s.PW), memory, memory + s.PH, memory + 2 * s.PH, memory + 2 * s.PH + s.PW};
  }
  BinEdges edges_of(int64_t k, const RoiPoolShape& s) const { return edges_in(edges + k * 2 * (s.PH + s.PW), s); }
  Scratch<U> of(int64_t thread, const RoiPoolShape& s, const Plan& plan) const {
    WorkspaceArena arena(reinterpret_cast<char*>(scratch.tile) + thread * per_thread);
    return take(arena, s, plan);
  }
};

template <class T>
class Pool {
  using U = Compute<T>;
  static constexpr bool kConverted = !std::is_same<T, U>::value;

 public:
  Pool(DType dtype, const RoiPoolShape& shape, const void* input, const void* rois, double scale, void* memory,
       void* output, int32_t* argmax)
      : dtype_(dtype),
        s_(shape),
        plan_(make_plan<U>(shape, kConverted)),
        workspace_(memory, shape, plan_),
        input_(static_cast<const T*>(input)),
        rois_(static_cast<const U*>(rois)),
        scale_(U(scale)),
        output_(static_cast<T*>(output)),
        argmax_(argmax) {
    map_ = cell_strides(s_.C, s_.H * s_.W, s_.channels_last);
    out_ = cell_strides(s_.C, plan_.bins, s_.channels_last);
    streamed_ = are_streamed(output_, s_.R * s_.C * plan_.bins);
  }

  static size_t workspace_size(const RoiPoolShape& shape) {
    return Workspace<U>(nullptr, shape, make_plan<U>(shape, kConverted)).used;
  }

  Status run() {
    RoiGroups& groups = workspace_.groups;
    FF_TRY(group_rois("boxes", rois_, s_.R, s_.B, 1, [](const U*) { return 0; }, &groups));
    expect_writes(output_, s_.R * s_.C * plan_.bins);
    if (argmax_) expect_writes(argmax_, s_.R * s_.C * plan_.bins);
    for (int64_t k = 0; k < s_.R; ++k)
      if (groups.group[k] < 0) clear(k);
    if (groups.grouped == 0 || s_.C == 0) return kOk;
    // Each number of the output is stored once and its bin read a few times.
    const double work = double(groups.grouped) * s_.C * plan_.bins * 4;
    const int64_t threads = std::min<int64_t>(plan_.threads, threads_for(work));
    if (plan_.map_lanes && prefers_whole_maps()) {
      const int64_t blocks = ceil_div(s_.C, plan_.map_lanes);
      const int64_t parts = std::max<int64_t>(1, std::min(threads / (s_.B * blocks), groups.grouped / s_.B / 8));
      // Once for all blocks of channels.
      for_each_unit(groups.grouped, threads, [&](int64_t, int64_t i) {
        const int32_t k = groups.order[i];
        BinEdges edges = workspace_.edges_of(k, s_);
        workspace_.found[k] = find_edges(k, edges);
      });
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
    if (!make_bins(roi[2], roi[4], scale_, s_.rounded, s_.PH, s_.H, &rows)) return false;
    if (!make_bins(roi[1], roi[3], scale_, s_.rounded, s_.PW, s_.W, &columns)) return false;
    for (int32_t p = 0; p < edges.PH; ++p) edges.row_begin[p] = rows.begin(p), edges.row_end[p] = rows.end(p);
    for (int32_t q = 0; q < edges.PW; ++q)
      edges.column_begin[q] = columns.begin(q), edges.column_end[q] = columns.end(q);
    return true;
  }

  bool prefers_whole_maps() const {
    BinEdges edges = workspace_.scratch.edges;
    const int64_t enough = s_.B * s_.H * s_.W / kWindowCost;
    int64_t cells = 0;
    for (int64_t i = 0; i < workspace_.groups.grouped && cells < enough; ++i) {
      if (!find_edges(workspace_.groups.order[i], edges)) continue;
      cells += int64_t(edges.row_end[edges.PH - 1] - edges.row_begin[0]) *
               std::max(kBlockLanes, edges.column_end[edges.PW - 1] - edges.column_begin[0]);
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
    FF_ISA_CALL(load_lanes, dtype_, image(b) + c * map_.channel, map_, channels, int(lanes), s_.H * s_.W, scratch.tile);
    const Tile<const U> tile{scratch.tile, s_.W * lanes, lanes, 0, int32_t(s_.H), 0};
    for (const int32_t* k = first; k < last; ++k) {
      if (!workspace_.found[*k]) {
        clear_block(*k, c, channels);
        continue;
      }
      scratch.edges = workspace_.edges_of(FF_MUTANT(pool_remembered, *k, *first), s_);
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
    const int32_t top = edges.row_begin[0], bottom = edges.row_end[edges.PH - 1];
    // A run of cells is loaded whole vectors at a time.
    const int32_t right = edges.column_end[edges.PW - 1], run = int32_t(std::min<int64_t>(kBlockLanes, s_.W));
    const int32_t left = std::min(edges.column_begin[0], int32_t(s_.W) - run), width = std::max(run, right - left);
    const int64_t rows = std::max<int64_t>(1, plan_.tile_size / std::max<int64_t>(1, width * lanes));
    for (int64_t c = 0; c < s_.C; c += lanes) {
      const int channels = int(std::min(lanes, s_.C - c));
      bool unset = false;
      int32_t y = top;
      do {
        Tile<const U> tile{scratch.tile, width * lanes, lanes, y, int32_t(std::min<int64_t>(bottom, y + rows)), left};
        for (int32_t i = y; i < tile.row1; ++i)
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
    FF_ISA_CALL(store_lanes, dtype_, scratch.best, channels, int(lanes), plan_.bins, out_, streamed_, output_ + first);
    if (argmax_)
      FF_ISA_CALL(store_lanes, scratch.argmax, channels, int(lanes), plan_.bins, out_, streamed_, argmax_ + first);
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
      const int64_t p = bin / edges.PW, q = bin % edges.PW;
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
  bool streamed_;
};

// Each thread owns blocks of channels of an image, so that every cell is added to in the RoIs' order. Planes of the
// compute type are added up in place; otherwise a block grows as a tile [cells][lanes].
struct BackwardPlan {
  bool in_place;
  int64_t threads, channels;  // of a block
  int64_t tile, values;       // numbers of scratch memory a thread

  template <class T>
  static BackwardPlan of(const RoiPoolShape& s) {
    using U = Compute<T>;
    BackwardPlan plan{};
    plan.in_place = !s.channels_last && std::is_same<T, U>::value;
    plan.threads = max_threads();
    const int64_t cells = s.H * s.W;
    if (!plan.in_place) {
      plan.channels = block_lanes(s.C, cells, 2 * sizeof(U), s.B);
      plan.tile = cells * plan.channels;
      plan.values = s.PH * s.PW * plan.channels;
      return plan;
    }
    const int64_t fit = kTileBytes / 2 / std::max<int64_t>(1, cells * int64_t(sizeof(U)));
    plan.channels = std::max<int64_t>(1, std::min(fit, s.B * s.C / (4 * plan.threads)));
    return plan;
  }
};

template <class T>
Status pool_backward(DType dtype, const RoiPoolShape& s, const T* grad_output, bool grad_output_channels_last,
                     const int32_t* argmax, const void* rois, void* memory, T* grad_input) {
  using U = Compute<T>;
  const BackwardPlan plan = BackwardPlan::of<T>(s);
  WorkspaceArena arena(memory);
  RoiGroups groups = RoiGroups::take(arena, 1, s.B, s.R);
  FF_TRY(group_rois("boxes", static_cast<const U*>(rois), s.R, s.B, 1, [](const U*) { return 0; }, &groups));
  U* tiles = arena.take<U>(plan.tile * plan.threads);
  U* staging = arena.take<U>(plan.values * plan.threads);
  int32_t* cells_of = arena.take<int32_t>(plan.values * plan.threads);

  const int64_t cells = s.H * s.W, bins = s.PH * s.PW;
  const CellStrides map = cell_strides(s.C, cells, s.channels_last), from = cell_strides(s.C, bins, s.channels_last);
  const CellStrides grads = cell_strides(s.C, bins, grad_output_channels_last);
  const int64_t blocks = ceil_div(s.C, plan.channels);
  expect_writes(grad_input, s.B * s.C * cells);
  const double work = double(groups.grouped) * s.C * bins * 2 + double(s.B) * s.C * cells / 4;
  for_each_unit(s.B * blocks, std::min(plan.threads, threads_for(work)), [&](int64_t thread, int64_t unit) {
    const int64_t b = unit / blocks, c0 = unit % blocks * plan.channels;
    const int64_t channels = std::min(plan.channels, s.C - c0), lanes = plan.channels;
    T* target = grad_input + b * s.C * cells + c0 * map.channel;
    U* sums = plan.in_place ? reinterpret_cast<U*>(target) : tiles + thread * plan.tile;
    U* values = staging + thread * plan.values;
    int32_t* cell_of = cells_of + thread * plan.values;
    std::fill(sums, sums + cells * (plan.in_place ? channels : lanes), U(0));
    for (const int32_t* k = groups.begin(b); k < groups.end(b); ++k) {
      const int32_t* places = argmax + *k * s.C * bins + c0 * from.channel;
      const T* gradients = grad_output + *k * s.C * bins + c0 * grads.channel;
      Ahead next_places, next_gradients;
      if (k + 1 < groups.end(b)) {
        const int64_t parts = plan.in_place ? channels : bins;
        next_places = Ahead::of(argmax + k[1] * s.C * bins + c0 * from.channel, from, channels, bins, parts);
        next_gradients = Ahead::of(grad_output + k[1] * s.C * bins + c0 * grads.channel, grads, channels, bins, parts);
      }
      if (!plan.in_place) {
        // Both are brought in first: rows far apart are then fetched at the same time.
        FF_ISA_CALL(load_lanes, dtype, gradients, grads, int(channels), int(lanes), bins, values);
        FF_ISA_CALL(load_lanes, places, from, int(channels), int(lanes), bins, cell_of);
        for (int64_t bin = 0; bin < bins; ++bin) {
          next_places.fetch(bin);
          next_gradients.fetch(bin);
          for (int64_t c = 0; c < channels; ++c) {
            const int64_t place = cell_of[bin * lanes + c];
            if (uint64_t(place) < uint64_t(cells)) sums[place * lanes + c] += values[bin * lanes + c];
          }
        }
        continue;
      }
      for (int64_t c = 0; c < channels; ++c) {
        next_places.fetch(c);
        next_gradients.fetch(c);
        for (int64_t bin = 0; bin < bins; ++bin) {
          const int64_t place = places[c * bins + bin];
          if (uint64_t(place) < uint64_t(cells))
            sums[c * cells + place] += load(gradients + c * grads.channel + bin * grads.cell);
        }
      }
    }
    if (!plan.in_place) FF_ISA_CALL(store_lanes, dtype, sums, int(channels), int(lanes), cells, map, false, target);
  });
  return kOk;
}

// Kernels index cells and RoIs with 32 bits within one image.
Status check_shape(const RoiPoolShape& s) {
  if (s.H * s.W > INT32_MAX)
    return invalid("input: a map of %lld x %lld cells has more than 2^31 - 1", (long long)s.H, (long long)s.W);
  if (s.R > INT32_MAX) return invalid("boxes: %lld rows, at most 2^31 - 1 are supported", (long long)s.R);
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
  WorkspaceArena arena(nullptr);
  RoiGroups::take(arena, 1, shape.B, shape.R);
  visit(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const BackwardPlan plan = BackwardPlan::of<T>(shape);
    arena.take<Compute<T>>(plan.tile * plan.threads);
    arena.take<Compute<T>>(plan.values * plan.threads);
    arena.take<int32_t>(plan.values * plan.threads);
  });
  return arena.used();
}

Status roi_pool_backward_cpu(DType dtype, const RoiPoolShape& shape, const void* grad_output,
                             bool grad_output_channels_last, const int32_t* argmax, const void* rois, void* workspace,
                             void* grad_input) {
  FF_TRY(check_shape(shape));
  return visit(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    return pool_backward(dtype, shape, static_cast<const T*>(grad_output), grad_output_channels_last, argmax, rois,
                         workspace, static_cast<T*>(grad_input));
  });
}

}  // namespace frcnn_fast::roi_pool
