// RoIPool's backward pass with a part of the map's gradient in shared memory: every gradient that comes in is read once
// for each part that its RoI meets, and added where its argmax is.
//
// A block: 32 channels of one image, and a tile of its cells. A warp: one of the tile's 4 x 4 patches; a lane: a
// channel. So no two lanes add to the same sum, and a warp adds in the order in which it visits the bins: RoIs
// ascending, then bins. No atomics, one order, the CPU's bits.
//
// The RoIs are looked through a block's width at a time: a thread tests one against the tile, and those that meet it
// are listed in order. Then they are staged some at a time, a warp a RoI: its gradients and packed argmaxes, the edges
// of its bins, and which of them meet each row and column of patches. While some are worked on, the next are on their
// way. A warp writes itself a list of visits, a lane a bin that meets its patch, and walks it a few bins at a time: the
// loads of these are under way together, and where two of them add to the same cell the second takes the first's sum.
//
// Shared memory: the sums, [warp][cell of its patch, and one for what lies elsewhere][channel]; the visits; the list of
// RoIs; two sets of staged RoIs, in whose place the sums are turned around at the end when the map's cells are
// neighbours in memory. Barriers: around the list; one before a set is read, which also says that all are done with
// the other, which is then filled; one before the sums are turned around and one before they are written.
#pragma once
#include "../common/async_copy.cuh"
#include "roi_bins.cuh"

namespace frcnn_fast::roi_pool {

constexpr int kScatterThreads = 512, kScatterWarps = kScatterThreads / kWarp;
constexpr int kPatches = 4;              // of a tile, along each side
constexpr int kGroup = kWarp;            // channels of a block
constexpr int kVisits = 64;              // of a warp's list
constexpr int kTogether = 4;             // visits that are walked at once
constexpr int64_t kScatterStatic = 256;  // bytes of static shared memory
#if defined(FF_TEST_BUILD)
constexpr int64_t kMostStaged = 3;  // small cases need several sets
#else
constexpr int64_t kMostStaged = kScatterWarps;
#endif
static_assert(kPatches * kPatches == kScatterWarps && kVisits >= kWarp + kTogether);

// A bin that meets a patch: where lane 0 finds its gradient and its argmax, in bytes from the start of what is staged,
// and its first cell, counted from the patch's.
struct alignas(16) Visit {
  int32_t grad, order, row, column;
};
constexpr int32_t kElsewhere = INT32_MIN / 2;  // a row or column of no patch

// The bins that meet a row or column of patches: first | count << 5 | reciprocal << 16, so that v / count =
// (v * reciprocal + reciprocal) >> 16 for v < 32 * 32.
struct BinRange {
  uint32_t word;

  __device__ __forceinline__ static BinRange of(unsigned meets) {
    if (!meets) return {0};
    const unsigned count = unsigned(__popc(meets));
    return {unsigned(__ffs(int(meets)) - 1) | count << 5 | 0xffffu / count << 16};
  }
  __device__ __forceinline__ int32_t first() const { return int32_t(word & 31u); }
  __device__ __forceinline__ int32_t count() const { return int32_t(word >> 5 & 63u); }
  __device__ __forceinline__ int32_t divide(int32_t v) const {
    const uint32_t reciprocal = word >> 16;
    return int32_t((uint32_t(v) * reciprocal + reciprocal) >> 16);
  }
};

// Rows of memory that a warp copies, of so many pieces each: as many rows at once as it has lanes for.
struct Rows {
  int32_t count, pieces, at_once;
  int32_t row, piece;  // where this lane begins

  Rows() = default;
  __device__ __forceinline__ Rows(int32_t rows, int32_t bytes, int32_t each)
      : count(rows), pieces(bytes / each), at_once(maximum(kWarp / pieces, 1)) {
    row = pieces < kWarp ? lane_id() / pieces : 0;
    piece = pieces < kWarp ? lane_id() % pieces : lane_id();
    if (row >= at_once) row = count;
  }
};

struct ScatterPlan {
  int32_t groups;                              // of channels
  int32_t tiles_down, tiles_across;            // of an image
  int32_t patch_rows, patch_columns;           // cells
  int32_t staged;                              // RoIs of a set, or 0: none are staged
  int32_t grad_bytes, order_bytes, roi_bytes;  // of a staged RoI: gradients, argmaxes, all
  int32_t piece;                               // bytes that are copied at once
  size_t bytes;
  CellStrides from;  // of the gradients
  bool from_last;

  FF_HD int32_t patch_cells() const { return patch_rows * patch_columns; }
};

inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Bytes of shared memory beside the sums and the staged RoIs, and of one of these.
template <class T>
int64_t scatter_lists() {
  return kScatterStatic + kScatterWarps * kVisits * int64_t(sizeof(Visit)) +
         round_up(kScatterThreads * int64_t(sizeof(Member<Compute<T>>)), 16);
}
template <class T>
int64_t staged_bytes(const RoiPoolShape& s) {
  const int64_t bins = s.PH * s.PW;
  return round_up(kGroup * bins * int64_t(sizeof(T)), 16) + kGroup * bins +
         round_up(4 * (s.PH + s.PW + 2 * kPatches), 16);
}
inline int64_t sum_bytes(int64_t patch_cells, int64_t element) {
  return kScatterWarps * (patch_cells + 1) * kGroup * element;
}

// The one place that decides how the map is cut, and what is staged: as many RoIs as there is room for, a warp each;
// none where a RoI's bins are too many for that, or its edges have no room. Tiles are halved until there are about as
// many blocks as multiprocessors, and until their sums leave half of the shared memory to the staged RoIs.
template <class T>
ScatterPlan plan_scatter(const RoiPoolShape& s, const void* grads, bool grads_last, const void* argmax) {
  using U = Compute<T>;
  ScatterPlan plan{};
  const int64_t room = int64_t(max_dynamic_shared()) - scatter_lists<T>(), bins = s.PH * s.PW;
  plan.groups = int32_t((s.C + kGroup - 1) / kGroup);
  const int64_t processors = multiprocessors();
  int64_t rows = s.H, columns = s.W, blocks = s.B * plan.groups;
  const auto patch = [](int64_t side) { return (side + kPatches - 1) / kPatches; };
  while ((2 * blocks <= processors || sum_bytes(patch(rows) * patch(columns), sizeof(U)) > room / 2) &&
         maximum(rows, columns) > kPatches) {
    int64_t& longer = rows >= columns ? rows : columns;
    longer = (longer + 1) / 2;
    blocks *= 2;
  }
  plan.patch_rows = int32_t(patch(rows));
  plan.patch_columns = int32_t(patch(columns));
  plan.tiles_down = int32_t(blocks_for(s.H, kPatches * plan.patch_rows));
  plan.tiles_across = int32_t(blocks_for(s.W, kPatches * plan.patch_columns));

  const int64_t sums = sum_bytes(plan.patch_cells(), sizeof(U));
  const bool has_edges = s.PH <= kWarp && s.PW <= kWarp && s.H <= 0xffff && s.W <= 0xffff;
  plan.staged = has_edges ? int32_t(minimum((room - sums) / (2 * staged_bytes<T>(s)), kMostStaged)) : 0;
  const int64_t turned = kGroup * (int64_t(kScatterWarps) * plan.patch_cells() | 1) * int64_t(sizeof(U));
  if (plan.staged > 0) {
    plan.grad_bytes = int32_t(round_up(kGroup * bins * int64_t(sizeof(T)), 16));
    plan.order_bytes = int32_t(kGroup * bins);
    plan.roi_bytes = int32_t(staged_bytes<T>(s));
  }
  plan.bytes =
      size_t(scatter_lists<T>() - kScatterStatic + sums + maximum(int64_t(2 * plan.staged * plan.roi_bytes), turned));
  plan.from = cell_strides(s.C, bins, grads_last);
  plan.from_last = grads_last;

  // What is copied begins and ends at multiples of these.
  const int64_t rest = s.C % kGroup, quads = quads_of(rest);
  uint64_t ends = uint64_t(reinterpret_cast<uintptr_t>(grads)) | reinterpret_cast<uintptr_t>(argmax);
  ends |= uint64_t(s.C * bins) * sizeof(T) | uint64_t(s.C * bins) * 4;
  ends |= grads_last ? uint64_t(s.C) * sizeof(T) | uint64_t(rest) * sizeof(T) : uint64_t(rest * bins) * sizeof(T);
  ends |= s.channels_last ? uint64_t(quads_of(s.C)) * 4 | uint64_t(quads) * 4 : uint64_t(quads * bins) * 4;
  plan.piece = ends % 16 == 0 ? 16 : ends % 4 == 0 ? 4 : 2;
  return plan;
}

template <int kBytes>
struct alignas(kBytes) Piece {
  uint8_t of[kBytes];
};

// The whole warp. stride: bytes from one row to the next. Pieces of 4 bytes and more are on their way when this
// returns.
template <int kBytes>
__device__ __forceinline__ void copy_rows(unsigned char* to, const unsigned char* from, const Rows& rows,
                                          int64_t stride) {
  for (int32_t row = rows.row; row < rows.count; row += rows.at_once) {
    const unsigned char* const source = from + row * stride;
    unsigned char* const target = to + row * rows.pieces * kBytes;
    for (int32_t i = rows.piece; i < rows.pieces; i += kWarp) {
      if constexpr (kBytes >= 4)
        copy_async<kBytes>(target + i * kBytes, source + i * kBytes);
      else
        *reinterpret_cast<Piece<kBytes>*>(target + i * kBytes) =
            *reinterpret_cast<const Piece<kBytes>*>(source + i * kBytes);
    }
  }
}

// What a block knows.
template <class T>
struct ScatterBlock {
  using U = Compute<T>;

  const PoolShape& s;
  const ScatterPlan& plan;
  int64_t image;
  int32_t c0, channels, top, left;  // its channels, and its first cell
  const T* grads;
  const int32_t* argmax;
  Rows grad_rows, order_rows;  // of a RoI's gradients and packed argmaxes
  U* sums;                     // of this warp and lane
  Visit* visits;               // of this warp
  Member<U>* members;
  unsigned char* sets;

  __device__ __forceinline__ ScatterBlock(const PoolShape& shape, const ScatterPlan& p, const T* g, const int32_t* a,
                                          unsigned char* shared)
      : s(shape), plan(p), grads(g), argmax(a) {
    const unsigned tiles = unsigned(plan.tiles_down * plan.tiles_across);
    const int32_t tile = int32_t(blockIdx.x % tiles), group = int32_t(blockIdx.x / tiles % unsigned(plan.groups));
    image = int64_t(blockIdx.x / tiles / unsigned(plan.groups));
    c0 = group * kGroup;
    channels = minimum(kGroup, int32_t(s.C) - c0);
    top = tile / plan.tiles_across * kPatches * plan.patch_rows;
    left = tile % plan.tiles_across * kPatches * plan.patch_columns;
    const int32_t bins = s.PH * s.PW, grad_bytes = channels * int32_t(sizeof(T));
    const int32_t order_bytes = int32_t(quads_of(channels)) * kQuad;
    grad_rows = plan.from_last ? Rows(bins, grad_bytes, plan.piece) : Rows(1, bins * grad_bytes, plan.piece);
    order_rows = orders_last() ? Rows(bins, order_bytes, plan.piece) : Rows(1, bins * order_bytes, plan.piece);
    const int32_t cells = plan.patch_cells() + 1;
    sums = reinterpret_cast<U*>(shared) + warp_id() * cells * kGroup + lane_id();
    shared += kScatterWarps * cells * kGroup * int32_t(sizeof(U));
    visits = reinterpret_cast<Visit*>(shared) + warp_id() * kVisits;
    shared += kScatterWarps * kVisits * sizeof(Visit);
    members = reinterpret_cast<Member<U>*>(shared);
    sets = shared + (kScatterThreads * int32_t(sizeof(Member<U>)) + 15) / 16 * 16;
  }

  __device__ __forceinline__ int32_t patch_top() const { return top + warp_id() / kPatches * plan.patch_rows; }
  __device__ __forceinline__ int32_t patch_left() const { return left + warp_id() % kPatches * plan.patch_columns; }
  __device__ __forceinline__ int32_t my_channel() const { return minimum(lane_id(), channels - 1); }

  __device__ __forceinline__ unsigned char* staged(int32_t set, int32_t slot) const {
    return sets + (set * plan.staged + slot) * plan.roi_bytes;
  }
  // Of a staged RoI: PH edges of rows, PW of columns, then a BinRange for each row and each column of patches.
  __device__ __forceinline__ uint32_t* edges_of(unsigned char* roi) const {
    return reinterpret_cast<uint32_t*>(roi + plan.grad_bytes + plan.order_bytes);
  }

  // Lists the RoIs of `base` ... that meet the tile; returns how many. The whole block.
  __device__ __forceinline__ int32_t list(int64_t base, int64_t R, const U* rois, U scale) const {
    FF_SHARED(int, scratch, [kScatterWarps]);
    const int64_t k = base + threadIdx.x;
    bool here = false;
    Member<U> mine{};
    if (k < R && roi_image(rois + k * kRoiFields, s.B) == image) {
      const RoiBins<U> bins(s, rois + k * kRoiFields, scale);
      here = bins.present && bins.rows.begin(0) < top + kPatches * plan.patch_rows && bins.rows.end(s.PH - 1) > top &&
             bins.columns.begin(0) < left + kPatches * plan.patch_columns && bins.columns.end(s.PW - 1) > left;
      mine = Member<U>(k, bins);
    }
    if (here) mine.packed = *mark_of(part_of(argmax, s, k), s) == kPackedPart;
    int found = 0;
    const int before = block_exclusive_count(here, scratch, &found);
    if (here) members[before] = mine;
    __syncthreads();  // the list is whole
    return found;
  }

  // Fills a set with members `first` ... of `count`. The whole block; no barrier.
  __device__ __forceinline__ void stage(int32_t set, int32_t first, int32_t count) const {
    for (int32_t slot = warp_id(); slot < minimum(plan.staged, count - first); slot += kScatterWarps) {
      const Member<U> member = members[first + slot];
      unsigned char* const roi = staged(set, slot);
      const int64_t start = member.roi * (s.C * s.PH * s.PW);
      copy(roi, grads + start + c0 * plan.from.channel, grad_rows, plan.from.cell * int64_t(sizeof(T)));
      if (member.packed)
        copy(roi + plan.grad_bytes, argmax + start + c0 / kQuad * s.packed.channel, order_rows, s.packed.cell * kQuad);
      const BinAxis<U> rows = member.rows(s), columns = member.columns(s);
      uint32_t* const found = edges_of(roi);
      const uint32_t row = lane_id() < s.PH ? edges(rows, lane_id()) : 0;
      const uint32_t column = lane_id() < s.PW ? edges(columns, lane_id()) : 0;
      if (lane_id() < s.PH) found[lane_id()] = row;
      if (lane_id() < s.PW) found[s.PH + lane_id()] = column;
      unsigned mine = 0;
      for (int32_t side = 0; side < kPatches; ++side) {
        const unsigned down = meets(row, top + side * plan.patch_rows, plan.patch_rows);
        const unsigned across = meets(column, left + side * plan.patch_columns, plan.patch_columns);
        if (lane_id() == side) mine = down;
        if (lane_id() == kPatches + side) mine = across;
      }
      if (lane_id() < 2 * kPatches) found[s.PH + s.PW + lane_id()] = BinRange::of(mine).word;
    }
  }
  __device__ __forceinline__ void copy(unsigned char* to, const void* from, const Rows& rows, int64_t stride) const {
    const unsigned char* const bytes = static_cast<const unsigned char*>(from);
    if (plan.piece == 16)
      copy_rows<16>(to, bytes, rows, stride);
    else if (plan.piece == 4)
      copy_rows<4>(to, bytes, rows, stride);
    else
      copy_rows<2>(to, bytes, rows, stride);
  }
  // Which lanes' bins meet the cells low ... low + count - 1.
  __device__ __forceinline__ static unsigned meets(uint32_t edge, int32_t low, int32_t count) {
    const int32_t begin = int32_t(edge & 0xffffu), end = int32_t(edge >> 16);
    return __ballot_sync(kFullMask, begin < end && begin < low + count && end > low);
  }

  // Adds what all members owe the warp's patch, set by set. The whole block.
  __device__ __forceinline__ void add_members(int32_t count) const {
    const int32_t each = plan.staged > 0 ? plan.staged : kWarp;
    int32_t set = 0;
    for (int32_t first = -each; first < count; first += each, set ^= 1) {
      wait_for_copies();
      __syncthreads();  // the set is there, and all are done with the other
      stage(set ^ 1, first + each, count);
      if (first >= 0) add(set, first, minimum(each, count - first));
    }
  }

  // Adds what a set of n RoIs, the first of them member `first`, owes the warp's patch. The whole warp.
  __device__ __forceinline__ void add(int32_t set, int32_t first, int32_t n) const {
    BinRange rows{0}, columns{0};  // of this lane's RoI
    if (lane_id() < n) {
      if (plan.staged > 0) {
        const uint32_t* ranges = edges_of(staged(set, lane_id())) + s.PH + s.PW;
        rows.word = ranges[warp_id() / kPatches];
        columns.word = ranges[kPatches + warp_id() % kPatches];
      } else {
        rows = columns = BinRange::of(1);  // any
      }
    }
    int32_t listed = 0;
    for (unsigned hits = __ballot_sync(kFullMask, rows.word && columns.word); hits; hits &= hits - 1) {
      const int32_t slot = __ffs(int(hits)) - 1, offset = (set * plan.staged + slot) * plan.roi_bytes;
      const BinRange down{__shfl_sync(kFullMask, rows.word, slot)}, across{__shfl_sync(kFullMask, columns.word, slot)};
      const Member<U>& member = members[first + slot];
      const bool visited = plan.staged > 0 && member.packed;
      const uint32_t* const edge = edges_of(sets + offset);
      for (int32_t base = 0, bins = down.count() * across.count(); base < bins; base += kWarp) {
        const int32_t more = minimum(bins - base, kWarp);
        if (!visited || FF_MUTANT(roi_visit_room, listed + more, 0) > kVisits - kTogether) {
          walk(listed);
          listed = 0;
        }
        if (!visited) {
          add_unstaged(member);
          break;
        }
        if (lane_id() < more) {
          const int32_t v = base + lane_id(), row = across.divide(v);
          const int32_t p = down.first() + row, q = across.first() + v - row * across.count(), bin = p * s.PW + q;
          visits[listed + lane_id()] = {offset + bin * grad_step(), offset + plan.grad_bytes + bin * order_step(),
                                        int32_t(edge[p] & 0xffffu) - patch_top(),
                                        int32_t(edge[s.PH + q] & 0xffffu) - patch_left()};
        }
        listed += more;
      }
    }
    walk(listed);
  }

  __device__ __forceinline__ bool orders_last() const { return s.packed.channel == 1; }
  // Bytes from one bin to the next, and from lane 0 to this lane, in what is staged.
  __device__ __forceinline__ int32_t grad_step() const { return int32_t(sizeof(T)) * (plan.from_last ? channels : 1); }
  __device__ __forceinline__ int32_t order_step() const {
    return orders_last() ? kQuad * int32_t(quads_of(channels)) : kQuad;
  }
  __device__ __forceinline__ int32_t grad_lane() const {
    return int32_t(sizeof(T)) * my_channel() * (plan.from_last ? 1 : s.PH * s.PW);
  }
  __device__ __forceinline__ int32_t order_lane() const {
    const int32_t quad = my_channel() / kQuad;
    return kQuad * quad * (orders_last() ? 1 : s.PH * s.PW) + my_channel() % kQuad;
  }

  // What some visits bring: how much to add, and where (place()).
  struct Found {
    int32_t at[kTogether];
    U value[kTogether];
  };
  __device__ __forceinline__ void look(const Visit* list, const unsigned char* my_grads, const uint8_t* my_orders,
                                       Found& found) const {
#pragma unroll
    for (int j = 0; j < kTogether; ++j) {
      const Visit visit = list[j];
      const uint32_t order = my_orders[visit.order];
      found.value[j] = load(reinterpret_cast<const T*>(my_grads + visit.grad));
      found.at[j] = place(visit.row + int32_t(order / kPackedColumns), visit.column + int32_t(order % kPackedColumns),
                          FF_MUTANT(roi_scatter_none, order != kNoOrder, true));
    }
  }

  // Adds what the first `count` visits find. The whole warp.
  __device__ __forceinline__ void walk(int32_t count) const {
    if (lane_id() < FF_MUTANT(roi_visit_pad, kTogether, 0))  // the last few are filled up
      visits[count + lane_id()] = {0, plan.grad_bytes, kElsewhere, kElsewhere};
    __syncwarp();  // the list is whole
    const unsigned char* const my_grads = sets + grad_lane();
    const uint8_t* const my_orders = sets + order_lane();
    Found found;
    look(visits, my_grads, my_orders, found);
    for (int32_t i = 0; i < count; i += kTogether) {
      U sum[kTogether];
#pragma unroll
      for (int j = 0; j < kTogether; ++j) sum[j] = sum_at(found.at[j]);
      Found next = found;
      if (i + kTogether < count) look(visits + i + kTogether, my_grads, my_orders, next);  // meanwhile
#pragma unroll
      for (int j = 0; j < kTogether; ++j) {
#pragma unroll
        for (int before = 0; before < j; ++before)
          if (FF_MUTANT(roi_scatter_same, found.at[before] == found.at[j], false)) sum[j] = sum[before];
        sum[j] += found.value[j];
      }
#pragma unroll
      for (int j = 0; j < kTogether; ++j) sum_at(found.at[j]) = sum[j];
      found = next;
    }
    __syncwarp();  // all have read the list
  }

  // This lane's sum of a cell of the patch, or of what lies elsewhere: where it is, in bytes.
  __device__ __forceinline__ int32_t place(int32_t y, int32_t x, bool any) const {
    constexpr int32_t each = kGroup * int32_t(sizeof(U));
    const bool below = unsigned(y) < unsigned(FF_MUTANT(roi_patch_rows, plan.patch_rows, plan.patch_rows - 1));
    const bool inside =
        unsigned(x) < unsigned(FF_MUTANT(roi_patch_columns, plan.patch_columns, plan.patch_columns - 1));
    return any && below && inside ? y * (plan.patch_columns * each) + x * each : plan.patch_cells() * each;
  }
  __device__ __forceinline__ U& sum_at(int32_t place) const {
    return *reinterpret_cast<U*>(reinterpret_cast<unsigned char*>(sums) + place);
  }

  // Adds what a RoI owes the patch, read where it lies: of one whose part is plain, or where none are staged. Rare, so
  // it may be slow.
  __device__ __forceinline__ void add_unstaged(const Member<U>& member) const {
    const BinAxis<U> rows = member.rows(s), columns = member.columns(s);
    const int32_t c = c0 + my_channel();
    const int64_t start = member.roi * (s.C * s.PH * s.PW);
    const uint8_t* const orders = reinterpret_cast<const uint8_t*>(argmax + start);
    for (int32_t p = 0; p < s.PH; ++p) {
      const int32_t y0 = rows.begin(p) - patch_top();
      if (y0 >= plan.patch_rows || rows.end(p) <= patch_top()) continue;
      for (int32_t q = 0; q < s.PW; ++q) {
        const int32_t x0 = columns.begin(q) - patch_left(), bin = p * s.PW + q;
        if (x0 >= plan.patch_columns || columns.end(q) <= patch_left()) continue;
        int32_t at;
        if (member.packed) {
          const uint32_t order = *packed_order(orders, s, c, bin);
          at = place(y0 + int32_t(order / kPackedColumns), x0 + int32_t(order % kPackedColumns), order != kNoOrder);
        } else {
          const int32_t cell = argmax[start + bin * s.out.cell + c * s.out.channel], y = cell / s.W;
          at = place(y - patch_top(), cell - y * s.W - patch_left(), cell >= 0);
        }
        sum_at(at) += load(grads + start + bin * plan.from.cell + c * plan.from.channel);
      }
    }
  }

  // Writes the sums. The whole block.
  __device__ __forceinline__ void write(T* grad_input) const {
    const int64_t plane = int64_t(s.H) * s.W;
    T* const map = grad_input + image * s.C * plane + c0 * s.map.channel;
    if (s.map.channel == 1 && s.map.cell != 1) {  // a warp writes its patch, a line of channels a cell
      for (int32_t y = 0; y < plan.patch_rows && patch_top() + y < s.H; ++y)
        for (int32_t x = 0; x < plan.patch_columns && patch_left() + x < s.W; ++x) {
          const int64_t cell = int64_t(patch_top() + y) * s.W + patch_left() + x;
          if (lane_id() < channels)
            store(map + cell * s.map.cell + lane_id(), sums[(y * plan.patch_columns + x) * kGroup]);
        }
      return;
    }
    const int32_t columns = kPatches * plan.patch_columns, cells = kScatterWarps * plan.patch_cells();
    const int32_t pitch = cells | 1;  // odd, so that the lanes' channels are in different banks
    U* const turned = reinterpret_cast<U*>(sets);
    __syncthreads();  // all are done with the staged RoIs
    for (int32_t y = 0; y < plan.patch_rows; ++y)
      for (int32_t x = 0; x < plan.patch_columns; ++x)
        turned[lane_id() * pitch + (patch_top() - top + y) * columns + patch_left() - left + x] =
            sums[(y * plan.patch_columns + x) * kGroup];
    __syncthreads();  // all sums are there
    for (int32_t i = int32_t(threadIdx.x); i < cells; i += kScatterThreads) {
      const int32_t y = top + i / columns, x = left + i % columns;
      if (y >= s.H || x >= s.W) continue;
      T* const cell = map + (int64_t(y) * s.W + x) * s.map.cell;
#pragma unroll 4
      for (int32_t c = 0; c < channels; ++c) store(cell + c * s.map.channel, turned[c * pitch + i]);
    }
  }
};

template <class T>
__global__ void __launch_bounds__(kScatterThreads, 1)
    pool_scatter_kernel(PoolShape s, ScatterPlan plan, int64_t R, const Compute<T>* __restrict__ rois, Compute<T> scale,
                        const T* __restrict__ grads, const int32_t* __restrict__ argmax, T* __restrict__ grad_input) {
  FF_DYN_SHARED(unsigned char, shared);
  const ScatterBlock<T> block(s, plan, grads, argmax, shared);
  for (int32_t i = 0; i <= plan.patch_cells(); ++i) block.sums[i * kGroup] = Compute<T>(0);
  for (int64_t base = 0; base < R; base += kScatterThreads) block.add_members(block.list(base, R, rois, scale));
  block.write(grad_input);
}

}  // namespace frcnn_fast::roi_pool
