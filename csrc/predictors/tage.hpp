// TAGE (Seznec and Michaud 2006): tagged tables indexed with geometrically longer histories; the longest match predicts.
#pragma once
#include <bit>
#include <cstdint>
#include <cstdlib>
#include <vector>

#include "counters.hpp"
#include "history.hpp"

namespace gossamer {

constexpr int kDecayAfter = 1024;  // allocations that found no room, before all usefulness is halved

template <int N>  // room for so many tables
class Tage {
 public:
  Tage(const std::vector<int>& lengths, int log_base, int log_size, int tag_bits)
      : count_(static_cast<int>(lengths.size())), log_size_(log_size), mask_((1u << log_size) - 1),
        tag_mask_((1u << tag_bits) - 1), lengths_(lengths), base_(log_base), entries_(lengths.size() << log_size),
        index_(lengths, log_size), tag_(lengths, tag_bits), tag_short_(lengths, tag_bits - 1),
        past_(lengths.empty() ? 1 : lengths.back()) {}

  bool predict(uint64_t pc) {
    const uint32_t low = static_cast<uint32_t>(pc);
    uint32_t hits = 0;
    for (int i = 0; i < N; ++i) tags_[i] = (low ^ tag_[i] ^ (tag_short_[i] << 1)) & tag_mask_;
    for (int i = 0, shift = 1; i < count_; ++i, shift = shift == log_size_ ? 1 : shift + 1) {
      const uint32_t mixed = low ^ static_cast<uint32_t>(pc >> shift) ^ index_[i];
      at_[i] = (static_cast<uint32_t>(i) << log_size_) + (mixed & mask_);
      hits |= static_cast<uint32_t>(entries_[at_[i]].tag == tags_[i]) << i;
    }
    provider_ = std::bit_width(hits) - 1;
    const bool base = base_.predict(pc);
    alternate_ = longest_ = guess_ = base;
    fresh_ = false;
    other_ = -1;
    if (provider_ >= 0) {
      other_ = std::bit_width(hits ^ (1u << provider_)) - 1;
      if (other_ >= 0) alternate_ = entries_[at_[other_]].counter >= 0;
      const Entry& entry = entries_[at_[provider_]];
      longest_ = entry.counter >= 0;
      fresh_ = entry.useful == 0 && (entry.counter == 0 || entry.counter == -1);
      guess_ = fresh_ && prefer_alternate_ >= 0 ? alternate_ : longest_;
    }
    return guess_;
  }

  void update(uint64_t pc, bool taken, bool quiet = false) {
    bool allocate = guess_ != taken && !quiet;
    if (provider_ < 0) {
      base_.update(pc, taken);
    } else {
      Entry& entry = entries_[at_[provider_]];
      if (fresh_) {
        if (longest_ == taken) allocate = false;  // it only has to grow stronger
        if (longest_ != alternate_) saturate(prefer_alternate_, alternate_ == taken, -8, 7);
      }
      if (entry.useful == 0) {
        if (other_ >= 0) saturate(entries_[at_[other_]].counter, taken, -4, 3);
        else base_.update(pc, taken);
      }
      saturate(entry.counter, taken, -4, 3);
      if (longest_ != alternate_) saturate(entry.useful, longest_ == taken, 0, 3);
    }
    if (allocate) grow(taken);
    for (int i = 0; i < count_; ++i) leaving_[i] = 0u - past_[lengths_[i] - 1];
    index_.push(taken, leaving_);
    tag_.push(taken, leaving_);
    tag_short_.push(taken, leaving_);
    past_.push(taken);
  }

  // 0 (weak) .. 3 (strong): how sure the component is that predicted
  int confidence(uint64_t pc) const {
    if (provider_ >= 0) return std::abs(2 * entries_[at_[provider_]].counter + 1) / 2;
    return base_.strong(pc) ? 2 : 0;
  }

 private:
  struct Entry {
    uint16_t tag = 0;
    int8_t counter = 0, useful = 0;
  };

  // Up to two new entries in longer tables than the provider's, never in neighbours.
  void grow(bool taken) {
    int failed = 0, made = 0;
    random_ ^= random_ << 13;
    random_ ^= random_ >> 17;
    random_ ^= random_ << 5;
    int i = provider_ + 1;
    if (i + 1 < count_ && (random_ & 1)) ++i;
    for (; i < count_ && made < 2; ++i) {
      Entry& entry = entries_[at_[i]];
      if (entry.useful) {
        ++failed;
        continue;
      }
      entry = {static_cast<uint16_t>(tags_[i]), static_cast<int8_t>(taken ? 0 : -1), 0};
      ++made, ++i;
    }
    pressure_ = std::max(0, pressure_ + failed - made);
    if (pressure_ < kDecayAfter) return;
    for (Entry& entry : entries_) entry.useful >>= 1;
    pressure_ = 0;
  }

  int count_, log_size_;
  uint32_t mask_, tag_mask_;
  std::vector<int> lengths_;
  Bimodal base_;
  std::vector<Entry> entries_;
  Folds<N> index_, tag_, tag_short_;
  Window<uint8_t> past_;
  alignas(16) uint32_t at_[N] = {}, tags_[N] = {}, leaving_[N] = {};
  int provider_ = -1, other_ = -1, pressure_ = 0;
  bool alternate_ = false, longest_ = false, guess_ = false, fresh_ = false;
  int8_t prefer_alternate_ = 0;
  uint32_t random_ = 1;
};

}  // namespace gossamer
