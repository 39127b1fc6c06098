// ExecuTorch's own thread pool. The wheel exports these symbols and ships no header that declares them.
#pragma once

#include <cstddef>
#include <cstdint>

namespace executorch::extension::threadpool {

class ThreadPool {
 public:
  size_t get_thread_count() const;
  bool _unsafe_reset_threadpool(uint32_t threads);
};

ThreadPool* get_threadpool();

}  // namespace executorch::extension::threadpool
