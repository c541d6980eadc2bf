#include "scheduler.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <map>

namespace simt {

constinit thread_local ThreadIndex* self = nullptr;
constinit thread_local Gang* gang = nullptr;

std::string text(const char* format, ...) {
  char buffer[1024];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(buffer, sizeof buffer, format, arguments);
  va_end(arguments);
  return buffer;
}

std::string name_of(const Thread& t) {
  return text("block (%u,%u,%u) thread %d", t.block.x, t.block.y, t.block.z, t.number);
}

std::string wait_of(const Thread& t) {
  const std::string mask = t.state == State::kInCollective ? text(" (mask %08x)", t.mask) : "";
  return text("%s%s at %s:%u", t.name, mask.c_str(), t.where.file_name(), unsigned(t.where.line()));
}

bool same_place(const Thread& a, const Thread& b) {
  return a.where.line() == b.where.line() && a.where.column() == b.where.column() &&
         std::strcmp(a.where.file_name(), b.where.file_name()) == 0 && std::strcmp(a.name, b.name) == 0;
}

bool same_wait(const Thread& a, const Thread& b) { return a.mask == b.mask && same_place(a, b); }

// What a fresh fiber runs.
void thread_main() { gang->enter(); }

Gang::Gang(const Launch& launch_, const std::vector<size_t>& first_blocks, Order order, std::minstd_rand& random)
    : launch(launch_), clusters_(first_blocks.size()), order_(order), random_(random) {
  const dim3 grid = launch.grid, shape = launch.block;
  const unsigned threads = shape.x * shape.y * shape.z;
  for (size_t c = 0; c < clusters_.size(); ++c) {
    Cluster& cluster = clusters_[c];
    cluster.blocks = std::vector<Block>(launch.cluster);
    cluster.running = int(launch.cluster * threads);
    for (unsigned rank = 0; rank < launch.cluster; ++rank) {
      Block& block = cluster.blocks[rank];
      block.cluster = &cluster;
      block.rank = rank;
      block.running = int(threads);
      block.shared_bytes = launch.dynamic_bytes;
      block.threads = std::vector<Thread>(threads);
      const size_t index = first_blocks[c] + rank;
      for (unsigned i = 0; i < threads; ++i) {
        Thread& t = block.threads[i];
        t.thread = {i % shape.x, i / shape.x % shape.y, i / (shape.x * shape.y)};
        t.block = {unsigned(index % grid.x), unsigned(index / grid.x % grid.y), unsigned(index / grid.x / grid.y)};
        t.block_dim = shape;
        t.grid_dim = grid;
        t.lane = int(i % 32);
        t.owner = &block;
        t.number = int(i);
        fiber_prepare(t.fiber, size_t(unfinished_++), thread_main);
        ready_.push_back(&t);
      }
    }
  }
}

void Gang::run() {
  gang = this;
  while (Thread* t = next()) {
    self = t;
    fiber_switch(host_, t->fiber);
    if (!failure_.empty()) break;
  }
  self = nullptr;
  gang = nullptr;
  if (failure_.empty() && unfinished_) failure_ = deadlock();
  if (failure_.empty()) return;
  for (Cluster& cluster : clusters_)
    for (Block& block : cluster.blocks)
      for (Thread& t : block.threads) fiber_abandon(t.fiber);
  throw Error(failure_);
}

// Never returns, so it must leave no poisoned frame to the next user of the stack.
__attribute__((no_sanitize("address"))) void Gang::enter() {
  fiber_entered(host_);
  run_thread();
  fiber_switch(static_cast<Thread*>(self)->fiber, host_, true);
}

void Gang::run_thread() {
  try {
    (*launch.body)();
    finish(static_cast<Thread&>(*self));
  } catch (const Error& error) {
    failure_ = error.what();
  }
}

Thread* Gang::next() {
  if (ready_.empty()) return nullptr;
  if (order_ == Order::kRandom) std::swap(ready_[random_() % ready_.size()], ready_.back());
  Thread* chosen = order_ == Order::kAscending ? ready_.front() : ready_.back();
  order_ == Order::kAscending ? ready_.pop_front() : ready_.pop_back();
  return chosen;
}

void Gang::wait(Thread& me) { fiber_switch(me.fiber, host_); }

void Gang::wake(Thread& thread) {
  thread.state = State::kReady;
  ready_.push_back(&thread);
  idle_ = 0;
}

void Gang::arrive(Barrier& barrier, int expected, const char* name, bool vote, Where where) {
  Thread& me = static_cast<Thread&>(*self);
  me.state = State::kInBarrier;
  me.name = name;
  me.where = where;
  me.mask = 0;
  if (!barrier.waiting.empty()) {
    const Thread& first = *barrier.waiting.front();
    if (!same_wait(first, me))
      fail("divergent barrier: arrives in %s, while %s waits in %s", wait_of(me).c_str(), name_of(first).c_str(),
           wait_of(first).c_str());
  }
  barrier.waiting.push_back(&me);
  barrier.in_favour += vote;
  if (int(barrier.waiting.size()) == expected) open(barrier);
  wait(me);
}

void Gang::open(Barrier& barrier) {
  std::vector<Thread*> leaving;
  leaving.swap(barrier.waiting);
  std::sort(leaving.begin(), leaving.end(), [](const Thread* a, const Thread* b) {
    return std::pair(a->owner->rank, a->number) < std::pair(b->owner->rank, b->number);
  });
  for (Thread* t : leaving) {
    t->votes = {int(leaving.size()), barrier.in_favour};
    wake(*t);
  }
  barrier.in_favour = 0;
}

void Gang::yield(Thread& me) {
  if (++idle_ > 1000 * unfinished_)
    fail("polls for ever in %s: no thread that can run writes what it waits for", wait_of(me).c_str());
  if (order_ == Order::kDescending)
    ready_.push_front(&me);
  else
    ready_.push_back(&me);
  wait(me);
}

void Gang::finish(Thread& me) {
  Block& block = *me.owner;
  Cluster& cluster = *block.cluster;
  me.state = State::kFinished;
  --block.running;
  --cluster.running;
  --unfinished_;
  idle_ = 0;
  // Whoever waited for this thread alone goes on.
  if (!block.barrier.waiting.empty() && int(block.barrier.waiting.size()) == block.running) open(block.barrier);
  if (!cluster.barrier.waiting.empty() && int(cluster.barrier.waiting.size()) == cluster.running) open(cluster.barrier);
  const size_t first = size_t(me.number) / 32 * 32;
  for (size_t i = first; i < std::min(first + 32, block.threads.size()); ++i)
    if (block.threads[i].state == State::kInCollective) try_collective(block.threads[i]);
  if (block.running == 0) block.arrays.clear();  // so that a late access by the cluster's other blocks is caught
}

std::string Gang::deadlock() const {
  struct Group {
    int count = 0;
    std::string first;
  };
  std::map<std::string, Group> groups;
  for (const Cluster& cluster : clusters_)
    for (const Block& block : cluster.blocks)
      for (const Thread& t : block.threads)
        if (t.state != State::kFinished) {
          Group& group = groups[wait_of(t)];
          if (group.count++ == 0) group.first = name_of(t);
        }
  std::string report = "deadlock:";
  for (const auto& [place, group] : groups)
    report += text("\n  %d waiting in %s (the first: %s)", group.count, place.c_str(), group.first.c_str());
  return report;
}

}  // namespace simt
