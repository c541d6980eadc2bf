// Overlaps of given boxes, a block at a time, and of one box with all objects.
#include "anchor_target_cpu.h"
#include "lanes.h"

namespace frcnn_fast::anchor_target {
namespace FF_ISA {
using namespace frcnn_fast::FF_ISA;
namespace {

// kBlock boxes by coordinate, and the smallest box around those that take part. What takes no part begins at +inf and
// ends at -inf.
template <class U>
struct Block {
  alignas(64) U x1[kBlock], y1[kBlock], x2[kBlock], y2[kBlock], area[kBlock];
  Box<U> hull;
  uint64_t takes_part;

  FF_SIMD void drop(int i) {
    x1[i] = y1[i] = U(__builtin_inf());
    x2[i] = y2[i] = -U(__builtin_inf());
    area[i] = U(0);
  }
};

template <class U>
FF_SIMD uint32_t finite_lanes(Vector<U> v) {
  const U largest = sizeof(U) == 4 ? U(__FLT_MAX__) : U(__DBL_MAX__);
  return at_least(v, splat(-largest)) & at_least(splat(largest), v);
}
// is_inside() of one axis.
template <bool kLegacy, class U>
FF_SIMD uint32_t inside_lanes(Vector<U> low, Vector<U> high, U size) {
  const bool open = FF_MUTANT(target_inside_edge, kLegacy, !kLegacy);
  return at_least(low, Vector<U>{}) & (open ? above(splat(size), high) : at_least(splat(size), high));
}

template <bool kLegacy, class U>
FF_SIMD void load_block(const U* boxes, int n, const U* image_size, Block<U>* block) {
  for (int i = 0; i < n; ++i) {
    block->x1[i] = boxes[4 * i];
    block->y1[i] = boxes[4 * i + 1];
    block->x2[i] = boxes[4 * i + 2];
    block->y2[i] = boxes[4 * i + 3];
  }
  for (int i = n; i < kBlock; ++i) block->drop(i);
  block->takes_part = 0;
  for (int i = 0; i < kBlock; i += kLanes<U>) {
    const Vector<U> x1 = lanes_at(block->x1 + i), y1 = lanes_at(block->y1 + i);
    const Vector<U> x2 = lanes_at(block->x2 + i), y2 = lanes_at(block->y2 + i);
    const Vector<U> w = kLegacy ? (x2 - x1) + U(1) : x2 - x1, h = kLegacy ? (y2 - y1) + U(1) : y2 - y1;
    store_raw(block->area + i, w * h);
    uint32_t takes = finite_lanes<U>(x1) & finite_lanes<U>(y1) & finite_lanes<U>(x2) & finite_lanes<U>(y2);
    if (image_size)
      takes &= inside_lanes<kLegacy, U>(x1, x2, image_size[1]) & inside_lanes<kLegacy, U>(y1, y2, image_size[0]);
    block->takes_part |= uint64_t(takes) << i;
  }
  for (uint64_t absent = ~block->takes_part; absent; absent &= absent - 1) block->drop(__builtin_ctzll(absent));
}

template <bool kLegacy, class U>
FF_SIMD Vector<U> intersections(const Block<U>& block, int i, const Box<U>& box) {
  return shared_lanes<kLegacy, U>(lanes_at(block.x1 + i), lanes_at(block.x2 + i), box.x1, box.x2) *
         shared_lanes<kLegacy, U>(lanes_at(block.y1 + i), lanes_at(block.y2 + i), box.y1, box.y2);
}

template <bool kLegacy, class U>
void drop_covered(const BoxList<U>& crowds, U crowd_overlap, Block<U>* block) {
  uint64_t covered = 0;
  for (int64_t c = 0; c < crowds.count; ++c)
    for (int i = 0; i < kBlock; i += kLanes<U>)
      covered |= uint64_t(true_lanes<U>(is_covered(intersections<kLegacy>(*block, i, crowds.box(c)),
                                                   lanes_at(block->area + i), splat(crowd_overlap))))
                 << i;
  for (covered &= block->takes_part; covered; covered &= covered - 1) {
    const int i = __builtin_ctzll(covered);
    block->drop(i);
    block->takes_part &= ~(uint64_t(1) << i);
  }
}

template <class U>
FF_SIMD Box<U> find_hull(const Block<U>& block) {
  Vector<U> x1 = lanes_at(block.x1), y1 = lanes_at(block.y1), x2 = lanes_at(block.x2), y2 = lanes_at(block.y2);
  for (int i = kLanes<U>; i < kBlock; i += kLanes<U>) {
    x1 = min_lanes(x1, lanes_at(block.x1 + i)), y1 = min_lanes(y1, lanes_at(block.y1 + i));
    x2 = max_lanes(x2, lanes_at(block.x2 + i)), y2 = max_lanes(y2, lanes_at(block.y2 + i));
  }
  return {-highest_lane(-x1), -highest_lane(-y1), highest_lane(x2), highest_lane(y2)};
}

// Bits of the kLanes objects from i on that the hull meets: the others meet none of the block's boxes.
template <bool kLegacy, class U>
FF_SIMD uint32_t near_objects(const Box<U>& hull, const BoxList<U>& objects, int64_t i) {
  const Vector<U> w = shared_lanes<kLegacy, U>(lanes_at(objects.x1 + i), lanes_at(objects.x2 + i), hull.x1, hull.x2);
  const Vector<U> h = shared_lanes<kLegacy, U>(lanes_at(objects.y1 + i), lanes_at(objects.y2 + i), hull.y1,
                                               FF_MUTANT(target_hull, hull.y2, hull.y1));
  return above(w, Vector<U>{}) & above(h, Vector<U>{}) & low_bits(objects.count - i);
}

template <class U>
FF_SIMD void raise_peak(U* peak, U overlap) {
  U seen;
  __atomic_load(peak, &seen, __ATOMIC_RELAXED);
  while (overlap > seen)
    if (__atomic_compare_exchange(peak, &seen, &overlap, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) return;
}

// Overlaps of a box with the kLanes objects from i on.
template <bool kLegacy, class U>
FF_SIMD Vector<U> object_overlaps(const Box<U>& box, U box_area, const BoxList<U>& objects, int64_t i) {
  const Vector<U> shared =
      shared_lanes<kLegacy, U>(lanes_at(objects.x1 + i), lanes_at(objects.x2 + i), box.x1, box.x2) *
      shared_lanes<kLegacy, U>(lanes_at(objects.y1 + i), lanes_at(objects.y2 + i), box.y1, box.y2);
  return overlap_of(shared, splat(box_area), lanes_at(objects.area + i));
}

}  // namespace

template <bool kLegacy, class U>
void match_block(const U* boxes, int n, const Scene<U>& scene, const U* image_size, U crowd_overlap, U* peaks,
                 bool find_peaks, BlockMatch<U>* match) {
  using Index = decltype(Vector<U>{} > Vector<U>{});  // whole numbers as wide as U
  using Whole = std::remove_reference_t<decltype(Index{}[0])>;
  constexpr int kParts = kBlock / kLanes<U>;
  Block<U> block;
  load_block<kLegacy>(boxes, n, image_size, &block);
  if (scene.crowds.count) drop_covered<kLegacy>(scene.crowds, crowd_overlap, &block);
  block.hull = find_hull(block);

  const BoxList<U>& objects = scene.objects;
  Vector<U> best[kParts] = {};
  Index object[kParts];
  for (int part = 0; part < kParts; ++part) object[part] = Index{} - 1;
  uint64_t at_peak = 0;
  for (int64_t first = 0; first < objects.count; first += kLanes<U>)
    for (uint32_t bits = near_objects<kLegacy>(block.hull, objects, first); bits; bits &= bits - 1) {
      const int64_t o = first + __builtin_ctz(bits);
      const Box<U> box = objects.box(o);
      Vector<U> most{};
      for (int part = 0; part < kParts; ++part) {
        const int i = part * kLanes<U>;
        const Vector<U> overlap =
            overlap_of(intersections<kLegacy>(block, i, box), lanes_at(block.area + i), splat(objects.area[o]));
        const Index better = is_better(overlap, best[part]);
        best[part] = better ? overlap : best[part];
        object[part] = better ? Index{} + Whole(o) : object[part];
        most = max_lanes(most, overlap);
        if (!find_peaks || !is_peak(peaks[o], peaks[o])) continue;
        const uint32_t lanes = at_least(overlap, splat(peaks[o]));
        at_peak |= uint64_t(lanes) << i;
        for (uint32_t left = lanes; left; left &= left - 1) match->peak_object[i + __builtin_ctz(left)] = int32_t(o);
      }
      if (!peaks || find_peaks) continue;
      const U highest = highest_lane(most);
      if (highest > U(0)) raise_peak(peaks + o, highest);
    }

  match->takes_part = block.takes_part;
  match->peaks = at_peak;
  Vector<U> most{};
  for (int part = 0; part < kParts; ++part) {
    memcpy(match->best + part * kLanes<U>, &best[part], sizeof best[part]);
    for (int lane = 0; lane < kLanes<U>; ++lane) match->object[part * kLanes<U> + lane] = int32_t(object[part][lane]);
    most = max_lanes(most, best[part]);
  }
  match->most = highest_lane(most);
}

template <bool kLegacy, class U>
int32_t best_object(const Box<U>& box, const BoxList<U>& objects) {
  const U box_area = area<kLegacy>(box);
  const auto overlaps = [&](int64_t i) __attribute__((always_inline)) {
    return object_overlaps<kLegacy>(box, box_area, objects, i);
  };
  Vector<U> most{};
  for (int64_t i = 0; i < objects.count; i += kLanes<U>) most = max_lanes(most, overlaps(i));
  const U highest = highest_lane(most);
  if (!(highest > U(0))) return -1;
  int64_t i = 0;
  uint32_t bits;
  while (!(bits = at_least(overlaps(i), splat(highest)))) i += kLanes<U>;
  return objects.index[i + FF_MUTANT(target_first_object, __builtin_ctz(bits), 31 - __builtin_clz(bits))];
}

template <bool kLegacy, class U>
int32_t last_peak_object(const Box<U>& box, const BoxList<U>& objects, const U* peaks) {
  const U box_area = area<kLegacy>(box);
  for (int64_t i = (objects.count - 1) / kLanes<U> * kLanes<U>; i >= 0; i -= kLanes<U>) {
    const Vector<U> overlaps = object_overlaps<kLegacy>(box, box_area, objects, i);
    // No overlap is above its object's peak, but where that is 0: then the object has none.
    const uint32_t bits =
        at_least(overlaps, lanes_at(peaks + i)) & above(lanes_at(peaks + i), Vector<U>{}) & low_bits(objects.count - i);
    if (bits) return objects.index[i + FF_MUTANT(target_last_peak, 31 - __builtin_clz(bits), __builtin_ctz(bits))];
  }
  return -1;
}

#define FF_INSTANTIATE(kLegacy, U)                                                                              \
  template void match_block<kLegacy, U>(const U*, int, const Scene<U>&, const U*, U, U*, bool, BlockMatch<U>*); \
  template int32_t best_object<kLegacy, U>(const Box<U>&, const BoxList<U>&);                                   \
  template int32_t last_peak_object<kLegacy, U>(const Box<U>&, const BoxList<U>&, const U*);
FF_INSTANTIATE(false, float)
FF_INSTANTIATE(true, float)
FF_INSTANTIATE(false, double)
FF_INSTANTIATE(true, double)

}  // namespace FF_ISA
}  // namespace frcnn_fast::anchor_target
