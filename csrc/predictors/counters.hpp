// Predictors made of two-bit counters.
#pragma once
#include <cstdint>
#include <vector>

#include "history.hpp"

namespace gossamer {

constexpr int8_t kWeaklyNotTaken = 1;

class Bimodal {
 public:
  explicit Bimodal(int log_size) : mask_((1ull << log_size) - 1), table_(1ull << log_size, kWeaklyNotTaken) {}
  bool predict(uint64_t pc) const { return table_[pc & mask_] >= 2; }
  bool strong(uint64_t pc) const { return table_[pc & mask_] == 0 || table_[pc & mask_] == 3; }
  void update(uint64_t pc, bool taken, bool = false) { saturate(table_[pc & mask_], taken, 0, 3); }

 private:
  uint64_t mask_;
  std::vector<int8_t> table_;
};

class Gshare {
 public:
  explicit Gshare(int log_size, int history)
      : mask_((1ull << log_size) - 1), keep_((1ull << history) - 1), table_(1ull << log_size, kWeaklyNotTaken) {}
  bool predict(uint64_t pc) const { return table_[(pc ^ past_) & mask_] >= 2; }
  void update(uint64_t pc, bool taken, bool = false) {
    saturate(table_[(pc ^ past_) & mask_], taken, 0, 3);
    past_ = (past_ << 1 | taken) & keep_;
  }

 private:
  uint64_t mask_, keep_, past_ = 0;
  std::vector<int8_t> table_;
};

// As in the Alpha 21264: a predictor on the history of each branch, one on the history of all, and a chooser.
class Tournament {
 public:
  Tournament(int log_local, int local_history, int global_history)
      : branches_((1ull << log_local) - 1),
        local_keep_((1u << local_history) - 1),
        keep_((1u << global_history) - 1),
        pasts_(1ull << log_local, 0),
        local_(1ull << local_history, 3),
        global_(1ull << global_history, kWeaklyNotTaken),
        choice_(1ull << global_history, kWeaklyNotTaken) {}
  bool predict(uint64_t pc) const {
    return choice_[past_] >= 2 ? global_[past_] >= 2 : local_[pasts_[pc & branches_]] >= 4;
  }
  void update(uint64_t pc, bool taken, bool = false) {
    uint32_t& mine = pasts_[pc & branches_];
    const bool by_local = local_[mine] >= 4, by_global = global_[past_] >= 2;
    if (by_local != by_global) saturate(choice_[past_], by_global == taken, 0, 3);
    saturate(local_[mine], taken, 0, 7);
    saturate(global_[past_], taken, 0, 3);
    mine = (mine << 1 | taken) & local_keep_;
    past_ = (past_ << 1 | taken) & keep_;
  }

 private:
  uint64_t branches_;
  uint32_t local_keep_, keep_, past_ = 0;
  std::vector<uint32_t> pasts_;
  std::vector<int8_t> local_, global_, choice_;
};

}  // namespace gossamer
