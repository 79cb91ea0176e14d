// Global branch history: the outcomes themselves, and foldings of them that are kept up to date in O(1).
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

namespace gossamer {

// The last outcomes, newest first. A window slides down a buffer and is copied up when it reaches the bottom.
template <class T>
class Window {
 public:
  explicit Window(int64_t length) : length_(length), data_(std::max<int64_t>(4 * length, 4096) + length, T{0}) {
    head_ = static_cast<int64_t>(data_.size()) - length_;
  }
  const T* newest() const { return data_.data() + head_; }
  T operator[](int64_t ago) const { return data_[head_ + ago]; }  // 0 = the last branch; T{0} before the first
  void push(T value) {
    if (head_ == 0) {
      const int64_t top = static_cast<int64_t>(data_.size()) - length_;
      std::copy_n(data_.begin(), length_, data_.begin() + top);
      head_ = top;
    }
    data_[--head_] = value;
  }

 private:
  int64_t length_, head_;
  std::vector<T> data_;
};

// For each of up to N lengths L: the last L outcomes folded by exclusive or into `width` bits, bit j (0 = newest) of the
// history landing on bit j mod width. N is fixed so that the compiler works on all of them at once.
template <int N>
class Folds {
 public:
  Folds(const std::vector<int>& lengths, int width) : width_(width), mask_((1u << width) - 1) {
    for (size_t i = 0; i < lengths.size(); ++i)
      if (lengths[i]) in_[i] = 1, out_[i] = 1u << (lengths[i] % width);  // an empty history stays 0
  }
  uint32_t operator[](size_t i) const { return value_[i]; }
  // `leaving[i]`: all ones where the outcome that drops out of length i was taken, else 0; N of them.
  void push(uint32_t taken, const uint32_t* leaving) {
    for (int i = 0; i < N; ++i) {
      const uint32_t shifted = (value_[i] << 1) ^ (taken & in_[i]) ^ (leaving[i] & out_[i]);
      value_[i] = (shifted ^ (shifted >> width_)) & mask_;
    }
  }

 private:
  int width_;
  uint32_t mask_;
  alignas(16) uint32_t value_[N] = {}, in_[N] = {}, out_[N] = {};
};

inline void saturate(int8_t& counter, bool up, int low, int high) {
  if (up && counter < high) ++counter;
  if (!up && counter > low) --counter;
}

}  // namespace gossamer
