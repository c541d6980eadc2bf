// The layers around our functions, as plain loops: what a framework for networks would do.
//
// Products of two float32 are exact in float64; they are added there in the order of the weights, and each result is
// rounded once. So these sums are the same bits with and without fused multiply-add.
#pragma once
#include <algorithm>

#include "model.h"

// input [C, H, W], weights NAME.weight [O, C, k, k], padding k / 2: [O, H', W'].
inline Tensor convolution(const Tensor& input, const Model& model, const std::string& name, int64_t stride = 1) {
  const Tensor &weight = model.tensor(name + ".weight"), &bias = model.tensor(name + ".bias");
  const int64_t C = input.size(0), H = input.size(1), W = input.size(2), O = weight.size(0), k = weight.size(2);
  const int64_t h = (H - 1) / stride + 1, w = (W - 1) / stride + 1, pad = k / 2;
  Tensor output({O, h, w});
  for (int64_t o = 0; o < O; ++o) {
    std::vector<double> sums(size_t(h * w), 0.0);
    const float* factor = weight.data.data() + o * C * k * k;
    for (int64_t c = 0; c < C; ++c)
      for (int64_t dy = -pad; dy <= pad; ++dy)
        for (int64_t dx = -pad; dx <= pad; ++dx, ++factor)
          for (int64_t y = 0; y < h; ++y) {
            const int64_t row = y * stride + dy;
            if (row < 0 || row >= H) continue;
            const float* const from = input.data.data() + (c * H + row) * W + dx;
            // x * stride + dx lies in [0, W).
            const int64_t first = dx < 0 ? (-dx + stride - 1) / stride : 0;
            const int64_t last = std::min(w, (W - 1 - dx) / stride + 1);
            double* const to = sums.data() + y * w;
            for (int64_t x = first; x < last; ++x) to[x] += double(*factor) * double(from[x * stride]);
          }
    for (int64_t i = 0; i < h * w; ++i)
      output.data[size_t(o * h * w + i)] = float(sums[size_t(i)] + double(bias.data[size_t(o)]));
  }
  return output;
}

// Rows [R, K] times NAME.weight [O, K], plus the bias: [R, O].
inline Tensor linear(const Tensor& rows, const Model& model, const std::string& name) {
  const Tensor &weight = model.tensor(name + ".weight"), &bias = model.tensor(name + ".bias");
  const int64_t R = rows.size(0), K = weight.size(1), O = weight.size(0);
  Tensor output({R, O});
  for (int64_t r = 0; r < R; ++r)
    for (int64_t o = 0; o < O; ++o) {
      const float *const a = rows.data.data() + r * K, *const b = weight.data.data() + o * K;
      double sum = 0;
      for (int64_t i = 0; i < K; ++i) sum += double(a[i]) * double(b[i]);
      output.data[size_t(r * O + o)] = float(sum + double(bias.data[size_t(o)]));
    }
  return output;
}

inline Tensor relu(Tensor x) {
  for (float& value : x.data) value = value > 0 ? value : 0;
  return x;
}

// fine [C, H, W] += coarse [C, h, w], every cell of which covers several of the fine one's.
inline void add_upsampled(Tensor& fine, const Tensor& coarse) {
  const int64_t H = fine.size(1), W = fine.size(2), h = coarse.size(1), w = coarse.size(2);
  for (int64_t c = 0; c < fine.size(0); ++c)
    for (int64_t y = 0; y < H; ++y)
      for (int64_t x = 0; x < W; ++x)
        fine.data[size_t((c * H + y) * W + x)] += coarse.data[size_t((c * h + y * h / H) * w + x * w / W)];
}
