// Convolutions and fully connected layers as sparse products.
// Activations are dense fp32, (images, channels, height, width).
#pragma once
#include "spmm.hpp"

namespace gossamer {

struct Extent {
  int64_t height = 1, width = 1;
};

struct ConvShape {
  int64_t channels = 1;
  Extent input, kernel, stride, padding{0, 0}, dilation;

  Extent output() const {
    return {(input.height + 2 * padding.height - dilation.height * (kernel.height - 1) - 1) / stride.height + 1,
            (input.width + 2 * padding.width - dilation.width * (kernel.width - 1) - 1) / stride.width + 1};
  }
};

// a: (out channels, channels * kernel height * kernel width). Dense weights run well as full blocks of 8.
// Throws std::bad_alloc.
void conv(const BlockMatrix& a, const ConvShape& shape, int64_t images, const float* x, float* y,
          const Epilogue& after, int threads);

// y (batch, rows) = activation(x (batch, columns) a^T + bias + residual (batch, rows)). Throws std::bad_alloc.
void linear(const BlockMatrix& a, int64_t batch, const float* x, float* y, const Epilogue& after, int threads);

}  // namespace gossamer
