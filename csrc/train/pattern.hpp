// Making patterns from masks, and moving numbers between dense matrices and packed values.
#pragma once
#include "layout.hpp"

namespace gossamer {

struct Geometry {
  int64_t outputs, inputs, nonzeros, forward_block, forward_panel, backward_block, backward_panel;
};

int64_t pattern_words(const Geometry& geometry);

// A view of a buffer; throws std::invalid_argument when the buffer is no pattern or has another length.
Pattern view_pattern(int32_t* words, int64_t count);

// `words` has room for pattern_words(geometry); mask is bytes [outputs][inputs] with geometry.nonzeros set.
void pack_pattern(int32_t* words, const Geometry& geometry, const uint8_t* mask, int threads);

// values = dense at the pattern, and back. `dense` is [outputs][inputs]; what is off the pattern is left alone.
void gather_dense(const Pattern& pattern, const float* dense, float* values, int threads);
void scatter_dense(const Pattern& pattern, const float* values, float* dense, int threads);

// New values by pattern `next`: those of `last` where both have the entry, else 0. The geometries are the same but for
// the number of non-zeros.
void transfer(const Pattern& last, const float* old_values, const Pattern& next, float* new_values, int threads);

}  // namespace gossamer
