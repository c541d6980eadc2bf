// The functions that every instruction set compiles.
#pragma once
#include "../common/cpu.h"
#include "proposals.h"

namespace frcnn_fast::proposals {

// Bytes that an image needs.
FF_ISA_DECLARE(size_t propose_image_workspace(const ProposalInputs& inputs, const ProposalSettings& settings))

// The proposals of image b. anchors: an Anchors of the compute type.
FF_ISA_DECLARE(void propose_image(const ProposalInputs& inputs, const ProposalSettings& settings, int64_t b,
                                  const void* anchors, void* workspace, const ProposalOutputs& outputs))

}  // namespace frcnn_fast::proposals
