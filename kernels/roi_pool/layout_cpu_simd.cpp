// Changes of layout: a square of kLanes channels by kLanes cells at a time, in registers.
#include "lanes.h"
#include "layout.h"

namespace frcnn_fast::roi_pool {
namespace FF_ISA {
using namespace frcnn_fast::FF_ISA;
namespace {

// So few cells are moved one by one, sooner than as part of a square.
constexpr int64_t kFewCells = 2;

// Cells per full vector; the last vector of a run starts early and writes some cells twice.
inline int64_t vector_start(int64_t i, int64_t cells, int lanes) { return i + lanes <= cells ? i : cells - lanes; }

template <class T, class U>
void load_rows(const T* source, int64_t cell_stride, int channels, int lanes, int64_t cells, U* target) {
  for (int64_t i = 0; i < cells; ++i, source += cell_stride, target += lanes) {
    int c = 0;
    for (; c + kLanes<U> <= channels; c += kLanes<U>) store_vec(target + c, load_vec(source + c));
    for (; c < channels; ++c) target[c] = load(source + c);
    for (; c < lanes; ++c) target[c] = U(0);
  }
}

template <class T, class U>
void load_planes(const T* source, int64_t channel_stride, int channels, int lanes, int64_t cells, U* target) {
  constexpr int n = kLanes<U>;
  for (int c = 0; c < lanes; c += n) {
    const T* planes = source + c * channel_stride;
    const int present = channels - c < n ? (channels > c ? channels - c : 0) : n;
    if (present == 0 || cells < n) {
      for (int64_t i = 0; i < cells; ++i)
        for (int j = 0; j < n; ++j)
          target[i * lanes + c + j] = j < present ? U(load(planes + j * channel_stride + i)) : U(0);
      continue;
    }
    for (int64_t i = 0; i < cells; i += n) {
      const int64_t start = vector_start(i, cells, n);
      Vector<U> square[n];
      if (present == n) {
#pragma GCC unroll 16
        for (int j = 0; j < n; ++j) square[j] = load_vec(planes + j * channel_stride + start);
      } else {
        for (int j = 0; j < n; ++j)
          square[j] = j < present ? load_vec(planes + j * channel_stride + start) : Vector<U>{};
      }
      transpose<U>(square);
#pragma GCC unroll 16
      for (int j = 0; j < n; ++j) store_vec(target + (start + j) * lanes + c, square[j]);
    }
  }
}

template <class T, class U>
void store_rows(const U* source, int channels, int lanes, int64_t cells, int64_t cell_stride, T* target) {
  for (int64_t i = 0; i < cells; ++i, source += lanes, target += cell_stride) {
    int c = 0;
    for (; c + kLanes<U> <= channels; c += kLanes<U>) store_vec(target + c, load_vec(source + c));
    for (; c < channels; ++c) store(target + c, source[c]);
  }
}

template <class T, class U>
void store_planes(const U* source, int channels, int lanes, int64_t cells, int64_t channel_stride, T* target) {
  constexpr int n = kLanes<U>;
  for (int c = 0; c < channels; c += n) {
    T* planes = target + c * channel_stride;
    const int present = channels - c < n ? channels - c : n;
    if (cells < n) {
      for (int j = 0; j < present; ++j)
        for (int64_t i = 0; i < cells; ++i) store(planes + j * channel_stride + i, source[i * lanes + c + j]);
      continue;
    }
    for (int64_t i = 0; i < cells; i += n) {
      if (cells - i <= kFewCells) {  // 49 bins are three squares and one cell
        for (; i < cells; ++i)
          for (int j = 0; j < present; ++j) store(planes + j * channel_stride + i, source[i * lanes + c + j]);
        break;
      }
      const int64_t start = vector_start(i, cells, n);
      Vector<U> square[n];
#pragma GCC unroll 16
      for (int j = 0; j < n; ++j) square[j] = load_vec(source + (start + j) * lanes + c);
      transpose<U>(square);
      if (present == n) {
#pragma GCC unroll 16
        for (int j = 0; j < n; ++j) store_vec(planes + j * channel_stride + start, square[j]);
      } else {
        for (int j = 0; j < present; ++j) store_vec(planes + j * channel_stride + start, square[j]);
      }
    }
  }
}

// Copies n elements to a multiple of their size.
template <class T>
void stream(const T* from, int64_t n, T* to) {
  constexpr int line = kLineBytes / int(sizeof(T));
  int64_t i = 0;
  for (; i < n && reinterpret_cast<uintptr_t>(to + i) % kLineBytes; ++i) to[i] = from[i];
  for (; i + line <= n; i += line) stream_line(to + i, from + i);
  for (; i < n; ++i) to[i] = from[i];
}

// The same where the channels lie one behind the other, a RoI's output: put together in the first-level cache, then
// written from end to end, which memory takes much faster than one row of each channel after the other.
template <class T, class U>
bool store_packed(const U* source, int channels, int lanes, int64_t cells, bool streamed, T* target) {
  constexpr int n = kLanes<U>;
  constexpr int64_t kMost = 16384 / int64_t(sizeof(T));
  if (cells < n || cells * n > kMost) return false;
  alignas(64) T packed[kMost];
  for (int c = 0; c < channels; c += n) {
    const int present = channels - c < n ? channels - c : n;
    store_planes(source + c, present, lanes, cells, cells, packed);
    T* to = target + c * cells;
    const int64_t total = present * cells;
    if (streamed) {
      stream(packed, total, to);
      continue;
    }
    int64_t i = 0;
    for (; i + n <= total; i += n) store_raw(to + i, load_raw<Elements<T>>(packed + i));
    for (; i < total; ++i) to[i] = packed[i];
  }
  return true;
}

template <class T, class U>
void load_any(const void* source, CellStrides strides, int channels, int lanes, int64_t cells, U* target) {
  const T* typed = static_cast<const T*>(source);
  if (strides.channel == 1)
    load_rows(typed, strides.cell, channels, lanes, cells, target);
  else
    load_planes(typed, strides.channel, channels, lanes, cells, target);
}

template <class T, class U>
void store_any(const U* source, int channels, int lanes, int64_t cells, CellStrides strides, bool streamed,
               void* target) {
  T* typed = static_cast<T*>(target);
  if (strides.channel == 1)
    store_rows(source, channels, lanes, cells, strides.cell, typed);
  else if (strides.channel != cells || !store_packed(source, channels, lanes, cells, streamed, typed))
    store_planes(source, channels, lanes, cells, strides.channel, typed);
}

}  // namespace

void load_lanes(DType dtype, const void* source, CellStrides strides, int channels, int lanes, int64_t cells,
                float* target) {
  if (dtype == DType::kFloat16)
    load_any<Half>(source, strides, channels, lanes, cells, target);
  else if (dtype == DType::kBFloat16)
    load_any<BFloat16>(source, strides, channels, lanes, cells, target);
  else
    load_any<float>(source, strides, channels, lanes, cells, target);
}
void load_lanes(DType, const void* source, CellStrides strides, int channels, int lanes, int64_t cells,
                double* target) {
  load_any<double>(source, strides, channels, lanes, cells, target);
}
void load_lanes(const int32_t* source, CellStrides strides, int channels, int lanes, int64_t cells, int32_t* target) {
  load_any<int32_t>(source, strides, channels, lanes, cells, target);
}

void store_lanes(DType dtype, const float* source, int channels, int lanes, int64_t cells, CellStrides strides,
                 bool streamed, void* target) {
  if (dtype == DType::kFloat16)
    store_any<Half>(source, channels, lanes, cells, strides, streamed, target);
  else if (dtype == DType::kBFloat16)
    store_any<BFloat16>(source, channels, lanes, cells, strides, streamed, target);
  else
    store_any<float>(source, channels, lanes, cells, strides, streamed, target);
}
void store_lanes(DType, const double* source, int channels, int lanes, int64_t cells, CellStrides strides,
                 bool streamed, void* target) {
  store_any<double>(source, channels, lanes, cells, strides, streamed, target);
}
void store_lanes(const int32_t* source, int channels, int lanes, int64_t cells, CellStrides strides, bool streamed,
                 int32_t* target) {
  store_any<int32_t>(source, channels, lanes, cells, strides, streamed, target);
}

}  // namespace FF_ISA
}  // namespace frcnn_fast::roi_pool
