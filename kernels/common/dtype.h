// Element types. Half types exist only in memory: load() widens them to the compute type, store() rounds back.
#pragma once
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define FF_HD __host__ __device__ __forceinline__
#else
// Always inlined: these functions are compiled once per instruction set, and a shared out-of-line copy
// could end up being the one with instructions the running CPU lacks.
#define FF_HD inline __attribute__((always_inline))
#endif

namespace frcnn_fast {

enum class DType : int { kFloat16, kBFloat16, kFloat32, kFloat64 };

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

template <class T>
struct ComputeOf {
  using type = float;
};
template <>
struct ComputeOf<double> {
  using type = double;
};
// float for half, bfloat16 and float; double for double.
template <class T>
using Compute = typename ComputeOf<T>::type;

FF_HD uint32_t float_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  return bits;
}
FF_HD float bits_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}
FF_HD uint64_t double_bits(double value) {
  uint64_t bits;
  memcpy(&bits, &value, 8);
  return bits;
}
FF_HD double bits_double(uint64_t bits) {
  double value;
  memcpy(&value, &bits, 8);
  return value;
}

// On a GPU one instruction each way; elsewhere the vector code has its own (roi_pool/lanes.h, top_n/scan.h), and this
// is what remains. The bits of a NaN may differ, nothing else.
FF_HD float half_to_float(uint16_t h) {
#if defined(__CUDA_ARCH__)
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(h));
  return value;
#else
  const uint32_t sign = uint32_t(h & 0x8000u) << 16;
  const uint32_t magnitude = h & 0x7fffu;
  // Subnormal halves become normal floats by one exact product with 2^112 (which rebiases the exponent).
  const float widened = bits_float(magnitude << 13) * bits_float(0x77800000u);
  const uint32_t special = magnitude >= 0x7c00u ? (0x7f800000u | (magnitude & 0x3ffu) << 13) : float_bits(widened);
  return bits_float(sign | special);
#endif
}

// Round to nearest even; NaN stays NaN, overflow goes to infinity.
FF_HD uint16_t float_to_half(float value) {
#if defined(__CUDA_ARCH__)
  uint16_t h;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(value));
  return h;
#else
  const uint32_t bits = float_bits(value);
  const uint16_t sign = uint16_t(bits >> 16 & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return uint16_t(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return uint16_t(sign | 0x7c00u);
  if (magnitude < 0x38800000u) {  // subnormal half: adding 0.5 lines the last kept bit up with float's last bit
    const float aligned = bits_float(magnitude) + 0.5f;
    return uint16_t(sign | (float_bits(aligned) - 0x3f000000u));
  }
  const uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u);
  return uint16_t(sign | (rounded - 0x38000000u) >> 13);
#endif
}

FF_HD uint16_t float_to_bfloat16(float value) {
#if defined(__CUDA_ARCH__)
  uint16_t b;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(b) : "f"(value));
  return b;
#else
  const uint32_t bits = float_bits(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return uint16_t(bits >> 16 | 0x40u);
  return uint16_t((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
#endif
}

FF_HD float load(const Half* p) { return half_to_float(p->bits); }
FF_HD float load(const BFloat16* p) { return bits_float(uint32_t(p->bits) << 16); }
FF_HD float load(const float* p) { return *p; }
FF_HD double load(const double* p) { return *p; }
FF_HD void store(Half* p, float value) { p->bits = float_to_half(value); }
FF_HD void store(BFloat16* p, float value) { p->bits = float_to_bfloat16(value); }
FF_HD void store(float* p, float value) { *p = value; }
FF_HD void store(double* p, double value) { *p = value; }

template <class T>
struct Tag {
  using type = T;
};

// Calls visitor(Tag<T>{}) with the C++ type of dtype.
template <class Visitor>
auto visit(DType dtype, Visitor&& visitor) {
  switch (dtype) {
    case DType::kFloat16:
      return visitor(Tag<Half>{});
    case DType::kBFloat16:
      return visitor(Tag<BFloat16>{});
    case DType::kFloat64:
      return visitor(Tag<double>{});
    default:
      return visitor(Tag<float>{});
  }
}
// The same where the data is already in a compute type.
template <class Visitor>
auto visit_compute(DType dtype, Visitor&& visitor) {
  return dtype == DType::kFloat64 ? visitor(Tag<double>{}) : visitor(Tag<float>{});
}

}  // namespace frcnn_fast
