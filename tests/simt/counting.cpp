// Counts what a launch does, for bench/cost: how often a warp runs each basic block, and what memory it asks for.
//
// The kernels are compiled with -fsanitize-coverage=trace-pc (a call at the start of every basic block) and
// -fsanitize=thread (a call for every access of memory); the calls come here instead of to a sanitizer's runtime. A
// place is the address that such a call returns to; Python finds its line.
//
// The lanes of a warp run one after the other, so what they do together is put together afterwards. A stretch lies
// between two meetings of all lanes (a warp collective, a barrier, the end). In it a warp runs a place as often as the
// lane that runs it most, and the n-th visits of all lanes to a place are one: so diverging paths count one by one,
// loops as long as their longest lane, but two places that exclude each other within one loop are taken to be visited
// in the same rounds. A block's chain is what is done one after the other: between two barriers, what the warp does
// that does most.
#include <link.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <unordered_map>

#include "../../bindings/run.h"
#include "scheduler.h"

namespace simt {
namespace {

// Bytes: of memory that is moved together; of a lane's one access; of a kernel's arguments.
constexpr unsigned kSector = 32, kWidest = 16, kMostArguments = 8192;

enum Kind : uint8_t { kCode, kGlobalRead, kGlobalWrite, kSharedRead, kSharedWrite, kRemote, kKinds };

struct Place {
  uint64_t runs = 0, chain = 0, lanes = 0;
  Kind kind = kCode;
  uint64_t sectors = 0;  // of global memory, request by request
  uint64_t rounds = 0;   // through the banks of shared memory: one a request without conflicts
};

// Sectors, each once.
class SectorSet {
 public:
  bool add(uint64_t sector) {
    std::pair<uint64_t, uint64_t>& page = pages_[sector / 128];
    uint64_t& word = sector & 64 ? page.second : page.first;
    const uint64_t bit = uint64_t(1) << (sector & 63);
    const bool is_new = !(word & bit);
    word |= bit;
    size_ += is_new;
    return is_new;
  }
  uint64_t size() const { return size_; }

 private:
  std::unordered_map<uint64_t, std::pair<uint64_t, uint64_t>> pages_;
  uint64_t size_ = 0;
};

struct LaunchCounts {
  const void* kernel;
  dim3 grid, block;
  unsigned cluster;
  size_t dynamic_bytes, shared_bytes = 0;
  std::vector<Place> places;
  uint64_t barriers = 0;  // that a block waits in, all blocks together
  uint64_t longest = 0;   // chain
  // Of each block in the order of their ends: basic blocks run by its warps, and on its chain.
  std::vector<std::pair<uint64_t, uint64_t>> blocks;
  SectorSet read, written;
  uint64_t cached_reads = 0;  // sectors that blocks read, each once a block
};

// What a block's warps share.
struct BlockCounts {
  SectorSet read;
  std::vector<uint64_t> runs, chain;
};

struct Row {
  uint32_t place;
  uint32_t lanes[32];
};
struct Access {
  uint32_t row, nth;
  uint64_t address;
  uint8_t bytes;
};
struct WarpCounts {
  std::vector<uint32_t> row_of;  // by place: 1 + its row in this stretch, or 0
  std::vector<Row> rows;
  std::vector<Access> accesses;
  int64_t last[32];                     // each lane's last access, -1 after a new basic block
  std::vector<uint32_t> since_barrier;  // by place
  std::vector<uint32_t> touched;

  WarpCounts() { std::fill_n(last, 32, -1); }
  Row& row(uint32_t place) {
    if (row_of.size() <= place) row_of.resize(place + 1024);
    if (!row_of[place]) {
      rows.push_back({place, {}});
      row_of[place] = uint32_t(rows.size());
    }
    return rows[row_of[place] - 1];
  }
};

template <class T>
T& at(std::vector<T>& values, uint32_t index) {
  if (values.size() <= index) values.resize(index + 1024);
  return values[index];
}

class Counter : public Watcher {
 public:
  void launch_begins(const void* kernel, const Launch& launch) override {
    current_ = std::make_unique<LaunchCounts>();
    current_->kernel = kernel;
    // The kernel's arguments are copied from the launcher's frame.
    host_begin_ = uintptr_t(__builtin_frame_address(0));
    host_end_ = uintptr_t(launch.body) + kMostArguments;
    current_->grid = launch.grid;
    current_->block = launch.block;
    current_->cluster = launch.cluster;
    current_->dynamic_bytes = launch.dynamic_bytes;
  }

  void launch_ends() override { launches.push_back(std::move(current_)); }

  void code(uintptr_t pc) {
    Thread& t = static_cast<Thread&>(*self);
    WarpCounts& warp = counts_of(t.warp());
    ++warp.row(place_of(pc)).lanes[t.lane];
    warp.last[t.lane] = -1;
  }

  void access(uintptr_t pc, uintptr_t address, size_t bytes, bool write) {
    Thread& t = static_cast<Thread&>(*self);
    const char* p = reinterpret_cast<const char*>(address);
    const Kind kind = kind_of(t, p, write);
    if (kind == kCode) return;
    WarpCounts& warp = counts_of(t.warp());
    const uint32_t place = place_of(pc, kind);
    // The parts of a vector are one access.
    if (warp.last[t.lane] >= 0) {
      Access& last = warp.accesses[size_t(warp.last[t.lane])];
      if (kinds_[warp.rows[last.row].place] == kind && address == last.address + last.bytes &&
          last.bytes + bytes <= kWidest && last.address % (last.bytes + bytes > 8 ? 16 : 8) == 0) {
        last.bytes = uint8_t(last.bytes + bytes);
        return;
      }
    }
    Row& row = warp.row(place);
    const uint32_t nth = row.lanes[t.lane]++;
    warp.last[t.lane] = int64_t(warp.accesses.size());
    warp.accesses.push_back({warp.row_of[place] - 1, nth, address, uint8_t(std::min<size_t>(bytes, 255))});
  }

  void warp_in_step(Block& block, Warp& warp) override { end_stretch(counts_of(block), counts_of(warp)); }

  void block_in_step(Block& block) override {
    ++current_->barriers;
    end_interval(block);
  }

  void block_ends(Block& block) override {
    end_interval(block);
    BlockCounts& counts = counts_of(block);
    uint64_t runs = 0, chain = 0;
    for (uint32_t i = 0; i < kinds_.size(); ++i) {
      at(current_->places, i).runs += at(counts.runs, i);
      if (kinds_[i] == kCode) runs += counts.runs[i];
      if (kinds_[i] == kCode) chain += at(counts.chain, i);
    }
    if (chain > current_->longest) {
      current_->longest = chain;
      for (uint32_t i = 0; i < kinds_.size(); ++i) current_->places[i].chain = at(counts.chain, i);
    }
    current_->blocks.push_back({runs, chain});
    current_->cached_reads += counts.read.size();
    current_->shared_bytes = std::max(current_->shared_bytes, block.shared_bytes);
    for (Warp& warp : block.warps) {
      delete static_cast<WarpCounts*>(warp.watched);
      warp.watched = nullptr;
    }
    blocks_.erase(&block);
  }

  // Of every place: the address, from the start of the module's code.
  std::vector<uint64_t> addresses() const {
    std::vector<uint64_t> found;
    for (uintptr_t pc : pcs_) found.push_back(pc - image_begin_);
    return found;
  }
  uint64_t offset(const void* p) const { return reinterpret_cast<uintptr_t>(p) - image_begin_; }
  Kind kind(size_t place) const { return kinds_[place]; }

  Counter() {
    dl_iterate_phdr(
        [](dl_phdr_info* info, size_t, void* counter) {
          Counter& mine = *static_cast<Counter*>(counter);
          uintptr_t begin = ~uintptr_t(0), end = 0;
          for (int i = 0; i < info->dlpi_phnum; ++i) {
            const auto& part = info->dlpi_phdr[i];
            if (part.p_type != PT_LOAD) continue;
            begin = std::min(begin, uintptr_t(info->dlpi_addr + part.p_vaddr));
            end = std::max(end, uintptr_t(info->dlpi_addr + part.p_vaddr + part.p_memsz));
          }
          const uintptr_t here = reinterpret_cast<uintptr_t>(&kSector);
          if (here < begin || here >= end) return 0;
          mine.image_begin_ = info->dlpi_addr;
          mine.image_end_ = end;
          mine.place_of_.resize(end - info->dlpi_addr);
          return 1;
        },
        this);
  }

  std::vector<std::unique_ptr<LaunchCounts>> launches;

 private:
  uint32_t place_of(uintptr_t pc, Kind kind = kCode) {
    uint32_t& place = place_of_[pc - image_begin_];
    if (!place) {
      pcs_.push_back(pc);
      kinds_.push_back(kind);
      place = uint32_t(pcs_.size());
    }
    return place - 1;
  }

  static WarpCounts& counts_of(Warp& warp) {
    if (!warp.watched) warp.watched = new WarpCounts;
    return *static_cast<WarpCounts*>(warp.watched);
  }
  BlockCounts& counts_of(Block& block) { return blocks_[&block]; }

  // kCode: none that a GPU would see.
  Kind kind_of(const Thread& t, const char* p, bool write) const {
    const char* stack = static_cast<const char*>(t.fiber.stack);
    if (p >= stack && p < stack + t.fiber.stack_bytes) return kCode;
    const Block& own = *t.owner;
    if (holds(own, p)) return write ? kSharedWrite : kSharedRead;
    for (const Block& other : own.cluster->blocks) {
      if (&other != &own && holds(other, p)) return kRemote;
      const char* threads = reinterpret_cast<const char*>(other.threads.data());
      if (p >= threads && p < threads + other.threads.size() * sizeof(Thread)) return kCode;
    }
    const uintptr_t address = reinterpret_cast<uintptr_t>(p);
    if (p == reinterpret_cast<const char*>(&self) || (address >= image_begin_ && address < image_end_)) return kCode;
    if (address >= host_begin_ && address < host_end_) return kCode;
    return write ? kGlobalWrite : kGlobalRead;
  }
  static bool holds(const Block& block, const char* p) {
    for (const SharedArray& array : block.arrays)
      if (p >= array.data.get() && p < array.data.get() + array.bytes) return true;
    return false;
  }

  void end_stretch(BlockCounts& block, WarpCounts& warp) {
    for (const Row& row : warp.rows) {
      uint32_t most = 0;
      uint64_t sum = 0;
      for (uint32_t n : row.lanes) {
        most = std::max(most, n);
        sum += n;
      }
      at(block.runs, row.place) += most;
      at(current_->places, row.place).lanes += sum;
      uint32_t& here = at(warp.since_barrier, row.place);
      if (!here) warp.touched.push_back(row.place);
      here += most;
      warp.row_of[row.place] = 0;
    }
    std::sort(warp.accesses.begin(), warp.accesses.end(),
              [](const Access& a, const Access& b) { return a.row != b.row ? a.row < b.row : a.nth < b.nth; });
    for (size_t i = 0, end; i < warp.accesses.size(); i = end) {
      const Access& first = warp.accesses[i];
      for (end = i;
           end < warp.accesses.size() && warp.accesses[end].row == first.row && warp.accesses[end].nth == first.nth;)
        ++end;
      const uint32_t place = warp.rows[first.row].place;
      request(block, kinds_[place], at(current_->places, place), &warp.accesses[i], end - i);
    }
    warp.rows.clear();
    warp.accesses.clear();
    std::fill_n(warp.last, 32, -1);
  }

  void request(BlockCounts& block, Kind kind, Place& place, const Access* lanes, size_t n) {
    std::vector<uint64_t>& parts = parts_;
    parts.clear();
    const bool global = kind == kGlobalRead || kind == kGlobalWrite;
    const unsigned unit = global ? kSector : 4;
    for (size_t i = 0; i < n; ++i)
      for (uint64_t part = lanes[i].address / unit; part <= (lanes[i].address + lanes[i].bytes - 1) / unit; ++part)
        parts.push_back(part);
    std::sort(parts.begin(), parts.end());
    parts.erase(std::unique(parts.begin(), parts.end()), parts.end());
    if (global) {
      place.sectors += parts.size();
      for (uint64_t sector : parts) {
        if (kind == kGlobalWrite) {
          current_->written.add(sector);
        } else {
          current_->read.add(sector);
          block.read.add(sector);
        }
      }
    } else {
      uint32_t words[32] = {}, most = 0;
      for (uint64_t word : parts) most = std::max(most, ++words[word % 32]);
      place.rounds += most;
    }
  }

  void end_interval(Block& block) {
    BlockCounts& counts = counts_of(block);
    uint64_t most = 0;
    WarpCounts* slowest = nullptr;
    for (Warp& warp : block.warps) {
      WarpCounts& mine = counts_of(warp);
      end_stretch(counts, mine);
      uint64_t runs = 0;
      for (uint32_t place : mine.touched) runs += mine.since_barrier[place];
      if (runs > most) slowest = &mine;
      most = std::max(most, runs);
    }
    if (slowest)
      for (uint32_t place : slowest->touched) at(counts.chain, place) += slowest->since_barrier[place];
    for (Warp& warp : block.warps) {
      WarpCounts& mine = counts_of(warp);
      for (uint32_t place : mine.touched) mine.since_barrier[place] = 0;
      mine.touched.clear();
    }
  }

  uintptr_t image_begin_ = 0, image_end_ = 0, host_begin_ = 0, host_end_ = 0;
  std::vector<uint32_t> place_of_;  // by address: 1 + place, or 0
  std::vector<uintptr_t> pcs_;
  std::vector<Kind> kinds_;
  std::unique_ptr<LaunchCounts> current_;
  std::unordered_map<const Block*, BlockCounts> blocks_;
  std::vector<uint64_t> parts_;
};

Counter& counter() {
  static Counter one;
  return one;
}

}  // namespace
}  // namespace simt

namespace frcnn_fast::bindings {
namespace {

py::list counted() {
  using namespace simt;
  static const char* const names[kKinds] = {"code",        "global read",  "global write",
                                            "shared read", "shared write", "remote"};
  py::list found;
  for (const auto& launch : counter().launches) {
    py::list places;
    for (size_t i = 0; i < launch->places.size(); ++i) {
      const Place& p = launch->places[i];
      if (p.runs)
        places.append(py::make_tuple(i, names[counter().kind(i)], p.runs, p.chain, p.lanes, p.sectors, p.rounds));
    }
    py::dict entry;
    entry["kernel"] = counter().offset(launch->kernel);
    entry["grid"] = std::vector<unsigned>{launch->grid.x, launch->grid.y, launch->grid.z};
    entry["block"] = launch->block.x * launch->block.y * launch->block.z;
    entry["cluster"] = launch->cluster;
    entry["dynamic"] = launch->dynamic_bytes;
    entry["barriers"] = launch->barriers;
    entry["places"] = places;
    entry["blocks"] = launch->blocks;
    entry["read"] = launch->read.size();
    entry["written"] = launch->written.size();
    entry["cached_reads"] = launch->cached_reads;
    found.append(entry);
  }
  counter().launches.clear();
  return found;
}

const Registrar registrar([](py::module_& m) {
  m.def("count", [](bool on) { simt::watcher = on ? &simt::counter() : nullptr; });
  m.def("counted", &counted);  // since it was last asked, launch by launch
  m.def("addresses", [] { return simt::counter().addresses(); });
});

}  // namespace
}  // namespace frcnn_fast::bindings

// What the compiler calls.

#define HERE uintptr_t(__builtin_return_address(0))
static void touch(uintptr_t pc, const volatile void* p, size_t bytes, bool write) {
  if (simt::watcher && simt::self) simt::counter().access(pc, uintptr_t(p), bytes, write);
}
extern "C" {
void __sanitizer_cov_trace_pc() {
  if (simt::watcher && simt::self) simt::counter().code(HERE);
}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
void __tsan_read_range(void* p, size_t bytes) { touch(HERE, p, bytes, false); }
void __tsan_write_range(void* p, size_t bytes) { touch(HERE, p, bytes, true); }
#define ACCESSES(n)                                                    \
  void __tsan_read##n(void* p) { touch(HERE, p, n, false); }           \
  void __tsan_write##n(void* p) { touch(HERE, p, n, true); }           \
  void __tsan_unaligned_read##n(void* p) { touch(HERE, p, n, false); } \
  void __tsan_unaligned_write##n(void* p) { touch(HERE, p, n, true); }
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)
#define ATOMICS(bits, T)                                                                                            \
  T __tsan_atomic##bits##_load(const volatile T* p, int) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }           \
  void __tsan_atomic##bits##_store(volatile T* p, T v, int) { __atomic_store_n(p, v, __ATOMIC_SEQ_CST); }           \
  T __tsan_atomic##bits##_fetch_add(volatile T* p, T v, int) { return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST); } \
  T __tsan_atomic##bits##_fetch_sub(volatile T* p, T v, int) { return __atomic_fetch_sub(p, v, __ATOMIC_SEQ_CST); }
ATOMICS(8, unsigned char)
ATOMICS(32, unsigned)
ATOMICS(64, unsigned long)
}
