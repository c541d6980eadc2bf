// What the CPU's orchestration hands to the code of an instruction set.
#pragma once
#include "../common/cpu.h"
#include "anchor_decode.h"

namespace frcnn_fast::anchor_decode {

// decode_clip, or its gradient where grad_boxes is given.
template <class T>
struct DecodeJob {
  const T* deltas;  // [B, A, 4]
  int64_t A;
  Anchors<Compute<T>> anchors;
  DecodeParams<Compute<T>> params;
  Compute<T>* boxes;             // [B, A, 4]
  bool* valid;                   // [B, A]
  const Compute<T>* grad_boxes;  // [B, A, 4]
  T* grad_deltas;                // [B, A, 4]
};

// Rows begin .. end - 1 of [B, A].
FF_ISA_DECLARE(template <class T>
               void decode_range(const DecodeJob<T>& job, const DecodeArguments& in, int64_t begin, int64_t end))
FF_ISA_DECLARE(template <class T> void encode_range(const T* gt_boxes, const T* anchors, int64_t count,
                                                    const DecodeParams<Compute<T>>& params, bool legacy,
                                                    Compute<T>* targets))
FF_ISA_DECLARE(template <class U> void grid_range(const Anchors<U>& anchors, int64_t begin, int64_t end, U* boxes))

}  // namespace frcnn_fast::anchor_decode
