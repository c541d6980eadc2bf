// RoIAlign on CUDA. Precise RoI pooling has other weights and is the same otherwise. All multiply and add in the order
// of roi_align.h.
//
// Forward: two launches. The first puts the RoIs into an order in which neighbours lie side by side on the map; it
// cannot be seen in the result. In the second a block has some neighbours and a slice of the channels. First a thread
// takes a bin of one axis of one RoI and writes the cells that it touches, with their weights, into a table in shared
// memory; one barrier, and the tables are complete. Then, of a channels_last map (kLast), a warp has a column of bins
// of one RoI, every second bin for each half of the warp, and 256 bytes of channels, 16 bytes a lane. The warps take
// turns, so that they are at about the same RoI, whose cells are in the cache. If the output is not channels_last the
// block puts a RoI's bins together in shared memory and stores them, a warp a channel: one barrier before, since other
// warps store what a warp found, and one after, before the next RoI is put there. Of any other map a thread has a bin
// and four channels, neighbouring threads neighbouring bins. A bin of more cells than the table has room for is walked
// through anew by each thread.
//
// Backward: one launch writes each RoI's weights along both axes, cell by cell. If the maps are channels_last and the
// gradients are not, a second one puts these into that order. Then a launch a level gathers: see align_gather.cuh, and
// roi_gather.cuh for any other map.
#include "align_gather.cuh"
#include "precise_weights.cuh"
#include "sample_weights.cuh"

namespace frcnn_fast::roi_pool {
namespace {

constexpr int kPlainChannels = 4;  // of a thread, where it is not
constexpr int kPlainSlice = 128;
constexpr int kMostBins = 256;  // of a RoI that are put together in shared memory
constexpr int kOrderThreads = 256, kOrdered = kOrderThreads / kWarp;
#if defined(FF_TEST_BUILD)  // small cases have bins that do not fit, no tables, groups not full, and several orders
constexpr int kTableCells = 20, kMostSides = 36, kMostGroup = 3, kOrderChunk = 16;
#else
constexpr int kTableCells = 224;   // of a RoI, both axes
constexpr int kMostSides = 4096;   // rows and columns of bins; there is no table for more
constexpr int kMostGroup = 16;     // RoIs of a block
constexpr int kOrderChunk = 1024;  // RoIs that are put into order
#endif
template <class T, bool kLast, bool kPrecise>
constexpr int kAlignThreads = kLast && !kPrecise && sizeof(T) == 4 ? 512 : 256;
template <class T, bool kLast>
constexpr int kAlignBlocks = kLast && sizeof(T) < 8 ? 2 : 1;  // a multiprocessor, at least

struct AlignPlan {
  int32_t group;   // RoIs of a block
  int32_t slices;  // blocks for the channels of these
  int32_t room;    // cells of a bin in the table; -1: there is none
  int32_t stride;  // elements from channel to channel where a RoI's bins are put together; 0: they are not
};

struct RoiPlace {
  int64_t k;
  const void* map;  // its image
};

// The block's shared memory.
template <class U>
struct AlignMemory {
  Touched<U>* cells;  // [group][PH + PW][room]
  int32_t* counts;    // [group][PH + PW], of touched cells, also where there are more than room
  RoiPlace* places;   // [group]
  U* staged;          // [slice][stride]

  FF_HD AlignMemory(WorkspaceArena& arena, const AlignPlan& plan, int32_t sides, int32_t slice)
      : cells(arena.take<Touched<U>>(plan.room < 0 ? 0 : plan.group * sides * plan.room)),
        counts(arena.take<int32_t>(plan.room < 0 ? 0 : plan.group * sides)),
        places(arena.take<RoiPlace>(plan.group)),
        staged(arena.take<U>(slice * plan.stride)) {}
};

// Adds the cells of one bin without a table; see add_cells.
template <int n, class Walks, class U, class Load>
__device__ __forceinline__ void walk_cells(const Walks& walks, int32_t p, int32_t q, int32_t W, int32_t unit,
                                           const Load& load_cell, U (&sum)[n]) {
  auto row = walks.walk(true, p);
  int32_t y, x;
  for (U row_weight, weight; row.next(&y, &row_weight);)
    for (auto column = walks.walk(false, q); column.next(&x, &weight);) {
      U values[n];
      load_cell((y * W + x) * unit, values);
#pragma unroll
      for (int j = 0; j < n; ++j) sum[j] += (row_weight * weight) * values[j];
    }
}

// Values of neighbouring channels of any map, at a cell. What is read beyond the last channel is not stored.
template <class T>
struct PlainLoad {
  const T* map;
  CellStrides strides;
  int32_t channel0, channels;

  __device__ __forceinline__ void operator()(int32_t at, Compute<T> (&values)[kPlainChannels]) const {
    const T* const cell = map + at * strides.cell;
#pragma unroll
    for (int j = 0; j < kPlainChannels; ++j)
      values[j] = load(cell + minimum(channel0 + j, channels - 1) * strides.channel);
  }
};

// Where a lane puts its channels of a RoI's bins.
template <class T>
struct BinTarget {
  static constexpr int n = LaneChannels<T>::kCount;
  T* output;           // of the RoI, from the lane's first channel
  Compute<T>* staged;  // null: they are stored at once
  int32_t C, stride;

  __device__ __forceinline__ void put(int32_t bin, const Compute<T> (&sum)[n]) const {
    if (staged) {
#pragma unroll
      for (int j = 0; j < n; ++j) staged[j * kCellLanes * stride + bin] = sum[j];
    } else {
      LaneChannels<T> stored;
#pragma unroll
      for (int j = 0; j < n; ++j) store(stored.v + j, sum[j]);
      *reinterpret_cast<LaneChannels<T>*>(output + int64_t(bin) * C) = stored;
    }
  }
};

// Half a warp's bins of column q, as far as they are in the table. Whether there are others.
template <int kAtOnce, bool kAll, class T, class U>
__device__ __forceinline__ bool sum_column(const DeviceShape<U>& s, const int32_t* heights, const Touched<U>* rows,
                                           int32_t room, const Touched<U>* columns, int32_t width, int32_t q,
                                           const VectorLoad<T>& load_cell, const BinTarget<T>& target) {
  bool more = false;
  for (int32_t p = lane_id() / kCellLanes; p < s.PH; p += kWarp / kCellLanes) {
    const int32_t height = heights[p];
    if (FF_MUTANT(align_high_bin, height > room, false)) {
      more = true;
      continue;
    }
    U sum[LaneChannels<T>::kCount];
    clear(sum);
    add_cells<kAtOnce, kAll>(rows + p * room, height, columns, width, load_cell, sum);
    target.put(p * s.PW + q, sum);
  }
  return more;
}

template <class T, bool kLast, bool kPrecise>
__global__ void __launch_bounds__(kAlignThreads<T, kLast, kPrecise>, kAlignBlocks<T, kLast>)
    align_kernel(DeviceShape<Compute<T>> s, AlignPlan plan, const Compute<T>* __restrict__ rois,
                 const int32_t* __restrict__ order, T* __restrict__ output) {
  using U = Compute<T>;
  using Walks = std::conditional_t<kPrecise, PreciseWalks<U>, SampleWalks<U>>;
  constexpr int n = kLast ? LaneChannels<T>::kCount : kPlainChannels;
  constexpr int32_t slice = kLast ? kCellLanes * n : kPlainSlice, threads = kAlignThreads<T, kLast, kPrecise>;
  FF_DYN_SHARED(char, shared);
  WorkspaceArena arena(shared);
  const int32_t sides = s.PH + s.PW, bins = s.PH * s.PW;
  const AlignMemory<U> memory(arena, plan, sides, slice);
  const int64_t first = int64_t(blockIdx.x / unsigned(plan.slices)) * plan.group;
  const int32_t mine = int32_t(minimum(s.R - first, int64_t(plan.group)));
  const int32_t slice0 = int32_t(blockIdx.x % unsigned(plan.slices)) * slice;
  const int32_t unit = kLast ? int32_t(s.C) / n : 1;  // loads count in this from cell to cell

  for (int32_t item = int32_t(threadIdx.x); item < mine * sides; item += threads) {
    const int32_t i = item / sides, side = item - i * sides;
    const int64_t k = order ? order[first + i] : first + i;
    const U* roi = rois + k * kRoiFields;
    const DeviceLevel<U>& level = s.levels[s.level(roi)];
    if (side == 0) {
      const int64_t image = maximum(roi_image(roi, s.B), int64_t(0));
      memory.places[i] = {k, static_cast<const T*>(level.data) + image * s.C * level.H * level.W};
    }
    if (plan.room < 0) continue;
    const bool of_rows = side < s.PH;
    auto walk = Walks(s, roi, level).walk(of_rows, of_rows ? side : side - s.PH);
    Touched<U>* const to = memory.cells + item * plan.room;
    int32_t count = 0, cell;
    for (U weight; walk.next(&cell, &weight); ++count)
      if (count < plan.room) to[count] = {weight, cell * unit * (of_rows ? level.W : 1)};
    memory.counts[item] = count;
  }
  __syncthreads();  // the tables are complete

  if constexpr (kLast) {
    const int32_t lane = lane_id() % kCellLanes, channel0 = slice0 + lane * n;
    const bool present = channel0 < s.C;
    int32_t q = warp_id();
    for (int32_t i = 0; i < mine; ++i) {
      const RoiPlace place = memory.places[i];
      const VectorLoad<T> load_cell{
          reinterpret_cast<const LaneChannels<T>*>(static_cast<const T*>(place.map) + channel0)};
      const BinTarget<T> target{output + place.k * s.C * bins + channel0,
                                plan.stride > 0 ? memory.staged + lane * plan.stride : nullptr, int32_t(s.C),
                                plan.stride};
      const int32_t* const heights = memory.counts + i * sides;
      const Touched<U>* const rows = memory.cells + i * sides * plan.room;
      for (; q < s.PW; q += threads / kWarp) {
        if (!present) continue;
        const Touched<U>* const columns = rows + (s.PH + q) * plan.room;
        const int32_t width = heights[s.PH + q];
        const bool tabled = FF_MUTANT(align_wide_bin, width <= plan.room, true);
        bool more = !tabled;
        if (tabled && width == 2)
          more = sum_column<2, true>(s, heights, rows, plan.room, columns, width, q, load_cell, target);
        else if (tabled && width == 3)
          more = sum_column<3, true>(s, heights, rows, plan.room, columns, width, q, load_cell, target);
        else if (tabled && width == 4)
          more = sum_column<4, true>(s, heights, rows, plan.room, columns, width, q, load_cell, target);
        else if (tabled)
          more = sum_column<4, false>(s, heights, rows, plan.room, columns, width, q, load_cell, target);
        if (!more) continue;
        const U* roi = rois + place.k * kRoiFields;
        const DeviceLevel<U>& level = s.levels[s.level(roi)];
        const Walks walks(s, roi, level);
        for (int32_t p = lane_id() / kCellLanes; p < s.PH; p += kWarp / kCellLanes) {
          if (tabled && heights[p] <= plan.room) continue;
          U sum[n];
          clear(sum);
          walk_cells(walks, p, q, level.W, unit, load_cell, sum);
          target.put(p * s.PW + q, sum);
        }
      }
      q -= s.PW;  // the next warp in the row begins with the next RoI
      if (plan.stride == 0) continue;
      __syncthreads();  // the RoI's bins are together
      T* const to = output + (place.k * s.C + slice0) * bins;
      for (int32_t c = warp_id(); c < slice && slice0 + c < s.C; c += threads / kWarp)
        for (int32_t bin = lane_id(); bin < bins; bin += kWarp)
          store(to + c * bins + bin,
                memory.staged[FF_MUTANT(align_staged, c % n * kCellLanes + c / n, c) * plan.stride + bin]);
      __syncthreads();  // and stored
    }
  } else {
    const int32_t quads = (minimum(slice, int32_t(s.C) - slice0) + n - 1) / n;
    for (uint32_t item = threadIdx.x; item < uint32_t(mine * quads * bins); item += threads) {
      const int32_t i = int32_t(item / uint32_t(quads * bins)), rest = int32_t(item) - i * quads * bins;
      const int32_t quad = rest / bins, bin = rest - quad * bins, p = bin / s.PW, q = bin - p * s.PW;
      const RoiPlace place = memory.places[i];
      const U* roi = rois + place.k * kRoiFields;
      const DeviceLevel<U>& level = s.levels[s.level(roi)];
      const int32_t channel0 = slice0 + quad * n, row = i * sides + p, column = i * sides + s.PH + q;
      const PlainLoad<T> load_cell{static_cast<const T*>(place.map), level.map, channel0, int32_t(s.C)};
      U sum[n];
      clear(sum);
      if (plan.room < 0 || memory.counts[row] > plan.room || memory.counts[column] > plan.room)
        walk_cells(Walks(s, roi, level), p, q, level.W, unit, load_cell, sum);
      else
        add_cells<4, false>(memory.cells + row * plan.room, memory.counts[row], memory.cells + column * plan.room,
                            memory.counts[column], load_cell, sum);
      T* const target = output + place.k * s.C * bins + bin * s.out.cell;
#pragma unroll
      for (int j = 0; j < n; ++j)
        if (channel0 + j < s.C) store(target + (channel0 + j) * s.out.channel, sum[j]);
    }
  }
}

// Bits 0 to 13 of v, each with a gap before the next.
__device__ __forceinline__ uint32_t spread_bits(uint32_t v) {
  v = (v | v << 8) & 0x00ff00ffu;
  v = (v | v << 4) & 0x0f0f0f0fu;
  v = (v | v << 2) & 0x33333333u;
  return (v | v << 1) & 0x55555555u;
}

// Equal for no two RoIs of a chunk, and close for those that lie side by side in one image of one level: the middle, in
// cells, along a Z-curve.
template <class U>
__device__ __forceinline__ uint64_t place_key(const DeviceShape<U>& s, const U* roi, int32_t number) {
  constexpr int kBits = 14;
  const int level = s.level(roi);
  const auto cell = [&](U low, U high) {
    const U middle = (low + high) * U(0.5) * s.levels[level].scale, most = U((1 << kBits) - 1);
    return uint32_t(middle > U(0) ? (middle < most ? middle : most) : U(0));
  };
  const uint32_t curve = spread_bits(cell(roi[1], roi[3])) | spread_bits(cell(roi[2], roi[4])) << 1;
  const uint64_t map = uint64_t(maximum(roi_image(roi, s.B), int64_t(0))) * kMaxRoiLevels + uint64_t(level);
  return (map << 2 * kBits | curve) * kOrderChunk + uint64_t(FF_MUTANT(align_same_place, number, 0));
}

// Puts the RoIs of each chunk into the order of their keys: a RoI's place is the number of lesser keys. Each block
// works out the keys of its chunk, into shared memory, one barrier; then a warp counts for a RoI.
template <class U>
__global__ void __launch_bounds__(kOrderThreads)
    order_kernel(DeviceShape<U> s, const U* __restrict__ rois, int32_t* __restrict__ order) {
  FF_SHARED(uint64_t, keys, [kOrderChunk]);
  const int64_t chunk = int64_t(blockIdx.x) * kOrdered / kOrderChunk * kOrderChunk;
  const int32_t members = int32_t(minimum(s.R - chunk, int64_t(kOrderChunk)));
  for (int32_t i = int32_t(threadIdx.x); i < members; i += kOrderThreads)
    keys[i] = place_key(s, rois + (chunk + i) * kRoiFields, i);
  __syncthreads();
  const int32_t mine = int32_t(int64_t(blockIdx.x) * kOrdered - chunk) + warp_id();
  if (mine >= members) return;  // the whole warp
  const uint64_t own = keys[mine];
  int32_t lesser = 0;
#pragma unroll 4
  for (int32_t i = lane_id(); i < members; i += kWarp) lesser += keys[i] < own;
  lesser = warp_reduce(lesser, Plus());
  if (lane_id() == 0) order[chunk + lesser] = int32_t(chunk + mine);
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

template <class T, bool kLast>
AlignPlan align_plan(const RoiAlignShape& s, int slice) {
  AlignPlan plan{};
  plan.slices = int32_t((s.C + slice - 1) / slice);
  const int64_t sides = s.PH + s.PW, most = maximum(s.max_height(), s.max_width());
  const int64_t touched = s.precise || s.sampling_ratio <= 0 ? most : minimum(most, 2 * int64_t(s.sampling_ratio));
  plan.room = sides > kMostSides ? -1 : int32_t(minimum(touched, kTableCells / sides));
  // As many blocks as may run at once, if none need have too many RoIs for that.
  const int64_t blocks = (kLast ? 2 : 8) * multiprocessors();
  const int64_t group = minimum((s.R * plan.slices + blocks - 1) / blocks, int64_t(kMostGroup));
  const int64_t fitting = minimum(kMostSides / sides, INT32_MAX / (2 * s.C * s.PH * s.PW));
  plan.group = int32_t(maximum(minimum(group, fitting), int64_t(1)));
  // The sixteen channels that a warp stores at once lie in every second bank.
  if (kLast && !s.output_channels_last) plan.stride = int32_t((s.PH * s.PW + 1) / 4 * 4 + 2);
  return plan;
}

template <class T>
bool is_aligned(const T* p) {
  return reinterpret_cast<uintptr_t>(p) % sizeof(LaneChannels<T>) == 0;
}

// Whether all is as the kernel for channels_last maps wants it: whole, aligned vectors of channels, counted in 32 bits,
// and room for a RoI's bins.
template <class T>
bool loads_vectors(const RoiAlignShape& s, const void* const* features, const void* output) {
  constexpr int n = LaneChannels<T>::kCount;
  bool fits = s.C % n == 0 && is_aligned(static_cast<const T*>(output)) && s.PH + s.PW <= kMostSides &&
              s.PH * s.PW <= kMostBins;
  for (int64_t l = 0; l < s.L; ++l)
    fits = fits && s.levels[l].channels_last && is_aligned(static_cast<const T*>(features[l])) &&
           s.levels[l].H * s.levels[l].W * (s.C / n) <= INT32_MAX;
  return fits;
}

int32_t* take_order(WorkspaceArena& arena, const RoiAlignShape& s) { return arena.take<int32_t>(s.R); }

template <class T, bool kLast, bool kPrecise>
Status launch_align(const RoiAlignShape& shape, const void* const* features, const void* rois, int32_t* order,
                    void* output, Stream stream) {
  using U = Compute<T>;
  constexpr int slice = kLast ? kCellLanes * LaneChannels<T>::kCount : kPlainSlice;
  const AlignPlan plan = align_plan<T, kLast>(shape, slice);
  const DeviceShape<U> s = device_shape<U>(shape, features);
  const U* const boxes = static_cast<const U*>(rois);
  const bool ordered = plan.group > 1 && plan.group < shape.R;
  if (ordered)
    FF_LAUNCH(order_kernel<U>, dim3(blocks_for(shape.R, kOrdered)), dim3(kOrderThreads), 0, stream, s, boxes, order);
  WorkspaceArena arena(nullptr);
  AlignMemory<U>(arena, plan, int32_t(shape.PH + shape.PW), slice);
  const auto kernel = &align_kernel<T, kLast, kPrecise>;
  FF_TRY(allow_dynamic_shared(kernel, arena.used() > kDefaultSharedBytes ? max_dynamic_shared() : 0));
  FF_LAUNCH(kernel, dim3(blocks_for(shape.R, plan.group) * unsigned(plan.slices)),
            dim3(kAlignThreads<T, kLast, kPrecise>), arena.used(), stream, s, plan, boxes, ordered ? order : nullptr,
            static_cast<T*>(output));
  return launched();
}

template <class T>
Status align(const RoiAlignShape& shape, const void* const* features, const void* rois, void* workspace, void* output,
             Stream stream) {
  WorkspaceArena arena(workspace);
  int32_t* const order = take_order(arena, shape);
  const auto launch = [&](auto launcher) { return launcher(shape, features, rois, order, output, stream); };
  if (loads_vectors<T>(shape, features, output))
    return launch(shape.precise ? &launch_align<T, true, true> : &launch_align<T, true, false>);
  return launch(shape.precise ? &launch_align<T, false, true> : &launch_align<T, false, false>);
}

// What the backward pass keeps besides the weights.
template <class T>
struct BackwardMemory {
  RoiTables tables;
  T* turned;  // the gradients as channels_last, where they are not and the maps are

  static bool turns(const RoiAlignShape& s) {
    bool last = !s.output_channels_last && s.PH * s.PW > 1 && s.C > 1;
    for (int64_t l = 0; l < s.L; ++l) last = last && s.levels[l].channels_last;
    return last;
  }
  BackwardMemory(WorkspaceArena& arena, const RoiAlignShape& s)
      : tables(take_tables(arena, s)), turned(arena.take<T>(turns(s) ? s.R * s.C * s.PH * s.PW : 0)) {}
};

template <class T>
Status turn(const RoiAlignShape& shape, const T* from, T* to, Stream stream) {
  const int64_t bins = shape.PH * shape.PW, line = kTurnGroups * LaneChannels<T>::kCount;
  if (shape.R == 0) return kOk;
  const bool vectors = shape.C % LaneChannels<T>::kCount == 0 && is_aligned(from) && bins <= kMostTurned;
  if (FF_MUTANT(align_turn_vectors, vectors, true)) {
    const int64_t slices = (shape.C + line - 1) / line;
    FF_LAUNCH(turn_kernel<T>, dim3(unsigned(shape.R * slices)), dim3(kTurnThreads), turn_shared(int32_t(bins)), stream,
              int32_t(shape.C), int32_t(bins), int32_t(slices), from, to);
  } else {
    const int64_t slices = (shape.C + kPlainTurnChannels - 1) / kPlainTurnChannels;
    FF_LAUNCH(plain_turn_kernel<T>, dim3(unsigned(shape.R * slices)), dim3(kPlainTurnThreads), 0, stream,
              int32_t(shape.C), int32_t(bins), int32_t(slices), from, to);
  }
  return launched();
}

// The gradient of one level's map from channels_last gradients.
template <class T>
Status gather_tiles(const RoiAlignShape& shape, int64_t l, const RoiTables& tables, const Weights<Compute<T>>& weights,
                    const T* grads, T* grad_input, Stream stream) {
  const RoiAlignLevel& level = shape.levels[l];
  TileGather<T> g{};
  g.C = int32_t(shape.C), g.H = int32_t(level.H), g.W = int32_t(level.W);
  g.PH = int32_t(shape.PH), g.PW = int32_t(shape.PW), g.group0 = l * shape.B;
  g.columns = int32_t((level.W + kTileSide - 1) / kTileSide);
  g.tiles = g.columns * int32_t((level.H + kTileSide - 1) / kTileSide);
  constexpr int slice = kLaneVectors * kCellLanes * TileGather<T>::n;
  g.slices = int32_t((shape.C + slice - 1) / slice);
  g.tables = tables, g.weights = weights, g.grads = grads, g.grad_input = grad_input;
  const int64_t blocks = shape.B * g.tiles * g.slices;
  if (blocks > INT32_MAX)
    return invalid("input: a map of %lld x %lld cells is too large", (long long)g.H, (long long)g.W);
  if (blocks > 0) FF_LAUNCH(tile_gather_kernel<T>, dim3(unsigned(blocks)), dim3(kTileThreads), 0, stream, g);
  return launched();
}

template <class T>
Status align_backward(const RoiAlignShape& shape, const void* grad_output, const void* rois, void* workspace,
                      void* const* grads, Stream stream) {
  using U = Compute<T>;
  const DeviceShape<U> s = device_shape<U>(shape, grads);
  WorkspaceArena arena(workspace);
  const Weights<U> weights = Weights<U>::take(arena, shape);
  const BackwardMemory<T> memory(arena, shape);
  const U* boxes = static_cast<const U*>(rois);
  const dim3 blocks(unsigned(shape.L * shape.B) + table_blocks(shape));
  if (shape.precise)
    FF_LAUNCH((precise_weights_kernel<U, Weighs::kGather>), blocks, dim3(128), 0, stream, s, boxes, weights,
              Slopes<U>{}, memory.tables);
  else
    FF_LAUNCH((sample_weights_kernel<U, Weighs::kGather>), blocks, dim3(128), 0, stream, s, boxes, weights, Slopes<U>{},
              memory.tables);
  const T* from = static_cast<const T*>(grad_output);
  bool last = shape.output_channels_last;
  if (BackwardMemory<T>::turns(shape)) {
    FF_TRY(turn(shape, from, memory.turned, stream));
    from = memory.turned, last = true;
  }
  const WeightSource<T> source{s.C,           s.PH,    s.PW, cell_strides(shape.C, shape.PH * shape.PW, last),
                               memory.tables, weights, from};
  for (int64_t l = 0; l < shape.L; ++l) {
    T* const to = static_cast<T*>(grads[l]);
    if (last && shape.levels[l].channels_last && shape.C % LaneChannels<T>::kCount == 0 && is_aligned(from) &&
        is_aligned(to) && TileGather<T>::counts(shape)) {
      FF_TRY(gather_tiles(shape, l, memory.tables, weights, from, to, stream));
      continue;
    }
    GatherShape g{};
    g.C = s.C, g.H = s.levels[l].H, g.W = s.levels[l].W, g.PH = s.PH, g.PW = s.PW;
    g.group0 = l * s.B, g.map = s.levels[l].map;
    FF_TRY(gather(g, shape.levels[l].channels_last, shape.B, memory.tables, source, to, stream));
  }
  return launched();
}

}  // namespace

size_t roi_align_workspace_cuda(DType, const RoiAlignShape& shape) {
  WorkspaceArena arena(nullptr);
  take_order(arena, shape);
  return arena.used();
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
  return visit(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    WorkspaceArena arena(nullptr);
    Weights<Compute<T>>::take(arena, shape);
    BackwardMemory<T>(arena, shape);
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
