// The CPU half's plumbing: RoIs by level and image, tiles of the map, and the hot loops' signatures.
#pragma once
#include <algorithm>

#include "../common/cpu.h"
#include "../common/workspace.h"
#include "layout.h"
#include "roi.h"

namespace frcnn_fast::roi_pool {

// Rows row0 ... row1 - 1 of a map, as [rows][columns][lanes] with any strides. Cell (y, x) has its lanes at
// data + (y - row0) * row_stride + (x - column0) * cell_stride.
template <class U>
struct Tile {
  U* data;
  int64_t row_stride, cell_stride;
  int32_t row0, row1, column0;

  FF_HD U* cell(int32_t y, int32_t x) const { return data + (y - row0) * row_stride + (x - column0) * cell_stride; }
};

// RoIPool's bins: half-open ranges of rows, [PH], and of columns, [PW].
struct BinEdges {
  int32_t PH, PW;
  int32_t *row_begin, *row_end, *column_begin, *column_end;
};

// RoIAlign's weights along one axis: bin b touches cells[i] with weights[i], i from begin[b] to begin[b + 1], cells
// ascending. slopes: of the weights, or null.
template <class U>
struct AxisWeights {
  int32_t* begin;
  int32_t* cells;
  U* weights;
  Slope<U>* slopes;
};

// A RoI's block of numbers that is wanted next, fetched part by part: the blocks lie far apart, and the processor does
// not guess where the next one begins; all of it asked for at once would only be waited for at once.
struct Ahead {
  const char* data = nullptr;
  int64_t step = 0;   // bytes from part to part
  int64_t bytes = 0;  // of a part

  // channels x cells numbers: one run in `parts` parts, or a run a cell.
  template <class T>
  static Ahead of(const T* numbers, CellStrides strides, int64_t channels, int64_t cells, int64_t parts) {
    const int64_t size = sizeof(T), part = (channels * cells + parts - 1) / parts * size;
    const char* data = reinterpret_cast<const char*>(numbers);
    return strides.cell == 1 ? Ahead{data, part, part} : Ahead{data, strides.cell * size, channels * size};
  }
  FF_HD void fetch(int64_t part) const {
    for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(data + part * step + i);
  }
};

// Folds the tile's rows into the maxima: best and argmax (or null) hold bin b's lanes at b * stride. fresh: they hold
// nothing yet. True where some lane of a bin has nothing above -inf. Cell (y, x) has index y * W + x.
#define FF_POOL_BINS(U)                                                                                           \
  bool pool_bins(const Tile<const U>& tile, const BinEdges& edges, int64_t W, int64_t lanes, bool fresh, U* best, \
                 int32_t* argmax, int64_t stride)
// Adds the tile's rows to the sums, bin b's lanes at b * stride. fresh: they hold nothing yet.
#define FF_ALIGN_BINS(U)                                                                                            \
  void align_bins(const Tile<const U>& tile, const AxisWeights<U>& rows, const AxisWeights<U>& columns, int32_t PH, \
                  int32_t PW, int64_t lanes, bool fresh, U* sums, int64_t stride)
// The transpose: adds each bin's gradients, its lanes at b * stride, to the tile's cells. With each bin a part of what
// is wanted next is fetched.
#define FF_SCATTER_BINS(U)                                                                                      \
  void scatter_bins(const Tile<U>& tile, const AxisWeights<U>& rows, const AxisWeights<U>& columns, int32_t PH, \
                    int32_t PW, int64_t lanes, const U* grads, int64_t stride, const Ahead& ahead)
FF_ISA_DECLARE(FF_POOL_BINS(float); FF_POOL_BINS(double); FF_ALIGN_BINS(float); FF_ALIGN_BINS(double);
               FF_SCATTER_BINS(float); FF_SCATTER_BINS(double))

// RoIs by (level, image), each group in ascending order of index.
struct RoiGroups {
  int64_t* starts;  // [L * B + 1] places in order; group level * B + image
  int32_t* order;   // [R] RoIs
  int32_t* group;   // [R] scratch: the RoI's group, or -1: padded
  int64_t grouped;  // RoIs that are not padded

  static RoiGroups take(WorkspaceArena& workspace, int64_t L, int64_t B, int64_t R) {
    RoiGroups groups{};
    groups.starts = workspace.take<int64_t>(L * B + 1);
    groups.order = workspace.take<int32_t>(R);
    groups.group = workspace.take<int32_t>(R);
    return groups;
  }

  // The members of a group.
  const int32_t* begin(int64_t g) const { return order + starts[g]; }
  const int32_t* end(int64_t g) const { return order + starts[g + 1]; }
  int64_t size(int64_t g) const { return starts[g + 1] - starts[g]; }
};

// The error of an image index outside the batch. name: the argument's, for the user.
template <class U>
Status no_such_image(const char* name, int64_t k, U image, int64_t B) {
  return invalid("%s[%lld] names image %g, expected 0 to %lld, or -1 for a padded row", name, (long long)k,
                 double(image), (long long)(B - 1));
}

// level(roi): 0 ... L - 1.
template <class U, class Level>
Status group_rois(const char* name, const U* rois, int64_t R, int64_t B, int64_t L, const Level& level,
                  RoiGroups* groups) {
  std::fill(groups->starts, groups->starts + L * B + 1, 0);
  for (int64_t k = 0; k < R; ++k) {
    const U* roi = rois + k * kRoiFields;
    const int64_t image = roi_image(roi, B);
    if (image == kBadRoi) return no_such_image(name, k, roi[0], B);
    groups->group[k] = image == kPaddedRoi ? -1 : int32_t(level(roi) * B + image);
    if (groups->group[k] >= 0) ++groups->starts[groups->group[k] + 1];
  }
  for (int64_t g = 0; g < L * B; ++g) groups->starts[g + 1] += groups->starts[g];
  // starts[g] runs to the group's end, which is the next one's start: shifted back afterwards.
  for (int64_t k = 0; k < R; ++k)
    if (groups->group[k] >= 0) groups->order[groups->starts[groups->group[k]]++] = int32_t(k);
  for (int64_t g = L * B; g > 0; --g) groups->starts[g] = groups->starts[g - 1];
  groups->starts[0] = 0;
  groups->grouped = groups->starts[L * B];
  return kOk;
}

// Pooled maps, and gradients of maps, are tens of megabytes, mostly in memory that the system has just given out.
template <class T>
void expect_writes(T* data, int64_t numbers) {
  use_huge_pages(data, size_t(numbers) * sizeof(T));
}

// Whether so many numbers of output are stored past the caches, which hold a few megabytes of them at best. A store
// into a cache fetches its line first, for nothing.
template <class T>
bool are_streamed(const T*, int64_t numbers) {
#if defined(FF_TEST_BUILD)
  return numbers > 0;
#else
  return numbers * int64_t(sizeof(T)) >= 8 << 20;
#endif
}

// How many threads are worth starting for that many multiply-adds (or moves) of one number.
inline int64_t threads_for(double operations) {
  constexpr double kWorthAThread = 100e3;  // about 20 us
  return std::max<int64_t>(1, std::min<int64_t>(max_threads(), int64_t(operations / kWorthAThread)));
}

// body(thread, unit) for all units, each thread a contiguous share; `thread` < threads numbers the scratch memory. What
// it has streamed is there when this returns.
template <class Body>
void for_each_unit(int64_t units, int64_t threads, const Body& body) {
  parallel_for(threads, 1, [&](int64_t first, int64_t last) {
    for (int64_t t = first; t < last; ++t)
      for (int64_t u = units * t / threads; u < units * (t + 1) / threads; ++u) body(t, u);
    end_streams();
  });
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// Second-level caches hold a megabyte or two a core; the outputs that stream through need some of it.
constexpr int64_t kTileBytes = 640 << 10;
// A whole map is turned into a tile even beyond that, when the RoIs are many; past this their windows are.
constexpr int64_t kMaxWholeBytes = 4 << 20;

// A cell of a window costs about as much as that many of a map loaded in one go.
constexpr int64_t kWindowCost = 2;

// Channels processed together, so that a tile of that many cells stays in the cache and every thread gets some.
inline int64_t block_lanes(int64_t C, int64_t cells, int64_t bytes, int64_t images) {
  int64_t lanes = 4 * kBlockLanes;
  while (lanes > kBlockLanes &&
         (lanes / 2 >= C || cells * lanes * bytes > kTileBytes || images * ceil_div(C, lanes) < 2 * max_threads()))
    lanes /= 2;
  return lanes;
}

}  // namespace frcnn_fast::roi_pool
