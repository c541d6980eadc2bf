#include <cstring>

#include "anchor_gather.h"

namespace frcnn_fast::anchor_gather {
namespace {

Status check_indices(const int64_t* indices, int64_t B, int64_t S, int64_t A) {
  for (int64_t i = 0; i < B * S; ++i)
    if (indices[i] < -1 || indices[i] >= A)
      return invalid("indices[%lld, %lld] is %lld, expected one of the %lld anchors, or -1", (long long)(i / S),
                     (long long)(i % S), (long long)indices[i], (long long)A);
  return kOk;
}

// Whether row s is the first to choose its anchor. Counted, not searched: such a loop becomes vectors.
bool is_first(const int64_t* indices, int64_t s) {
  int64_t before = 0;
  for (int64_t i = 0; i < s; ++i) before += indices[i] == indices[s];
  return FF_MUTANT(gather_cpu_once, before == 0, true);
}
int64_t times_chosen(const int64_t* indices, int64_t s, int64_t S) {
  int64_t times = 0;
  for (int64_t i = s; i < S; ++i) times += indices[i] == indices[s];
  return times;
}

}  // namespace

Status gather_anchors_cpu(const GatherMaps& in, const int64_t* indices, int64_t S, void* rows) {
  return visit(in.dtype, [&](auto tag) -> Status {
    using T = typename decltype(tag)::type;
    const AnchorMaps<T> maps = make_anchor_maps<T>(in.levels, in.L);
    const int64_t A = maps.starts[kMaxLevels];
    FF_TRY(check_indices(indices, in.B, S, A));
    T* row = static_cast<T*>(rows);
    for (int64_t i = 0; i < in.B * S; ++i, row += in.values) {
      if (is_anchor(indices[i], A)) {
        const int level = maps.level_of(indices[i]);
        const T* const own = maps.at(i / S, level, indices[i]);
        for (int64_t v = 0; v < in.values; ++v) row[v] = own[v * maps.maps[level].value_stride];
      } else {
        for (int64_t v = 0; v < in.values; ++v) row[v] = T{};
      }
    }
    return kOk;
  });
}

Status gather_anchors_backward_cpu(const void* grad, const int64_t* indices, int64_t S, const GatherMaps& out) {
  return visit(out.dtype, [&](auto tag) -> Status {
    using T = typename decltype(tag)::type;
    const AnchorMaps<T> maps = make_anchor_maps<T>(out.levels, out.L);
    const int64_t A = maps.starts[kMaxLevels];
    FF_TRY(check_indices(indices, out.B, S, A));
    for (int64_t l = 0; l < out.L; ++l) {
      const int64_t numbers = out.B * out.values * (maps.starts[l + 1] - maps.starts[l]);
      if (numbers > 0) memset(const_cast<T*>(maps.maps[l].data), 0, sizeof(T) * size_t(numbers));
    }
    for (int64_t b = 0; b < out.B; ++b) {
      const int64_t* const own = indices + b * S;
      const T* const gradients = static_cast<const T*>(grad) + b * S * out.values;
      for (int64_t s = 0; s < S; ++s) {
        if (!is_anchor(own[s], A) || !is_first(own, s)) continue;
        const int level = maps.level_of(own[s]);
        T* const to = const_cast<T*>(maps.at(b, level, own[s]));
        const int64_t times = times_chosen(own, s, S);
        for (int64_t v = 0; v < out.values; ++v) {
          Compute<T> sum = 0;
          for (int64_t i = s, left = times; left > 0; ++i) {
            if (own[i] != own[s]) continue;
            sum += load(gradients + i * out.values + v);
            --left;
          }
          store(to + v * maps.maps[level].value_stride, sum);
        }
      }
    }
    return kOk;
  });
}

}  // namespace frcnn_fast::anchor_gather
