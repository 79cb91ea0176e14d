// What surrounds the products: depthwise convolution, pooling, addition, activation, transposition.
// Tensors are dense fp32, (planes, height, width) where a plane is one channel of one image.
#pragma once
#include <cstdint>

#include "../core/dispatch.hpp"
#include "activation.hpp"

namespace gossamer {

// Depthwise convolution with a square kernel of 3 or 5 and stride 1 or 2; 0 <= padding < kernel.
struct Depthwise {
  int64_t channels = 1, height = 1, width = 1;  // of the input; planes are images * channels
  int64_t kernel = 3, stride = 1, padding = 1;
  const float* weight = nullptr;  // (channels, kernel, kernel)
  const float* x = nullptr;
  float* y = nullptr;
  Epilogue after;  // bias by channel

  int64_t out(int64_t length) const { return (length + 2 * padding - kernel) / stride + 1; }
};

struct MaxPool {
  int64_t height = 1, width = 1, kernel = 2, stride = 2, padding = 0;  // padding <= kernel / 2
  const float* x = nullptr;
  float* y = nullptr;

  int64_t out(int64_t length) const { return (length + 2 * padding - kernel) / stride + 1; }
};

struct PointwiseKernels {
  void (*depthwise)(const Depthwise& job, int64_t begin, int64_t end);  // planes
  void (*max_pool)(const MaxPool& job, int64_t begin, int64_t end);     // planes; a NaN stays
  void (*mean)(const float* x, float* y, int64_t length, int64_t begin, int64_t end);  // of each row
  // y = activation(a + b); b may be null. y may be a or b.
  void (*add)(const float* a, const float* b, float* y, Activation activation, int64_t count);
  // Rows [begin, end) of x (rows, columns) into the columns of y (columns, rows).
  void (*transpose)(const float* x, int64_t rows, int64_t columns, float* y, int64_t begin, int64_t end);
};

GOSSAMER_DISPATCH(PointwiseKernels, pointwise_kernels)

// The same over everything, on up to `threads` threads.
void depthwise(const Depthwise& job, int64_t images, int threads);
void max_pool(const MaxPool& job, int64_t planes, int threads);
void mean(const float* x, float* y, int64_t rows, int64_t length, int threads);
void add(const float* a, const float* b, float* y, Activation activation, int64_t count, int threads);
void transpose(const float* x, int64_t rows, int64_t columns, float* y, int threads);

}  // namespace gossamer
