// The side table of sparse models: a few signed bits of a long history are added up for the branches that it holds.
#pragma once
#include <cstdint>
#include <vector>

#include "history.hpp"

namespace gossamer {

struct SideTable {
  const std::vector<int>& offsets;    // of entry e's terms: offsets[e] .. offsets[e + 1]
  const std::vector<int>& positions;  // below `history`: branches ago, else outcomes of the entry's own branch ago
  const std::vector<int>& weights;
  const std::vector<int>& biases;
  int history, threshold, highest;  // the usefulness counter: used from `threshold` on, at most `highest`
};

// entry[i]: the entry that branch i hits, or -1. guess[i]: the entry's where it is trusted, else base[i].
// Outcomes before the first branch count as 0.
inline void play_side(const SideTable& t, const int32_t* entry, const uint8_t* taken, const uint8_t* base,
                      uint8_t* guess, int64_t count) {
  const size_t entries = t.biases.size();
  constexpr int kLocal = 64;
  std::vector<int8_t> useful(entries, static_cast<int8_t>(t.threshold));
  std::vector<int8_t> own(entries * kLocal, 0);  // ring of +-1, newest at own_head
  std::vector<int> head(entries, 0);
  Window<int8_t> past(std::max(1, t.history));
  for (int64_t i = 0; i < count; ++i) {
    const int8_t outcome = taken[i] ? 1 : -1;
    guess[i] = base[i];
    if (const int32_t e = entry[i]; e >= 0) {
      int8_t* const mine = own.data() + e * kLocal;
      int sum = t.biases[e];
      for (int k = t.offsets[e]; k < t.offsets[e + 1]; ++k) {
        const int p = t.positions[k];
        sum += t.weights[k] * (p < t.history ? past[p] : mine[(head[e] + p - t.history) % kLocal]);
      }
      const bool sparse = sum >= 0;
      if (useful[e] >= t.threshold) guess[i] = sparse;
      if (sparse != static_cast<bool>(base[i])) saturate(useful[e], sparse == static_cast<bool>(taken[i]), 0, t.highest);
      head[e] = (head[e] + kLocal - 1) % kLocal;
      mine[head[e]] = outcome;
    }
    past.push(outcome);
  }
}

}  // namespace gossamer
