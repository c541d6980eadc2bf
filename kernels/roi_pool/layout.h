// Blocks of channels in the order the hot loops want them: [cells][lanes], lanes a multiple of kBlockLanes.
#pragma once
#include "../common/cpu.h"
#include "roi.h"

namespace frcnn_fast::roi_pool {

constexpr int kBlockLanes = 16;

FF_ISA_DECLARE(
    // source: `channels` <= lanes channels of a run of cells, strides as given (one of them is 1). target:
    // [cells][lanes], the lanes beyond the channels zero.
    void load_lanes(DType dtype, const void* source, CellStrides strides, int channels, int lanes, int64_t cells,
                    float* target);
    void load_lanes(DType dtype, const void* source, CellStrides strides, int channels, int lanes, int64_t cells,
                    double* target);
    void load_lanes(const int32_t* source, CellStrides strides, int channels, int lanes, int64_t cells,
                    int32_t* target);
    // The way back. streamed: past the caches, where it lies in one piece. Ended by end_streams().
    void store_lanes(DType dtype, const float* source, int channels, int lanes, int64_t cells, CellStrides strides,
                     bool streamed, void* target);
    void store_lanes(DType dtype, const double* source, int channels, int lanes, int64_t cells, CellStrides strides,
                     bool streamed, void* target);
    void store_lanes(const int32_t* source, int channels, int lanes, int64_t cells, CellStrides strides, bool streamed,
                     int32_t* target))

}  // namespace frcnn_fast::roi_pool
