// Sparse matrix times vector: y[n] = activation(sum_k a[n][k] x[k] + bias[n] + residual[n]).
#pragma once
#include <cstdint>

#include "../core/dispatch.hpp"
#include "activation.hpp"

namespace gossamer {

// Sparse weights by row, not owned: values[pointers[n]] up to values[pointers[n + 1]] are row n's, by rising column.
// Which columns: set bits, or indices where bits is null. Values beside bits may be bfloat16, and are readable for
// kValuesBeyond more than there are.
struct RowMatrix {
  int64_t rows = 0, columns = 0;
  const int32_t* pointers = nullptr;
  const void* values = nullptr;
  const uint16_t* indices = nullptr;  // columns <= 65536
  const uint64_t* bits = nullptr;     // ceil(columns / 64) words a row: bit i of word j is column 64 j + i
};

constexpr int64_t kValuesBeyond = 16;

struct GemvKernels {  // rows [begin, end)
  void (*bitmap_f32)(const RowMatrix& a, const float* x, float* y, const Epilogue& after, int64_t begin, int64_t end);
  void (*bitmap_bf16)(const RowMatrix& a, const float* x, float* y, const Epilogue& after, int64_t begin, int64_t end);
  void (*indexed_f32)(const RowMatrix& a, const float* x, float* y, const Epilogue& after, int64_t begin, int64_t end);
};

GOSSAMER_DISPATCH(GemvKernels, gemv_kernels)

// `batch` vectors one after another, on up to `threads` threads; the bits do not depend on them.
void gemv(const RowMatrix& a, bool is_bf16, int64_t batch, const float* x, float* y, const Epilogue& after,
          int threads);

// False unless every pointer, index, bit and count is in range, for `entries` values.
bool is_valid(const RowMatrix& a, int64_t entries);

}  // namespace gossamer
