// Exact random samples of labelled candidates: the smallest keys of each image, without a key array.
//
// An image is cut into pieces of kPiece candidates, whatever the number of threads. In each, draw_keys() lets through
// only keys that are likely to win; where too few did (a guess that hardly ever fails), the piece is drawn again
// without that limit. A full draw keeps its best and goes on with a lower limit, so room for twice the sample is
// enough.
#include <algorithm>

#include "anchor_target_cpu.h"

namespace frcnn_fast::anchor_target {
namespace {

constexpr int64_t kPiece = 32768;

struct Layout {
  int64_t pieces, capacity;  // capacity: items of one draw of one piece

  Layout(int64_t A, int64_t S)
      : pieces(std::max<int64_t>(1, (A + kPiece - 1) / kPiece)),
        capacity(std::min(std::min(A, kPiece), 2 * S) + kBlock) {}
};

// The n smallest items to the front; nothing larger can win any more.
void keep_smallest(Draw* draw, int64_t n) {
  if (draw->size <= n) return;
  if (n > 0) std::nth_element(draw->items, draw->items + n - 1, draw->items + draw->size);
  draw->size = n;
  draw->limit = n > 0 ? std::min(draw->limit, uint32_t(draw->items[n - 1] >> 32)) : 0;
}

// How many positives and negatives an image has, and how many of each are wanted.
struct Plan {
  int64_t there[2], wanted[2];
};

class Sampler {
 public:
  Sampler(const int8_t* labels, int64_t A, const SampleOptions& options, const SampleWorkspace& workspace)
      : labels_(labels), A_(A), options_(options), workspace_(workspace), layout_(A, options.batch_size) {}

  int64_t pieces() const { return layout_.pieces; }

  void count(int64_t image, int64_t piece) const {
    int64_t* sizes = sizes_of(image, piece);
    sizes[0] = sizes[1] = 0;
    FF_ISA_CALL(count_labels, labels_ + image * A_ + begin(piece), begin(piece + 1) - begin(piece), sizes);
  }

  Plan plan(int64_t image) const {
    Plan plan = {};
    for (int64_t piece = 0; piece < pieces(); ++piece)
      for (int which : {0, 1}) plan.there[which] += sizes_of(image, piece)[which];
    const int64_t S = options_.batch_size;
    const int64_t cap = FF_MUTANT(sample_positive_cap, std::min(options_.max_positive(), S), S);
    plan.wanted[0] = std::min(plan.there[0], cap);
    plan.wanted[1] = std::min(plan.there[1], S - plan.wanted[0]);
    return plan;
  }

  // Leaves in the piece's two draws what may be among the wanted.
  void draw(int64_t image, int64_t piece, const Plan& plan, bool all) const {
    Draw draws[2];
    for (int which : {0, 1}) {
      const uint32_t limit = all ? ~0u : likely_key(plan.wanted[which], plan.there[which]);
      draws[which] = {items_of(image, piece, which), 0, layout_.capacity, limit};
    }
    const int64_t* rng = options_.rng;
    const KeyWords words = {uint32_t(image), uint32_t(rng[1]), uint32_t(options_.stream_id), uint32_t(rng[0]),
                            uint32_t(uint64_t(rng[0]) >> 32)};
    for (int64_t i = begin(piece), end = begin(piece + 1); i < end;) {
      i = FF_ISA_CALL(draw_keys, labels_ + image * A_, i, end, words, &draws[0], &draws[1]);
      for (int which : {0, 1})
        if (draws[which].capacity - draws[which].size < kBlock) keep_smallest(&draws[which], plan.wanted[which]);
    }
    for (int which : {0, 1}) sizes_of(image, piece)[which] = draws[which].size;
  }

  // Brings the pieces together.
  void choose(int64_t image, const Plan& plan, int64_t* chosen, int64_t* counts) const {
    const bool enough = drawn(image, 0) >= plan.wanted[0] && drawn(image, 1) >= plan.wanted[1];
    if (FF_MUTANT(sample_likely, !enough, false))
      for (int64_t piece = 0; piece < pieces(); ++piece) draw(image, piece, plan, true);
    for (int which : {0, 1}) {
      uint64_t *items = items_of(image, 0, which), *end = items;
      for (int64_t piece = 0; piece < pieces(); ++piece)
        end = std::copy_n(items_of(image, piece, which), sizes_of(image, piece)[which], end);
      const int64_t n = std::min<int64_t>(end - items, plan.wanted[which]);
      if (n > 0) std::nth_element(items, items + n - 1, end);
      std::transform(items, items + n, chosen, draw_index);
      std::sort(chosen, chosen + n);
      chosen += n;
      counts[which] = n;
    }
    std::fill_n(chosen, options_.batch_size - counts[0] - counts[1], int64_t(-1));
  }

 private:
  int64_t begin(int64_t piece) const { return std::min(A_, piece * kPiece); }
  int64_t* sizes_of(int64_t image, int64_t piece) const { return workspace_.sizes + (image * pieces() + piece) * 2; }
  // A draw's pieces lie one after the other.
  uint64_t* items_of(int64_t image, int64_t piece, int which) const {
    return workspace_.items + ((image * 2 + which) * pieces() + piece) * layout_.capacity;
  }
  int64_t drawn(int64_t image, int which) const {
    int64_t total = 0;
    for (int64_t piece = 0; piece < pieces(); ++piece) total += sizes_of(image, piece)[which];
    return total;
  }

  const int8_t* labels_;
  int64_t A_;
  const SampleOptions& options_;
  const SampleWorkspace& workspace_;
  Layout layout_;
};

}  // namespace

void SampleWorkspace::take_from(WorkspaceArena& arena, int64_t B, int64_t A, int64_t S) {
  const Layout layout(A, S);
  items = arena.take<uint64_t>(B * layout.pieces * 2 * layout.capacity);
  sizes = arena.take<int64_t>(B * layout.pieces * 2);
  plans = arena.take<Plan>(B);
}

void sample_labels(const int8_t* labels, int64_t B, int64_t A, const SampleOptions& options,
                   const SampleWorkspace& workspace, int64_t* chosen, int64_t* counts) {
  const Sampler sampler(labels, A, options, workspace);
  const int64_t pieces = sampler.pieces(), S = options.batch_size;
  const int64_t length = std::max<int64_t>(1, std::min(A, kPiece));
  Plan* plans = static_cast<Plan*>(workspace.plans);
  parallel_for(B * pieces, 1 + (1 << 18) / length, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) sampler.count(i / pieces, i % pieces);
  });
  for (int64_t image = 0; image < B; ++image) plans[image] = sampler.plan(image);
  parallel_for(B * pieces, 1 + (1 << 17) / length, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) sampler.draw(i / pieces, i % pieces, plans[i / pieces], false);
  });
  parallel_for(B, 4, [&](int64_t begin, int64_t end) {
    for (int64_t image = begin; image < end; ++image)
      sampler.choose(image, plans[image], chosen + image * S, counts + image * 2);
  });
}

size_t sample_anchors_workspace_cpu(int64_t B, int64_t A, int64_t S) {
  WorkspaceArena arena(nullptr);
  SampleWorkspace().take_from(arena, B, A, S);
  return arena.used();
}

Status sample_anchors_cpu(const int8_t* labels, int64_t B, int64_t A, const SampleOptions& sample, void* workspace,
                          int64_t* indices, int8_t* sampled, int64_t* counts) {
  WorkspaceArena arena(workspace);
  SampleWorkspace pieces;
  pieces.take_from(arena, B, A, sample.batch_size);
  sample_labels(labels, B, A, sample, pieces, indices, counts);
  const int64_t S = sample.batch_size;
  for (int64_t i = 0; i < B * S; ++i) sampled[i] = indices[i] < 0 ? kIgnored : labels[i / S * A + indices[i]];
  return kOk;
}

}  // namespace frcnn_fast::anchor_target
