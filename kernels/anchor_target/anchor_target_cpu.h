// What the CPU files of this family share: one image's objects, the axes of grid anchors, and the hot loops.
#pragma once
#include "../common/checks.h"
#include "../common/cpu.h"
#include "../common/workspace.h"
#include "anchor_target.h"

namespace frcnn_fast::anchor_target {

constexpr int kPad = 16;  // arrays that vectors read are this much longer than what they hold

// Boxes of one image, coordinate by coordinate, in the order of their index; padded with boxes that overlap nothing.
template <class U>
struct BoxList {
  U *x1, *y1, *x2, *y2, *area;
  int32_t* index;  // in gt_boxes
  int32_t count;

  FF_HD int32_t index_of(int32_t i) const { return i < 0 ? -1 : index[i]; }
  FF_HD Box<U> box(int64_t i) const { return {x1[i], y1[i], x2[i], y2[i]}; }
};
template <class U>
struct Scene {
  BoxList<U> objects, crowds;
};

// The columns, or the rows, of the anchors that one cell anchor makes on one level: where each begins and ends, and
// its side. low and high do not decrease. What takes no part (outside the image, not finite) begins at +inf and ends
// at -inf, so that it overlaps nothing.
template <class U>
struct Axis {
  const U *low, *high, *side;  // [count + kPad]
  int32_t count, taking;       // taking: how many take part
  U least_side, most_side;     // of those

  FF_HD bool takes_part(int64_t i) const { return low[i] != U(__builtin_inf()); }
};
// An anchor is a column and a row: its overlap with a box is a product, its area too.
template <class U>
struct Plane {
  Axis<U> x, y;
  int64_t start;  // anchor (x, y) has the index start + (y * x.count + x) * per_cell
  int32_t per_cell;

  FF_HD int64_t index(int64_t column, int64_t row) const { return start + (row * x.count + column) * per_cell; }
};

constexpr int kBlock = 64;  // given anchors (and proposals) are looked at by so many

template <class U>
struct BlockMatch {
  U best[kBlock];               // highest overlap
  int32_t object[kBlock];       // the first object that has it, by its place in the list; -1 where best is 0
  uint64_t takes_part;          // one bit a box
  uint64_t peaks;               // bit set: the box is some object's best
  int32_t peak_object[kBlock];  // and this is the last of those objects
  U most;                       // of best
};

// One draw without replacement: the items (key << 32 | index) seen so far that may be among the smallest.
struct Draw {
  uint64_t* items;
  int64_t size, capacity;
  uint32_t limit;  // larger keys are out
};
// The counter and key words that an image's candidates share (philox.h).
struct KeyWords {
  uint32_t image, step, stream, seed_low, seed_high;
};

// The highest overlap of one object with any grid anchor. Planes where nothing can reach the wanted overlap are
// skipped, and so are rows and columns: overlap grows with the intersection and falls with the anchor's area, also in
// rounded arithmetic.
FF_ISA_DECLARE(template <bool kLegacy, class U> U object_peak(const Plane<U>* planes, int64_t num_planes,
                                                              const Scene<U>& scene, int64_t object, U crowd_overlap))
// Labels what overlaps it too much to be negative kIgnored; then, in a second sweep over all objects, what is positive
// kPositive. peaks: of all objects, or null where a peak makes nothing positive.
FF_ISA_DECLARE(template <bool kLegacy, class U> void mark_not_negative(const Plane<U>* planes, int64_t num_planes,
                                                                       const Scene<U>& scene, int64_t object,
                                                                       const AnchorRule<U>& rule, int8_t* labels))
FF_ISA_DECLARE(template <bool kLegacy, class U>
               void mark_positive(const Plane<U>* planes, int64_t num_planes, const Scene<U>& scene, int64_t object,
                                  const U* peaks, const AnchorRule<U>& rule, int8_t* labels, int32_t* matched))
// Labels every anchor on a crowd box kIgnored.
FF_ISA_DECLARE(template <bool kLegacy, class U> void mark_covered(const Plane<U>* planes, int64_t num_planes,
                                                                  const Scene<U>& scene, U crowd_overlap,
                                                                  int8_t* labels))
// Index (in gt_boxes) of the object that a box overlaps most, the first of several; -1 if it overlaps none.
FF_ISA_DECLARE(template <bool kLegacy, class U> int32_t best_object(const Box<U>& box, const BoxList<U>& objects))

// Index of the last object whose peak (above 0) its overlap with the box is; -1 if there is none. peaks is padded, by
// anything.
FF_ISA_DECLARE(template <bool kLegacy, class U>
               int32_t last_peak_object(const Box<U>& box, const BoxList<U>& objects, const U* peaks))

// n <= kBlock boxes [n, 4]. image_size may be null. Raises peaks [objects], which other threads raise too, or, with
// find_peaks, reads them and fills match->peaks. peaks may be null.
FF_ISA_DECLARE(template <bool kLegacy, class U> void match_block(const U* boxes, int n, const Scene<U>& scene,
                                                                 const U* image_size, U crowd_overlap, U* peaks,
                                                                 bool find_peaks, BlockMatch<U>* match))

// How many of labels [n] are kPositive and kNegative, added to counts[0] and counts[1].
FF_ISA_DECLARE(void count_labels(const int8_t* labels, int64_t n, int64_t* counts))
// Offers the positives and the negatives of labels[begin..end) to their draws. Stops early where a draw is full, and
// returns where to go on.
FF_ISA_DECLARE(int64_t draw_keys(const int8_t* labels, int64_t begin, int64_t end, const KeyWords& words,
                                 Draw* positives, Draw* negatives))

// The sampler: see sample_cpu.cpp.
struct SampleWorkspace {
  uint64_t* items;
  int64_t* sizes;
  void* plans;

  void take_from(WorkspaceArena& arena, int64_t B, int64_t A, int64_t S);
};
// labels [B, A] -> chosen [B, S] ascending, positives first, -1 behind; counts [B, 2].
void sample_labels(const int8_t* labels, int64_t B, int64_t A, const SampleOptions& options,
                   const SampleWorkspace& workspace, int64_t* chosen, int64_t* counts);

// The scenes of all images.
template <class U>
class SceneStore {
 public:
  void take_from(WorkspaceArena& arena, int64_t B, int64_t G) {
    room_ = G + kPad;
    values_ = arena.take<U>(B * 10 * room_);
    index_ = arena.take<int32_t>(B * 2 * room_);
    counts_ = arena.take<int32_t>(B * 2);
  }
  Scene<U> at(int64_t image) const { return {list(image, 0), list(image, 1)}; }

  // counts were checked.
  template <bool kLegacy>
  void fill(const GroundTruth& gt, int64_t image) {
    const U* boxes = static_cast<const U*>(gt.boxes) + image * gt.G * 4;
    const bool* crowd = gt.crowd ? gt.crowd + image * gt.G : nullptr;
    BoxList<U> lists[2] = {list(image, 0), list(image, 1)};
    lists[0].count = lists[1].count = 0;
    for (int64_t g = 0; g < gt.counts[image]; ++g) {
      const Box<U> box = load_box(boxes + 4 * g);
      if (!exists(box, g, gt.counts[image])) continue;
      BoxList<U>& target = lists[crowd && crowd[g]];
      put(target, target.count++, box, area<kLegacy>(box), int32_t(g));
    }
    const U infinity = U(__builtin_inf());
    for (int which = 0; which < 2; ++which) {
      for (int i = 0; i < kPad; ++i)
        put(lists[which], lists[which].count + i, {infinity, infinity, -infinity, -infinity}, U(0), -1);
      counts_[image * 2 + which] = lists[which].count;
    }
  }

 private:
  BoxList<U> list(int64_t image, int which) const {
    U* values = values_ + (image * 2 + which) * 5 * room_;
    return {values,
            values + room_,
            values + 2 * room_,
            values + 3 * room_,
            values + 4 * room_,
            index_ + (image * 2 + which) * room_,
            counts_[image * 2 + which]};
  }
  static void put(const BoxList<U>& list, int64_t i, const Box<U>& box, U box_area, int32_t index) {
    list.x1[i] = box.x1, list.y1[i] = box.y1, list.x2[i] = box.x2, list.y2[i] = box.y2;
    list.area[i] = box_area;
    list.index[i] = index;
  }

  U* values_;
  int32_t *index_, *counts_;
  int64_t room_;
};

// Labels of all anchors (and, where wanted, the object of each positive): assign_cpu.cpp.
template <class U>
struct AssignWorkspace {
  SceneStore<U> scenes;
  U* peaks;          // [B, G + padding], in the order of the scene's objects
  Plane<U>* planes;  // grid: [B or 1, num_planes]
  U* axes;
  U* block_best;  // given: [B, blocks]

  void take_from(WorkspaceArena& arena, int64_t B, const AnchorSource& anchors, int64_t G);
};
// counts were checked; matched may be null.
template <bool kLegacy, class U>
Status assign_labels(int64_t B, const AnchorSource& anchors, const GroundTruth& gt, const AnchorOptions& options,
                     AssignWorkspace<U>& workspace, int8_t* labels, int32_t* matched);

}  // namespace frcnn_fast::anchor_target
