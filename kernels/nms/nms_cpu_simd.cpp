#include "../top_n/ranked.h"
#include "cells.h"
#include "class_numbers.h"
#include "kept_chains.h"
#include "nms_cpu.h"

namespace frcnn_fast::nms {
using namespace top_n;
namespace FF_ISA {
using namespace frcnn_fast::FF_ISA;
using namespace top_n::FF_ISA;
namespace {

constexpr int64_t kFirstRound = 256, kRound = 2048;  // candidates prepared at a time: few, for who stops early
// Blocks of kept boxes to look at, below which a second thread costs more than it saves.
constexpr double kBlocksForThreads = 1 << 15;

template <class T>
struct Memory {
  RankedBuffers<RankKey<Compute<T>>> ranked;
  Candidate<Compute<T>>* candidates;  // of one round
  int64_t chunk;
};

template <class T>
Memory<T> take_memory(WorkspaceArena* arena, int64_t rows, int64_t max_output) {
  Memory<T> memory;
  memory.chunk = max_output < rows ? ranked_chunk(rows) : rows;
  memory.ranked = take_ranked_buffers<RankKey<Compute<T>>>(arena, rows, memory.chunk);
  memory.candidates = arena->take<Candidate<Compute<T>>>(rows < kRound ? rows : kRound);
  return memory;
}

// Drops, with several threads, the candidates that boxes of earlier rounds suppress; returns how many are left.
template <class Chains, class U>
int64_t filter(const Chains& kept, Candidate<U>* candidates, int64_t n) {
  constexpr int64_t kPiece = 64;
  int64_t left[kRound / kPiece];
  parallel_for((n + kPiece - 1) / kPiece, 1, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      Candidate<U>* const piece = candidates + p * kPiece;
      const int64_t size = n - p * kPiece < kPiece ? n - p * kPiece : kPiece;
      int64_t count = 0;
      for (int64_t i = 0; i < size; ++i) {
        const Candidate<U> c = piece[i];
        piece[count] = c;
        count += !kept.suppressed_before_round(c);
      }
      left[p] = count;
    }
  });
  int64_t total = left[0];
  for (int64_t p = 1; p * kPiece < n; ++p)
    for (int64_t i = 0; i < left[p]; ++i) candidates[total++] = candidates[p * kPiece + i];
  return total;
}

// Chains at most: one a class, or one a cell.
template <class U>
int64_t most_chains(const ClassNumbers& classes, bool with_classes, int64_t capacity) {
  return with_classes ? classes.capacity() : Cells<false, U>::most(capacity);
}

template <bool kLegacy, class T>
int64_t greedy(const NmsImage& image) {
  using U = Compute<T>;
  const T* const boxes = static_cast<const T*>(image.boxes);
  const bool with_classes = image.class_ids != nullptr;
  const Suppression<U> s = make_suppression<U>(image.threshold);
  const int64_t most = image.max_output < image.rows ? image.max_output : image.rows;
  const int64_t room = FF_MUTANT(nms_max_output, most, most < image.rows ? most - 1 : most);
  WorkspaceArena arena(image.workspace);
  const Memory<T> memory = take_memory<T>(&arena, image.padded_rows, image.max_output);
  ClassNumbers classes(&arena, image.padded_rows, with_classes);
  KeptChains<kLegacy, U> kept(&arena, most_chains<U>(classes, with_classes, most), most, s);
  Cells<kLegacy, U> cells;
  Ranked<T> ranked(static_cast<const T*>(image.scores), image.rows, image.rows, memory.chunk, memory.ranked);

  const bool threads = max_threads() > 1;
  bool started = false;
  int64_t round = kFirstRound;
  const uint32_t* best;
  for (int64_t found; kept.size() < room && (found = ranked.next_chunk(&best)) > 0;) {
    for (int64_t begin = 0, end; begin < found && kept.size() < room; begin = end) {
      end = begin + round < found ? begin + round : found;
      round = 2 * round < kRound ? 2 * round : kRound;
      int64_t n = 0;
      for (int64_t i = begin; i < end; ++i) {
        const Box<U> box = load_box(boxes + 4 * int64_t(best[i]));
        const U a = area<kLegacy>(box);
        if (takes_part(box)) memory.candidates[n++] = {{box, s.share * a}, a, 0, 0, 1, 1, int32_t(best[i])};
      }
      if (!started) {
        classes.start(image.class_ids, image.rows);
        if (with_classes) {
          kept.start(classes.used(), 1);
        } else {
          const int64_t chains = cells.start(most, s.threshold, memory.candidates, n);
          kept.start(chains, cells.columns());
        }
        started = true;
      }
      int64_t met = 0;
      for (int64_t i = 0; i < n; ++i) {
        Candidate<U>& c = memory.candidates[i];
        if (with_classes) {
          c.chain = c.first = classes.of(c.row);
        } else {
          cells.place(&c);
        }
        met += int64_t(c.width) * c.height;
      }
      kept.next_round();
      const bool filtered = threads && double(met) * kept.chain_blocks() > kBlocksForThreads;
      if (filtered) n = filter(kept, memory.candidates, n);
      for (int64_t i = 0; i < n && kept.size() < room; ++i) {
        const Candidate<U>& c = memory.candidates[i];
        if (filtered ? kept.suppressed_in_round(c) : kept.suppressed(c)) continue;
        image.keep[kept.size()] = c.row;
        kept.push(c);
      }
    }
  }
  return kept.size();
}

}  // namespace

int64_t nms_image(const NmsImage& image) {
  return visit(image.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    return image.legacy ? greedy<true, T>(image) : greedy<false, T>(image);
  });
}

size_t nms_image_workspace(DType dtype, int64_t padded_rows, int64_t max_output, bool classes) {
  return visit_compute(dtype, [&](auto tag) {
    using U = typename decltype(tag)::type;
    const int64_t most = max_output < padded_rows ? max_output : padded_rows;
    WorkspaceArena arena(nullptr);
    take_memory<U>(&arena, padded_rows, max_output);
    const ClassNumbers numbers(&arena, padded_rows, classes);
    KeptChains<false, U>(&arena, most_chains<U>(numbers, classes, most), most, Suppression<U>{});
    return arena.used();
  });
}

}  // namespace FF_ISA
}  // namespace frcnn_fast::nms
