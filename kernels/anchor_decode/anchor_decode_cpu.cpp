#include "anchor_decode_cpu.h"

namespace frcnn_fast::anchor_decode {
namespace {

constexpr int64_t kGrain = 2048;  // boxes a thread: some microseconds

template <class T>
Status decode(DecodeJob<T> job, int64_t B, const DecodeArguments& in) {
  FF_TRY(make_anchors(in.anchors, job.A, &job.anchors));
  job.params = make_decode_params<Compute<T>>(in.weights, in.clamp);
  parallel_for(B * job.A, kGrain, [&](int64_t begin, int64_t end) { FF_ISA_CALL(decode_range, job, in, begin, end); });
  return kOk;
}

}  // namespace

Status grid_anchors_cpu(DType dtype, const AnchorSource& anchors, void* boxes) {
  return visit_compute(dtype, [&](auto tag) {
    using U = typename decltype(tag)::type;
    Anchors<U> made;
    FF_TRY(make_anchors(anchors, &made));
    parallel_for(anchors.A, kGrain, [&](int64_t begin, int64_t end) {
      FF_ISA_CALL(grid_range, made, begin, end, static_cast<U*>(boxes));
    });
    return kOk;
  });
}

Status decode_clip_cpu(DType dtype, const void* deltas, int64_t B, int64_t A, const DecodeArguments& arguments,
                       void* boxes, bool* valid) {
  return visit(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    DecodeJob<T> job = {};
    job.deltas = static_cast<const T*>(deltas);
    job.A = A;
    job.boxes = static_cast<Compute<T>*>(boxes);
    job.valid = valid;
    return decode(job, B, arguments);
  });
}

Status decode_clip_backward_cpu(DType dtype, const void* grad_boxes, const void* deltas, int64_t B, int64_t A,
                                const DecodeArguments& arguments, void* grad_deltas) {
  return visit(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    DecodeJob<T> job = {};
    job.deltas = static_cast<const T*>(deltas);
    job.A = A;
    job.grad_boxes = static_cast<const Compute<T>*>(grad_boxes);
    job.grad_deltas = static_cast<T*>(grad_deltas);
    return decode(job, B, arguments);
  });
}

Status encode_cpu(DType dtype, const void* gt_boxes, const void* anchors, int64_t N, const double* weights, bool legacy,
                  void* targets) {
  visit(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const auto params = make_decode_params<Compute<T>>(weights, 0.0);
    parallel_for(N, kGrain, [&](int64_t begin, int64_t end) {
      FF_ISA_CALL(encode_range, static_cast<const T*>(gt_boxes) + 4 * begin, static_cast<const T*>(anchors) + 4 * begin,
                  end - begin, params, legacy, static_cast<Compute<T>*>(targets) + 4 * begin);
    });
  });
  return kOk;
}

}  // namespace frcnn_fast::anchor_decode
