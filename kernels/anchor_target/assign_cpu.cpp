// Labels of all anchors. Grid anchors are reached object by object, through the windows where the overlap can matter;
// given anchors block by block.
#include <cstring>
#include <limits>

#include "anchor_target_cpu.h"

namespace frcnn_fast::anchor_target {
namespace {

int64_t count_planes(const AnchorSource& anchors) {
  int64_t planes = 0;
  for (int64_t l = 0; l < anchors.L; ++l) planes += anchors.grid[l * kGridFields + 2];
  return planes;
}

// Numbers that the axes of one image hold.
int64_t axes_room(const AnchorSource& anchors) {
  int64_t room = 0;
  for (int64_t l = 0; l < anchors.L; ++l) {
    const int64_t* g = anchors.grid + l * kGridFields;
    room += g[2] * 3 * (g[0] + g[1] + 2 * kPad);
  }
  return room;
}

int64_t count_blocks(const AnchorSource& anchors) { return anchors.L ? 0 : (anchors.A + kBlock - 1) / kBlock; }

// One axis of one cell anchor; `values` has room for 3 * (count + kPad).
template <bool kLegacy, class U>
Axis<U> make_axis(int64_t count, int64_t stride, U offset, U cell_low, U cell_high, const U* size, U* values) {
  const U infinity = std::numeric_limits<U>::infinity();
  U *low = values, *high = low + count + kPad, *side = high + count + kPad;
  Axis<U> axis = {low, high, side, int32_t(count), 0, infinity, -infinity};
  for (int64_t i = 0; i < count; ++i) {
    const U shift = U(i * stride) + offset * U(stride);
    low[i] = shift + cell_low;
    high[i] = shift + cell_high;
    side[i] = extent<kLegacy>(low[i], high[i]);
    if (is_finite(low[i]) && is_finite(high[i]) && (!size || is_inside<kLegacy>(low[i], high[i], *size))) {
      ++axis.taking;
      axis.least_side = minimum(axis.least_side, side[i]);
      axis.most_side = maximum(axis.most_side, side[i]);
    } else {
      low[i] = infinity, high[i] = -infinity, side[i] = U(0);
    }
  }
  for (int64_t i = count; i < count + kPad; ++i) low[i] = infinity, high[i] = -infinity, side[i] = U(0);
  return axis;
}

// All planes of one image. image_size: (height, width) or null.
template <bool kLegacy, class U>
void make_planes(const AnchorSource& anchors, const U* image_size, Plane<U>* planes, U* values) {
  const U* cell = static_cast<const U*>(anchors.boxes);
  const U offset = U(anchors.offset);
  int64_t level_start = 0;
  for (int64_t l = 0; l < anchors.L; ++l) {
    const int64_t* g = anchors.grid + l * kGridFields;
    const int64_t height = g[0], width = g[1], per_cell = g[2], stride_y = g[3], stride_x = g[4];
    for (int64_t a = 0; a < per_cell; ++a, cell += 4, ++planes) {
      planes->x =
          make_axis<kLegacy>(width, stride_x, offset, cell[0], cell[2], image_size ? image_size + 1 : nullptr, values);
      values += 3 * (width + kPad);
      planes->y = make_axis<kLegacy>(height, stride_y, offset, cell[1], cell[3], image_size, values);
      values += 3 * (height + kPad);
      planes->start = level_start + a;
      planes->per_cell = int32_t(per_cell);
    }
    level_start += height * width * per_cell;
  }
}

// Labels what takes no part kIgnored. Mostly that is a frame of the grid.
template <class U>
void mark_absent(const Plane<U>& plane, int8_t* labels) {
  if (plane.x.taking == plane.x.count && plane.y.taking == plane.y.count) return;
  int64_t first = 0, last = plane.x.count;
  while (first < last && !plane.x.takes_part(first)) ++first;
  while (first < last && !plane.x.takes_part(last - 1)) --last;
  const auto mark = [&](int64_t row, int64_t from, int64_t to, bool all) {
    for (int64_t x = from; x < to; ++x)
      if (all || !plane.x.takes_part(x)) labels[plane.index(x, row)] = kIgnored;
  };
  for (int64_t y = 0; y < plane.y.count; ++y) {
    if (!plane.y.takes_part(y)) {
      mark(y, 0, plane.x.count, true);
      continue;
    }
    mark(y, 0, first, true);
    mark(y, last, plane.x.count, true);
    if (plane.x.taking < last - first) mark(y, first, last, false);
  }
}

template <class U>
AnchorRule<U> make_rule(const AnchorOptions& options) {
  return {U(options.positive_iou),  U(options.negative_iou), U(options.min_quality),
          U(options.crowd_overlap), options.low_quality,     options.overwrite};
}

template <bool kLegacy, class U>
class Assigner {
 public:
  Assigner(int64_t B, const AnchorSource& anchors, const GroundTruth& gt, const AnchorOptions& options,
           AssignWorkspace<U>& workspace, int8_t* labels, int32_t* matched)
      : B_(B),
        A_(anchors.A),
        G_(gt.G),
        anchors_(anchors),
        rule_(make_rule<U>(options)),
        image_sizes_(static_cast<const U*>(options.image_sizes)),
        workspace_(workspace),
        labels_(labels),
        matched_(matched) {}

  void grid() {
    const int64_t planes = count_planes(anchors_), room = axes_room(anchors_), images = image_sizes_ ? B_ : 1;
    parallel_for(images, 4, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b)
        make_planes<kLegacy>(anchors_, image_size(b), workspace_.planes + b * planes, workspace_.axes + b * room);
    });
    const auto planes_of = [&](int64_t b) { return workspace_.planes + (image_sizes_ ? b * planes : 0); };
    parallel_for(B_ * A_, 1 << 20, [&](int64_t begin, int64_t end) { fill(begin, end); });
    parallel_for(B_ * planes, 64, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) mark_absent(planes_of(i / planes)[i % planes], labels_ + i / planes * A_);
    });
    parallel_for(B_, 1, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) {
        const Scene<U> scene = workspace_.scenes.at(b);
        if (scene.crowds.count)
          FF_ISA_CALL(mark_covered<kLegacy>, planes_of(b), planes, scene, rule_.crowd_overlap, labels_ + b * A_);
      }
    });
    each_object([&](int64_t b, int64_t o, const Scene<U>& scene) {
      int8_t* labels = labels_ + b * A_;
      if (rule_.low_quality)
        workspace_.peaks[b * G_ + o] = peak_of(
            FF_ISA_CALL(object_peak<kLegacy>, planes_of(b), planes, scene, o, rule_.crowd_overlap), rule_.min_quality);
      if (rule_.negative_iou > U(0))
        FF_ISA_CALL(mark_not_negative<kLegacy>, planes_of(b), planes, scene, o, rule_, labels);
    });
    each_object([&](int64_t b, int64_t o, const Scene<U>& scene) {
      const U* peaks = rule_.low_quality ? workspace_.peaks + b * G_ : nullptr;
      FF_ISA_CALL(mark_positive<kLegacy>, planes_of(b), planes, scene, o, peaks, rule_, labels_ + b * A_,
                  matched_ ? matched_ + b * A_ : nullptr);
    });
  }

  void given() {
    const int64_t blocks = count_blocks(anchors_);
    std::fill_n(workspace_.peaks, B_ * G_, U(0));
    U* peaks = rule_.low_quality ? workspace_.peaks : nullptr;
    const auto match = [&](int64_t b, int64_t block, U* peaks, bool find, BlockMatch<U>* out) {
      const U* boxes = static_cast<const U*>(anchors_.boxes) + b * anchors_.image_stride + block * kBlock * 4;
      FF_ISA_CALL(match_block<kLegacy>, boxes, block_size(block), workspace_.scenes.at(b), image_size(b),
                  rule_.crowd_overlap, peaks ? peaks + b * G_ : nullptr, find, out);
    };
    parallel_for(B_ * blocks, 256, [&](int64_t begin, int64_t end) {
      BlockMatch<U> found;
      for (int64_t i = begin; i < end; ++i) {
        match(i / blocks, i % blocks, peaks, false, &found);
        workspace_.block_best[i] = found.most;
        label_block(i / blocks, i % blocks, found);
      }
    });
    if (!peaks) return;
    for (int64_t i = 0; i < B_ * G_; ++i) peaks[i] = peak_of(peaks[i], rule_.min_quality);
    parallel_for(B_ * blocks, 256, [&](int64_t begin, int64_t end) {
      BlockMatch<U> found;
      int64_t image = -1;
      U least = U(0);
      for (int64_t i = begin; i < end; ++i) {
        if (i / blocks != image) least = least_peak(image = i / blocks);
        if (workspace_.block_best[i] < least) continue;
        match(image, i % blocks, peaks, true, &found);
        label_peaks(image, i % blocks, found);
      }
    });
  }

 private:
  const U* image_size(int64_t b) const { return image_sizes_ ? image_sizes_ + 2 * b : nullptr; }
  int block_size(int64_t block) const { return int(std::min<int64_t>(kBlock, A_ - block * kBlock)); }

  // What an anchor is that no object overlaps.
  int8_t untouched(int64_t b) const {
    return anchor_label(U(0), false, workspace_.scenes.at(b).objects.count > 0, rule_);
  }
  void fill(int64_t begin, int64_t end) const {
    if (matched_) std::fill(matched_ + begin, matched_ + end, -1);
    while (begin < end) {
      const int64_t b = begin / A_, stop = std::min(end, (b + 1) * A_);
      std::memset(labels_ + begin, untouched(b), size_t(stop - begin));
      begin = stop;
    }
  }
  template <class Body>
  void each_object(const Body& body) const {
    parallel_for(B_ * G_, 32, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const Scene<U> scene = workspace_.scenes.at(i / G_);
        if (i % G_ < scene.objects.count) body(i / G_, i % G_, scene);
      }
    });
  }

  void label_block(int64_t b, int64_t block, const BlockMatch<U>& found) const {
    const int64_t start = b * A_ + block * kBlock;
    const int n = block_size(block);
    const BoxList<U> objects = workspace_.scenes.at(b).objects;
    const bool any = objects.count > 0;
    if (matched_) std::fill_n(matched_ + start, n, -1);
    const int8_t most = anchor_label(found.most, false, any, rule_);
    if (most == kNegative && !~found.takes_part) {  // and so are the others
      std::memset(labels_ + start, kNegative, size_t(n));
      return;
    }
    for (int i = 0; i < n; ++i) {
      const bool takes_part = found.takes_part >> i & 1;
      labels_[start + i] = takes_part ? anchor_label(found.best[i], false, any, rule_) : kIgnored;
      if (matched_ && labels_[start + i] == kPositive) matched_[start + i] = objects.index_of(found.object[i]);
    }
  }
  void label_peaks(int64_t b, int64_t block, const BlockMatch<U>& found) const {
    const int64_t start = b * A_ + block * kBlock;
    for (uint64_t bits = found.peaks & found.takes_part; bits; bits &= bits - 1) {
      const int i = __builtin_ctzll(bits);
      labels_[start + i] = anchor_label(found.best[i], true, true, rule_);
      const int32_t object = rule_.overwrite ? found.peak_object[i] : found.object[i];
      if (matched_) matched_[start + i] = workspace_.scenes.at(b).objects.index_of(object);
    }
  }
  // Below it no anchor is any object's best.
  U least_peak(int64_t b) const {
    const int32_t count = workspace_.scenes.at(b).objects.count;
    U least = std::numeric_limits<U>::infinity();
    for (int32_t o = 0; o < count; ++o) {
      const U peak = workspace_.peaks[b * G_ + o];
      if (is_peak(peak, peak)) least = std::min(least, peak);
    }
    return least;
  }

  int64_t B_, A_, G_;
  const AnchorSource& anchors_;
  AnchorRule<U> rule_;
  const U* image_sizes_;
  AssignWorkspace<U>& workspace_;
  int8_t* labels_;
  int32_t* matched_;
};

}  // namespace

template <class U>
void AssignWorkspace<U>::take_from(WorkspaceArena& arena, int64_t B, const AnchorSource& anchors, int64_t G) {
  scenes.take_from(arena, B, G);
  peaks = arena.take<U>(B * G + kPad);
  planes = arena.take<Plane<U>>(B * count_planes(anchors));
  axes = arena.take<U>(B * axes_room(anchors));
  block_best = arena.take<U>(B * count_blocks(anchors));
}

template <bool kLegacy, class U>
Status assign_labels(int64_t B, const AnchorSource& anchors, const GroundTruth& gt, const AnchorOptions& options,
                     AssignWorkspace<U>& workspace, int8_t* labels, int32_t* matched) {
  FF_TRY(check_counts("gt_counts", gt.counts, B, gt.G));
  parallel_for(B, 16, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) workspace.scenes.template fill<kLegacy>(gt, b);
  });
  if (B * anchors.A == 0) return kOk;
  Assigner<kLegacy, U> assigner(B, anchors, gt, options, workspace, labels, matched);
  if (anchors.L)
    assigner.grid();
  else
    assigner.given();
  return kOk;
}

size_t assign_anchors_workspace_cpu(DType dtype, int64_t B, const AnchorSource& anchors, int64_t G) {
  return visit_compute(dtype, [&](auto tag) {
    using U = typename decltype(tag)::type;
    WorkspaceArena arena(nullptr);
    AssignWorkspace<U>().take_from(arena, B, anchors, G);
    return arena.used();
  });
}

Status assign_anchors_cpu(DType dtype, int64_t B, const AnchorSource& anchors, const GroundTruth& gt,
                          const AnchorOptions& options, void* workspace, int8_t* labels, int32_t* matched) {
  return visit_compute(dtype, [&](auto tag) {
    using U = typename decltype(tag)::type;
    Anchors<U> checked;
    FF_TRY(make_anchors(anchors, &checked));
    WorkspaceArena arena(workspace);
    AssignWorkspace<U> pieces;
    pieces.take_from(arena, B, anchors, gt.G);
    return options.legacy ? assign_labels<true>(B, anchors, gt, options, pieces, labels, matched)
                          : assign_labels<false>(B, anchors, gt, options, pieces, labels, matched);
  });
}

#define FF_INSTANTIATE(kLegacy, U)                                                                                  \
  template Status assign_labels<kLegacy, U>(int64_t, const AnchorSource&, const GroundTruth&, const AnchorOptions&, \
                                            AssignWorkspace<U>&, int8_t*, int32_t*);
template struct AssignWorkspace<float>;
template struct AssignWorkspace<double>;
FF_INSTANTIATE(false, float)
FF_INSTANTIATE(true, float)
FF_INSTANTIATE(false, double)
FF_INSTANTIATE(true, double)

}  // namespace frcnn_fast::anchor_target
