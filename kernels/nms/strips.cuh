// Strips of the image, upright or lying, that a cluster's kept boxes are sorted into by their centres, so that a
// candidate meets only those within its reach (reach.h).
#pragma once
#include "pretest.cuh"
#include "reach.h"

namespace frcnn_fast::nms {

constexpr int kStrips = 2 * kWarp;  // a lane has two

// Centres are doubled. Any numbers will do for low and per_pixel, infinities and NaN too: then strips are of no use.
template <class U>
struct Strips {
  U low, per_pixel;
  bool by_y;

  FF_HD U centre(const Box<U>& box) const { return by_y ? box.y1 + box.y2 : box.x1 + box.x2; }
  template <bool kLegacy>
  FF_HD U length(const Box<U>& box) const {
    return by_y ? extent<kLegacy>(box.y1, box.y2) : extent<kLegacy>(box.x1, box.x2);
  }
  // Neither ever falls as the centre grows: strips at the ends take what lies beyond. Of a NaN it is the first strip,
  // and the last.
  FF_HD int from(U centre) const { return int(smaller(larger(place(centre), U(0)), U(kStrips - 1))); }
  FF_HD int up_to(U centre) const { return int(larger(smaller(place(centre), U(kStrips - 1)), U(0))); }

 private:
  FF_HD U place(U centre) const { return (centre - low) * per_pixel; }
};

// Over the centres of boxes [n], along the axis on which they spread more. A warp; n may be 0.
template <class U>
__device__ __forceinline__ Strips<U> strips_over(const Box<U>* boxes, int n) {
  const U infinity = bits_float(0x7f800000u);
  U low_x = infinity, high_x = -infinity, low_y = infinity, high_y = -infinity;
  for (int i = lane_id(); i < n; i += kWarp) {
    const U x = boxes[i].x1 + boxes[i].x2, y = boxes[i].y1 + boxes[i].y2;
    low_x = smaller(x, low_x), high_x = larger(x, high_x);
    low_y = smaller(y, low_y), high_y = larger(y, high_y);
  }
  low_x = warp_reduce(low_x, Smaller()), low_y = warp_reduce(low_y, Smaller());
  const U width = warp_reduce(high_x, Larger()) - low_x, height = warp_reduce(high_y, Larger()) - low_y;
  const bool by_y = height > width;
  return {by_y ? low_y : low_x, U(kStrips) / (by_y ? height : width), by_y};
}

}  // namespace frcnn_fast::nms
