// Transposition by blocks of 8 x 8. For kernel sources only.
#pragma once
#include "simd.hpp"

namespace gossamer::GOSSAMER_NS {
namespace {

#if defined(__AVX2__)
GOSSAMER_INLINE void transpose_eight(const float* x, int64_t x_stride, float* y, int64_t y_stride) {
  __m256 a[8], b[8];
  for (int i = 0; i < 8; ++i) a[i] = _mm256_loadu_ps(x + i * x_stride);
  for (int i = 0; i < 8; i += 2) {
    b[i] = _mm256_unpacklo_ps(a[i], a[i + 1]);
    b[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    a[i] = _mm256_shuffle_ps(b[i], b[i + 2], 0x44);
    a[i + 1] = _mm256_shuffle_ps(b[i], b[i + 2], 0xee);
    a[i + 2] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0x44);
    a[i + 3] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    _mm256_storeu_ps(y + i * y_stride, _mm256_permute2f128_ps(a[i], a[i + 4], 0x20));
    _mm256_storeu_ps(y + (i + 4) * y_stride, _mm256_permute2f128_ps(a[i], a[i + 4], 0x31));
  }
}
#else
GOSSAMER_INLINE void transpose_eight(const float* x, int64_t x_stride, float* y, int64_t y_stride) {
  for (int i = 0; i < 8; ++i)
    for (int j = 0; j < 8; ++j) y[j * y_stride + i] = x[i * x_stride + j];
}
#endif

// Rows r .. r + 7 and columns c .. c + 7, or what there is of them.
GOSSAMER_INLINE void transpose_some(const float* x, int64_t x_stride, int64_t rows, int64_t columns, float* y,
                                    int64_t y_stride, int64_t r, int64_t c) {
  if (r + 8 <= rows && c + 8 <= columns)
    return transpose_eight(x + r * x_stride + c, x_stride, y + c * y_stride + r, y_stride);
  for (int64_t i = r; i < r + 8 && i < rows; ++i)
    for (int64_t j = c; j < c + 8 && j < columns; ++j) y[j * y_stride + i] = x[i * x_stride + j];
}

// x (rows, columns) into y (columns, rows); strides are floats from a row to the next. It goes along the longer rows of
// the two, eight at a time: more of them would fall on the same cache lines.
GOSSAMER_OUTLINED void transpose_block(const float* x, int64_t x_stride, int64_t rows, int64_t columns, float* y,
                                       int64_t y_stride) {
  if (x_stride > y_stride) {
    for (int64_t r = 0; r < rows; r += 8)
      for (int64_t c = 0; c < columns; c += 8) transpose_some(x, x_stride, rows, columns, y, y_stride, r, c);
  } else {
    for (int64_t c = 0; c < columns; c += 8)
      for (int64_t r = 0; r < rows; r += 8) transpose_some(x, x_stride, rows, columns, y, y_stride, r, c);
  }
}

}  // namespace
}  // namespace gossamer::GOSSAMER_NS
