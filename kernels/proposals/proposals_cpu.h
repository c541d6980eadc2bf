// What one thread needs for one image, and the function that every instruction set compiles.
#pragma once
#include "../common/cpu.h"
#include "../nms/nms.h"
#include "../top_n/top_n.h"
#include "proposals.h"

namespace frcnn_fast::proposals {
using namespace nms;
using namespace top_n;

template <class Key>
struct LevelMemory {
  RankedBuffers<Key> ranked;
  int64_t chunk;  // ranks at a time
  void* kept;     // the list of kept boxes
};

template <class U>
struct ImageTask {
  Anchors<U> anchors;
  LevelMemory<RankKey<U>> levels[kMaxLevels];
  void* masked_scores;  // [A] in dtype, filter_first only
};

// The proposals of image b. task: an ImageTask of the compute type.
FF_ISA_DECLARE(void propose_image(const ProposalInputs& inputs, const ProposalSettings& settings, int64_t b,
                                  const void* task, const ProposalOutputs& outputs))

}  // namespace frcnn_fast::proposals
