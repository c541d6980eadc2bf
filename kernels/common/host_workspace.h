// A workspace for the CPU launchers, for callers whose allocator promises less than they need.
#pragma once
#include <new>

#include "workspace.h"

namespace frcnn_fast {

class HostWorkspace {
 public:
  explicit HostWorkspace(size_t bytes) : data_(::operator new(bytes, kAlignment)) {}
  ~HostWorkspace() { ::operator delete(data_, kAlignment); }
  HostWorkspace(const HostWorkspace&) = delete;
  HostWorkspace& operator=(const HostWorkspace&) = delete;
  void* data() const { return data_; }

 private:
  static constexpr std::align_val_t kAlignment{kWorkspaceAlignment};
  void* data_;
};

}  // namespace frcnn_fast
