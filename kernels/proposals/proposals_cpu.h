// What one thread needs for one image, and the function that every instruction set compiles.
#pragma once
#include "../common/cpu.h"
#include "../nms/kept_block.h"
#include "../top_n/top_n.h"
#include "proposals.h"

namespace frcnn_fast::proposals {
using namespace nms;
using namespace top_n;

template <class U>
struct LevelMemory {
  RankedBuffers<RankKey<U>> ranked;
  int64_t chunk;  // ranks at a time
  KeptBlock<U>* kept;
};

template <class U>
struct ImageTask {
  Anchors<U> anchors;
  LevelMemory<U> levels[kMaxLevels];
  void* masked_scores;  // [A] in dtype, filter_before_top_n only
};

// The proposals of image b. task: an ImageTask of the compute type.
FF_ISA_DECLARE(void propose_image(const ProposalInputs& inputs, const ProposalSettings& settings, int64_t b,
                                  const void* task, const ProposalOutputs& outputs))

}  // namespace frcnn_fast::proposals
