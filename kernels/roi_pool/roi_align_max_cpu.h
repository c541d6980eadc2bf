// What the two CPU sources of RoIAlign's maxima share.
#pragma once
#include "roi_align_max.h"
#include "roi_cpu.h"

namespace frcnn_fast::roi_pool {

// One bin's samples.
template <class U>
struct BinSamples {
  SampleAxis<U> rows, columns;
  int32_t p, q;
  SampleGrid<U> grid;
};

// The largest of the bin's samples on the map, [lanes], and the indices of their rows and columns, or -1. cells: [H, W]
// [lanes].
#define FF_LARGEST_SAMPLES(U)                                                                                      \
  void largest_samples(const U* cells, int64_t W, int64_t lanes, const BinSamples<U>& bin, U* best, int32_t* at_y, \
                       int32_t* at_x)
FF_ISA_DECLARE(FF_LARGEST_SAMPLES(float); FF_LARGEST_SAMPLES(double))

}  // namespace frcnn_fast::roi_pool
