// Scratch memory of one call: a slot for each thread that works on it, kept for the next call of this thread.
#pragma once
#include <atomic>
#include <cstdint>
#include <memory>
#include <new>

namespace gossamer {

// 64-byte aligned floats that only grow.
class Scratch {
 public:
  float* floats(int64_t count) {
    if (count > size_) {
      memory_.reset();
      size_ = 0;
      memory_.reset(static_cast<float*>(::operator new(sizeof(float) * static_cast<size_t>(count), kAlign)));
      size_ = count;
    }
    return memory_.get();
  }

 private:
  static constexpr std::align_val_t kAlign{64};
  struct Free {
    void operator()(float* p) const { ::operator delete(p, kAlign); }
  };
  std::unique_ptr<float, Free> memory_;
  int64_t size_ = 0;
};

// One slot of `floats` for each of `count` threads.
class Slots {
 public:
  static constexpr int kMost = 256;

  Slots(Scratch& scratch, int count, int64_t floats)
      : count_(count), size_((floats + 15) / 16 * 16), memory_(scratch.floats(count * size_)) {}

  class Lease {
   public:
    explicit Lease(Slots& slots) : slots_(slots) {
      while (slots_.taken_[index_].exchange(true, std::memory_order_acquire)) index_ = (index_ + 1) % slots_.count_;
    }
    ~Lease() { slots_.taken_[index_].store(false, std::memory_order_release); }
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;
    float* floats() const { return slots_.memory_ + index_ * slots_.size_; }

   private:
    Slots& slots_;
    int index_ = 0;
  };

 private:
  int count_;
  int64_t size_;
  float* memory_;
  std::atomic<bool> taken_[kMost] = {};
};

}  // namespace gossamer
