// The NMS of every image by a cluster of blocks (greedy_cluster.cuh), in one launch: an image's scores are the segment,
// up to its count, and a candidate's box and class are loaded when its turn comes.
#include "cluster_launch.cuh"
#include "nms_cuda.cuh"

namespace frcnn_fast::nms {
namespace {

// Candidates times boxes to keep up to which a cluster is worth it. Beyond, where little is suppressed and nothing ends
// the search early, comparing is what takes the time, and the chain has the whole device for it.
constexpr int64_t kMostPairs = int64_t(4096) * 4096;

template <class T>
struct ImageBoxes {
  const T* boxes;                     // [B, N, 4]
  AnchorRow<T> scores;                // [B, N]
  const int64_t *class_ids, *counts;  // [B, N] or null, [B] or null
  int64_t N, max_output;
  int64_t *keep, *num_keep;  // [B, max_output], [B]
};

// One image, as GreedyCluster asks for it.
template <class T, class Id>
class Image {
 public:
  using Score = T;
  using U = Compute<T>;
  using ClassId = Id;

  __device__ __forceinline__ Image(const ImageBoxes<T>& all, int64_t b) : all_(all), b_(b) {}

  __device__ __forceinline__ SegmentSlice<T, AnchorRow<T>> slice() const {
    return SegmentSlice<T, AnchorRow<T>>(all_.scores, b_, nullptr, 0, int(real_rows(all_.counts, b_, all_.N)));
  }
  __device__ __forceinline__ bool read(int64_t i, Box<U>* box) const {
    *box = load_box(all_.boxes + 4 * (b_ * all_.N + i));
    return takes_part(*box);
  }
  __device__ __forceinline__ int64_t class_id(int64_t i) const { return all_.class_ids[b_ * all_.N + i]; }
  __device__ __forceinline__ int64_t rows() const { return all_.max_output; }
  __device__ __forceinline__ void write_count(int kept) const { all_.num_keep[b_] = kept; }
  __device__ __forceinline__ void write(int64_t row, uint32_t i, const Box<U>&) const {
    all_.keep[b_ * all_.max_output + row] = i;
  }
  __device__ __forceinline__ void pad(int64_t row) const { all_.keep[b_ * all_.max_output + row] = -1; }

 private:
  const ImageBoxes<T>& all_;
  const int64_t b_;
};

// Grid: a cluster an image.
template <class T, bool kLegacy, class Id>
__global__ void __launch_bounds__(kClusterChunk, 1)
    nms_cluster_kernel(const __grid_constant__ ImageBoxes<T> images,
                       const __grid_constant__ ClusterSettings<Compute<T>> set) {
#if FF_CODE_HAS_CLUSTERS
  FF_SHARED(uint32_t, scratch, [kChunkWarps]);
  FF_DYN_SHARED(unsigned char, memory);
  const ClusterMemory<Compute<T>, Id> arrays(memory, set);
  const Image<T, Id> image(images, int64_t(blockIdx.x) / kCluster);
  GreedyCluster<Image<T, Id>, kLegacy>(image, set, arrays, scratch).run();
#else
  __trap();
#endif
}

template <class T>
ClusterSettings<Compute<T>> make_settings(const PaddedBoxes& in) {
  return cluster_settings<Compute<T>>(in.N, in.N, std::min(in.N, in.max_output), in.iou_threshold, false);
}

// body(tag of T, legacy, a class id): the form of the kernel for these boxes.
template <class Body>
auto visit_form(const PaddedBoxes& in, const Body& body) {
  return visit(in.dtype, [&](auto tag) {
    const auto with_legacy = [&](auto legacy) {
      return in.class_ids ? body(tag, legacy, int64_t()) : body(tag, legacy, NoClass());
    };
    return in.legacy ? with_legacy(std::true_type()) : with_legacy(std::false_type());
  });
}

}  // namespace

bool nms_fits_cluster(const PaddedBoxes& in) {
  if (in.N * std::min(in.N, in.max_output) > kMostPairs) return false;
  return visit_form(in, [&](auto tag, auto legacy, auto id) {
    using T = typename decltype(tag)::type;
    using Id = decltype(id);
    constexpr bool kLegacy = decltype(legacy)::value;
    return fits_cluster<Id>(in.N, make_settings<T>(in)) &&
           device_runs_greedy_clusters<&nms_cluster_kernel<T, kLegacy, Id>>();
  });
}

Status nms_by_cluster(const PaddedBoxes& in, int64_t* keep, int64_t* num_keep, Stream stream) {
  return visit_form(in, [&](auto tag, auto legacy, auto id) {
    using T = typename decltype(tag)::type;
    using Id = decltype(id);
    constexpr bool kLegacy = decltype(legacy)::value;
    const ImageBoxes<T> images = {static_cast<const T*>(in.boxes),
                                  {static_cast<const T*>(in.scores), in.N},
                                  in.class_ids,
                                  in.counts,
                                  in.N,
                                  in.max_output,
                                  keep,
                                  num_keep};
    return launch_greedy_clusters<&nms_cluster_kernel<T, kLegacy, Id>, Id>(in.B, make_settings<T>(in), stream, images);
  });
}

}  // namespace frcnn_fast::nms
