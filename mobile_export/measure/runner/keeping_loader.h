// A file loaded by mapping, like ExecuTorch's own loader, but a piece that is freed stays mapped: only its pages go, and those
// read again come back from the file.
//
// With its weight cache on, XNNPACK frees constants that its operators go on reading, a norm's weights for one: in executorch
// 1.5 the first call crashes (pytorch/executorch#22779).
#pragma once

#include <executorch/extension/data_loader/mmap_data_loader.h>
#include <sys/mman.h>
#include <unistd.h>

#include <deque>
#include <mutex>
#include <utility>

namespace mobile_export {

class KeepingLoader : public executorch::runtime::DataLoader {
  using Buffer = executorch::runtime::FreeableBuffer;
  using Error = executorch::runtime::Error;

 public:
  explicit KeepingLoader(executorch::extension::MmapDataLoader&& loader) : loader_(std::move(loader)) {}

  executorch::runtime::Result<Buffer> load(size_t offset, size_t size, const SegmentInfo& segment) const override {
    auto loaded = loader_.load(offset, size, segment);
    if (!loaded.ok()) return loaded.error();
    const std::lock_guard<std::mutex> lock(mutex_);
    kept_.push_back(std::move(*loaded));
    return Buffer(kept_.back().data(), kept_.back().size(), drop_pages);
  }

  Error load_into(size_t offset, size_t size, const SegmentInfo& segment, void* buffer) const override {
    return loader_.load_into(offset, size, segment, buffer);
  }

  executorch::runtime::Result<size_t> size() const override { return loader_.size(); }

 private:
  static void drop_pages(void*, void* data, size_t size) {
    const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
    const auto address = reinterpret_cast<uintptr_t>(data), first = address / page * page;
    madvise(reinterpret_cast<void*>(first), address - first + size, MADV_DONTNEED);
  }

  executorch::extension::MmapDataLoader loader_;
  mutable std::mutex mutex_;
  mutable std::deque<Buffer> kept_;
};

}  // namespace mobile_export
