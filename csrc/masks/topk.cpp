#include "topk.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>

namespace gossamer {
namespace {

constexpr int64_t kShort = 4096;  // up to here a partial sort on the stack beats counting

bool is_nan(float x) { return x != x; }

// Unsigned numbers in the order of the floats; both zeros are equal.
uint32_t key(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if (bits == 0x80000000u) bits = 0;
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// The smallest key among the `keep` largest.
uint32_t threshold_short(const float* scores, int64_t count, int64_t keep) {
  uint32_t keys[kShort];
  for (int64_t i = 0; i < count; ++i) keys[i] = key(scores[i]);
  std::nth_element(keys, keys + keep - 1, keys + count, std::greater<>());
  return keys[keep - 1];
}

// The same by counting digits from the top: 11, 11 and 10 bits. Four counts that follow one another are kept apart, so
// that they need not wait for each other where most scores are equal (-inf); there are no branches to mispredict.
uint32_t threshold_long(const float* scores, int64_t count, int64_t keep) {
  constexpr int64_t kOther = 2048;  // where scores with other leading digits go
  uint64_t found = 0;               // the digits known so far
  int known = 0;
  for (int bits : {11, 11, 10}) {
    const int shift = 32 - known - bits;
    const uint32_t digits = 1u << bits;
    int64_t counts[4][kOther + 1] = {};
    const auto slot = [&](float score) {
      const uint64_t k = key(score);
      return k >> (32 - known) == found ? static_cast<int64_t>(k >> shift & (digits - 1)) : kOther;
    };
    int64_t i = 0;
    for (; i + 4 <= count; i += 4)
      for (int j = 0; j < 4; ++j) ++counts[j][slot(scores[i + j])];
    for (; i < count; ++i) ++counts[0][slot(scores[i])];
    const auto total = [&](uint32_t d) { return counts[0][d] + counts[1][d] + counts[2][d] + counts[3][d]; };
    uint32_t digit = digits - 1;
    for (; total(digit) < keep; --digit) keep -= total(digit);
    found = found << bits | digit;
    known += bits;
  }
  return static_cast<uint32_t>(found);
}

// The same in one pass, where a sample tells between which keys the threshold lies: those above are counted, those
// between are kept in `room` and partially sorted. False where the sample misled, or too many are equal.
bool threshold_by_sample(const float* scores, int64_t count, int64_t keep, uint8_t* room, uint32_t& threshold) {
  uint32_t sample[kShort];
  for (int64_t i = 0; i < kShort; ++i) sample[i] = key(scores[i * count / kShort]);
  const double rank = double(keep) * kShort / double(count);
  const double spread = 8 + 3 * std::sqrt(rank * (1 - rank / kShort));
  const auto ranked = [&](double place) {
    const int64_t r = static_cast<int64_t>(place);
    std::nth_element(sample, sample + r, sample + kShort, std::greater<>());
    return sample[r];
  };
  const uint32_t low = rank + spread < kShort ? ranked(rank + spread) : 0;
  const uint32_t high = rank > spread ? ranked(rank - spread) : UINT32_MAX;
  uint32_t* between = reinterpret_cast<uint32_t*>((reinterpret_cast<uintptr_t>(room) + 3) & ~uintptr_t(3));
  const int64_t capacity = count / 4 - 1;
  int64_t above = 0, found = 0;
  for (int64_t i = 0; i < count;) {
    const int64_t stop = std::min(count, i + 1024);
    if (found + (stop - i) > capacity) return false;
    for (; i < stop; ++i) {
      const uint32_t k = key(scores[i]);
      above += k > high;
      between[found] = k;
      found += k <= high && k >= low;
    }
  }
  if (above >= keep || above + found < keep) return false;
  std::nth_element(between, between + (keep - above - 1), between + found, std::greater<>());
  threshold = between[keep - above - 1];
  return true;
}

}  // namespace

bool topk_row(const float* scores, uint8_t* mask, int64_t count, int64_t keep) {
  if (count == 0) return true;
  bool clean = true;
  for (int64_t i = 0; i < count; ++i) clean &= !is_nan(scores[i]);
  if (!clean) return false;
  if (keep == 0 || keep == count) {
    std::memset(mask, keep > 0, static_cast<size_t>(count));
    return true;
  }
  uint32_t threshold;
  if (count <= kShort)
    threshold = threshold_short(scores, count, keep);
  else if (count < 16 * kShort || !threshold_by_sample(scores, count, keep, mask, threshold))
    threshold = threshold_long(scores, count, keep);
  int64_t ties = keep;
  for (int64_t i = 0; i < count; ++i) {
    const bool above = key(scores[i]) > threshold;
    mask[i] = above;
    ties -= above;
  }
  for (int64_t i = 0; ties > 0; ++i)
    if (key(scores[i]) == threshold) mask[i] = 1, --ties;
  return true;
}

}  // namespace gossamer
