// Overlaps of grid anchors with one object at a time.
#include "anchor_target_cpu.h"
#include "lanes.h"

namespace frcnn_fast::anchor_target {
namespace FF_ISA {
using namespace frcnn_fast::FF_ISA;
namespace {

// What positions i, i + 1... of an axis share with an interval, and what position i alone does.
template <bool kLegacy, class U>
FF_SIMD Vector<U> shared_from(const Axis<U>& axis, int64_t i, U low, U high) {
  return shared_lanes<kLegacy, U>(lanes_at(axis.low + i), lanes_at(axis.high + i), low, high);
}
template <bool kLegacy, class U>
FF_SIMD U shared_at(const Axis<U>& axis, int64_t i, U low, U high) {
  return maximum(U(0), extent<kLegacy>(maximum(axis.low[i], low), minimum(axis.high[i], high)));
}

// What an object's side shares with the columns (or rows); [first, last) holds all that share something.
template <class U>
struct Reach {
  U most, least_side;
  int64_t first, last;
};

template <bool kLegacy, class U>
Reach<U> measure(const Axis<U>& axis, U low, U high) {
  Vector<U> most{}, least_side = splat(U(__builtin_inf()));
  int64_t first = axis.count, last = 0;
  for (int64_t i = 0; i < axis.count; i += kLanes<U>) {
    const Vector<U> shared = shared_from<kLegacy>(axis, i, low, high);
    const uint32_t bits = above(shared, Vector<U>{});
    if (!bits) continue;
    if (first == axis.count) first = i + __builtin_ctz(bits);
    last = i + 32 - __builtin_clz(bits);
    most = max_lanes(most, shared);
    least_side = min_lanes(least_side, shared > Vector<U>{} ? lanes_at(axis.side + i) : least_side);
  }
  return {highest_lane(most), -highest_lane(-least_side), first, last};
}

// The highest overlap that these could make: more intersection and less area than any of them. NaN is 0: the
// intersection is inf only where the other area is, and then no overlap is above 0.
template <class V>
FF_SIMD V overlap_bound(V most_shared, V least_area, V other_area) {
  const V bound = overlap_of(most_shared, least_area, other_area);
  return FF_MUTANT(target_peak_rows, bound, V(bound - bound / 1024));
}

template <bool kLegacy, class U>
U plane_bound(const Plane<U>& plane, const Box<U>& box, U box_area) {
  const U w = minimum(plane.x.most_side, extent<kLegacy>(box.x1, box.x2));
  const U h = minimum(plane.y.most_side, extent<kLegacy>(box.y1, box.y2));
  if (!(w > U(0) && h > U(0))) return U(0);
  if (!(plane.x.least_side > U(0) && plane.y.least_side > U(0))) return U(1);  // inverted anchors: bounds nothing
  return overlap_bound(w * h, plane.x.least_side * plane.y.least_side, box_area);
}

// One object over one plane.
template <bool kLegacy, class U>
struct Sweep {
  const Plane<U>& plane;
  const BoxList<U>& crowds;
  Box<U> box;
  U box_area, crowd_overlap;
  Reach<U> columns, rows;

  FF_SIMD Sweep(const Plane<U>& plane, const Scene<U>& scene, int64_t object, U crowd_overlap)
      : plane(plane),
        crowds(scene.crowds),
        box(scene.objects.box(object)),
        box_area(scene.objects.area[object]),
        crowd_overlap(crowd_overlap),
        columns(measure<kLegacy>(plane.x, box.x1, box.x2)),
        rows(measure<kLegacy>(plane.y, box.y1, box.y2)) {}

  // Overlaps of the kLanes anchors of row y from column x on.
  FF_SIMD Vector<U> overlaps(int64_t x, int64_t y) const {
    const Vector<U> areas = lanes_at(plane.x.side + x) * splat(plane.y.side[y]);
    const Vector<U> result = overlap_of(intersections(x, y, box), areas, splat(box_area));
    return crowds.count ? clear_covered(x, y, areas, result) : result;
  }
  FF_SIMD Vector<U> clear_covered(int64_t x, int64_t y, Vector<U> areas, Vector<U> result) const {
    for (int64_t c = 0; c < crowds.count; ++c)
      result = is_covered(intersections(x, y, crowds.box(c)), areas, splat(crowd_overlap)) ? Vector<U>{} : result;
    return result;
  }
  FF_SIMD Vector<U> intersections(int64_t x, int64_t y, const Box<U>& other) const {
    return shared_from<kLegacy>(plane.x, x, other.x1, other.x2) *
           splat(shared_at<kLegacy>(plane.y, y, other.y1, other.y2));
  }

  // Upper bounds for the kLanes rows from y on, and columns from x on.
  FF_SIMD Vector<U> row_bounds(int64_t y) const {
    return overlap_bound(shared_from<kLegacy>(plane.y, y, box.y1, box.y2) * splat(columns.most),
                         lanes_at(plane.y.side + y) * splat(columns.least_side), splat(box_area));
  }
  FF_SIMD Vector<U> column_bounds(int64_t x) const {
    return overlap_bound(shared_from<kLegacy>(plane.x, x, box.x1, box.x2) * splat(rows.most),
                         lanes_at(plane.x.side + x) * splat(rows.least_side), splat(box_area));
  }

  FF_SIMD U row_peak(int64_t y, U peak) const {
    Vector<U> most = splat(peak);
    for (int64_t x = columns.first; x < columns.last; x += kLanes<U>) most = max_lanes(most, overlaps(x, y));
    return highest_lane(most);
  }
  // The highest overlap, if it is above `peak`. The middle row, likely the best, spares most of the others.
  U raise(U peak) const {
    if (columns.first >= columns.last || rows.first >= rows.last) return peak;
    peak = row_peak((rows.first + rows.last) / 2, peak);
    for (int64_t y = rows.first; y < rows.last; y += kLanes<U>)
      for (uint32_t bits = above(row_bounds(y), splat(peak)) & low_bits(rows.last - y); bits; bits &= bits - 1)
        peak = row_peak(y + __builtin_ctz(bits), peak);
    return peak;
  }

  // hit(column, row, overlap) for every overlap of at least `least`, and above 0.
  template <class Hit>
  void visit(U least, Hit hit) const {
    int64_t first = columns.last, last = columns.first;
    for (int64_t x = columns.first; x < columns.last; x += kLanes<U>) {
      const uint32_t bits = at_least(column_bounds(x), splat(least)) & low_bits(columns.last - x);
      if (!bits) continue;
      first = minimum(first, x + __builtin_ctz(bits));
      last = x + 32 - __builtin_clz(bits);
    }
    if (first >= last) return;
    for (int64_t y = rows.first; y < rows.last; y += kLanes<U>)
      for (uint32_t bits = at_least(row_bounds(y), splat(least)) & low_bits(rows.last - y); bits; bits &= bits - 1)
        visit_row(y + __builtin_ctz(bits), first, last, least, hit);
  }
  template <class Hit>
  FF_SIMD void visit_row(int64_t y, int64_t first, int64_t last, U least, Hit hit) const {
    for (int64_t x = first; x < last; x += kLanes<U>) {
      const Vector<U> found = overlaps(x, y);
      for (uint32_t bits = at_least(found, splat(least)) & low_bits(last - x); bits; bits &= bits - 1) {
        const int lane = __builtin_ctz(bits);
        if (found[lane] > U(0)) hit(x + lane, y, found[lane]);
      }
    }
  }
};

template <bool kLegacy, class U, class Hit>
FF_SIMD void visit_planes(const Plane<U>* planes, int64_t num_planes, const Scene<U>& scene, int64_t object,
                          U crowd_overlap, U least, Hit hit) {
  const Box<U> box = scene.objects.box(object);
  for (int64_t p = 0; p < num_planes; ++p) {
    if (plane_bound<kLegacy>(planes[p], box, scene.objects.area[object]) < least) continue;
    Sweep<kLegacy, U>(planes[p], scene, object, crowd_overlap).visit(least, [&](int64_t x, int64_t y, U overlap) {
      hit(planes[p], x, y, overlap);
    });
  }
}

// Several objects may mark an anchor at once, all with the same value.
template <class T>
FF_SIMD void put(T* place, T value) {
  __atomic_store_n(place, value, __ATOMIC_RELAXED);
}

}  // namespace

template <bool kLegacy, class U>
U object_peak(const Plane<U>* planes, int64_t num_planes, const Scene<U>& scene, int64_t object, U crowd_overlap) {
  const Box<U> box = scene.objects.box(object);
  const U box_area = scene.objects.area[object];
  int64_t start = 0;  // the plane of the most similar anchors spares most of the others
  for (int64_t p = 1; p < num_planes; ++p)
    if (plane_bound<kLegacy>(planes[p], box, box_area) > plane_bound<kLegacy>(planes[start], box, box_area)) start = p;
  U peak = Sweep<kLegacy, U>(planes[start], scene, object, crowd_overlap).raise(U(0));
  for (int64_t p = 0; p < num_planes; ++p)
    if (p != start && plane_bound<kLegacy>(planes[p], box, box_area) > peak)
      peak = Sweep<kLegacy, U>(planes[p], scene, object, crowd_overlap).raise(peak);
  return peak;
}

template <bool kLegacy, class U>
void mark_not_negative(const Plane<U>* planes, int64_t num_planes, const Scene<U>& scene, int64_t object,
                       const AnchorRule<U>& rule, int8_t* labels) {
  visit_planes<kLegacy>(planes, num_planes, scene, object, rule.crowd_overlap, rule.negative_iou,
                        [&](const Plane<U>& plane, int64_t x, int64_t y, U overlap) {
                          if (!is_negative(overlap, rule.negative_iou)) put(labels + plane.index(x, y), kIgnored);
                        });
}

template <bool kLegacy, class U>
void mark_positive(const Plane<U>* planes, int64_t num_planes, const Scene<U>& scene, int64_t object, const U* peaks,
                   const AnchorRule<U>& rule, int8_t* labels, int32_t* matched) {
  const U peak = peaks ? peaks[object] : U(0);
  const bool by_peak = peak > U(0);
  const U least = by_peak ? minimum(rule.positive_iou, peak) : rule.positive_iou;
  visit_planes<kLegacy>(planes, num_planes, scene, object, rule.crowd_overlap, least,
                        [&](const Plane<U>& plane, int64_t x, int64_t y, U overlap) {
                          if (!is_positive(overlap, rule.positive_iou) && !(by_peak && is_peak(overlap, peak))) return;
                          const int64_t index = plane.index(x, y);
                          put(labels + index, kPositive);
                          const Box<U> anchor = {plane.x.low[x], plane.y.low[y], plane.x.high[x], plane.y.high[y]};
                          if (!matched) return;
                          const int32_t own =
                              peaks && rule.overwrite ? last_peak_object<kLegacy>(anchor, scene.objects, peaks) : -1;
                          put(matched + index, own >= 0 ? own : best_object<kLegacy>(anchor, scene.objects));
                        });
}

template <bool kLegacy, class U>
void mark_covered(const Plane<U>* planes, int64_t num_planes, const Scene<U>& scene, U crowd_overlap, int8_t* labels) {
  for (int64_t p = 0; p < num_planes; ++p)
    for (int64_t c = 0; c < scene.crowds.count; ++c) {
      const Plane<U>& plane = planes[p];
      const Box<U> crowd = scene.crowds.box(c);
      for (int64_t y = 0; y < plane.y.count; ++y) {
        const U shared_y = shared_at<kLegacy>(plane.y, y, crowd.y1, crowd.y2);
        if (!(shared_y > U(0)) && crowd_overlap > U(0)) continue;  // covers at most 0 of them
        for (int64_t x = 0; x < plane.x.count; x += kLanes<U>) {
          const Vector<U> shared = shared_from<kLegacy>(plane.x, x, crowd.x1, crowd.x2) * splat(shared_y);
          const Vector<U> areas = lanes_at(plane.x.side + x) * splat(plane.y.side[y]);
          const auto covered = is_covered(shared, areas, splat(crowd_overlap));
          for (uint32_t bits = true_lanes<U>(covered) & low_bits(plane.x.count - x); bits; bits &= bits - 1)
            labels[plane.index(x + __builtin_ctz(bits), y)] = kIgnored;
        }
      }
    }
}

#define FF_INSTANTIATE(kLegacy, U)                                                                      \
  template U object_peak<kLegacy, U>(const Plane<U>*, int64_t, const Scene<U>&, int64_t, U);            \
  template void mark_not_negative<kLegacy, U>(const Plane<U>*, int64_t, const Scene<U>&, int64_t,       \
                                              const AnchorRule<U>&, int8_t*);                           \
  template void mark_positive<kLegacy, U>(const Plane<U>*, int64_t, const Scene<U>&, int64_t, const U*, \
                                          const AnchorRule<U>&, int8_t*, int32_t*);                     \
  template void mark_covered<kLegacy, U>(const Plane<U>*, int64_t, const Scene<U>&, U, int8_t*);
FF_INSTANTIATE(false, float)
FF_INSTANTIATE(true, float)
FF_INSTANTIATE(false, double)
FF_INSTANTIATE(true, double)

}  // namespace FF_ISA
}  // namespace frcnn_fast::anchor_target
