// What a head's maps say of chosen anchors, and the maps' gradients from those of the chosen.
#pragma once
#include "../common/anchor_maps.h"
#include "../common/mutant.h"

namespace frcnn_fast::anchor_gather {

// Maps of B images and L levels, with `values` numbers an anchor; levels: host [L].
struct GatherMaps {
  DType dtype;
  const MapLayout* levels;
  int64_t B, L, values;
};

// Whether that index is of an anchor: -1 stands for none, and on a GPU so does what is out of range.
FF_HD bool is_anchor(int64_t index, int64_t A) {
  return FF_MUTANT(gather_first, index >= 0, index > 0) && FF_MUTANT(gather_last, index < A, index < A - 1);
}

// indices [B, S], among an image's anchors, or -1 -> rows [B, S, values]: copies, or 0.
Status gather_anchors_cpu(const GatherMaps& maps, const int64_t* indices, int64_t S, void* rows);
Status gather_anchors_cuda(const GatherMaps& maps, const int64_t* indices, int64_t S, void* rows, Stream stream);

// grad [B, S, values] -> every number of the maps, which are dense: 0, or where an anchor was chosen, the sum of its
// gradients in the order of the rows, from 0, in the compute type.
Status gather_anchors_backward_cpu(const void* grad, const int64_t* indices, int64_t S, const GatherMaps& grad_maps);
Status gather_anchors_backward_cuda(const void* grad, const int64_t* indices, int64_t S, const GatherMaps& grad_maps,
                                    Stream stream);

}  // namespace frcnn_fast::anchor_gather
