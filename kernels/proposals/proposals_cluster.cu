// Launches proposals_cluster_kernel, where it fits.
#include <algorithm>
#include <atomic>

#include "proposals_cluster.cuh"
#include "proposals_cuda.h"

namespace frcnn_fast::proposals {
namespace {

#if defined(FF_TEST_BUILD)
constexpr size_t kSharedLimit = 51 << 10;  // so that small cases are too large as well
#else
constexpr size_t kSharedLimit = 227 << 10;
#endif
constexpr int kMostDevices = 64;

// compete: whether boxes are judged before the selection.
template <class U>
ClusterSettings<U> make_settings(const LevelLimits& limits, double threshold, bool compete) {
  const int64_t slice = (limits.longest + kCluster - 1) / kCluster;
  ClusterSettings<U> set = {};
  set.n = int(limits.n);
  set.most_kept = int(limits.k);
  set.list_room = int(std::min<int64_t>(slice, kListRoom));
  set.competes_words = compete ? int((slice + kWarp - 1) / kWarp) : 0;
  set.suppression = make_suppression<U>(threshold);
  return set;
}

size_t most_shared() { return std::min(max_dynamic_shared(), kSharedLimit) - 2048; }  // the rest: static

// Whether the device runs clusters of this kernel at all; asked once for each device.
template <class T, bool kLegacy>
bool device_runs_clusters() {
  static std::atomic<int8_t> known[kMostDevices];  // 0: not asked yet, 1: no, 2: yes
  int device = 0;
  if (cudaGetDevice(&device) || device >= kMostDevices) return false;
  int8_t answer = known[device];
  if (!answer) {
    const auto kernel = proposals_cluster_kernel<T, kLegacy>;
    const bool yes =
        !allow_dynamic_shared(kernel, most_shared()) && cluster_fits(kernel, kCluster, dim3(kChunk), most_shared());
    known[device] = answer = yes ? 2 : 1;
  }
  return answer == 2;
}

}  // namespace

bool proposals_fit_cluster(const ProposalInputs& in, const ProposalSettings& set) {
  const LevelLimits limits = level_limits(in, set);
  if (compute_capability() < 90 || in.A > 1 << 30 || limits.n > kCluster * kListRoom) return false;
  return visit(in.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using U = Compute<T>;
    const ClusterSettings<U> settings = make_settings<U>(limits, set.iou_threshold, set.filter_before_top_n);
    return ClusterMemory<U>(nullptr, settings).bytes <= most_shared() &&
           (set.legacy ? device_runs_clusters<T, true>() : device_runs_clusters<T, false>());
  });
}

Status propose_by_cluster(const ProposalInputs& in, const ProposalSettings& set, const ProposalOutputs& rows,
                          int64_t stride, bool padded, Stream stream) {
  const auto launch = [&](auto tag, auto legacy) -> Status {
    using T = typename decltype(tag)::type;
    using U = Compute<T>;
    constexpr bool kLegacy = decltype(legacy)::value;
    Decoder<T, kLegacy> decoder{};
    FF_TRY(make_decoder(in, set, &decoder));
    ScoreSegments<T> segments = {static_cast<const T*>(in.scores), nullptr, in.A, int32_t(in.L), {}};
    for (int64_t l = 0; l < in.L; ++l) segments.starts[l + 1] = segments.starts[l] + int32_t(in.level_sizes[l]);
    const ClusterSettings<U> settings =
        make_settings<U>(level_limits(in, set), set.iou_threshold, set.filter_before_top_n);
    const ProposalRows<T> out = {
        static_cast<U*>(rows.boxes), static_cast<T*>(rows.scores), rows.indices, rows.counts, stride, padded};
    const auto kernel = proposals_cluster_kernel<T, kLegacy>;
    FF_TRY(allow_dynamic_shared(kernel, most_shared()));  // not what is used: threads would race for it
    FF_LAUNCH_CLUSTER(kernel, kCluster, dim3(unsigned(in.B * in.L) * kCluster), dim3(kChunk),
                      ClusterMemory<U>(nullptr, settings).bytes, stream, decoder, segments, settings, out);
    return launched();
  };
  return visit(in.dtype,
               [&](auto tag) { return set.legacy ? launch(tag, std::true_type()) : launch(tag, std::false_type()); });
}

}  // namespace frcnn_fast::proposals
