// Products of 8-bit integers: a sparse matrix with a scale for each row, times vectors that are rounded as they come.
#pragma once
#include <cstdint>

#include "../core/dispatch.hpp"
#include "activation.hpp"

namespace gossamer {

// Weights by row, not owned: values[pointers[n]] up to values[pointers[n + 1]] are row n's, by rising column, where its
// bits are set (as in RowMatrix). Values lie in -127 .. 127, and kBytesBeyond more than there are can be read.
struct Int8Matrix {
  int64_t rows = 0, columns = 0;  // columns <= kMostInt8Columns: sums fit 32 bits
  const int32_t* pointers = nullptr;
  const int8_t* values = nullptr;
  const uint64_t* bits = nullptr;
  const float* scales = nullptr;      // of each row: weight = value * scale
  const int32_t* offsets = nullptr;   // 128 times the sum of each row's values
};

constexpr int64_t kBytesBeyond = 64;
constexpr int64_t kMostInt8Columns = 1 << 16;

// The same numbers for few weights, which bits would spend a word of 64 columns on: rows go in groups of kGroup, columns
// in panels of kPanel, and a step holds four weights of each row of a group from one panel. The steps of (group g,
// panel p) are starts[g * panels + p] up to the next start. Rows with fewer weights are filled up with zeros.
struct Int8Steps {
  static constexpr int64_t kGroup = 16, kPanel = 128, kStep = 64;
  int64_t rows = 0, columns = 0;
  const int32_t* starts = nullptr;
  const int8_t* values = nullptr;     // kStep for each step: four of row 0, four of row 1, ...
  const uint8_t* places = nullptr;    // of each value: its column in the panel
  const float* scales = nullptr;      // as in Int8Matrix, and so are the offsets
  const int32_t* offsets = nullptr;

  int64_t groups() const { return (rows + kGroup - 1) / kGroup; }
  int64_t panels() const { return (columns + kPanel - 1) / kPanel; }
};

struct Int8Kernels {
  // x to 128 + round(x * 127 / max |x|), 128 beyond `count` up to the next multiple of 64; returns max |x| / 127.
  float (*round)(const float* x, int64_t count, uint8_t* out);
  // Rows [begin, end): y = activation(float(sum of integers) * (row's scale * scale) + bias + residual).
  void (*multiply)(const Int8Matrix& a, const uint8_t* x, float scale, float* y, const Epilogue& after, int64_t begin,
                   int64_t end);
  // The same, by instructions that have features of their own (int8_fast); null where the level has none.
  void (*multiply_fast)(const Int8Matrix& a, const uint8_t* x, float scale, float* y, const Epilogue& after,
                        int64_t begin, int64_t end);
  // Groups [begin, end), likewise. x is readable up to a whole panel.
  void (*multiply_steps)(const Int8Steps& a, const uint8_t* x, float scale, float* y, const Epilogue& after,
                         int64_t begin, int64_t end);
  void (*multiply_steps_fast)(const Int8Steps& a, const uint8_t* x, float scale, float* y, const Epilogue& after,
                              int64_t begin, int64_t end);
};

GOSSAMER_DISPATCH(Int8Kernels, int8_kernels)

// `batch` vectors on up to `threads` threads. The same bits for any number of them, and at every level.
// Throws std::bad_alloc.
void gemv_int8(const Int8Matrix& a, int64_t batch, const float* x, float* y, const Epilogue& after, int threads);
void gemv_int8(const Int8Steps& a, int64_t batch, const float* x, float* y, const Epilogue& after, int threads);

}  // namespace gossamer
