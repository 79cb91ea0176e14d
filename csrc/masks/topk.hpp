// Exact selection of the k largest of each row, ties to the lower index.
#pragma once
#include <cstdint>

namespace gossamer {

// mask[i] is 1 for exactly `keep` of the `count` scores, 0 for the others. False when a score is NaN.
// Allocates nothing.
bool topk_row(const float* scores, uint8_t* mask, int64_t count, int64_t keep);

}  // namespace gossamer
