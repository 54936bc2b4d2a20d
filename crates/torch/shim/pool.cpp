// Memory of large CPU tensors: whole pages from the kernel, kept for the next tensor of about the same size.
//
// The C library's heap mixes what a layer keeps for its backward pass with temporaries of a moment, and the holes that
// these leave fit nothing: a training step came to hold twice what it used. Here a freed block waits by itself, and the
// blocks that wait never push the process above what tensors alone have already needed: past that the oldest go back to
// the kernel. So the peak is that of the tensors, and after the first step hardly a page is asked for again.

#include "shim.h"

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/alloc_cpu.h>
#include <c10/util/Exception.h>
#include <sys/mman.h>

#include <cerrno>
#include <cstring>
#include <iterator>
#include <list>
#include <map>
#include <mutex>
#include <unordered_map>

namespace {

// Smaller tensors stay on the heap, which is good at them.
constexpr size_t kLarge = size_t{256} << 10;
constexpr size_t kPage = size_t{4} << 10;

size_t whole_pages(size_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }

class Pool {
 public:
  void* take(size_t bytes) {
    std::lock_guard<std::mutex> guard(lock_);
    bytes = whole_pages(bytes);
    // A block of somebody else's size is taken if little of it would be wasted.
    auto found = by_size_.lower_bound(bytes);
    if (found != by_size_.end() && found->first <= bytes + bytes / 8) {
      const auto waiting = found->second;
      by_size_.erase(found);
      void* block = waiting->block;
      const size_t size = waiting->size;
      waiting_.erase(waiting);
      waiting_bytes_ -= size;
      return lend(block, size);
    }
    shrink(bytes);
    void* block = map(bytes);
    if (block == nullptr) {
      drop_waiting();
      block = map(bytes);
    }
    // In the words of c10's own allocator: callers tell want of memory from a defect by them.
    TORCH_CHECK(block != nullptr, "DefaultCPUAllocator: can't allocate memory: you tried to allocate ", bytes,
                " bytes. Error code ", errno, " (", std::strerror(errno), ")");
    return lend(block, bytes);
  }

  // False where the block is none of ours.
  bool give_back(void* block) {
    std::lock_guard<std::mutex> guard(lock_);
    const auto found = lent_.find(block);
    if (found == lent_.end()) return false;
    const size_t size = found->second;
    lent_.erase(found);
    lent_bytes_ -= size;
    waiting_.push_back({block, size, {}});
    const auto last = std::prev(waiting_.end());
    last->place = by_size_.emplace(size, last);
    waiting_bytes_ += size;
    shrink(0);
    return true;
  }

  void drop() {
    std::lock_guard<std::mutex> guard(lock_);
    drop_waiting();
    peak_bytes_ = lent_bytes_;
  }

  void bytes(uint64_t* lent, uint64_t* peak) {
    std::lock_guard<std::mutex> guard(lock_);
    *lent = lent_bytes_;
    *peak = peak_bytes_;
  }

 private:
  struct Waiting;
  using Line = std::list<Waiting>;  // the oldest first
  using Sizes = std::multimap<size_t, Line::iterator>;
  struct Waiting {
    void* block;
    size_t size;
    Sizes::iterator place;
  };

  void* lend(void* block, size_t size) {
    lent_.emplace(block, size);
    lent_bytes_ += size;
    if (lent_bytes_ > peak_bytes_) peak_bytes_ = lent_bytes_;
    return block;
  }

  // Lets blocks go until what is lent, what waits and `more` are within the peak of what was lent.
  void shrink(size_t more) {
    while (!waiting_.empty() && lent_bytes_ + waiting_bytes_ + more > peak_bytes_) release(waiting_.begin());
  }

  void drop_waiting() {
    while (!waiting_.empty()) release(waiting_.begin());
  }

  void release(Line::iterator waiting) {
    munmap(waiting->block, waiting->size);
    waiting_bytes_ -= waiting->size;
    by_size_.erase(waiting->place);
    waiting_.erase(waiting);
  }

  static void* map(size_t bytes) {
    void* block = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return block == MAP_FAILED ? nullptr : block;
  }

  std::mutex lock_;
  std::unordered_map<void*, size_t> lent_;
  Line waiting_;
  Sizes by_size_;
  size_t lent_bytes_ = 0, waiting_bytes_ = 0, peak_bytes_ = 0;
};

// Never destroyed: tensors in statics may outlive everything else.
Pool& pool() {
  static Pool* const instance = new Pool();
  return *instance;
}

void give_back(void* block) {
  if (block != nullptr && !pool().give_back(block)) c10::free_cpu(block);
}

struct PoolAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* block = bytes < kLarge ? c10::alloc_cpu(bytes) : pool().take(bytes);
    return {block, block, &give_back, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &give_back; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override { default_copy_data(to, from, bytes); }
};

}  // namespace

extern "C" {

void tailor_use_pool() {
  static PoolAllocator* const allocator = [] {
    auto* made = new PoolAllocator();
    c10::SetCPUAllocator(made, /*priority=*/1);
    return made;
  }();
  (void)allocator;
}

void tailor_drop_pool() { pool().drop(); }

void tailor_pool_bytes(uint64_t* lent, uint64_t* peak) { pool().bytes(lent, peak); }
}
