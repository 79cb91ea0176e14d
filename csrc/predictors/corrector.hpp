// A simplified TAGE-SC-L (Seznec 2014, 2016): TAGE, a loop predictor, and a statistical corrector that may revert TAGE.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <vector>

#include "history.hpp"
#include "tage.hpp"

namespace gossamer {

// Branches that go one way a constant number of times and then once the other way.
class LoopPredictor {
 public:
  explicit LoopPredictor(int log_size) : log_size_(log_size), entries_(1ull << log_size) {}
  bool sure(uint64_t pc) {
    entry_ = &entries_[pc & ((1ull << log_size_) - 1)];
    tag_ = static_cast<uint32_t>(pc >> log_size_) & kTag;
    hit_ = entry_->age > 0 && entry_->tag == tag_;
    guess_ = entry_->now < entry_->trips ? entry_->way : !entry_->way;
    return hit_ && entry_->confidence == kSure;
  }
  bool guess() const { return guess_; }
  // `missed`: the main predictor was wrong about this branch.
  void update(bool taken, bool missed) {
    Entry& e = *entry_;
    if (!hit_) {
      if (!missed) return;
      if (e.age > 0) --e.age;
      else e = {tag_, 0, 0, 0, kAge, !taken};
      return;
    }
    if (e.confidence == kSure) {
      if (guess_ != taken) {
        e = {};
        return;
      }
      if (missed && e.age < kAge) ++e.age;
    }
    if (taken == e.way) {
      ++e.now;
      if (e.now > kTrips || (e.trips && e.now > e.trips)) e.confidence = 0, e.trips = 0;
      if (e.now > kTrips) e.age = 0;
    } else if (e.now == 0) {
      e = {};  // twice the other way: the loop runs in that direction
    } else {
      if (e.trips && e.now == e.trips) e.confidence += e.confidence < kSure;
      else e.trips = e.now, e.confidence = 0;
      e.now = 0;
    }
  }

 private:
  static constexpr uint32_t kTag = 0x3ff, kTrips = 1023;
  static constexpr int kSure = 3, kAge = 7;
  struct Entry {
    uint32_t tag = 0, trips = 0, now = 0;
    int confidence = 0, age = 0;
    bool way = false;
  };
  int log_size_;
  std::vector<Entry> entries_;
  Entry* entry_ = nullptr;
  uint32_t tag_ = 0;
  bool hit_ = false, guess_ = false;
};

template <int N>  // room for so many tables of TAGE
class TageScl {
 public:
  TageScl(const std::vector<int>& lengths, int log_base, int log_size, int tag_bits, int log_loops, int log_corrector,
          const std::vector<int>& global, const std::vector<int>& local)
      : tage_(lengths, log_base, log_size, tag_bits), loops_(log_loops), log_(log_corrector),
        mask_((1u << log_corrector) - 1), global_(global), local_(local),
        tables_((2 + global.size() + local.size()) << log_corrector, 0), at_(2 + global.size() + local.size(), 0),
        folds_(global, log_corrector), past_(global.back()), locals_(kLocals, 0) {}

  bool predict(uint64_t pc) {
    main_ = tage_.predict(pc);
    const int confidence = tage_.confidence(pc);
    sure_ = loops_.sure(pc);
    looped_ = sure_ && trust_ >= 0;
    before_ = looped_ ? loops_.guess() : main_;
    const uint32_t low = static_cast<uint32_t>(pc ^ (pc >> log_));
    size_t t = 0;
    const auto add = [&](uint32_t index) { at_[t] = static_cast<uint32_t>(t << log_) + (index & mask_), ++t; };
    add(low << 1 ^ before_);
    add(low << 3 ^ static_cast<uint32_t>(confidence << 1) ^ before_);
    for (size_t i = 0; i < global_.size(); ++i) add(low ^ static_cast<uint32_t>(pc >> (i + 1)) ^ folds_[i]);
    own_ = &locals_[pc & (kLocals - 1)];
    for (int length : local_) add(low ^ fold(*own_ & ((1u << length) - 1)));
    sum_ = 2 * (2 * tables_[at_[0]] + 1) + 2 * (2 * tables_[at_[1]] + 1);
    for (size_t i = 2; i < at_.size(); ++i) sum_ += 2 * tables_[at_[i]] + 1;
    const int needed = confidence == 3 ? threshold() : threshold() / 2;
    guess_ = !looped_ && std::abs(sum_) >= needed ? sum_ >= 0 : before_;
    return guess_;
  }

  void update(uint64_t pc, bool taken, bool quiet = false) {
    const bool corrected = sum_ >= 0;
    if (sure_ && loops_.guess() != main_) saturate(trust_, loops_.guess() == taken, -64, 63);
    loops_.update(taken, main_ != taken);
    if (corrected != before_ && !looped_) adapt(corrected == taken);
    if (corrected != taken || std::abs(sum_) < threshold())
      for (uint32_t place : at_) saturate(tables_[place], taken, -32, 31);
    *own_ = *own_ << 1 | taken;
    for (size_t i = 0; i < global_.size(); ++i) leaving_[i] = 0u - past_[global_[i] - 1];
    folds_.push(taken, leaving_);
    past_.push(taken);
    tage_.update(pc, taken, quiet);
  }

 private:
  static constexpr uint64_t kLocals = 256;
  static constexpr int kGlobals = 8;
  int threshold() const { return needed_ >> 3; }
  void adapt(bool right) {
    if (right && needed_ > 8 * 4) --needed_;
    if (!right && needed_ < 8 * 255) ++needed_;
  }
  uint32_t fold(uint32_t bits) const { return bits ^ (bits >> log_); }

  Tage<N> tage_;
  LoopPredictor loops_;
  int log_;
  uint32_t mask_;
  std::vector<int> global_, local_;
  std::vector<int8_t> tables_;
  std::vector<uint32_t> at_;
  uint32_t leaving_[kGlobals] = {};
  Folds<kGlobals> folds_;
  Window<uint8_t> past_;
  std::vector<uint32_t> locals_;
  uint32_t* own_ = nullptr;
  int needed_ = 8 * 35, sum_ = 0;
  int8_t trust_ = 0;
  bool main_ = false, before_ = false, sure_ = false, looped_ = false, guess_ = false;
};

}  // namespace gossamer
