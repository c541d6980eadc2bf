// Inside the runtime: the threads of the blocks that run together, and who runs next.
#pragma once
#include <deque>
#include <memory>
#include <new>
#include <random>
#include <string>
#include <vector>

#include "fiber.h"
#include "runtime.h"

namespace simt {

struct Block;

enum class State { kReady, kInBarrier, kInClusterBarrier, kInCollective, kFinished };

// A bit a lane.
struct Warp {
  unsigned running = 0;  // has not returned
  unsigned in_barrier = 0, in_collective = 0;
  void* watched = nullptr;  // the watcher's own
};

struct Thread : ThreadIndex {
  Warp& warp() const;
  unsigned bit() const { return 1u << lane; }

  Fiber fiber;
  Block* owner = nullptr;
  int number = 0;  // within the block
  State state = State::kReady;
  bool waited = false;  // for the launch before
  // While it waits: in what, and what it brought.
  const char* name = "";
  Where where;
  unsigned mask = 0;
  uint64_t value = 0, argument = 0;
  void (*combine)(Exchange&) = nullptr;
  // What it got.
  uint64_t result = 0;
  Votes votes = {};
};

// Threads that leave together once all have come.
struct Barrier {
  Votes votes = {};
  const Thread* first = nullptr;  // of those that wait
};

struct SharedArray {
  struct Delete {
    void operator()(char* p) const { ::operator delete(p, std::align_val_t(kAlignment)); }
  };
  static constexpr size_t kAlignment = 128;

  const void* tag;
  size_t bytes;
  std::unique_ptr<char, Delete> data;
};

struct Cluster;

struct Block {
  Cluster* cluster = nullptr;
  unsigned rank = 0;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  int running = 0;  // threads that have not returned
  Barrier barrier;
  std::vector<SharedArray> arrays;
  size_t shared_bytes = 0;
};

struct Cluster {
  std::vector<Block> blocks;
  int running = 0;
  Barrier barrier;
  bool in_step = false;  // a cluster barrier was passed: every block has started
};

struct Launch {
  const std::function<void()>* body;
  dim3 grid, block;
  unsigned cluster;
  size_t dynamic_bytes, shared_limit;
};

// Who counts what a launch does (counting.cpp); most builds have none.
struct Watcher {
  virtual void launch_begins(const void* kernel, const Launch& launch) = 0;
  virtual void warp_in_step(Block& block, Warp& warp) = 0;  // all of its running lanes have met
  virtual void block_in_step(Block& block) = 0;             // all of its running threads have
  virtual void block_ends(Block& block) = 0;
  virtual void launch_ends() = 0;

 protected:
  ~Watcher() = default;
};
extern Watcher* watcher;

inline Warp& Thread::warp() const { return owner->warps[size_t(number) / 32]; }

enum class Order { kAscending, kDescending, kRandom };

class Gang {
 public:
  // first_blocks: of each cluster, the linear index of its first block.
  Gang(const Launch& launch, const std::vector<size_t>& first_blocks, Order order, std::minstd_rand& random);
  // Runs every thread to its end; throws Error.
  void run();

  // The rest is called by the running thread. Each returns when the thread runs again.
  void block_barrier(Thread& me, bool vote);
  void cluster_barrier(Thread& me);
  void collective(Thread& me);
  void yield(Thread& me);

  const Launch& launch;

 private:
  void enter();
  void run_thread();
  void finish(Thread& me);
  Thread* next();
  void wait(Thread& me);
  void wake(Thread& thread);
  void arrive(Thread& me, Barrier& barrier, bool vote);
  void open(Barrier& barrier, Block& block, State state);
  void open_cluster(Cluster& cluster);
  void try_collective(Thread& waiting);
  std::string deadlock() const;

  std::vector<Cluster> clusters_;
  std::deque<Thread*> ready_;
  Order order_;
  std::minstd_rand& random_;
  Fiber host_;
  int unfinished_ = 0;
  int idle_ = 0;  // yields since a thread last did something else
  std::string failure_;

  friend void thread_main();
};

extern SIMT_TLS Gang* gang;

std::string text(const char* format, ...) __attribute__((format(printf, 1, 2)));
std::string name_of(const Thread& thread);
std::string wait_of(const Thread& thread);
// Whether both wait in the same call of the source; also with the same mask.
bool same_place(const Thread& a, const Thread& b);
bool same_wait(const Thread& a, const Thread& b);

}  // namespace simt
