// Detects objects in an image, without Python: detect MODEL IMAGE.ppm
//
// MODEL is what export.py wrote of a trained detector. Prints a line a detection: class, score, x1, y1, x2, y2. The
// convolutions and matrix products are plain loops (layers.h); the steps between them are frcnn_fast's.
#include <frcnn_fast/common/host_workspace.h>
#include <frcnn_fast/detections/detections.h>
#include <frcnn_fast/proposals/proposals.h>
#include <frcnn_fast/roi_pool/roi_align.h>
#include <frcnn_fast/roi_pool/roi_levels.h>

#include <cstdio>
#include <exception>
#include <numeric>

#include "layers.h"
#include "model.h"

namespace {

using frcnn_fast::DType;
using frcnn_fast::HostWorkspace;

// A status that is not 0 comes with a text.
void check(frcnn_fast::Status status) {
  if (status) throw std::runtime_error(frcnn_fast::last_error());
}

std::vector<float> floats(const std::vector<double>& values) { return {values.begin(), values.end()}; }

// [3, H, W], scaled as the network was trained, and zero right of and below the image up to whole multiples of 32.
Tensor preprocessed(const Image& image, const Model& model) {
  const std::vector<float> offset = floats(model.values("pixel_offset")), factor = floats(model.values("pixel_factor"));
  const int64_t H = (image.height + 31) / 32 * 32, W = (image.width + 31) / 32 * 32;
  Tensor planes({3, H, W});
  for (size_t c = 0; c < 3; ++c)
    for (int64_t y = 0; y < image.height; ++y)
      for (int64_t x = 0; x < image.width; ++x) {
        const float pixel = image.pixels[size_t(y * image.width + x) * 3 + c];
        planes.data[(c * size_t(H) + size_t(y)) * size_t(W) + size_t(x)] = (pixel - offset[c]) * factor[c];
      }
  return planes;
}

// The backbone "small": two maps, the finer one first.
std::vector<Tensor> backbone(const Tensor& image, const Model& model) {
  Tensor fine = relu(convolution(image, model, "fine.0", 2));
  fine = relu(convolution(fine, model, "fine.1", 2));
  fine = relu(convolution(fine, model, "fine.2"));
  Tensor coarse = relu(convolution(fine, model, "coarse.0", 2));
  coarse = relu(convolution(coarse, model, "coarse.1"));
  coarse = convolution(relu(convolution(coarse, model, "coarse.2")), model, "lateral_coarse");
  fine = convolution(fine, model, "lateral_fine");
  add_upsampled(fine, coarse);
  return {fine, coarse};
}

// What the proposal step reads: a score and four deltas an anchor, level after level, and where the anchors lie.
struct Rpn {
  std::vector<Tensor> logits, deltas;  // a level: [k, h, w], [4k, h, w]
  std::vector<float> cell_anchors;
  std::vector<int64_t> grid, level_sizes;  // [L, kGridFields], [L]
};

Rpn proposal_network(const std::vector<Tensor>& maps, const Model& model) {
  Rpn found;
  for (size_t level = 0; level < maps.size(); ++level) {
    const Tensor hidden = relu(convolution(maps[level], model, "rpn.conv"));
    found.logits.push_back(convolution(hidden, model, "rpn.cls_logits"));
    found.deltas.push_back(convolution(hidden, model, "rpn.bbox_pred"));
    const Tensor& logits = found.logits.back();
    const int64_t k = logits.size(0), h = logits.size(1), w = logits.size(2);
    const std::vector<float>& anchors = model.tensor("cell_anchors_" + std::to_string(level)).data;
    found.cell_anchors.insert(found.cell_anchors.end(), anchors.begin(), anchors.end());
    const int64_t stride = int64_t(model.values("strides").at(level));
    found.grid.insert(found.grid.end(), {h, w, k, stride, stride});
    found.level_sizes.push_back(h * w * k);
  }
  return found;
}

struct Proposals {
  std::vector<float> boxes, scores;  // [P, 4], [P]
  std::vector<int64_t> indices;      // [P]
  int64_t count;
};

Proposals propose(const Rpn& rpn, const float (&image_size)[2], const Model& model) {
  using namespace frcnn_fast::proposals;
  const std::vector<double>& most = model.values("proposals");
  // The maps as they are: from anchor to anchor of a cell one channel further, or four.
  std::vector<frcnn_fast::MapLayout> scores, deltas;
  for (size_t level = 0; level < rpn.logits.size(); ++level) {
    const int64_t k = rpn.logits[level].size(0), h = rpn.logits[level].size(1), w = rpn.logits[level].size(2);
    scores.push_back({rpn.logits[level].data.data(), 0, h * w, w, 1, 0, k, h, w});
    deltas.push_back({rpn.deltas[level].data.data(), 0, 4 * h * w, w, 1, h * w, k, h, w});
  }
  ProposalInputs inputs{};
  inputs.dtype = DType::kFloat32;
  inputs.scores = scores.data();
  inputs.deltas = deltas.data();
  inputs.B = 1;
  inputs.A = std::accumulate(rpn.level_sizes.begin(), rpn.level_sizes.end(), int64_t(0));
  inputs.L = int64_t(rpn.level_sizes.size());
  inputs.level_sizes = rpn.level_sizes.data();
  inputs.anchors = {rpn.cell_anchors.data(), 0, rpn.grid.data(), inputs.L, model.number("anchor_offset"), inputs.A};
  inputs.image_sizes = image_size;
  ProposalSettings settings{};
  settings.pre_nms_top_n = int64_t(most.at(0));
  settings.post_nms_top_n = int64_t(most.at(1));
  settings.iou_threshold = model.number("proposal_iou");
  settings.min_size = model.number("min_size");
  settings.filter_before_top_n = model.number("filter_before_top_n") != 0;
  std::fill_n(settings.weights, 4, 1.0);
  settings.clamp = model.number("delta_clamp");

  const size_t P = size_t(settings.post_nms_top_n);
  Proposals found{std::vector<float>(4 * P), std::vector<float>(P), std::vector<int64_t>(P), 0};
  const HostWorkspace workspace(rpn_proposals_workspace_cpu(inputs, settings));
  check(rpn_proposals_cpu(inputs, settings, workspace.data(),
                          {found.boxes.data(), found.scores.data(), found.indices.data(), &found.count}));
  return found;
}

// The maps inside each proposal, [P, C * pool_size * pool_size].
Tensor pool(const std::vector<Tensor>& maps, const Proposals& proposals, const Model& model) {
  using namespace frcnn_fast::roi_pool;
  RoiAlignShape shape{};
  shape.B = 1;
  shape.C = maps[0].size(0);
  shape.R = int64_t(proposals.scores.size());
  shape.PH = shape.PW = model.integer("pool_size");
  shape.L = int64_t(maps.size());
  std::vector<double> scales;
  std::vector<const void*> features;
  for (size_t level = 0; level < maps.size(); ++level) {
    scales.push_back(1.0 / model.values("strides").at(level));
    shape.levels[level] = {maps[level].size(1), maps[level].size(2), scales.back(), false};
    features.push_back(maps[level].data.data());
  }
  check(frcnn_fast::level_thresholds(scales.data(), shape.L, model.number("canonical_scale"),
                                     model.integer("canonical_level"), shape.thresholds, &shape.num_thresholds));
  shape.sampling_ratio = int32_t(model.integer("sampling_ratio"));
  shape.aligned = model.number("aligned") != 0;

  std::vector<float> rois(size_t(shape.R * kRoiFields));
  for (int64_t r = 0; r < shape.R; ++r) {
    float* const roi = rois.data() + r * kRoiFields;
    roi[0] = r < proposals.count ? 0.f : -1.f;  // the image; -1 marks a row of padding
    std::copy_n(proposals.boxes.data() + 4 * r, 4, roi + 1);
  }
  Tensor output({shape.R, shape.C * shape.PH * shape.PW});
  const HostWorkspace workspace(roi_align_workspace_cpu(DType::kFloat32, shape));
  check(roi_align_cpu(DType::kFloat32, shape, features.data(), rois.data(), workspace.data(), output.data.data()));
  return output;
}

struct Detections {
  std::vector<float> boxes, scores;      // [D, 4], [D]
  std::vector<int64_t> labels, indices;  // [D]
  int64_t count;
};

Detections detect(const Tensor& pooled, const Proposals& proposals, const float (&image_size)[2], const Model& model) {
  using namespace frcnn_fast::detections;
  const Tensor hidden = relu(linear(relu(linear(pooled, model, "fc6")), model, "fc7"));
  const Tensor class_logits = linear(hidden, model, "cls_score"), box_deltas = linear(hidden, model, "bbox_pred");
  DetectionInputs inputs{};
  inputs.dtype = DType::kFloat32;
  inputs.class_logits = class_logits.data.data();
  inputs.box_deltas = box_deltas.data.data();
  inputs.proposals = proposals.boxes.data();
  inputs.counts = &proposals.count;
  inputs.image_sizes = image_size;
  inputs.B = 1;
  inputs.N = class_logits.size(0);
  inputs.K = class_logits.size(1) - 1;
  inputs.first_class = 1;
  DetectionSettings settings{};
  settings.score_threshold = model.number("score_threshold");
  settings.iou_threshold = model.number("detection_iou");
  settings.max_detections = model.integer("max_detections");
  settings.min_size = model.number("detection_min_size");
  std::copy_n(model.values("box_weights").data(), 4, settings.weights);
  settings.clamp = model.number("delta_clamp");

  const size_t D = size_t(settings.max_detections);
  Detections found{std::vector<float>(4 * D), std::vector<float>(D), std::vector<int64_t>(D), std::vector<int64_t>(D),
                   0};
  const HostWorkspace workspace(detections_workspace_cpu(inputs, settings));
  check(detections_cpu(
      inputs, settings, workspace.data(),
      {found.boxes.data(), found.scores.data(), found.labels.data(), found.indices.data(), &found.count}));
  return found;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: %s MODEL IMAGE.ppm\n", argv[0]);
    return 2;
  }
  try {
    const Model model = read_model(argv[1]);
    const Image image = read_ppm(argv[2]);
    const float image_size[2] = {float(image.height), float(image.width)};
    const std::vector<Tensor> maps = backbone(preprocessed(image, model), model);
    const Proposals proposals = propose(proposal_network(maps, model), image_size, model);
    const Detections found = detect(pool(maps, proposals, model), proposals, image_size, model);
    for (int64_t d = 0; d < found.count; ++d) {
      const float* const box = found.boxes.data() + 4 * d;
      std::printf("%s %.9g %.9g %.9g %.9g %.9g\n", model.class_names.at(size_t(found.labels[size_t(d)] - 1)).c_str(),
                  found.scores[size_t(d)], box[0], box[1], box[2], box[3]);
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s: %s\n", argv[0], error.what());
    return 1;
  }
  return 0;
}
