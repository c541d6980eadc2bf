#include "scheduler.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <map>
#include <utility>

namespace simt {

SIMT_TLS ThreadIndex* self = nullptr;
SIMT_TLS Gang* gang = nullptr;
Watcher* watcher = nullptr;

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

static bool same_text(const char* a, const char* b) { return a == b || std::strcmp(a, b) == 0; }

bool same_place(const Thread& a, const Thread& b) {
  return a.where.line() == b.where.line() && a.where.column() == b.where.column() &&
         same_text(a.where.file_name(), b.where.file_name()) && same_text(a.name, b.name);
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
      block.warps.resize((threads + 31) / 32);
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
        t.warp().running |= t.bit();
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
  thread.warp().in_barrier &= ~thread.bit();
  thread.warp().in_collective &= ~thread.bit();
  ready_.push_back(&thread);
  idle_ = 0;
}

void Gang::arrive(Thread& me, Barrier& barrier, bool vote) {
  if (!barrier.first) barrier.first = &me;
  if (!same_place(*barrier.first, me))
    fail("divergent barrier: arrives in %s, while %s waits in %s", wait_of(me).c_str(), name_of(*barrier.first).c_str(),
         wait_of(*barrier.first).c_str());
  me.warp().in_barrier |= me.bit();
  ++barrier.votes.arrived;
  barrier.votes.in_favour += vote;
}

void Gang::open(Barrier& barrier, Block& block, State state) {
  for (Thread& t : block.threads) {
    if (t.state != state) continue;
    t.votes = barrier.votes;
    wake(t);
  }
}

void Gang::open_cluster(Cluster& cluster) {
  cluster.in_step = true;
  for (Block& block : cluster.blocks) {
    if (watcher) watcher->block_in_step(block);
    open(cluster.barrier, block, State::kInClusterBarrier);
  }
  cluster.barrier = {};
}

void Gang::block_barrier(Thread& me, bool vote) {
  Block& block = *me.owner;
  me.state = State::kInBarrier;
  arrive(me, block.barrier, vote);
  if (block.barrier.votes.arrived == block.running) {
    if (watcher) watcher->block_in_step(block);
    open(block.barrier, block, State::kInBarrier);
    block.barrier = {};
  }
  wait(me);
}

void Gang::cluster_barrier(Thread& me) {
  Cluster& cluster = *me.owner->cluster;
  me.state = State::kInClusterBarrier;
  arrive(me, cluster.barrier, false);
  if (cluster.barrier.votes.arrived == cluster.running) open_cluster(cluster);
  wait(me);
}

void Gang::collective(Thread& me) {
  me.state = State::kInCollective;
  if (!(me.mask & me.bit())) fail("calls %s: its own lane %d is not in the mask", wait_of(me).c_str(), me.lane);
  Warp& warp = me.warp();
  Thread* const lanes = &me - me.lane;
  const unsigned others = me.mask & (warp.in_barrier | warp.in_collective);
  for (int lane = 0; lane < 32; ++lane) {
    if (!(others >> lane & 1u)) continue;
    const Thread& other = lanes[lane];
    if (same_wait(other, me)) break;  // and so is everyone else who waits with it
    // A lane may wait elsewhere and come later, but not when it needs this lane for that, nor from this very call.
    if (other.state != State::kInCollective || (other.mask & me.bit()) || same_place(other, me))
      fail("divergent warp: lane %d calls %s, while lane %d, which the mask names, waits in %s", me.lane,
           wait_of(me).c_str(), lane, wait_of(other).c_str());
  }
  warp.in_collective |= me.bit();
  try_collective(me);
  wait(me);
}

// Completes the collective that this thread waits in, if all of its lanes have come.
void Gang::try_collective(Thread& waiting) {
  Thread* const lanes = &waiting - waiting.lane;
  const unsigned expected = waiting.mask & waiting.warp().running;
  if ((waiting.warp().in_collective & expected) != expected) return;
  Exchange exchange = {waiting.name, waiting.where, expected, {}, {}, {}};
  for (int lane = 0; lane < 32; ++lane) {
    if (!(expected >> lane & 1u)) continue;
    if (!same_wait(lanes[lane], waiting)) return;
    exchange.values[lane] = lanes[lane].value;
    exchange.arguments[lane] = lanes[lane].argument;
  }
  Watcher* const watching = std::exchange(watcher, nullptr);  // what combine does, no GPU does
  waiting.combine(exchange);
  watcher = watching;
  if (watcher && expected == waiting.warp().running) watcher->warp_in_step(*waiting.owner, waiting.warp());
  for (int lane = 0; lane < 32; ++lane) {
    if (!(expected >> lane & 1u)) continue;
    lanes[lane].result = exchange.results[lane];
    wake(lanes[lane]);
  }
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
  me.warp().running &= ~me.bit();
  --block.running;
  --cluster.running;
  --unfinished_;
  idle_ = 0;
  // Whoever waited for this thread alone goes on.
  if (block.barrier.first && block.barrier.votes.arrived == block.running) {
    open(block.barrier, block, State::kInBarrier);
    block.barrier = {};
  }
  if (cluster.barrier.first && cluster.barrier.votes.arrived == cluster.running) open_cluster(cluster);
  Thread* const lanes = &me - me.lane;
  for (int lane = 0; lane < 32; ++lane)
    if (me.warp().in_collective >> lane & 1u) try_collective(lanes[lane]);
  if (block.running == 0 && watcher) watcher->block_ends(block);
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
