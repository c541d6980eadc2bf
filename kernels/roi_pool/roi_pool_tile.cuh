// RoIPool's forward pass with the map in shared memory: every cell leaves the L2 cache once a block, whatever the
// number of bins that read it.
//
// A block: a slice of the channels of one image, and a share of its RoIs; a warp: one RoI at a time, which it claims
// from the block's counter, so that large and small RoIs even out; a lane: a column of that RoI's bins in four
// channels, the lanes that follow the same column in the slice's other channels. A warp goes down the rows of the map:
// the maxima of a row within the lane's column are found once, though two bins may share the row, and all lanes are in
// the same row.
//
// Shared memory: the slice, [H * W][channels] in the map's own type, four channels an element; the list of RoIs; and
// for each warp the outputs of its RoI, if there is room for them: where a channel's bins are neighbours they are as
// many bytes in a row as the slice has channels, and leave as whole sectors. With channels last those of a bin are
// stored as they are found. Barriers: around the list of RoIs, the first of which also says that the slice is whole.
#pragma once
#include "roi_bins.cuh"

namespace frcnn_fast::roi_pool {

constexpr int kTileThreads = 512, kTileWarps = kTileThreads / kWarp;
constexpr int64_t kTileStatic = 256;   // bytes of static shared memory
constexpr int64_t kMostTileQuads = 4;  // wider slices would only make each block load more before it begins

struct TilePlan {
  int32_t quads;   // of a slice; 0: read the map through the caches
  int32_t slices;  // of an image
  int32_t shares;  // blocks that share the RoIs of one image and slice
  int32_t held;    // bytes of a warp's outputs, or 0: they are stored as they are found
  bool vectors;    // four channels of a cell, or of a bin, are one access
  size_t bytes;
};

// Four channels of a cell, loaded and stored at once.
template <class T>
struct alignas(kQuad * sizeof(T) > 16 ? 16 : kQuad * sizeof(T)) Quad {
  T of[kQuad];
};

// The one place that decides how the map is read. As many channels as the device's shared memory takes, in equal
// slices; none where the map is too large even for four, or where the RoIs are so few that to load the whole map costs
// more than it saves.
template <class T>
TilePlan choose_tile(const RoiPoolShape& s, const void* input, const void* output) {
  constexpr int64_t kWorthLoading = 16;  // RoIs an image
  if (s.B == 0 || s.R < kWorthLoading * s.B || s.PH > kWarp || s.PW > kWarp || s.H > 0xffff || s.W > 0xffff) return {};
  const int64_t members = kTileThreads * int64_t(sizeof(Member<Compute<T>>));
  const int64_t room = int64_t(max_dynamic_shared()) - FF_MUTANT(roi_tile_room, kTileStatic + members, 0);
  const int64_t plane = s.H * s.W * int64_t(sizeof(Quad<T>)), quads = quads_of(s.C);
  const int64_t most = plane > 0 ? minimum(minimum(room / plane, kMostTileQuads), quads) : 0;
  if (most <= 0) return {};
  TilePlan plan{};
  plan.slices = int32_t((quads + most - 1) / most);
  plan.quads = int32_t((quads + plan.slices - 1) / plan.slices);
  const int64_t blocks = s.B * plan.slices;
  const int64_t useful = (s.R / s.B + kTileWarps - 1) / kTileWarps;
  plan.shares = int32_t(maximum(int64_t(1), minimum(int64_t(multiprocessors()) / blocks, useful)));
  const int64_t outputs = plan.quads * s.PH * s.PW * int64_t(sizeof(Quad<T>)), words = plan.quads * s.PH * s.PW * 4;
  const int64_t held = (outputs + 15) / 16 * 16 + (words + 15) / 16 * 16;
  if (!s.channels_last && plane * plan.quads + kTileWarps * held <= room) plan.held = int32_t(held);
  const uintptr_t places = reinterpret_cast<uintptr_t>(input) | reinterpret_cast<uintptr_t>(output);
  plan.vectors = s.channels_last && s.C % kQuad == 0 && places % alignof(Quad<T>) == 0;
  plan.bytes = size_t(plane * plan.quads + members + kTileWarps * plan.held);
  return plan;
}

// A warp's RoI, and the slice's channels c0 ... c0 + channels - 1 of it.
template <class T, bool kArgmax>
struct TileRoi {
  using U = Compute<T>;

  const PoolShape& s;
  const TilePlan& plan;
  const Quad<T>* tile;
  int32_t c0, channels;
  T* output;
  int32_t* argmax;
  T* held;  // [channels][bins], or null
  uint32_t* held_words;

  // All its bins. The whole warp.
  __device__ __forceinline__ void pool(const Member<U>& member) const {
    const uint32_t my_row = member.present && lane_id() < s.PH ? edges(member.rows(s), lane_id()) : 0;
    const uint32_t my_column = member.present && lane_id() < s.PW ? edges(member.columns(s), lane_id()) : 0;
    const int32_t tallest = longest(my_row), widest = longest(my_column);
    const bool packed = kArgmax && packs(s, member.present, tallest, widest);
    const int32_t bins = s.PH * s.PW, at_once = kWarp / plan.quads;
    const int32_t across = lane_id() / plan.quads, quad = lane_id() - across * plan.quads;
    T* const to = output + member.roi * s.C * bins + c0 * s.out.channel;
    int32_t* const part = kArgmax ? part_of(argmax, s, member.roi) : nullptr;
    for (int32_t base = 0; base < s.PW; base += at_once) {
      const int32_t q = base + across;
      const bool mine = across < at_once && q < s.PW && quad * kQuad < channels;
      const uint32_t column = __shfl_sync(kFullMask, my_column, minimum(q, s.PW - 1));
      const int32_t last = maximum(int32_t(column >> 16) - 1, 0), first = minimum(int32_t(column & 0xffffu), last);
      U row_best[kQuad];
      int32_t row_at[kQuad], seen = -1;  // the row whose maxima these are
      for (int32_t p = 0; p < s.PH; ++p) {
        const BinCells cells(__shfl_sync(kFullMask, my_row, p), column);
        const CellNumbers numbers(cells, packed, s.W);
        U best[kQuad];
        int32_t order[kQuad];
#pragma unroll
        for (int j = 0; j < kQuad; ++j) best[j] = U(-INFINITY), order[j] = -1;
        int32_t here = numbers.first;
        for (int32_t y = cells.top; y < cells.bottom; ++y, here += numbers.row_step) {
          if (y != seen) find_in_row(y, first, last - first, widest, quad, row_best, row_at);
          seen = y;
#pragma unroll
          for (int j = 0; j < kQuad; ++j) {
            if (!FF_MUTANT(roi_first_row, row_best[j] > best[j], row_best[j] >= best[j])) continue;
            best[j] = row_best[j];
            if (kArgmax) order[j] = here + row_at[j];
          }
        }
        bool unset = cells.empty();  // a lane without a column has found what is not its own
#pragma unroll
        for (int j = 0; j < kQuad; ++j) unset |= !(best[j] > U(-INFINITY));
        const auto values = [&](int32_t y, int32_t x, U(&found)[kQuad]) { load_cell(y, x, quad, found); };
        if (unset) find_maxima(cells, numbers, values, best, order);  // rare: an empty bin, -inf or NaN
        if (mine) keep(p * s.PW + q, quad, best, order, packed, to, part);
      }
    }
    if (kArgmax && packed && c0 == 0 && lane_id() == 0) *mark_of(part, s) = kPackedPart;
    if (plan.held == 0) return;
    __syncwarp();  // all outputs are held
    copy_out(to, held, channels * bins);
    if (kArgmax && packed)
      copy_out(reinterpret_cast<uint32_t*>(part) + c0 / kQuad * s.packed.channel, held_words,
               int32_t(quads_of(channels)) * bins);
    __syncwarp();  // all have read them
  }

  __device__ __forceinline__ static int32_t longest(uint32_t edge) {
    return int32_t(warp_maximum(maximum(edge >> 16, edge & 0xffffu) - (edge & 0xffffu)));
  }
  __device__ __forceinline__ void load_cell(int32_t y, int32_t x, int32_t quad, U (&found)[kQuad]) const {
    const Quad<T> cell = tile[(y * s.W + x) * plan.quads + quad];
#pragma unroll
    for (int j = 0; j < kQuad; ++j) found[j] = load(&cell.of[j]);
  }

  // The maxima of row y from column `first` to `reach` columns further, and how far. As many steps for all lanes:
  // beyond its last column a lane finds it again, which is no larger.
  __device__ __forceinline__ void find_in_row(int32_t y, int32_t first, int32_t reach, int32_t widest, int32_t quad,
                                              U (&best)[kQuad], int32_t (&at)[kQuad]) const {
    const Quad<T>* const row = tile + (y * s.W + first) * plan.quads + quad;
#pragma unroll
    for (int j = 0; j < kQuad; ++j) best[j] = U(-INFINITY), at[j] = 0;
    for (int32_t i = 0; i < widest; ++i) {
      const Quad<T> cell = row[minimum(i, reach) * plan.quads];
#pragma unroll
      for (int j = 0; j < kQuad; ++j) {
        const U found = load(&cell.of[j]);
        if (!FF_MUTANT(roi_first_in_row, found > best[j], found >= best[j])) continue;
        best[j] = found;
        at[j] = i;
      }
    }
  }

  // Four channels of a bin.
  __device__ __forceinline__ void keep(int32_t bin, int32_t quad, const U (&best)[kQuad], const int32_t (&order)[kQuad],
                                       bool packed, T* to, int32_t* part) const {
    const int32_t c = quad * kQuad, bins = s.PH * s.PW;
    const uint32_t word = packed_word(order);
    if (plan.held) {
#pragma unroll
      for (int j = 0; j < kQuad; ++j) store(held + (c + j) * bins + bin, best[j]);
      if (kArgmax) held_words[quad * bins + bin] = word;
    } else {
      T* const cell = to + bin * s.out.cell + c * s.out.channel;
      if (plan.vectors) {
        Quad<T> values;
#pragma unroll
        for (int j = 0; j < kQuad; ++j) store(&values.of[j], best[j]);
        *reinterpret_cast<Quad<T>*>(cell) = values;
      } else {
#pragma unroll
        for (int j = 0; j < kQuad; ++j)
          if (FF_MUTANT(roi_tile_rest, c + j < channels, true)) store(cell + j * s.out.channel, best[j]);
      }
      if (kArgmax && packed) part[(c0 / kQuad + quad) * s.packed.channel + bin * s.packed.cell] = int32_t(word);
    }
    if (kArgmax && !packed) {
#pragma unroll
      for (int j = 0; j < kQuad; ++j)
        if (c + j < channels) part[(c0 + c + j) * s.out.channel + bin * s.out.cell] = order[j];
    }
  }

  // n numbers. The whole warp.
  template <class Number>
  __device__ __forceinline__ static void copy_out(Number* to, const Number* from, int32_t n) {
    const int32_t bytes = n * int32_t(sizeof(Number));
    if ((reinterpret_cast<uintptr_t>(to) | unsigned(bytes)) % 16 == 0) {
      struct alignas(16) Vector {
        uint32_t of[4];
      };
      for (int32_t i = lane_id(); i < bytes / 16; i += kWarp)
        reinterpret_cast<Vector*>(to)[i] = reinterpret_cast<const Vector*>(from)[i];
    } else {
      for (int32_t i = lane_id(); i < n; i += kWarp) to[i] = from[i];
    }
  }
};

// The whole block; no barrier. A thread has the same four channels of every so many cells. Beyond the last channel the
// last is read again, and never stored.
template <class T>
__device__ __forceinline__ void load_slice(const PoolShape& s, const TilePlan& plan, const T* map, int32_t channels,
                                           Quad<T>* tile) {
  const int32_t at_once = kTileThreads / plan.quads, begin = int32_t(threadIdx.x) / plan.quads;
  const int32_t quad = int32_t(threadIdx.x) - begin * plan.quads, c = quad * kQuad;
  if (begin >= at_once) return;
  if (plan.vectors) {
    if (c >= channels) return;
#pragma unroll 4
    for (int32_t cell = begin; cell < s.H * s.W; cell += at_once)
      tile[cell * plan.quads + quad] = *reinterpret_cast<const Quad<T>*>(map + cell * s.map.cell + c);
    return;
  }
  const T* from[kQuad];
#pragma unroll
  for (int j = 0; j < kQuad; ++j) from[j] = map + minimum(c + j, channels - 1) * s.map.channel + begin * s.map.cell;
#pragma unroll 4
  for (int32_t cell = begin; cell < s.H * s.W; cell += at_once) {
    Quad<T> found;
#pragma unroll
    for (int j = 0; j < kQuad; ++j) {
      found.of[j] = *from[j];
      from[j] += at_once * s.map.cell;
    }
    tile[cell * plan.quads + quad] = found;
  }
}

template <class T, bool kArgmax>
__global__ void __launch_bounds__(kTileThreads, 1)
    pool_tile_kernel(PoolShape s, TilePlan plan, int64_t R, const T* __restrict__ input,
                     const Compute<T>* __restrict__ rois, Compute<T> scale, T* __restrict__ output,
                     int32_t* __restrict__ argmax) {
  using U = Compute<T>;
  FF_DYN_SHARED(unsigned char, shared);
  FF_SHARED(int, scratch, [kTileWarps]);
  FF_SHARED(int32_t, claimed, );
  const int32_t share = int32_t(blockIdx.x % unsigned(plan.shares));
  const int32_t slice = int32_t(blockIdx.x / unsigned(plan.shares) % unsigned(plan.slices));
  const int64_t image = int64_t(blockIdx.x / unsigned(plan.shares) / unsigned(plan.slices));
  const int32_t c0 = slice * plan.quads * kQuad, plane = s.H * s.W;
  const int32_t channels = minimum(plan.quads * kQuad, int32_t(s.C) - c0);
  Member<U>* const members = reinterpret_cast<Member<U>*>(shared);
  unsigned char* const outputs = shared + kTileThreads * sizeof(Member<U>) + warp_id() * plan.held;
  Quad<T>* const tile = reinterpret_cast<Quad<T>*>(shared + kTileThreads * sizeof(Member<U>) + kTileWarps * plan.held);

  load_slice(s, plan, input + image * s.C * plane + c0 * s.map.channel, channels, tile);

  const int32_t words = plan.quads * s.PH * s.PW * kQuad;
  const TileRoi<T, kArgmax> work{s,
                                 plan,
                                 tile,
                                 c0,
                                 channels,
                                 output,
                                 argmax,
                                 reinterpret_cast<T*>(outputs),
                                 reinterpret_cast<uint32_t*>(outputs + plan.held - (words + 15) / 16 * 16)};
  for (int64_t base = 0; base * plan.shares < R; base += kTileThreads) {
    const int64_t k = (base + threadIdx.x) * plan.shares + share;
    // RoIs of no image are empty; the first image's blocks write them.
    const int64_t of = k < R ? roi_image(rois + k * kRoiFields, s.B) : -1;
    const bool mine = FF_MUTANT(roi_tile_empty, of < 0 ? image == 0 : of == image, of == image);
    int found = 0;
    const int before = block_exclusive_count(k < R && mine, scratch, &found);
    if (k < R && mine) members[before] = Member<U>(k, RoiBins<U>(s, rois + k * kRoiFields, scale));
    if (threadIdx.x == 0) claimed = 0;
    __syncthreads();  // the list is whole
    const auto claim = [&] {
      int32_t next = 0;
      if (lane_id() == 0) next = atomicAdd(&claimed, 1);
      return __shfl_sync(kFullMask, next, 0);
    };
    for (int32_t i = claim(); i < found; i = claim()) work.pool(members[i]);
  }
}

}  // namespace frcnn_fast::roi_pool
