// Linear predictors: one weight per position of the history, or one per hashed piece of it.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <vector>

#include "history.hpp"

namespace gossamer {

// Jimenez and Lin 2001. Entry layout: the weight of the bias, then one of each position; row pc mod entries.
class Perceptron {
 public:
  Perceptron(int entries, int history, int threshold)
      : entries_(entries), history_(history), threshold_(threshold),
        weights_(static_cast<size_t>(entries) * (history + 1), 0), past_(std::max(history, 1)) {}
  bool predict(uint64_t pc) {
    row_ = weights_.data() + (pc % entries_) * (history_ + 1);
    const int8_t* const x = past_.newest();
    int sum = 0;
    for (int k = 0; k < history_; ++k) sum += row_[1 + k] * x[k];
    sum_ = row_[0] + sum;
    return sum_ >= 0;
  }
  void update(uint64_t, bool taken, bool = false) {
    const int8_t sign = taken ? 1 : -1;
    if ((sum_ >= 0) != taken || std::abs(sum_) <= threshold_) {
      const int8_t* const x = past_.newest();
      row_[0] = clamp(row_[0] + sign);
      for (int k = 0; k < history_; ++k) row_[1 + k] = clamp(row_[1 + k] + sign * x[k]);
    }
    past_.push(sign);
  }

 private:
  static int8_t clamp(int value) { return static_cast<int8_t>(value < -128 ? -128 : value > 127 ? 127 : value); }
  uint64_t entries_;
  int history_, threshold_, sum_ = 0;
  std::vector<int8_t> weights_;
  int8_t* row_ = nullptr;
  Window<int8_t> past_;
};

// Seznec 2005 (O-GEHL), Tarjan and Skadron 2005: tables of counters, each indexed by the branch and a longer piece of
// the history; their sum decides. The training threshold adapts.
template <int N>  // room for so many tables
class HashedPerceptron {
 public:
  HashedPerceptron(const std::vector<int>& lengths, int log_size, int bits)
      : lengths_(lengths), log_size_(log_size), high_((1 << (bits - 1)) - 1), low_(-(1 << (bits - 1))),
        mask_((1u << log_size) - 1), tables_(lengths.size() << log_size, 0), at_(lengths.size(), 0),
        folds_(lengths, log_size),
        past_(std::max(lengths.back(), 1)), threshold_(static_cast<int>(lengths.size())) {}
  bool predict(uint64_t pc) {
    sum_ = 0;
    for (size_t i = 0; i < at_.size(); ++i) {
      const uint64_t mixed = pc ^ (pc >> (i % log_size_ + 1)) ^ folds_[i];
      at_[i] = (static_cast<uint32_t>(i) << log_size_) + static_cast<uint32_t>(mixed & mask_);
      sum_ += 2 * tables_[at_[i]] + 1;
    }
    return sum_ >= 0;
  }
  void update(uint64_t, bool taken, bool = false) {
    const bool wrong = (sum_ >= 0) != taken;
    if (wrong || std::abs(sum_) <= threshold_) {
      for (uint32_t place : at_) saturate(tables_[place], taken, low_, high_);
      adapt(wrong);
    }
    for (size_t i = 0; i < at_.size(); ++i) leaving_[i] = lengths_[i] ? 0u - past_[lengths_[i] - 1] : 0;
    folds_.push(taken, leaving_);
    past_.push(taken);
  }

 private:
  void adapt(bool wrong) {
    trend_ += wrong ? 1 : -1;
    if (trend_ == 63) ++threshold_, trend_ = 0;
    if (trend_ == -64) threshold_ -= threshold_ > 0, trend_ = 0;
  }
  std::vector<int> lengths_;
  int log_size_, high_, low_;
  uint32_t mask_;
  std::vector<int8_t> tables_;
  std::vector<uint32_t> at_;
  uint32_t leaving_[N] = {};
  Folds<N> folds_;
  Window<uint8_t> past_;
  int threshold_, trend_ = 0, sum_ = 0;
};

}  // namespace gossamer
