// Soft-NMS of one image: the boxes in play as columns, in index order, so that the loop that lowers scores is a plain
// one over lanes, and the first of the highest scores is the one that ranks first.
#include "soft_nms_cpu.h"

namespace frcnn_fast::nms {
namespace FF_ISA {
namespace {

template <class U>
struct Columns {
  U *x1, *y1, *x2, *y2, *score;
  int32_t* row;
  int64_t size = 0;

  Columns(WorkspaceArena* arena, int64_t capacity) {
    for (U** column : {&x1, &y1, &x2, &y2, &score}) *column = arena->take<U>(capacity);
    row = arena->take<int32_t>(capacity);
  }
  Box<U> box(int64_t i) const { return {x1[i], y1[i], x2[i], y2[i]}; }
  void push(const Box<U>& box, U value, int32_t index) {
    x1[size] = box.x1, y1[size] = box.y1, x2[size] = box.x2, y2[size] = box.y2;
    score[size] = value;
    row[size++] = index;
  }
  // Leaves what is out of play; the order stays.
  void compact() {
    const int64_t n = size;
    size = 0;
    for (int64_t i = 0; i < n; ++i)
      if (score[i] != kOutOfPlay<U>) push(box(i), score[i], row[i]);
  }
  // The first of the highest scores; size where all are out of play.
  int64_t best() const {
    U highest = kOutOfPlay<U>;
    for (int64_t i = 0; i < size; ++i) highest = maximum(highest, score[i]);
    if (highest == kOutOfPlay<U>) return size;
    int64_t i = 0;
    while (score[i] != highest) ++i;
    return i;
  }
};

// Lowers all scores after `kept` was kept; returns how many stay in play.
template <bool kLegacy, SoftMethod kMethod, class U>
int64_t lower(const Columns<U>& in, const Box<U>& kept, const SoftRule<U>& rule) {
  int64_t left = 0;
  for (int64_t i = 0; i < in.size; ++i) {
    in.score[i] = softened<kLegacy, kMethod>(in.score[i], kept, in.box(i), rule);
    left += in.score[i] != kOutOfPlay<U>;
  }
  return left;
}

template <bool kLegacy, class U>
int64_t lower_by(SoftMethod method, const Columns<U>& in, const Box<U>& kept, const SoftRule<U>& rule) {
  if (method == SoftMethod::kLinear) return lower<kLegacy, SoftMethod::kLinear>(in, kept, rule);
  if (method == SoftMethod::kGaussian) return lower<kLegacy, SoftMethod::kGaussian>(in, kept, rule);
  return lower<kLegacy, SoftMethod::kHard>(in, kept, rule);
}

template <class T>
int64_t keep_softly(const SoftNmsImage& image) {
  using U = Compute<T>;
  const SoftRule<U> rule = {image.method, U(image.iou_threshold), U(image.sigma), U(image.score_threshold)};
  const T *boxes = static_cast<const T*>(image.boxes), *scores = static_cast<const T*>(image.scores);
  U* const kept_scores = static_cast<U*>(image.kept_scores);
  WorkspaceArena arena(image.workspace);
  Columns<U> columns(&arena, image.rows);
  for (int64_t i = 0; i < image.rows; ++i) {
    const Box<U> box = load_box(boxes + 4 * i);
    const U score = load(scores + i);
    if (takes_part(box) && in_play(score, rule)) columns.push(box, score, int32_t(i));
  }
  int64_t kept = 0;
  while (kept < image.max_output) {
    const int64_t best = columns.best();
    if (best == columns.size) break;
    const Box<U> box = columns.box(best);
    image.keep[kept] = columns.row[best];
    kept_scores[kept++] = columns.score[best];
    columns.score[best] = kOutOfPlay<U>;
    const int64_t left = image.legacy ? lower_by<true>(image.method, columns, box, rule)
                                      : lower_by<false>(image.method, columns, box, rule);
    if (left < columns.size / 2) columns.compact();  // each halving pays for itself
  }
  return kept;
}

}  // namespace

int64_t soft_nms_image(const SoftNmsImage& image) {
  return visit(image.dtype, [&](auto tag) { return keep_softly<typename decltype(tag)::type>(image); });
}

size_t soft_nms_image_workspace(DType dtype, int64_t padded_rows) {
  return visit_compute(dtype, [&](auto tag) {
    WorkspaceArena arena(nullptr);
    Columns<typename decltype(tag)::type>(&arena, padded_rows);
    return arena.used();
  });
}

}  // namespace FF_ISA
}  // namespace frcnn_fast::nms
